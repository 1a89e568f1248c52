"""Ways to run a model, what a run leaves behind, and what it may not miss."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dynaxx
import oracles
from architectures import CASES, load

EVERY = ("implicit", "dense", "diagonal", "block", "kfac", "ekfac", "gram")
TOLERANCE = 1e-10


def wanted(model, batch):
    return oracles.exact_fisher(oracles.examples(model, batch, "categorical"), "categorical")


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Ways to run a model


class _Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        return self.head(checkpoint(lambda h: torch.tanh(self.second(h)), self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("form", EVERY)
def test_checkpointing(form):
    torch.manual_seed(0)
    model = _Checkpointed(False).double().eval()
    x = inputs(5, 4)
    plain = nn.Sequential(model.first, model.second, nn.Tanh(), model.head)
    assert oracles.distance(
        dynaxx.fisher(model, x, form=form).to_dense(), dynaxx.fisher(plain, x, form=form).to_dense()
    ) < TOLERANCE  # fmt: skip
    if form in ("implicit", "dense", "diagonal"):
        assert oracles.distance(dynaxx.fisher(model, x, form=form).diagonal(), wanted(plain, x).diagonal()) < TOLERANCE


def test_reentrant_checkpointing_is_never_taken_for_zeros():
    torch.manual_seed(0)
    model = _Checkpointed(True).double().eval()
    for form in EVERY:
        with pytest.raises(dynaxx.InputError, match="use_reentrant"):
            dynaxx.fisher(model, inputs(5, 4), form=form)


def test_layers_under_no_grad_are_refused_not_taken_for_zeros():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                h = torch.tanh(self.body(x))
            return self.head(h)

    model, x = Frozen().double(), inputs(5, 4)
    with pytest.raises(dynaxx.InputError, match="'body' ran without gradients"):
        dynaxx.fisher(model, x, form="diagonal")
    head = dynaxx.fisher(model, x, form="diagonal", params=lambda name, _: name.startswith("head"))
    assert float(head.trace()) > 0


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrappers_are_looked_through(wrap):
    model, (x, _) = load("mlp")
    wrapped = wrap(model)
    for form in ("implicit", "dense", "diagonal"):
        operator = dynaxx.fisher(wrapped, x, form=form)
        assert operator.names == tuple(name for name, _ in model.named_parameters())
        assert oracles.distance(operator.diagonal(), wanted(model, x).diagonal()) < TOLERANCE


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("form", EVERY)
def test_any_grad_mode_of_the_caller(form, context):
    model, (x, y) = load("mlp")
    plain = dynaxx.fisher(model, [(x[:3], y[:3]), (x[3:], y[3:])], form=form).to_dense()
    with context():
        operator = dynaxx.fisher(model, [(x[:3], y[:3]), (x[3:], y[3:])], form=form)
        assert torch.equal(operator.to_dense(), plain)
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
        assert torch.is_grad_enabled() == (context is torch.enable_grad)


class _Autocast(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)


@pytest.mark.parametrize("where", ["around the call", "inside the model"])
@pytest.mark.parametrize("form", EVERY)
def test_autocast_keeps_float32_sums(form, where):
    """bfloat16 has 8 bits: entries are good to about 1 %, and what is stored is not rounded to it."""
    model, (x, _) = CASES["mlp"].build()
    dense = dynaxx.fisher(model, x, form=form).to_dense()
    model, x = model.float(), x.float()
    context = torch.autocast("cpu", dtype=torch.bfloat16) if where == "around the call" else nullcontext()
    with context:
        operator = dynaxx.fisher(model if where == "around the call" else _Autocast(model), x, form=form)
        found, diagonal = operator.to_dense(), operator.diagonal()
    assert (operator.dtype, found.dtype, diagonal.dtype) == (torch.float32,) * 3
    assert oracles.distance(found.double(), dense) < 0.03
    if form == "diagonal":
        assert not torch.equal(diagonal, diagonal.bfloat16().float())


@pytest.mark.parametrize("form", ["dense", "diagonal", "block", "kfac", "gram"])
def test_bfloat16_models_accumulate_in_more(form):
    """600 equal examples: sums that were kept in bfloat16 would stop growing at 256 times one of them."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).bfloat16().eval(), torch.randn(1, 3).bfloat16()
    one = dynaxx.fisher(model, x, form="dense").trace()
    batches = [x.expand(4, -1)] * (15 if form == "gram" else 150)
    assert float(dynaxx.fisher(model, batches, form=form).trace()) == pytest.approx(float(one), rel=0.02)


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is left


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@pytest.mark.parametrize("form", EVERY)
def test_no_hooks_are_left(form):
    model = perceptron()
    dynaxx.fisher(model, inputs(5, 4), form=form)
    with pytest.raises(dynaxx.InputError):
        dynaxx.fisher(model, inputs(5, 4) * torch.nan, form=form)
    assert [len(getattr(module, name)) for module in model.modules() for name in HOOKS] == [0] * 16
    assert all(parameter.grad is None for parameter in model.parameters())


class _Watched(nn.Module):
    """Notes every activation it makes."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.seen = []

    def forward(self, x):
        h = torch.tanh(self.first(x))
        self.seen.append(weakref.ref(h))
        return self.head(h)


@pytest.mark.parametrize("form", ["dense", "diagonal", "block", "kfac", "ekfac"])
def test_activations_die_with_the_sweep(form):
    """Also while the operator lives, and without waiting for the collector of cycles."""
    torch.manual_seed(0)
    model = _Watched().double().eval()
    gc.collect()
    gc.disable()
    try:
        operator = dynaxx.fisher(model, [inputs(5, 4), inputs(5, 4)], form=form)
        alive = sum(reference() is not None for reference in model.seen)
    finally:
        gc.enable()
    assert len(model.seen) >= 2
    assert alive == 0
    assert float(operator.trace()) > 0


def test_an_implicit_operator_keeps_one_batch_and_lets_it_go():
    torch.manual_seed(0)
    model = _Watched().double().eval()
    operator = dynaxx.fisher(model, inputs(5, 4))
    operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    assert any(reference() is not None for reference in model.seen)
    del operator
    gc.collect()
    assert not any(reference() is not None for reference in model.seen)
    operator = dynaxx.fisher(model, [inputs(3, 4), inputs(3, 4)])
    operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    gc.collect()
    assert not any(reference() is not None for reference in model.seen)


# ---------------------------------------------------------------------------------------------------------------------
# What is looked at later must still be what it was


def change(model):
    with torch.no_grad():
        model[0].weight.add_(0.5)


STALE = {
    "product": lambda F: F @ torch.ones(F.shape[0], dtype=torch.float64),
    "to_dense": lambda F: F.to_dense(),
    "solve": lambda F: F.solve(torch.ones(F.shape[0], dtype=torch.float64), damping=0.1),
    "trace": lambda F: F.trace(),
    "diagonal": lambda F: F.diagonal(),
}


@pytest.mark.parametrize("verb", STALE)
def test_an_implicit_operator_notices_that_weights_have_moved(verb):
    model = perceptron()
    operator = dynaxx.fisher(model, inputs(5, 4))
    change(model)
    with pytest.raises(dynaxx.InputError, match="parameters have changed"):
        STALE[verb](operator)


@pytest.mark.parametrize("form", ["implicit", "gram"])
def test_only_parameters_that_are_not_reached(form):
    model, batch = load("unused_parameters")
    operator = dynaxx.fisher(model, batch, form=form, params=["idle.weight", "idle.bias"])
    assert float(operator.trace()) == 0
    assert float((operator @ torch.ones(8, dtype=torch.float64)).norm()) == 0


def test_losses_at_a_perfect_fit_are_still_told_apart():
    """A loss of zero is its own double; the curvature of a sum is still N times that of a mean before it is divided."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1, bias=False).double(), inputs(8, 3)
    y = model(x).detach()
    for reduction in ("mean", "sum"):
        H = dynaxx.hessian(model, (x, y), nn.MSELoss(reduction=reduction), form="dense").to_dense()
        assert oracles.distance(H, 2 * x.T @ x / 8) < TOLERANCE
    each = dynaxx.hessian(model, (x, y), lambda z, y: functional.mse_loss(z, y, reduction="none")[:, 0], form="dense")
    assert oracles.distance(each.to_dense(), 2 * x.T @ x / 8) < TOLERANCE
