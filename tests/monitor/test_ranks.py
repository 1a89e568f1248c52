"""Two real processes under DistributedDataParallel: one measures and writes, both train as without."""

import pytest
import torch

from dynaxx.track import Store
from processes import run

SCRIPT = """
from dynaxx.monitor import Monitor

def train(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = nn.parallel.DistributedDataParallel(net)
    x, y = torch.randn(24, 5, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = None
    if kind == "watched":
        monitor = Monitor(model, (x, y), every=2, preset="standard", store=f"{folder}/runs.db").attach(optimizer)
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x[rank::2]), y[rank::2])
        optimizer.zero_grad()
        loss.backward()
        if monitor:
            monitor.observe(loss=loss)
        optimizer.step()
    if monitor:
        assert monitor.steps == 6 and len(monitor.history) == (4 if rank == 0 else 0), monitor.history
        assert rank or any(name.startswith("dynaxx/layer/0/") for name in monitor.history[0].values)
        monitor.close()
    torch.save(net.state_dict(), f"{folder}/{kind}-{rank}.pt")

for kind in ("plain", "watched"):
    train(kind)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_one_rank_measures_and_both_train_as_without(tmp_path):
    run(SCRIPT, tmp_path)
    for rank in (0, 1):
        plain, watched = (
            torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True) for kind in ("plain", "watched")
        )
        assert all(torch.equal(value, watched[name]) for name, value in plain.items())
    with Store(tmp_path / "runs.db", readonly=True) as store:
        (info,) = store.runs()
        assert store.metrics(info.id, "dynaxx/trace").steps.tolist() == [0, 2, 4, 6]
