"""Curves, spectra, heat maps and clouds in a real browser: drawn, read, zoomed, and kept in the address."""

import math

import numpy as np

from dashboard.looking import drawn, until
from dashboard.served import served
from dynaxx.track import Store

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
POINTS = """document.querySelector(".plot").plot.data.slice(1)
  .reduce((sum, y) => sum + y.filter((v) => v !== null).length, 0)"""
SCALE = "(() => { const { min, max } = document.querySelector('.plot').plot.scales.x; return [min, max]; })()"


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
