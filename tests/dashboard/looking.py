"""Addresses of all pages, and waiting for what they show."""

import time

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


def go(tab, url):
    """To another address, until its page has taken the old one's place."""
    tab.evaluate("document.querySelector('main').firstElementChild.dataset.old = 'yes'")
    tab.goto(url)
    tab.wait_for_selector("main[data-page] > :not([data-old])", state="attached")


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
