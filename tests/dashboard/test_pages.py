"""The pages in a real browser: all are drawn, nobody else is asked for anything, and nothing hostile runs."""

import numpy as np
import pytest

from dashboard.demo_store import fill
from dashboard.looking import PAGES, drawn, go, until
from dashboard.served import served
from dynaxx.dashboard.assets import joined
from dynaxx.track import Store


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_drawn_in_either_scheme_without_complaint(visit, server, scheme):
    tab = visit(server, "", scheme)
    for address in PAGES:
        go(tab, server.url + address)
        assert tab.locator("h1").inner_text() not in ("", "Not found"), address
        for chart in tab.locator(".charts").all()[:1]:
            chart.scroll_into_view_if_needed()
            drawn(tab)
        assert tab.locator(".plot.failed").count() == 0, address
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1200, address
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    light = np.mean([int(part) for part in ground[4:-1].split(",")])
    assert light > 240 if scheme == "light" else light < 40


def test_a_page_is_few_files(visit, server):
    """On a busy machine each file is a wait of its own."""
    tab = visit(server, "#/run/1/settings")
    until(tab, lambda: any("/api/news" in url for url in tab.requests), True)
    asked = [url.removeprefix(server.url) for url in tab.requests]
    assert [address for address in asked if address.startswith("static/")] == ["static/app.css", "static/app.js"]
    assert [address for address in asked if address.startswith("api/")] == ["api/runs/1", "api/news?since=0"]


def test_modules_that_cannot_be_joined_are_refused():
    with pytest.raises(ValueError, match=r"a\.js -> b\.js -> a\.js"):
        joined({"a.js": 'import { b } from "./b.js";\n', "b.js": 'import { a } from "./a.js";\n'}, "a.js")
    for line in ('import { b as c } from "./b.js";', "export default 1;", 'import b from "./b.js";'):
        with pytest.raises(ValueError, match=r"a\.js: .* is not written as the other imports and exports are"):
            joined({"a.js": line + "\n", "b.js": "export const b = 1;\n"}, "a.js")


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
