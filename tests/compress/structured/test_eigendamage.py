"""Bottlenecks in the eigenbasis: exact with all directions, exact scores where the metric is a Kronecker product."""

import copy

import pytest
import torch
from torch import nn

import dynaxx
from compress.structured.resnet import ResNet
from dynaxx import likelihoods
from dynaxx.assembly.sweep import Sweeper
from dynaxx.compress.measure import flops
from dynaxx.compress.structured import Bottleneck, StructuredResult, eigendamage
from dynaxx.compress.structured.bottleneck import sides, turned
from dynaxx.compress.structured.eigenbasis import Price, direction_scores, positions, turn
from dynaxx.estimators import resolve
from dynaxx.model.data import Data, read_batch
from dynaxx.model.network import Network

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (4, 7)),
    "positions": (lambda: nn.Linear(7, 5, bias=False), (4, 3, 7)),
    "plain": (lambda: nn.Conv2d(3, 5, 3, padding=1), (4, 3, 6, 7)),
    "strided": (lambda: nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (4, 4, 6, 7)),
    "circular": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular", bias=False), (4, 3, 6, 7)),
    "reflect": (lambda: nn.Conv2d(3, 5, 3, padding="same", padding_mode="reflect"), (4, 3, 6, 7)),
}


def made(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    return make().double(), torch.randn(shape).double()


def basis(size):
    return torch.linalg.qr(torch.randn(size, size).double()).Q


# ---------------------------------------------------------------------------------------------------------------------
# Bottleneck


@pytest.mark.parametrize("parts", ["in", "out", "both"])
@pytest.mark.parametrize("name", LAYERS)
def test_all_directions_give_the_layer_itself(name, parts):
    layer, x = made(name)
    outputs, inputs = layer.weight.shape[:2]
    small = turned(layer, None if parts == "out" else basis(inputs), None if parts == "in" else basis(outputs))
    assert len(small) == (3 if parts == "both" else 2)
    torch.testing.assert_close(small(x), layer(x), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_fewer_directions_are_the_projected_weight(name):
    layer, x = made(name)
    outputs, inputs = layer.weight.shape[:2]
    left, right = basis(outputs)[:, :2], basis(inputs)[:, :2]
    projected = copy.deepcopy(layer)
    with torch.no_grad():
        weight = torch.einsum("po,oi...,ij->pj...", left @ left.T, layer.weight, right @ right.T)
        projected.weight.copy_(weight)
    small = turned(layer, right, left)
    torch.testing.assert_close(small(x), projected(x), rtol=1e-9, atol=1e-12)
    assert (small.core.weight.shape[1], small.core.weight.shape[0]) == (2, 2)


@pytest.mark.parametrize("parts", ["in", "out", "both"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_bottleneck_turned_again_is_projected_in_its_core(name, parts):
    layer, x = made(name)
    outputs, inputs = layer.weight.shape[:2]
    first = turned(layer, None if parts == "out" else basis(inputs)[:, :3], None if parts == "in" else basis(outputs))
    wide, deep, _ = sides(first.core)
    same = turned(first, basis(wide), basis(deep))
    torch.testing.assert_close(same(x), first(x), rtol=1e-9, atol=1e-12)
    left, right = basis(deep)[:, :2], basis(wide)[:, :2]
    projected = copy.deepcopy(first)
    with torch.no_grad():
        weight = torch.einsum("po,oi...,ij->pj...", left @ left.T, first.core.weight, right @ right.T)
        projected.core.weight.copy_(weight)
    small = turned(first, right, left)
    torch.testing.assert_close(small(x), projected(x), rtol=1e-9, atol=1e-12)
    assert [len(small), *small.sizes] == [3, 2, 2]


def test_making_one_draws_no_random_numbers():
    state = torch.get_rng_state()
    Bottleneck(nn.Conv2d(3, 4, 3), 2, 2)
    before = torch.get_rng_state()
    torch.set_rng_state(state)
    nn.Conv2d(3, 4, 3)
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------------------------------------------------------
# Scores and prices


def turn_layers(model, data, likelihood="categorical", curvature="kfac", names=("0",)):
    meaning = likelihoods.resolve(likelihood)
    network = Network(model, meaning, [f"{name}.weight" for name in names])
    sweeper = Sweeper(network, Data(data, network.device), resolve("exact", meaning))
    return turn(sweeper, {name: model.get_submodule(name) for name in names}, curvature)[0]


@pytest.mark.parametrize("curvature", ["kfac", "ekfac"])
def test_scores_of_a_linear_gaussian_model_are_the_loss(curvature):
    """There F = A x I exactly: to drop a direction q of the input costs 1/2 E |W q q^T x|^2 nats."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 3, bias=False)).double().eval(), torch.randn(40, 5).double()
    layer = turn_layers(model, x, "gaussian", curvature)["0"]
    scores = direction_scores({"0": layer})[0]
    weight = model[0].weight.detach()
    for i in range(5):
        q = layer.right[:, i]
        expected = 0.5 * (x @ torch.outer(q, q) @ weight.T).square().sum(1).mean()
        torch.testing.assert_close(scores["0:in"][i], expected, rtol=1e-9, atol=0)
    for o in range(3):
        q = layer.left[:, o]
        expected = 0.5 * (x @ weight.T @ torch.outer(q, q)).square().sum(1).mean()
        torch.testing.assert_close(scores["0:out"][o], expected, rtol=1e-9, atol=0)


def test_scores_of_a_gaussian_convolution_are_the_loss_with_all_pairs_of_taps():
    """There the output is all the model says, so F = A x I again: dropping a direction of the input channels costs
    1/2 E |change of the output|^2, to which pairs of taps contribute."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 3, 3, stride=2, padding=1, bias=False), nn.Flatten()).double().eval()
    x = torch.randn(10, 1, 5, 6).double() + torch.randn(10, 4, 5, 6).double()
    layer = turn_layers(model, x, "gaussian")["0"]
    scores = direction_scores({"0": layer})[0]["0:in"]
    for i in range(4):
        q = layer.right[:, i]
        part = torch.einsum("nihw,ij->njhw", x, torch.outer(q, q))
        torch.testing.assert_close(scores[i], 0.5 * model(part).detach().square().sum(1).mean(), rtol=1e-9, atol=0)


def test_second_moments_see_what_independent_positions_hide():
    """The mean over positions makes their cotangents equal: K-FAC is off, EKFAC's trace is exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x = 1 + 0.1 * torch.randn(20, 2, 6, 6).double()
    F = dynaxx.fisher(model, x, form="dense")
    right = {}
    for curvature in ("kfac", "ekfac"):
        layer = turn_layers(model, x, curvature=curvature)["0"]
        # the last direction of the input, taken away whole
        kept = layer.weight.clone()
        kept[:, -1] = 0
        new = torch.einsum("po,oit,ji->pjt", layer.left, kept, layer.right).reshape(model[0].weight.shape)
        change = F.layout.ravel({"0.weight": new - model[0].weight.detach()})
        right[curvature] = float(direction_scores({"0": layer})[0]["0:in"][-1]) / float(0.5 * F.quadratic(change))
    assert abs(right["ekfac"] - 1) < abs(right["kfac"] - 1)
    assert right["kfac"] < 0.5


@pytest.mark.parametrize("name", ["linear", "plain", "strided"])
def test_prices_are_what_the_counter_counts(name):
    layer, x = made(name)
    model = nn.Sequential(layer).eval()
    batch = read_batch(x, torch.device("cpu"))
    likelihood = "gaussian"
    flat = nn.Sequential(layer, nn.Flatten()).eval()
    turned_layer = turn_layers(flat, x, likelihood)["0"]
    price = Price(turned_layer, flops(model, batch)["0"], positions(model, ["0"], batch)["0"], layer)
    outputs, inputs = layer.weight.shape[:2]
    tried = set()
    for inner in range(1, inputs + 1):
        for outer in range(1, outputs + 1):
            counted = {(False, False): flops(model, batch)["0"]}
            for enter, leave in ((True, False), (False, True), (True, True)):
                small = nn.Sequential(Bottleneck(layer, inner if enter else None, outer if leave else None))
                counted[enter, leave] = flops(small, batch)[""]
            cost, enter, leave = price.best(inner, outer)
            assert cost == pytest.approx(min(counted.values()))
            assert cost == pytest.approx(counted[enter, leave])
            tried.add((enter, leave))
    assert (False, False) in tried
    assert len(tried) >= 3


@pytest.mark.parametrize("ends", [(2, None), (None, 2), (2, 2)])
def test_prices_of_a_bottleneck_are_what_the_counter_counts(ends):
    layer, x = made("plain")
    first = turned(layer, *(size and basis(side)[:, :size] for size, side in zip(ends, (3, 5), strict=True)))
    model, batch = nn.Sequential(first, nn.Flatten()).eval(), read_batch(x, torch.device("cpu"))
    core = turn_layers(model, x, "gaussian", names=("0.core",))["0.core"]
    counted = flops(model, batch)
    price = Price(core, counted["0.core"], positions(model, ["0.core"], batch)["0.core"], first)
    assert price.dense == pytest.approx(counted[""])
    inputs, outputs, _ = sides(first.core)
    for inner in range(1, inputs + 1):
        for outer in range(1, outputs + 1):
            cost, enter, leave = price.best(inner, outer)
            tried = {(False, False): counted[""]}  # as it is; what is there must stay
            for way in [(ends[0] is not None or a, ends[1] is not None or b) for a in (0, 1) for b in (0, 1)]:
                form = Bottleneck(first, inner if way[0] else None, outer if way[1] else None)
                tried[way] = flops(nn.Sequential(form), batch)[""]
            assert cost == pytest.approx(min(tried.values()))
            assert cost == pytest.approx(tried[enter, leave])


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def net():
    torch.manual_seed(0)
    model = ResNet(1, (8, 8, 12, 16)).double()
    model.train()(torch.randn(8, 3, 8, 8).double())
    return model.eval(), torch.randn(6, 3, 8, 8).double()


@pytest.mark.parametrize("curvature", ["kfac", "ekfac"])
def test_reduction_is_met_and_the_dense_model_is_left_as_it_was(curvature):
    model, x = net()
    state = copy.deepcopy(model.state_dict())
    result = eigendamage(model, x, reduction=0.3, curvature=curvature, repeats=0)
    report = result.report
    assert report["flops"]["small"] <= 0.7 * report["flops"]["dense"]
    assert report["flops"]["small"] > 0.55 * report["flops"]["dense"]
    assert result.predicted_loss_increase > 0
    assert any(isinstance(module, Bottleneck) for module in result.model.modules())
    assert result.model(x).shape == (6, 10)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    total = sum(row["predicted"] for row in report["layers"])
    assert total == pytest.approx(result.predicted_loss_increase)


def test_rounds_go_on_from_bottlenecks_and_are_loaded_into_the_dense_model(tmp_path):
    model, x = net()
    first = eigendamage(model, x, reduction=0.25, repeats=0)
    second = eigendamage(first.model, x, reduction=0.25, repeats=0)
    assert second.report["flops"]["dense"] == first.report["flops"]["small"]
    assert second.report["flops"]["small"] <= 0.75 * first.report["flops"]["small"]
    parts = {name: part for name, part in second.model.named_modules() if isinstance(part, Bottleneck)}
    assert not any(isinstance(inside, Bottleneck) for part in parts.values() for inside in part)
    assert second.architecture.bottlenecks.keys() >= first.architecture.bottlenecks.keys()
    again = any(  # some core is smaller than it was
        (size or 99) < (old or 99)
        for name, sizes in first.architecture.bottlenecks.items()
        for size, old in zip(second.architecture.bottlenecks[name], sizes, strict=True)
    )
    assert again
    loaded = StructuredResult.load(second.save(tmp_path / "second.safetensors"), lambda: net()[0])
    assert torch.equal(loaded.model(x), second.model(x))


def test_small_eigendirections_are_cheaper_than_random_ones():
    """The same number of directions of a low-rank input: its empty ones cost nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3)).double().eval()
    x = torch.randn(50, 4).double() @ torch.randn(4, 20).double()
    result = eigendamage(model, x, reduction=0.4, repeats=0, protect=["2"])
    assert result.architecture.bottlenecks["0"][0] is not None
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-6, atol=1e-9)
    assert result.predicted_loss_increase < 1e-12


def test_what_cannot_be_done_is_said():
    model, x = net()
    for call, said in (
        (lambda: eigendamage(model, x, reduction=0), r"not in \(0, 1\)"),
        (lambda: eigendamage(model, x, reduction=0.3, curvature="dense"), "choose one of 'kfac', 'ekfac'"),
        (lambda: eigendamage(model, x, reduction=0.999, repeats=0), "cannot be reached"),
        (lambda: eigendamage(model, x, reduction=0.3, protect=["nose"]), "protect names 'nose'"),
        (lambda: eigendamage(model, iter([x]), reduction=0.3), "can be read once"),
        (lambda: eigendamage(nn.Linear(3, 2).eval(), torch.randn(4, 3), reduction=0.3), "no Linear or Conv2d"),
    ):
        with pytest.raises(dynaxx.InputError, match=said):
            call()


def test_a_layer_whose_weight_is_read_elsewhere_is_an_error_with_a_remedy():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.b(torch.relu(self.a(x.to(self.a.weight.dtype))))

    with pytest.raises(dynaxx.InputError, match=r"protect=\[...\]"):
        eigendamage(Reads().eval(), torch.randn(9, 16), reduction=0.4, repeats=0)
