"""A document as a page in a tab."""

import pytest

from dynaxx.report import write

DRAWN = "[...document.querySelectorAll('.plot, .cloud')].every((one) => one.dataset.drawn === 'yes')"


@pytest.fixture
def show(new_tab, tmp_path):
    """Writes a document, opens it, and waits until it is drawn: without complaint, and nobody was asked."""

    def show(document, scheme="light", width=1200):
        path = write(document, tmp_path / "report.html")
        tab = new_tab(scheme, width)
        tab.goto(path.as_uri())
        tab.wait_for_function(DRAWN)
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert tab.problems == []
        assert tab.requests == [path.as_uri()]
        return tab

    return show
