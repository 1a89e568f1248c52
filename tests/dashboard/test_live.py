"""A page that is open while a training runs, and while its server goes away."""

from dashboard.demo_store import fill
from dashboard.looking import drawn, until
from dashboard.served import served
from dynaxx.track import Store


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
