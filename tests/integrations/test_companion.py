"""What the callbacks share, in a plain loop: no framework is needed."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.errors import InputError
from dynaxx.integrations.companion import Companion
from dynaxx.monitor import MonitorWarning, Probe
from dynaxx.monitor.signals import NotFinite


def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(24, 5), torch.arange(24) % 3
    return model, torch.optim.SGD(model.parameters(), lr=0.1), x, y


def steps(model, optimizer, x, y, count):
    for _ in range(count):
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_state_carries_count_and_start_through_a_file(tmp_path):
    model, optimizer, x, y = setting()
    first = Companion(Probe("all", (x, y)), None, {"every": 2})
    assert first.state() == {}
    first.start(model, [optimizer])
    steps(model, optimizer, x, y, 3)
    torch.save(first.state(), tmp_path / "state.pt")
    steps(model, optimizer, x, y, 3)
    first.close()

    model, optimizer, x, y = setting()
    steps(model, optimizer, x, y, 3)
    second = Companion(Probe("all", (x, y)), None, {"every": 2})
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.state()["steps"] == 3  # a checkpoint before the start keeps what was read
    second.start(model, [optimizer], done=3)
    steps(model, optimizer, x, y, 3)
    second.close()
    assert [record.step for record in first.monitor.history] == [0, 2, 4, 6]
    assert [record.step for record in second.monitor.history] == [4, 6]
    for a, b in zip(first.monitor.history[2:], second.monitor.history, strict=True):
        assert a.values.keys() == b.values.keys()
        for name in a.values.keys() - {"dynaxx/look_seconds"}:
            assert float(a.values[name]) == float(b.values[name]), name


def test_starting_again_closes_the_one_before():
    model, optimizer, x, y = setting()
    companion = Companion((model[:2](x).detach(), y), "2", {"likelihood": "categorical", "every": 1})
    before = companion.start(model, [optimizer])
    after = companion.start(model, [optimizer])
    steps(model, optimizer, x, y, 2)
    assert ([r.step for r in before.history], [r.step for r in after.history]) == ([0], [0, 1, 2])
    assert before.events == after.events == []
    assert [name for name in after.history[0].values if name.startswith("dynaxx/layer/")] == [
        "dynaxx/layer/weight/trace",
        "dynaxx/layer/weight/share",
    ]
    assert not companion.should_stop()
    after.should_stop = True
    assert companion.should_stop()
    companion.close()


def test_looks_between_two_losses_raise_no_alarm():
    """A framework that tells the loss every tenth step leaves looks without one, which is no NaN."""
    model, optimizer, x, y = setting()
    companion = Companion((x, y), None, {"every": 1, "signals": [NotFinite()]})
    monitor = companion.start(model, [optimizer])
    steps(model, optimizer, x, y, 1)
    monitor.observe(loss=0.5)
    steps(model, optimizer, x, y, 2)
    assert monitor.events == []
    assert ["dynaxx/train_loss" in record.values for record in monitor.history] == [False, False, True, False]
    with pytest.warns(MonitorWarning, match="not finite"):
        monitor.observe(loss=float("nan"))
    companion.close()


def test_warnings_made_errors_do_not_reach_the_training():
    model, optimizer, x, y = setting()
    companion = Companion((x, y), None, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        companion.start(model, [optimizer], done=3)
    companion.close()
    assert [record.step for record in companion.monitor.history] == [3]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (None, {"evry": 3}, r"option='evry' is not known; choose one of 'likelihood', 'every'"),
        (None, {"likelihood": "gausian"}, "likelihood"),
        ("head", {}, r"module='head' is no submodule of the model; it has '0', '1', '2'"),
        (None, {"preset": "ful"}, "preset='ful'"),
    ],
)
def test_wrong_arguments_are_refused(module, options, message):
    model, optimizer, x, y = setting()
    with pytest.raises(InputError, match=message):
        Companion((x, y), module, options).start(model, [optimizer])


def test_importing_them_imports_no_framework():
    code = (
        "import sys, dynaxx.integrations.lightning, dynaxx.integrations.transformers, dynaxx.track.sinks;"
        "print({'lightning', 'transformers', 'mlflow', 'wandb', 'tensorboard', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("module", "missing", "message"),
    [
        ("lightning", ("lightning.pytorch", "lightning", "pytorch_lightning"), "pip install lightning"),
        ("transformers", ("transformers",), "pip install transformers accelerate"),
    ],
)
def test_without_the_framework_the_remedy_is_named(monkeypatch, module, missing, message):
    import importlib

    integration = importlib.import_module(f"dynaxx.integrations.{module}")
    monkeypatch.delitem(vars(integration), "DynaxxCallback", raising=False)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=message):
        _ = integration.DynaxxCallback


@pytest.mark.parametrize(
    ("sink", "module", "message"),
    [
        ("MLflow", "mlflow", "pip install mlflow"),
        ("WandB", "wandb", "pip install wandb"),
        ("TensorBoard", "tensorboard", "pip install tensorboard"),
    ],
)
def test_without_the_tracker_the_remedy_is_named(monkeypatch, sink, module, message):
    from dynaxx.track import sinks

    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=message):
        getattr(sinks, sink)(*(["nowhere"] if sink == "TensorBoard" else []))
