"""The tape: it counts every use of a parameter, knows where examples are, and leaves nothing behind."""

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
from dynaxx import likelihoods
from dynaxx.assembly.sweep import Sweeper
from dynaxx.estimators import resolve
from dynaxx.model import tape as tapes
from dynaxx.model.data import Data
from dynaxx.model.network import Network

EVERY = ("implicit", "dense", "diagonal", "block", "kfac", "ekfac", "gram")
ENTRIES = ("implicit", "dense", "diagonal")
TOLERANCE = 1e-10


def sweeper_of(model, data, **options):
    likelihood = likelihoods.resolve("categorical")
    network = Network(model, likelihood)
    return Sweeper(network, Data(data, network.device), resolve("exact", likelihood, **options))


def first_tape(model, data):
    """The tape of the first batch, rehearsed, and all its cotangents."""
    sweeper = sweeper_of(model, data)
    with sweeper.network.guarded():
        tape, keys = next(sweeper.tapes())
        return tape, torch.cat(list(sweeper.estimator.chunks(tape.output, keys, 1000)))


def wanted(model, batch, kind="categorical"):
    return oracles.exact_fisher(oracles.examples(model, batch, kind), kind)


def diagonal_is_right(model, batch, dense=None):
    dense = wanted(model, batch) if dense is None else dense
    for form in ENTRIES:
        assert oracles.distance(dynaxx.fisher(model, batch, form=form).diagonal(), dense.diagonal()) < TOLERANCE


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Which way a parameter goes: by its layer's rule, or the generic one

WAYS = {
    "mlp": set(),
    "called_twice": set(),
    "one_module_two_names": set(),
    "used_outside_its_module": {"encode.weight"},
    "used_only_by_function": {"store.weight", "store.bias"},
    "tied_language_model": set(),
    "bare_parameters": {"scale", "shift", "temperature"},
    "weight_norm": {"0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"},
    "bilinear": {"mix.weight", "mix.bias"},
    "prelu": {"1.weight", "3.weight"},
    "time_first": set(),
    "time_first_square": set(),
    "flattened_time": set(),
    "flattened_time_slower": {"first.weight", "first.bias", "second.weight", "second.bias"},
    "gradient_checkpointing": set(),
    "position_embedding": {"places.weight"},
    "folded_frames": {"conv.weight", "conv.bias"},
}


@pytest.mark.parametrize("name", WAYS)
def test_what_goes_the_generic_way(name):
    tape, cotangents = first_tape(*load(name))
    assert tape.generic == WAYS[name]
    assert set(tape.pulled(cotangents)) == set(tape.network.parameters)


def test_uses_are_counted():
    tape, cotangents = first_tape(*load("called_twice"))
    assert {name: len(uses) for name, uses in tape.pulled(cotangents).items()} == {
        "again.weight": 2, "again.bias": 2, "head.weight": 1, "head.bias": 1,
    }  # fmt: skip
    tape, cotangents = first_tape(*load("tied_language_model"))
    assert {type(use.rule).__name__ for use in tape.pulled(cotangents)["embed.weight"]} == {
        "EmbeddingWeight", "LinearWeight",
    }  # fmt: skip


def test_unused_parameters_are_not_reached_and_have_zeros():
    tape, _ = first_tape(*load("unused_parameters"))
    assert tape.reached == {"used.weight", "used.bias"}
    operator = dynaxx.fisher(*load("unused_parameters"), form="diagonal")
    assert float(operator.unravel(operator.diagonal())["idle.weight"].abs().sum()) == 0


class _OnlyItsOutputOfOneCall(nn.Module):
    """The first call of the layer leads nowhere, the second is detached, the third counts."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        self.layer(x + 1)
        h = torch.tanh(self.layer(x)).detach()
        with torch.no_grad():
            h = h + self.layer(h)
        return self.head(torch.tanh(self.layer(h)))


def test_calls_that_lead_nowhere_do_not_count():
    torch.manual_seed(0)
    model = _OnlyItsOutputOfOneCall().double().eval()
    tape, _ = first_tape(model, inputs(5, 4))
    assert [(call.name, call.number) for call in tape.known] == [("layer", 3), ("head", 0)]
    diagonal_is_right(model, inputs(5, 4))


class _AtOnce(nn.Module):
    """One call by the module and one by a function; ``views`` of the weight made once and used twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        turned = self.layer.weight.T
        return self.head(torch.tanh(self.layer(x)) + x @ turned + torch.sin(x) @ turned)


def test_a_view_of_a_weight_is_a_use():
    torch.manual_seed(0)
    model = _AtOnce().double().eval()
    assert first_tape(model, inputs(5, 4))[0].generic == {"layer.weight"}
    diagonal_is_right(model, inputs(5, 4))


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("kind", ["replaces", "in place", "input"])
def test_hooks_of_the_users_own_are_part_of_the_model(kind, place):
    """The cotangent that belongs to a layer is that of what it returned, not of what a hook made of it."""
    model = perceptron()
    if kind == "replaces":
        model[place].register_forward_hook(lambda module, args, out: 2 * out + torch.sin(out))
    elif kind == "in place":
        model[place].register_forward_hook(lambda module, args, out: out.mul_(3))
    else:
        model[place].register_forward_pre_hook(lambda module, args: (torch.sin(args[0]),))
    diagonal_is_right(model, inputs(5, 4))
    for estimator in ("hutchinson", "monte_carlo"):
        diagonals = [
            dynaxx.fisher(model, inputs(5, 4), estimator=estimator, samples=16, seed=seed, form="diagonal").diagonal()
            for seed in range(20)
        ]
        # 320 draws of each of 5 examples: a factor of 4 or 9 is far outside 40 %
        ratio = torch.stack(diagonals).mean(0).sum() / wanted(model, inputs(5, 4)).trace()
        assert 0.6 < float(ratio) < 1.4


class _WritesIntoItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(4, 3), nn.Linear(3, 3)

    def forward(self, tokens):
        tokens = tokens.clone()
        h = self.words(tokens)
        tokens.zero_()  # autograd keeps its own copy of the indices' version and does not look at frozen tables
        return self.head(h)


def test_an_input_that_is_overwritten_after_use_is_refused():
    torch.manual_seed(0)
    model = _WritesIntoItsInput().double().eval()
    with pytest.raises((dynaxx.InputError, RuntimeError), match=r"in place|inplace"):
        dynaxx.fisher(model, torch.randint(4, (5, 2)), form="diagonal")


class _WritesIntoHidden(nn.Module):
    """Only the bias of ``second`` is looked at, so that autograd does not save its input."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.sin(self.first(x))
        out = self.head(h)
        h.zero_()
        return out


def test_an_activation_that_is_overwritten_after_use_is_refused():
    torch.manual_seed(0)
    model = _WritesIntoHidden().double().eval()
    with pytest.raises((dynaxx.InputError, RuntimeError), match=r"in place|inplace"):
        dynaxx.fisher(model, inputs(5, 4), form="diagonal", params=["head.bias", "first.weight"])
    with pytest.raises(dynaxx.InputError, match=r"'head' was changed in place.*out-of-place"):
        dynaxx.fisher(model, inputs(5, 4), form="diagonal", params=["head.bias"])


# ---------------------------------------------------------------------------------------------------------------------
# Where examples are


@pytest.mark.parametrize(
    ("name", "layer", "axis", "flattened"),
    [
        ("mlp", "0", 0, False),
        ("time_first", "first", 1, False),
        ("time_first_square", "first", 1, False),  # as many positions as examples
        ("time_first_square", "norm", 1, False),
        ("flattened_time", "first", 0, True),
        ("segmentation", "first", 0, False),
        ("tied_language_model", "embed", 0, False),
    ],
)
def test_arrangements(name, layer, axis, flattened):
    tape, _ = first_tape(*load(name))
    found = tape.arrangements[layer, 0]
    assert (found.axis, found.flattened) == (axis, flattened)


@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_later_batches_may_call_a_layer_more_often(form):
    """What Kronecker factors gather does not depend on which batch came first."""
    model, (x, _) = load("loop_over_time")
    batches = [x[:2, :2], x[2:]]
    one, two = (dynaxx.fisher(model, data, form=form) for data in (batches, batches[::-1]))
    assert oracles.distance(one.to_dense(), two.to_dense()) < TOLERANCE
    if form == "ekfac":  # its trace is that of the exact blocks
        total = sum(float(wanted(model, batch).trace()) * len(batch) for batch in batches)
        assert float(one.trace()) == pytest.approx(total / len(x), rel=1e-9)


def test_one_example_then_several():
    """A first batch of one example and one position tells nothing about the others."""
    model, (x, _) = load("flattened_time")
    batches = [x[:1, :1], x[1:, :3]]
    dense = (wanted(model, batches[0]) + 4 * wanted(model, batches[1])) / 5
    diagonal_is_right(model, batches, dense)


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
    if form in ENTRIES:
        assert oracles.distance(dynaxx.fisher(model, x, form=form).diagonal(), wanted(plain, x).diagonal()) < TOLERANCE


def test_reentrant_checkpointing_is_never_taken_for_zeros():
    torch.manual_seed(0)
    model = _Checkpointed(True).double().eval()
    for form in EVERY:
        with pytest.raises((dynaxx.InputError, RuntimeError), match="use_reentrant"):
            dynaxx.fisher(model, inputs(5, 4), form=form)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrappers_are_looked_through(wrap):
    model, (x, _) = load("mlp")
    wrapped = wrap(model)
    for form in ENTRIES:
        operator = dynaxx.fisher(wrapped, x, form=form)
        assert operator.names == tuple(name for name, _ in model.named_parameters())
        assert oracles.distance(operator.diagonal(), wanted(model, x).diagonal()) < TOLERANCE


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("form", EVERY)
def test_any_grad_mode_of_the_caller(form, context, request):
    if context is torch.inference_mode and form != "kfac":
        request.applymarker(pytest.mark.xfail(
            strict=True, raises=RuntimeError, reason="sums are made before inference mode is left, and then updated",
        ))  # fmt: skip
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
# Cotangents


def test_pulling_in_one_go_and_one_by_one_agree(monkeypatch):
    model, batch = load("cnn")
    tape, cotangents = first_tape(model, batch)
    together = {name: [use.g for use in uses] for name, uses in tape.pulled(cotangents).items()}
    monkeypatch.setattr(tapes, "BATCHED_ELEMENTS", 0)
    again = {name: [use.g for use in uses] for name, uses in tape.pulled(cotangents.clone()).items()}
    assert together.keys() == again.keys()
    for name, gs in together.items():
        for one, two in zip(gs, again[name], strict=True):
            assert oracles.distance(one, two) < 1e-13


def test_the_last_pull_is_remembered():
    tape, cotangents = first_tape(*load("mlp"))
    assert tape.pulled(cotangents) is tape.pulled(cotangents)
    assert tape.pulled(cotangents) is not tape.pulled(cotangents.clone())


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
def test_an_implicit_operator_notices_that_weights_have_moved(verb, request):
    if verb in ("trace", "diagonal"):
        request.applymarker(pytest.mark.xfail(strict=True, reason="sweeps do not look whether the weights have moved"))
    model = perceptron()
    operator = dynaxx.fisher(model, inputs(5, 4))
    change(model)
    with pytest.raises(dynaxx.InputError, match="parameters have changed"):
        STALE[verb](operator)


@pytest.mark.parametrize("form", ["implicit", "gram"])
@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="products differentiate an output that has no graph")
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
