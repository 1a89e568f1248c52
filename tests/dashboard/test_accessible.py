"""The pages without a mouse, without eyes, and on a narrow screen."""

import pytest

from dashboard.looking import PAGES, go

UNNAMED = """[...document.querySelectorAll("button, a[href], input, select, [role=img], [role=region]")]
  .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length))
  .map((e) => e.outerHTML.slice(0, 120))"""


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
        go(tab, server.url + address)
        assert tab.evaluate(UNNAMED) == [], address
        assert tab.locator("h1").count() == 1, address


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(visit, server, width):
    tab = visit(server, "", width=width)
    for address in PAGES:
        go(tab, server.url + address)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, address
