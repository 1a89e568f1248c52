"""The page in a real browser: everything is drawn, nothing is asked of the network, nothing hostile runs."""

import math
import os
import re

import numpy as np
import pytest

from dynaxx.report import Document, Lines, Marker, Section, Series, Spectra
from dynaxx.report.numerals import number
from report.demo_documents import demo, hostile

# how many pixels of a chart are close to a colour
COUNT = """([index, name, left, right]) => {
  const canvas = document.querySelectorAll(".plot canvas")[index];
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  probe.fillRect(0, 0, 1, 1);
  const want = probe.getImageData(0, 0, 1, 1).data;
  const from = Math.round(canvas.width * left), width = Math.round(canvas.width * (right - left));
  const data = canvas.getContext("2d").getImageData(from, 0, width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 200 && [0, 1, 2].every((k) => Math.abs(data[i + k] - want[k]) < 12)) count++;
  return count;
}"""


def pixels(tab, index, name="--c0", left=0.0, right=1.0):
    return tab.evaluate(COUNT, [index, name, left, right])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn_in_the_colours_of_the_scheme(show, scheme):
    tab = show(demo(), scheme)
    assert tab.locator(".plot canvas").count() == 3
    assert pixels(tab, 0) > 200
    assert pixels(tab, 1) > 200
    assert pixels(tab, 1, "--c1") > 200
    assert pixels(tab, 2) > 200
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    light = np.mean([int(part) for part in re.findall(r"\d+", ground)[:3]])
    assert light > 240 if scheme == "light" else light < 40


def test_charts_follow_a_change_of_scheme(show):
    tab = show(demo(), "light")
    before = tab.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--c0')")
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_timeout(100)
    assert tab.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--c0')") != before
    assert pixels(tab, 0) > 200


def test_values_that_are_not_finite_are_a_gap_and_what_stands_alone_is_a_point(show):
    x = np.arange(1001.0)
    gap = np.where((x > 400) & (x < 600), np.nan, 1.0)
    gap[500] = 1.0
    lonely = np.where(x == 500, 1.0, np.nan)
    charts = [Lines("gap", [Series("a", x, gap)]), Lines("lonely", [Series("b", x, lonely)])]
    tab = show(Document("d", sections=[Section("s", blocks=charts)]))
    assert pixels(tab, 0, left=0.1, right=0.35) > 100
    assert pixels(tab, 0, left=0.45, right=0.49) == 0
    assert 3 < pixels(tab, 0, left=0.49, right=0.57) < 60  # the value in the middle of the gap
    assert 3 < pixels(tab, 1) < 60
    assert tab.locator(".remarks").first.inner_text() == "a: 198 of 1001 values are not finite (gaps)."


def test_curves_with_steps_of_their_own_are_not_broken(show):
    chart = Lines("t", [Series("often", range(1000), np.zeros(1000)), Series("seldom", [0, 500, 999], [1.0, 1.0, 1.0])])
    tab = show(Document("d", sections=[Section("s", blocks=[chart])]))
    width = tab.evaluate("document.querySelector('.plot canvas').width")
    assert pixels(tab, 0, "--c1") > 0.8 * width  # a line from end to end


def test_what_lies_below_the_floor_is_faded(show):
    spectrum = np.concatenate([np.full(50, 1.0), np.full(50, 1e-8)])
    tab = show(Document("d", sections=[Section("s", blocks=[Spectra("t", [("F", spectrum, 1e-6)])])]))
    assert pixels(tab, 0, left=0.1, right=0.45) > 300
    dashes = pixels(tab, 0, left=0.6, right=0.95)  # right of the middle only the floor has the full colour
    width = tab.evaluate("document.querySelector('.plot canvas').width") * 0.35
    assert 0.4 * width < dashes < 0.75 * width
    assert tab.locator(".legend .floor").inner_text() == "rounding floor"


def test_markers_stand_at_their_place_also_at_the_very_end(show):
    chart = lambda *places: Lines("t", [Series("a", [0, 100], [0.0, 0.0])], markers=[Marker(x, "") for x in places])
    tab = show(Document("d", sections=[Section("s", blocks=[chart(), chart(50), chart(100)])]))
    none, middle, end = (
        [pixels(tab, index, "--soft", *part) for part in ((0.5, 0.6), (0.9, 1.0))] for index in range(3)
    )
    assert none == [0, none[1]]
    assert middle[0] > 30
    assert middle[1] == none[1]
    assert end[0] == 0
    assert end[1] > none[1] + 30


def test_the_legend_reads_the_curve_under_the_pointer_and_hides_it_on_a_click(show):
    chart = Lines(
        "t", [Series("square", range(101), np.arange(101.0) ** 2), Series("flat", range(101), np.full(101, 5.0))]
    )
    tab = show(Document("d", sections=[Section("s", blocks=[chart])]))
    values = tab.locator(".legend output")
    assert values.all_inner_texts() == [number(10000.0), "5"]  # the last, while nothing is pointed at
    over = tab.locator(".u-over").bounding_box()
    tab.mouse.move(over["x"] + over["width"] / 2, over["y"] + over["height"] / 2)
    tab.wait_for_timeout(50)
    assert values.all_inner_texts() == [number(2500.0), "5"]
    assert tab.locator(".axis-name.x").inner_text() == "step 50"
    tab.mouse.move(0, 0)
    assert pixels(tab, 0, "--c1") > 100
    button = tab.locator(".legend button").nth(1)
    button.click()
    tab.wait_for_timeout(50)
    assert button.get_attribute("aria-pressed") == "false"
    assert pixels(tab, 0, "--c1") == 0


def test_page_and_tables_write_numbers_alike(show):
    values = [0.0, 1.0, -2.5, 0.1234567, 12345.678, 999999.0, 1e6, -3.3e-7, 1e-4, 9.99996e-5, 5e-324, 1e308, 123456.7]
    chart = Lines("t", [Series(str(index), [0], [value]) for index, value in enumerate(values)])
    tab = show(Document("d", sections=[Section("s", blocks=[chart])]))
    shown = tab.locator(".legend output").all_inner_texts()
    assert shown == [number(float(f"{value:.7g}")) for value in values]


def test_hostile_names_neither_run_nor_call_home(show):
    word = "</script><script>window.hacked=1</script><img src=http://127.0.0.1:9/x onerror='window.hacked=1'>"
    tab = show(hostile(word))
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("h1").inner_text() == word
    assert tab.locator(".legend button span").first.inner_text() == word
    # and were one to slip through, the page's own policy would stop it
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hacked=2'>`)")
    tab.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=3'}))"
    )
    tab.wait_for_timeout(100)
    assert tab.evaluate("window.hacked") is None


@pytest.mark.parametrize("width", [320, 400, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(show, width):
    tab = show(demo(), width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    box = tab.locator(".plot canvas").first.bounding_box()
    assert box["width"] > 0.6 * min(width, 500)
    assert box["x"] + box["width"] <= width


def test_charts_follow_the_width_of_the_window(show):
    tab = show(demo(), width=1200)
    tab.set_viewport_size({"width": 500, "height": 800})
    tab.wait_for_timeout(200)
    assert tab.locator(".u-wrap").first.bounding_box()["width"] <= 500
    assert pixels(tab, 0) > 100


def test_on_paper_the_page_is_light_whatever_the_screen(show, tmp_path):
    tab = show(demo(), "dark")
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')").strip() == "#1b1d21"
    assert pixels(tab, 0) > 100
    assert tab.locator("details").first.is_hidden()
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    tab.emulate_media(media="screen")
    assert tab.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')").strip() == "#e6e7ea"
    assert tab.pdf()[:5] == b"%PDF-"


@pytest.mark.parametrize(
    "block",
    [
        Lines("nothing", []),
        Lines("empty", [Series("a", [], [])]),
        Lines("one", [Series("a", [5], [3.0])]),
        Lines("one on logarithms", [Series("a", [5], [3.0])], log_x=True, log_y=True),
        Lines("all gaps", [Series("a", range(9), [math.nan] * 9)], log_y=True),
        Lines("constant", [Series("a", range(9), [0.0] * 9)]),
        Lines("huge", [Series("a", range(3), [-1e300, 0, 1e300])]),
        Lines("tiny", [Series("a", range(3), [1e-300, 2e-300, 3e-300])], log_y=True),
        Lines("many", [Series(str(i), range(3), [i, i, i]) for i in range(20)]),
        Spectra("none", [("a", [])]),
        Spectra("zeros", [("a", [0.0, 0.0], 1e-9)]),
        Spectra("all below", [("a", [1e-10, 1e-11], 1e-9)]),
        Spectra("wide", [("a", 10.0 ** -np.arange(0, 300, 10.0))]),
    ],
    ids=lambda block: block.title,
)
def test_odd_data_break_nothing(show, block):
    tab = show(Document("d", sections=[Section("s", blocks=[block])]))
    assert tab.locator(".plot canvas").count() == 1


def test_a_page_of_many_long_curves_is_drawn_in_seconds(show):
    rng = np.random.default_rng(0)
    blocks = [Lines(str(i), [Series(str(j), range(5000), rng.normal(size=5000)) for j in range(8)]) for i in range(10)]
    tab = show(Document("d", sections=[Section("s", blocks=blocks)]))
    seconds = tab.evaluate("performance.now()") / 1000
    assert seconds < 20, seconds  # measured: well under 5 on a busy machine of 2 cores
    assert os.path.getsize(tab.url.removeprefix("file://")) < 10e6
