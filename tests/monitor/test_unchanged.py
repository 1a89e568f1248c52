"""A training with a monitor is bit for bit the training without; what a monitor hung on it goes with it."""

import pytest
import torch
from torch import nn

from dynaxx.monitor import Monitor
from monitor.loops import OPTIMIZERS, data, everything, model, train


@pytest.mark.parametrize("preset", ["economy", "standard", "full"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_bit_equal_with_and_without(optimizer, preset, tmp_path):
    plain, watched = model(), model()
    first, second = OPTIMIZERS[optimizer](plain.parameters()), OPTIMIZERS[optimizer](watched.parameters())
    drawn = train(plain, first)
    with Monitor(watched, data(), every=3, preset=preset, store=tmp_path / "a.db") as monitor:
        monitor.attach(second)
        assert train(watched, second, monitor) == drawn
    assert everything(plain, first) == everything(watched, second)
    assert [record.step for record in monitor.history] == [0, 3, 6, 9, 12]
    assert monitor.events == []
    assert all(module.training for module in watched.modules())


def test_compiled_and_wrapped_models_are_looked_through():
    net = model()
    compiled = torch.compile(net, backend="eager")
    optimizer = OPTIMIZERS["sgd"](compiled.parameters())
    plain = model()
    first = OPTIMIZERS["sgd"](plain.parameters())
    drawn = train(plain, first)
    monitor = Monitor(compiled, data(), every=4).attach(optimizer)
    assert train(net, optimizer, monitor, wrapped=compiled) == drawn
    assert everything(plain, first) == everything(net, optimizer)
    layers = {name.split("/")[2] for name in monitor.history[-1].values if name.startswith("dynaxx/layer/")}
    assert layers == {"0", "1", "4"}  # neither _orig_mod. nor module.
    parallel = nn.DataParallel(model())
    assert Monitor(parallel, data()).measure(0).values["dynaxx/layer/0/trace"] > 0


def test_hooks_are_gone_after_closing():
    net = model()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    before = len(optimizer._optimizer_step_post_hooks)
    with Monitor(net, data(), every=1) as monitor:
        monitor.attach(optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == before + 1
    assert len(optimizer._optimizer_step_post_hooks) == before
    train(net, optimizer)
    assert (len(monitor.history), monitor.measure(5)) == (1, None)
