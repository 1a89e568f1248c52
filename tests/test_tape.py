"""The tape: it counts every use of a parameter and knows where examples are."""

import pytest
import torch
from torch import nn

import dynaxx
import oracles
from architectures import load
from dynaxx import likelihoods
from dynaxx.assembly.sweep import Sweeper
from dynaxx.estimators import resolve
from dynaxx.model import graph
from dynaxx.model import tape as tapes
from dynaxx.model.data import Data
from dynaxx.model.network import Network

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
    "bare_parameters": set(),
    "bare_positions": set(),
    "class_token": set(),
    "class_token_repeated": {"repeated"},
    "bare_scales": {"left", "right"},
    "bare_views": {"viewed", "matrix", "encode.bias"},
    "bare_time_first": set(),
    "weight_norm": {"0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"},
    "bilinear": {"mix.weight"},  # its bias is added to what examples hold
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


def test_bare_parameters_are_held_against_a_run_of_the_first_examples():
    """The shapes say that examples run along axis 0, and the sum is right; the order is not."""
    tape, cotangents = first_tape(*load("bare_reversed"))
    assert tape.generic == set()
    tape.pulled(cotangents)
    assert tape.generic == {"shift"}


def test_bare_parameters_must_add_up(monkeypatch):
    factors = {**graph.FACTORS, "AddBackward0": lambda node, place: 2}
    monkeypatch.setattr(graph, "FACTORS", factors)
    tape, cotangents = first_tape(*load("bare_parameters"))
    tape.pulled(cotangents)
    assert tape.generic == {"shift"}
    diagonal_is_right(*load("bare_parameters"))


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
