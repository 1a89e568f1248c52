"""The pages in a real browser: all are drawn, follow the store, obey the keyboard, and ask nobody else for anything."""

import math
import shutil
import time

import numpy as np
import pytest

from dashboard.demo_store import fill
from dashboard.served import served
from dynaxx.track import Store

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")

# how many pixels of the page's first canvas within an element are close to a colour of the page
COUNT = """([selector, name]) => {
  const canvas = document.querySelector(selector).querySelector("canvas");
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  probe.fillRect(0, 0, 1, 1);
  const want = probe.getImageData(0, 0, 1, 1).data;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 200 && [0, 1, 2].every((k) => Math.abs(data[i + k] - want[k]) < 12)) count++;
  return count;
}"""
COLOURS = """(() => {
  const canvas = document.querySelector(".canvas canvas"), found = new Set();
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 0; i < data.length; i += 4) found.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
  return found.size;
})()"""
UNNAMED = """[...document.querySelectorAll("button, a[href], input, select, [role=img], [role=region]")]
  .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length))
  .map((e) => e.outerHTML.slice(0, 120))"""
POINTS = """document.querySelector(".plot").plot.data.slice(1)
  .reduce((sum, y) => sum + y.filter((v) => v !== null).length, 0)"""
SCALE = "(() => { const { min, max } = document.querySelector('.plot').plot.scales.x; return [min, max]; })()"
PAGES = [
    "",
    "#/runs?search=cnn&sort=name",
    "#/versions",
    "#/alerts",
    "#/compare?items=1,2",
    "#/compare?items=1:v1,2:v1,3",
    "#/run/1",
    "#/run/1/layers",
    "#/run/1/spectrum",
    "#/run/1/pruning",
    "#/run/1/reduction",
    "#/run/1/inpca",
    "#/run/1/alerts",
    "#/run/1/versions",
    "#/run/1/settings",
    "#/run/2",
    "#/run/3",
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("pages") / "runs.db"
    fill(place)
    with served(place) as running:
        yield running


@pytest.fixture
def visit(browser):
    """A tab at an address, with everything it complains of and asks for; both are looked at again in the end."""
    contexts, tabs = [], []

    def open_tab(server, address="", scheme="light", width=1200, height=900):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.problems, tab.requests = [], []
        # the tests read pixels back, of which the browser says that it is slow
        tab.on("console", lambda message: "willReadFrequently" in message.text or tab.problems.append(message.text))
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.base = server.url
        tab.goto(server.url + address)
        tab.wait_for_selector("main[data-page]")
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        assert tab.problems == []
        assert [url for url in tab.requests if not url.startswith((tab.base, "data:"))] == []
    for context in contexts:
        context.close()


def drawn(tab, count=1):
    """Waits until so many charts are drawn."""
    deadline = time.monotonic() + 20
    while tab.locator("[data-drawn=yes]").count() < count:
        assert time.monotonic() < deadline, f"{tab.locator('[data-drawn=yes]').count()} of {count} charts were drawn"
        tab.wait_for_timeout(20)
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def until(tab, question, expected):
    deadline = time.monotonic() + 20
    while (answer := question()) != expected:
        assert time.monotonic() < deadline, f"{answer!r} is not {expected!r}"
        tab.wait_for_timeout(50)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_drawn_in_either_scheme_without_complaint(visit, server, scheme):
    tab = visit(server, "", scheme)
    for address in PAGES:
        tab.goto(server.url + address)
        tab.evaluate("new Promise((done) => setTimeout(done, 150))")
        assert tab.locator("h1").inner_text() not in ("", "Not found"), address
        for chart in tab.locator(".charts").all()[:1]:
            chart.scroll_into_view_if_needed()
            drawn(tab)
        assert tab.locator(".plot.failed").count() == 0, address
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1200, address
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    light = np.mean([int(part) for part in ground[4:-1].split(",")])
    assert light > 240 if scheme == "light" else light < 40


@pytest.mark.parametrize("address", ["#/run/99", "#/nowhere", "#/run/1/nowhere", "#/compare?items=77,78"])
def test_what_is_not_there_is_told(visit, server, address):
    tab = visit(server, address)
    assert tab.locator("h1").inner_text() == "Not found"
    assert tab.locator(".note.bad").inner_text()
    tab.problems[:] = [text for text in tab.problems if "status of 404" not in text]  # the browser's own note of it


def test_runs_are_searched_sorted_and_chosen_for_comparison_and_the_address_remembers(visit, server):
    tab = visit(server)
    names = lambda: tab.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert names() == ["cnn wide new data", "cnn narrow", "cnn wide"]
    tab.get_by_label("Search").fill("lr=0.1")
    until(tab, names, ["cnn wide new data", "cnn wide"])
    tab.get_by_role("button", name="run", exact=True).click()
    until(tab, names, ["cnn wide", "cnn wide new data"])
    assert tab.locator("th[aria-sort=ascending]").inner_text() == "run"
    tab.get_by_label("compare run 1 cnn wide", exact=True).check()
    assert tab.locator("a.button").get_attribute("href") is None
    tab.get_by_label("compare run 3").check()
    again = visit(server, tab.url.removeprefix(server.url))
    assert again.get_by_label("Search").input_value() == "lr=0.1"
    assert again.locator("input:checked").count() == 2
    assert again.locator("tbody tr td:nth-child(3)").all_inner_texts() == ["cnn wide", "cnn wide new data"]
    again.get_by_role("link", name="Compare 2 runs").click()
    again.wait_for_selector("main[data-page=compare]")
    assert again.locator("h1").inner_text() == "Comparison"
    assert again.evaluate("document.activeElement.tagName") == "H1"


def test_a_tag_is_a_filter(visit, server):
    tab = visit(server)
    tab.locator("button.tag", has_text="baseline").click()
    until(tab, lambda: tab.locator("tbody tr").count(), 1)
    assert tab.get_by_label("Tag").input_value() == "baseline"
    assert "tag=baseline" in tab.url


def test_curves_have_bands_events_and_a_table(visit, server):
    tab = visit(server, "#/run/1?filter=rank")
    drawn(tab)
    assert tab.locator("figure.chart").count() == 1
    assert tab.evaluate(COUNT, [".plot", "--c0"]) > 200
    assert "two standard errors" in tab.locator(".remarks").inner_text()
    assert "100 points" in tab.locator(".plot").get_attribute("aria-label")
    tab.locator("figure summary").click()
    rows = tab.locator("figure tbody tr")
    until(tab, rows.count, 60)
    assert rows.first.inner_text().split() == ["0", "60"]


def test_a_stretch_chosen_by_hand_is_asked_for_whole_and_a_double_click_goes_back(visit, tmp_path):
    with Store(tmp_path / "a.db") as store, store.run("long") as run:
        for step in range(20000):
            run.log({"x": math.sin(step / 50)}, step=step)
    with served(tmp_path / "a.db") as server:
        tab = visit(server, "#/run/1")
        drawn(tab)
        assert "20000 points, thinned" in tab.locator(".remarks").inner_text()
        box = tab.locator(".u-over").bounding_box()
        tab.mouse.move(box["x"] + 100, box["y"] + 50)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 120, box["y"] + 60, steps=4)
        tab.mouse.up()
        until(tab, lambda: "thinned" in tab.locator(".remarks").inner_text(), False)
        low, high = tab.evaluate(SCALE)
        assert 100 < high - low < 2000
        tab.mouse.dblclick(box["x"] + 200, box["y"] + 50)
        until(tab, lambda: "thinned" in tab.locator(".remarks").inner_text(), True)
        until(tab, lambda: tab.evaluate(SCALE), [0, 19999])


def test_the_slider_goes_through_the_spectra_and_the_address_remembers_the_step(visit, server):
    tab = visit(server, "#/run/1/spectrum")
    drawn(tab)
    slider = tab.get_by_label("step", exact=True)
    assert slider.get_attribute("aria-valuetext") == "step 990 (3 of 3)"
    stiff = lambda: tab.locator(".facts div", has_text="stiff").locator("dd").inner_text().split()[0]
    assert stiff() == "14"  # 10 exp(-2 i / 6) >= 0.1 for i < 13.8
    slider.focus()
    tab.keyboard.press("Home")
    until(tab, lambda: tab.locator("figcaption").inner_text(), "dynaxx/spectrum, step 0")
    assert stiff() == "28"  # 10 exp(-i / 6) >= 0.1 for i < 27.6
    assert "step=0" in tab.url
    tab.get_by_label("Stiff").select_option("a tenth")
    until(tab, stiff, "14")
    again = visit(server, tab.url.removeprefix(server.url))
    drawn(again)
    assert again.locator("figcaption").inner_text() == "dynaxx/spectrum, step 0"
    assert again.locator(".legend .floor").inner_text() == "rounding floor"


def test_the_heat_map_is_read_with_the_arrow_keys_and_stands_in_a_table(visit, server):
    tab = visit(server, "#/run/1/layers")
    drawn(tab)
    kinds = tab.evaluate(COLOURS)
    assert kinds > 100
    tab.locator(".canvas").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        tab.keyboard.press(key)
    value = 10 ** (2 / 3 - 1 - 980 / 900)
    assert tab.locator(".readout").inner_text() == f"block.2.conv, step 980: {value:.4g}"
    tab.locator("details summary").first.click()
    assert tab.locator("details tbody tr").first.inner_text().split()[:2] == ["block.0.conv", "0.1"]


def test_points_of_an_embedding_are_coloured_by_label_turned_with_the_keyboard_and_listed(visit, server):
    tab = visit(server, "#/run/1/inpca")
    drawn(tab)
    assert tab.evaluate(COUNT, [".cloud", "--c0"]) > 20
    assert tab.evaluate(COUNT, [".cloud", "--c1"]) > 20
    assert tab.locator(".cloud .legend").inner_text().split() == ["sgd", "adam"]
    before = tab.locator(".cloud").get_attribute("data-view")
    tab.locator(".cloud").focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.locator(".cloud").get_attribute("data-view") != before
    assert "12 points" in tab.locator(".cloud").get_attribute("aria-label")
    assert "a direction in which distances shrink" in tab.locator(".facts").inner_text()
    tab.locator("figure summary").click()
    assert tab.locator("details tbody tr").count() == 12


def test_a_running_training_is_followed_and_its_alerts_are_said_aloud(visit, tmp_path):
    with Store(tmp_path / "a.db", interval=0.1) as store, served(tmp_path / "a.db") as server:
        run = store.run("live", project="p")
        for step in range(10):
            run.log({"x": step, "dynaxx/layer/a/trace": 1.0}, step=step)
        run.flush()
        runs, tab, layers = visit(server), visit(server, "#/run/1"), visit(server, "#/run/1/layers")
        drawn(tab)
        last = lambda: tab.locator(".legend output").inner_text()
        assert last() == "9"
        tab.evaluate("document.querySelector('.plot').mark = 1")
        for step in range(10, 25):
            run.log({"x": step, "dynaxx/layer/a/trace": 2.0, "dynaxx/layer/b/trace": 2.0}, step=step)
        until(tab, last, "24")
        assert tab.evaluate("document.querySelector('.plot').mark") == 1  # new data in the same drawing
        run.log({"new": 1.0}, step=24)
        run.log({"new": 2.0}, step=25)
        until(tab, lambda: tab.locator("figure.chart").count(), 2)
        until(layers, lambda: "2 layers by 25 steps" in layers.locator(".canvas").get_attribute("aria-label"), True)
        run.alert("rank collapse", "rank 1", level="error", step=24)
        until(tab, lambda: tab.locator("#announce").inner_text(), "error in run 1: rank collapse")
        assert tab.locator("#announce").get_attribute("aria-live") == "polite"
        until(tab, lambda: tab.locator(".tabs").inner_text().count("Alerts (1)"), 1)
        assert "1 running" in runs.locator("#state").inner_text()
        store.run("second")
        until(runs, lambda: runs.locator("tbody tr").count(), 2)
        assert runs.locator("tbody tr", has_text="live").locator(".badge").first.inner_text() == "running"
        run.finish()
        until(tab, lambda: tab.locator(".subtitle .badge").inner_text(), "finished")
        until(runs, lambda: runs.locator("tbody tr", has_text="live").locator(".badge").first.inner_text(), "finished")


def test_a_server_that_goes_away_is_told_and_found_again(visit, tmp_path):
    fill(tmp_path / "a.db")
    with served(tmp_path / "a.db") as server:
        tab = visit(server)
        tab.route("**/api/news*", lambda route: route.abort())
        until(tab, lambda: tab.locator("#state.lost").count(), 1)
        tab.unroute("**/api/news*")
        until(tab, lambda: tab.locator("#state.lost").count(), 0)
        tab.problems[:] = [text for text in tab.problems if "Failed to load resource" not in text]


def test_everything_is_reached_with_the_keyboard(visit, server):
    tab = visit(server)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # it shows itself
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.type") == "search"
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
    assert any("compare run 1" in one for one in reached)
    assert any("#/run/2" in one for one in reached)
    assert any('role="region"' in one for one in reached)
    tab.locator("a", has_text="cnn wide").last.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("main[data-page='run/1']")
    assert tab.evaluate("document.activeElement.tagName") == "H1"
    assert tab.title() == "1 cnn wide · dynaxx"
    tab.locator(".tabs a", has_text="Layers").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("main[data-page='run/1/layers']")
    assert tab.locator(".tabs [aria-current]").inner_text() == "Layers"
    tab.go_back()
    tab.wait_for_selector("main[data-page='run/1']")


def test_every_control_has_a_name_and_every_drawing_words(visit, server):
    tab = visit(server)
    for address in PAGES:
        tab.goto(server.url + address)
        tab.evaluate("new Promise((done) => setTimeout(done, 150))")
        assert tab.evaluate(UNNAMED) == [], address
        assert tab.locator("h1").count() == 1, address


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(visit, server, width):
    tab = visit(server, "", width=width)
    for address in PAGES:
        tab.goto(server.url + address)
        tab.evaluate("new Promise((done) => setTimeout(done, 150))")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, address


def test_hostile_names_and_words_are_only_text(visit, tmp_path):
    word = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    with Store(tmp_path / "a.db") as store, store.run("r", config={word: word}) as run:
        run.log({"a": 1.0}, step=0)
        run.alert(word, word, level="error", step=0, rule=word)
        run.log_array("dynaxx/inpca", np.eye(3), step=0, attributes={"labels": [word, "b", "c"]})
        run.log_array("dynaxx/reduction/r", np.ones((2, 2)), step=0, attributes={"x": word, "y": word})
        run.model_version("v", digest=word, step=0, details={word: word})
    with served(tmp_path / "a.db") as server:
        tab = visit(server)
        for address in (
            "#/run/1",
            "#/run/1/inpca",
            "#/run/1/reduction",
            "#/run/1/versions",
            "#/run/1/settings",
            "#/alerts",
            "#/versions",
        ):
            tab.goto(server.url + address)
            tab.evaluate("new Promise((done) => setTimeout(done, 250))")
            assert tab.evaluate("window.hacked") is None, address
        assert tab.locator("main img").count() == 0
        # and were one to slip through, the policy would stop it
        tab.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hacked=2'>`)")
        tab.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=3'}))"
        )
        tab.evaluate("fetch('http://localhost:9/').catch(() => 0)")
        tab.wait_for_timeout(200)
        assert tab.evaluate("window.hacked") is None
        complaints = [text for text in tab.problems if "Content Security Policy" in text]
        assert len(complaints) >= 3
        tab.problems.clear()
        tab.requests.clear()


def test_a_token_is_asked_for_and_opens_the_pages(browser, tmp_path):
    fill(tmp_path / "a.db")
    with served(tmp_path / "a.db", token="the-token") as server:
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(server.url)
        assert tab.locator("h1").inner_text() == "dynaxx dashboard"
        tab.get_by_label("Token").fill("wrong")
        tab.keyboard.press("Enter")
        tab.wait_for_url("**token=wrong")
        tab.get_by_label("Token").fill("the-token")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("main[data-page]")
        assert "token" not in tab.url
        assert tab.evaluate("document.cookie") == ""
        until(tab, lambda: tab.locator("tbody tr").count(), 3)
        context.close()


def test_downloads_arrive(visit, server):
    tab = visit(server, "#/run/1")
    for name, ending in (("Report", "run-1.html"), ("CSV", "run-1.csv"), ("JSON", "run-1.json")):
        with tab.expect_download() as download:
            tab.get_by_role("link", name=name, exact=True).click()
        assert download.value.suggested_filename == ending


def test_a_hundred_thousand_points_are_drawn(visit, tmp_path):
    rng = np.random.default_rng(0)
    with Store(tmp_path / "a.db") as store, store.run("large") as run:
        for curve in range(25):
            rows = np.stack([np.linspace(0, 1, 4000), rng.normal(size=4000).cumsum()], axis=1)
            run.log_array(f"dynaxx/one_shot/c{curve:02d}", rows, step=0)
    with served(tmp_path / "a.db") as server:
        tab = visit(server, "#/run/1/pruning")
        drawn(tab)
        assert tab.evaluate(POINTS) == 100_000
        seconds = tab.evaluate("performance.now()") / 1000
        assert seconds < 15, seconds  # measured: about 1 s on a machine whose two cores were busy otherwise
