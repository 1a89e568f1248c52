"""A look beside a training in half precision: in the parameters' own, where its iterations converge."""

import warnings

import pytest
import torch
from torch import nn

from dynaxx.errors import ConvergenceWarning
from dynaxx.monitor import Monitor, Probe
from dynaxx.monitor.precision import unrounded


def setting(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 20), nn.Tanh(), nn.Linear(20, 5))  # p > 1024
    return net, (torch.randn(32, 20), torch.arange(32) % 5)


def patched(net):
    """What ``accelerator.prepare`` does to a model for bfloat16."""
    net._original_forward = net.forward
    autocast = torch.autocast("cpu", torch.bfloat16)
    net.forward = lambda *args: autocast(net._original_forward)(*args).float()
    return net


@pytest.mark.parametrize("preset", ["economy", "standard", "full"])
def test_a_look_under_autocast_is_that_of_the_parameters_precision_and_converges(preset):
    net, batch = setting()
    expected = Monitor(net, batch, preset=preset).measure(0).values
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        with torch.autocast("cpu", torch.bfloat16):
            around = Monitor(net, batch, preset=preset)
            found = [around.measure(0)]
            assert torch.is_autocast_enabled("cpu")
        inside = Monitor(patched(net), batch, preset=preset)
        wrapped = net.forward
        found.append(inside.measure(0))
    assert net.forward is wrapped
    assert around.events == inside.events == []
    for record in found:
        for name in expected.keys() - {"dynaxx/look_seconds"}:
            assert float(record.values[name]) == float(expected[name]), name


def test_bfloat16_would_not_converge():
    """What the look avoids: the same Hessian through the wrapped forward is no symmetric matrix."""
    import dynaxx

    net, (x, y) = setting()
    loss = lambda z, y: nn.functional.cross_entropy(z, y, reduction="none")
    with pytest.warns(ConvergenceWarning, match="lanczos"):
        dynaxx.hessian(patched(net), (x, y), loss).eigenvalues(1)


def test_dtypes_that_meet_only_under_autocast_stay_under_it():
    net, (x, y) = setting()
    half = Monitor(net, (x.bfloat16(), y))
    with torch.autocast("cpu", torch.bfloat16):
        assert half.measure(0) is not None
        with unrounded(net, Probe("half", (x.bfloat16(), y))):
            assert torch.is_autocast_enabled("cpu")
        with unrounded(net, Probe("single", (x, y))):
            assert not torch.is_autocast_enabled("cpu")
    assert half.events == []


def test_the_forward_is_put_back_after_an_error():
    net, batch = setting()
    wrapped = patched(net).forward
    seen = []

    def fail():
        seen.append(net.forward == net._original_forward)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), unrounded(net, Probe("p", batch)):
        fail()
    assert seen == [True]
    assert net.forward is wrapped
