"""A cloud of points in the report: as data, as text, and in a real browser, turned by keys and by pointer."""

import json
import re

import numpy as np
import pytest

from dynaxx.errors import InputError
from dynaxx.report import Document, Scatter, Section, page, to_text
from dynaxx.report.scatter import MOST_POINTS, cloud, describe, remarks, table


def three_groups(m=60, size=3):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(m, size)) + 4 * np.eye(3, size)[np.arange(m) % 3]
    return Scatter("Digits", points, [f"class {i % 3}" for i in range(m)], note="Mine.")


def document(*blocks):
    return Document("d", sections=[Section("s", blocks=blocks)])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scatter("t", np.zeros((3, 4))), r"shape \(3, 4\)"),
        (lambda: Scatter("t", [[0.0, np.nan]]), "finite"),
        (lambda: Scatter("t", [["a", "b"]]), "not numbers"),
        (lambda: Scatter("t", np.zeros((3, 2)), ["a"]), "1 labels"),
        (lambda: Scatter("t", np.zeros((3, 2)), axes=["x"]), "1 names of axes"),
    ],
)
def test_a_cloud_that_makes_no_sense_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_it_becomes_short_numbers_and_indices_of_labels():
    data = cloud(Scatter("t", [[1 / 3, 2.0], [0.0, 1.0], [5.0, 6.0]], ["b", "a", "b"], ["u", "v"], connect=True))
    assert data == {
        "title": "t",
        "axes": ["u", "v"],
        "groups": ["b", "a"],
        "points": [[0.333333, 2.0], [0.0, 1.0], [5.0, 6.0]],
        "group": [0, 1, 0],
        "connect": True,
    }


def test_it_is_told_in_words_and_in_a_table():
    block = Scatter("t", [[0.0, 2.0], [1.0, 4.0], [5.0, 6.0]], ["b", "a", "b"])
    assert describe(block) == (
        "Scatter plot: t. 3 points. x from 0 to 5; y from 2 to 6. b: 2 points about (2.5, 4); a: 1 points about (1, 4)."
    )
    assert table(block).rows == (("b", 0.0, 2.0), ("a", 1.0, 4.0), ("b", 5.0, 6.0))
    assert remarks(three_groups())[0] == "Mine."
    assert "arrow keys" in remarks(three_groups())[1]
    text = to_text(document(block))
    assert re.search(r"b +2 +2.5 +4", text)


def test_many_points_are_thinned_and_it_is_said():
    block = three_groups(MOST_POINTS + 500)
    assert len(cloud(block)["points"]) == MOST_POINTS
    assert remarks(block)[-1] == f"{MOST_POINTS} of {MOST_POINTS + 500} points are drawn, evenly chosen."
    assert table(block).caption == f"60 of {MOST_POINTS + 500} points"


def test_words_from_outside_stay_words():
    word = "</script><script>window.hacked=1</script>"
    source = page(document(Scatter(word, np.eye(3), [word] * 3, [word] * 3, note=word)))
    assert "<script>window.hacked" not in source
    (data,) = re.findall(r'<script type="application/json" id="clouds">(.*?)</script>', source, re.S)
    assert json.loads(data)[0]["groups"] == [word]


# ---------------------------------------------------------------------------------------------------------------------
# In a browser

# how many pixels of a cloud are close to a colour, and where their middle is
LOOK = """([index, name]) => {
  const canvas = document.querySelectorAll(".cloud canvas")[index];
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  probe.fillRect(0, 0, 1, 1);
  const want = probe.getImageData(0, 0, 1, 1).data;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0, x = 0, y = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 100 && [0, 1, 2].every((k) => Math.abs(data[i + k] - want[k]) < 12)) {
      count++;
      x += (i / 4) % canvas.width;
      y += Math.floor(i / 4 / canvas.width);
    }
  return [count, x / count / canvas.width, y / count / canvas.height];
}"""


def look(tab, name="--c0", index=0):
    return tab.evaluate(LOOK, [index, name])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_label_is_drawn_in_its_colour(show, scheme, size):
    tab = show(document(three_groups(size=size)), scheme)
    assert all(look(tab, f"--c{group}")[0] > 100 for group in range(3))
    tab.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    tab.wait_for_timeout(100)
    assert look(tab)[0] > 100


def test_a_flat_cloud_has_its_points_in_place_and_one_scale(show):
    corners = Scatter("t", [[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [4.0, 2.0]], ["a", "b", "c", "d"])
    tab = show(document(corners))
    (_, ax, ay), (_, bx, by), (_, cx, cy), (_, dx, dy) = (look(tab, f"--c{group}") for group in range(4))
    assert ax == pytest.approx(cx, abs=0.005)
    assert ay == pytest.approx(by, abs=0.005)
    assert (dx, dy) == pytest.approx((bx, cy), abs=0.005)
    assert ay > cy  # up is up
    ratio = tab.evaluate("(() => { const c = document.querySelector('.cloud canvas'); return c.width / c.height })()")
    assert (bx - ax) * ratio == pytest.approx(2 * (ay - cy), rel=0.02)
    assert tab.locator(".cloud").get_attribute("role") == "img"


def test_it_turns_by_keys_and_by_pointer_and_comes_back(show):
    tab = show(document(three_groups()))
    holder = tab.locator(".cloud")
    view = lambda: [float(part) for part in holder.get_attribute("data-view").split()]
    start, place = view(), look(tab)[1:]
    holder.focus()
    tab.keyboard.press("ArrowLeft")
    assert view()[0] == pytest.approx(start[0] - 0.12)
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("+")
    assert view()[1] == pytest.approx(start[1] - 0.12)
    assert view()[2] == pytest.approx(1.15)
    assert look(tab)[1:] != pytest.approx(place, abs=0.002)
    tab.keyboard.press("0")
    assert view() == start
    assert look(tab)[1:] == pytest.approx(place, abs=1e-6)
    box = tab.locator(".cloud canvas").bounding_box()
    tab.mouse.move(box["x"] + 200, box["y"] + 100)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 260, box["y"] + 100, steps=3)
    tab.mouse.up()
    assert view()[0] == pytest.approx(start[0] + 0.6)
    tab.mouse.move(box["x"] + 100, box["y"] + 50)
    assert view()[0] == pytest.approx(start[0] + 0.6)  # let go
    assert tab.problems == []


def test_dragging_moves_what_is_near_with_the_pointer(show):
    """One point in front of the centre of a wide cloud: it goes right when dragged right."""
    frame = [[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]
    near = [-np.sin(0.6) * 0.9, -np.cos(0.6) * 0.9, 0.0]
    tab = show(document(Scatter("t", [*frame, near], ["frame"] * 8 + ["near"])))
    before = look(tab, "--c1")
    box = tab.locator(".cloud canvas").bounding_box()
    tab.mouse.move(box["x"] + 100, box["y"] + 100)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 130, box["y"] + 120, steps=3)
    tab.mouse.up()
    after = look(tab, "--c1")
    assert after[1] > before[1] + 0.01
    assert after[2] > before[2] + 0.01


def test_the_legend_hides_a_label_and_the_pointer_reads_a_point(show):
    tab = show(document(Scatter("t", [[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]], ["low", "low", "high"])))
    button = tab.locator(".cloud .legend button").nth(1)
    assert button.inner_text() == "high"
    _, x, y = look(tab, "--c1")
    box = tab.locator(".cloud canvas").bounding_box()
    tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    assert tab.locator(".cloud output").inner_text() == "high (2, 3)"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert look(tab, "--c1")[0] == 0
    assert look(tab, "--c0")[0] > 10


def test_it_can_be_reached_read_and_printed_without_seeing_it(show):
    tab = show(document(three_groups()))
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "cloud"
    label = tab.locator(".cloud").get_attribute("aria-label")
    assert label.startswith("Rotatable scatter plot: Digits. 60 points.")
    assert "Arrow keys" in label
    tab.locator("details summary").click()
    assert tab.locator("details tbody tr").count() == 60
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert look(tab)[0] > 100
    assert tab.pdf()[:5] == b"%PDF-"


@pytest.mark.parametrize("width", [320, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(show, width):
    tab = show(document(three_groups(), three_groups(size=2)), width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert look(tab, index=1)[0] > 50


@pytest.mark.parametrize(
    "block",
    [
        Scatter("none", np.zeros((0, 3))),
        Scatter("one", [[1.0, 2.0]]),
        Scatter("one place", np.ones((5, 3)), connect=True),
        Scatter("a line", [[0.0, 1.0], [1.0, 1.0]]),
        Scatter("huge", [[-1e300, 0.0], [1e300, 1.0]]),
        Scatter("many labels", np.random.default_rng(0).normal(size=(40, 3)), list(map(str, range(40)))),
        Scatter("many points", np.random.default_rng(0).normal(size=(9000, 3)), connect=True),
    ],
    ids=lambda block: block.title,
)
def test_odd_clouds_break_nothing(show, block):
    tab = show(document(block))
    assert tab.locator(".cloud canvas").count() == 1
    tab.locator(".cloud").focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.problems == []
