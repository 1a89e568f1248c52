"""Two real processes: under Accelerate with accumulated gradients and a resume, and under DistributedDataParallel."""

import pytest
import torch

from dynaxx.track import Store
from processes import DIGITS, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed"),
]

ACCELERATE = (
    DIGITS
    + """
os.environ["ACCELERATE_USE_CPU"] = "true"
from accelerate import Accelerator
from accelerate.utils import set_seed

def train(kind):
    net, optimizer = made()
    watched = kind != "plain"
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:256], y[:256]), batch_size=16)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    assert accelerator.num_processes == 2 and isinstance(model, nn.parallel.DistributedDataParallel)
    if watched:
        monitor = Monitor(model, probe, every=2, store=f"{folder}/runs.db", name=kind)
        accelerator.register_for_checkpointing(monitor)
        if kind == "second":
            accelerator.load_state(f"{folder}/saved")
        monitor.attach(optimizer)
    for inputs, labels in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            accelerator.backward(loss)
            if watched and accelerator.sync_gradients:
                monitor.observe(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    if watched:
        assert monitor.steps == (8 if kind == "second" else 4), monitor.steps
        assert len(monitor.history) == ({"first": 3, "second": 2}[kind] if rank == 0 else 0), monitor.history
        assert monitor.events == [] and (rank or len(monitor.losses.values) == 4)
        if kind == "first":
            accelerator.save_state(f"{folder}/saved")
        monitor.close()
    torch.save(net.state_dict(), f"{folder}/{kind}-{rank}.pt")

for kind in ("plain", "first", "second"):
    train(kind)
"""
)

STOPPED = (
    DIGITS
    + """
def train(kind):
    net, optimizer = made()
    model = nn.parallel.DistributedDataParallel(net)
    signals = [Late(1, level="info", actions=[Stop()])] if kind == "acting" else None
    monitor = Monitor(model, probe, every=1, signals=signals).attach(optimizer)
    for step in range(1, 6):
        loss = nn.functional.cross_entropy(model(x[rank:64:2]), y[rank:64:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if should_stop(monitor):
            break
    assert step == (3 if kind == "acting" else 5), (rank, step)
    assert monitor.should_stop == (kind == "acting" and rank == 0)

for kind in ("acting", "watching"):
    train(kind)
"""
)


def test_accelerate(tmp_path):
    pytest.importorskip("accelerate", reason="pip install accelerate (extra: transformers)")
    pytest.importorskip("sklearn", reason="trains on scikit-learn's digits (extra: demo)")
    run(ACCELERATE, tmp_path)
    for rank in (0, 1):
        plain, first = (torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True) for kind in ("plain", "first"))
        assert all(torch.equal(value, first[name]) for name, value in plain.items())
    with Store(tmp_path / "runs.db", readonly=True) as store:
        runs = {info.name: info.id for info in store.runs()}
        assert sorted(runs) == ["first", "second"]  # of two processes one writes
        trace, relative = "dynaxx/trace", "dynaxx/relative/trace"
        assert store.metrics(runs["first"], trace).steps.tolist() == [0, 2, 4]
        assert store.metrics(runs["second"], trace).steps.tolist() == [6, 8]
        start = store.metrics(runs["first"], trace).values[0]
        went_on = store.metrics(runs["second"], trace).values / store.metrics(runs["second"], relative).values
        assert went_on.tolist() == pytest.approx([start, start], rel=1e-6)


def test_all_ranks_stop_at_the_same_step(tmp_path):
    pytest.importorskip("sklearn", reason="trains on scikit-learn's digits (extra: demo)")
    run(STOPPED, tmp_path)
