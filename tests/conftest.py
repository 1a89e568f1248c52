"""What tests of several folders share: the studies, and a real browser whose tabs note complaints and requests."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

STUDIES = str(Path(__file__).resolve().parents[1] / "studies")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def studies():
    """Imports a module of studies/, which is no package: its scripts stand side by side."""
    sys.path.insert(0, STUDIES)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(STUDIES)
        for name in [name for name, m in sys.modules.items() if STUDIES in str(getattr(m, "__file__", ""))]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def browser():
    """Chromium. Not for the whole session: its event loop would be in the way of tests with one of their own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def new_tab(browser):
    """Makes empty tabs, each as if for another visitor: ``tab.problems`` and ``tab.requests`` grow as it goes."""
    contexts = []

    def new_tab(scheme="light", width=1200, height=900):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.problems, tab.requests = [], []
        # the tests read pixels back, of which the browser says that it is slow
        tab.on("console", lambda message: "willReadFrequently" in message.text or tab.problems.append(message.text))
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on("request", lambda request: tab.requests.append(request.url))
        return tab

    yield new_tab
    for context in contexts:
        context.close()
