"""Makes the pictures of the dashboard from a real training, with Debian's Chromium: python docs/images/dashboard.py.

Two digit classifiers are trained for half a minute with a monitor beside each; the second at a learning rate that is
too high. Everything is seeded; what differs between machines is the time of day.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright
from torch import nn

from dynaxx.cli.digits import digits, mlp
from dynaxx.monitor import Monitor, Probe
from dynaxx.monitor.signals import Divergence, NotFinite
from dynaxx.track import Store

HERE = Path(__file__).resolve().parent
EPOCHS = 12
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PICTURES = {
    "dashboard-runs": ("#/runs", "light", 420),
    "dashboard-curves": ("#/run/1?filter=dynaxx%2Feff", "light", 760),
    "dashboard-layers": ("#/run/1/layers", "light", 760),
    "dashboard-spectrum": ("#/run/1/spectrum", "dark", 860),
    "dashboard-compare": ("#/compare?items=1,2&filter=dynaxx%2Feff", "dark", 900),
}


def train(store: Store, name: str, lr: float) -> None:
    """One training with its run."""
    torch.manual_seed(0)
    parts, model = digits(seed=0), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    images, labels = parts.validation
    probe = Probe("digits validation, first 100", (images[:100], labels[:100]))
    with store.run(name, project="digits", config={"lr": lr, "momentum": 0.9, "probe_digest": probe.digest}) as run:
        signals = [NotFinite(), Divergence()]
        with Monitor(model, probe, preset="standard", every=20, store=run, signals=signals) as monitor:
            monitor.attach(optimizer)
            for epoch in range(EPOCHS):
                for x, y in parts.train:
                    loss = nn.functional.cross_entropy(model(x), y)
                    optimizer.zero_grad()
                    loss.backward()
                    monitor.observe(loss=loss)
                    optimizer.step()
                run.log({"train/loss": loss.item()}, step=monitor.history[-1].step if monitor.history else epoch)
            last = monitor.history[-1]
            name = "dynaxx/effective_rank"
            run.model_version(
                "final", step=last.step, baseline={name: last.values[name]} if name in last.values else {}
            )


def picture(place: Path) -> None:
    """The pages of the store in a folder, as a browser shows them."""
    command = [sys.executable, "-m", "dynaxx.cli.main", "dashboard", "dynaxx-runs/dynaxx.db", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=place)
    assert server.stdout is not None
    url = server.stdout.readline().split()[-1]
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            for name, (address, scheme, height) in PICTURES.items():
                tab = browser.new_page(viewport={"width": 1180, "height": height}, color_scheme=scheme)
                tab.goto(url + address)
                tab.wait_for_selector("main[data-page]")
                tab.wait_for_timeout(1500)
                tab.screenshot(path=HERE / f"{name}.png")
            browser.close()
    finally:
        server.terminate()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        with Store(Path(folder) / "dynaxx-runs" / "dynaxx.db") as opened:
            train(opened, "mlp", 0.05)
            train(opened, "mlp-hot", 2.0)
            opened.tag(1, "baseline", "keep")
        picture(Path(folder))
