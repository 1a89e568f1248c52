"""Autocast and activation checkpointing: the answers are those of the plain model, sums are kept in float32."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import dynaxx

FORMS = ("diagonal", "block", "kfac", "ekfac", "gram")


class _Net(nn.Module):
    """Convolution, norm, a bare shift, a map shared over positions, a plain one; the middle may be checkpointed."""

    def __init__(self, reentrant=None, checkpointed="body"):
        super().__init__()
        self.reentrant, self.checkpointed = reentrant, checkpointed
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(2, 16)
        self.shift = nn.Parameter(0.1 * torch.randn(16))
        self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        inner = (lambda h: torch.tanh(self.body(h))) if self.checkpointed == "body" else (lambda h: h * self.shift)
        h = inner(h) if self.reentrant is None else checkpoint(inner, h, use_reentrant=self.reentrant)
        return self.head((h + self.shift).mean(1))


def build(**options):
    torch.manual_seed(0)
    return _Net(**options).eval(), torch.randn(12, 3, 6, 6)


def distance(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# measured: 0.0012 in bfloat16, which has 8 bits, and a tenth of that in float16, which has 11
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
@pytest.mark.parametrize("where", ["around the call", "in predict"])
@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_autocast(dtype, tolerance, where, estimator):
    model, x = build()
    around = torch.autocast("cpu", dtype) if where == "around the call" else nullcontext()

    def predict(model, batch):
        with torch.autocast("cpu", dtype):
            return model(batch)

    wanted = dynaxx.fisher(model, x, form=FORMS, estimator=estimator)
    with around:
        found = dynaxx.fisher(
            model, x, form=FORMS, estimator=estimator, predict=None if where == "around the call" else predict
        )
        trace = dynaxx.fisher(model, x, estimator=estimator).trace()
    for form, one, two in zip(FORMS, found, wanted, strict=True):
        assert one.diagonal().dtype == torch.float32
        assert all(value.dtype.itemsize >= 4 for value in one.state()[0].values()), form
        assert distance(one.diagonal(), two.diagonal()) < tolerance, form
    assert float(trace) == pytest.approx(float(wanted[0].trace()), rel=tolerance)


def test_small_gradients_do_not_underflow_under_float16():
    """Squares of 1e-4 are below the smallest number of float16; the sums are not made in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    x = torch.randn(9, 6)
    wanted = dynaxx.fisher(model, x, form="diagonal").diagonal()
    with torch.autocast("cpu", torch.float16):
        found = dynaxx.fisher(model, x, form="diagonal").diagonal()
    assert float(wanted[:48].median()) < 6e-8
    assert distance(found[:48], wanted[:48]) < 1e-2


@pytest.mark.parametrize("checkpointed", ["body", "bare"])
@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_checkpointing(checkpointed, estimator):
    """The forward pass is run again while cotangents are pulled, and nothing else differs."""
    model, x = build(checkpointed=checkpointed)
    again, _ = build(checkpointed=checkpointed, reentrant=False)
    forms = (*FORMS, "implicit")
    wanted, found = (dynaxx.fisher(net, x, form=forms, estimator=estimator) for net in (model, again))
    for form, one, two in zip(forms, found, wanted, strict=True):
        assert distance(one.diagonal(), two.diagonal()) < 1e-6, form


@pytest.mark.parametrize("checkpointed", ["body", "bare"])
@pytest.mark.parametrize("form", [*FORMS, "implicit", "dense"])
def test_reentrant_checkpointing_is_refused(form, checkpointed):
    model, x = build(checkpointed=checkpointed, reentrant=True)
    with pytest.raises(dynaxx.InputError, match="use_reentrant=False"):
        dynaxx.fisher(model, x, form=form)
