"""A store with something for every page, a server in front of it, and visitors."""

import pytest

from dashboard.demo_store import fill
from dashboard.served import served


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("dashboard") / "runs.db"
    fill(place)
    return place


@pytest.fixture(scope="module")
def server(path):
    with served(path) as running:
        yield running


@pytest.fixture
def visit(new_tab):
    """A tab at an address. In the end none may have complained, or asked anybody but its server."""
    tabs = []

    def visit(server, address="", scheme="light", width=1200, height=900):
        tab = new_tab(scheme, width, height)
        tab.base = server.url
        tab.goto(server.url + address)
        tab.wait_for_selector("main[data-page]")
        tabs.append(tab)
        return tab

    yield visit
    for tab in tabs:
        assert tab.problems == []
        assert [url for url in tab.requests if not url.startswith((tab.base, "data:"))] == []
