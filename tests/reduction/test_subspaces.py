"""The controls: a random subspace's projection has the right distribution, coordinates are the largest ones."""

import numpy as np
import pytest
import torch
from scipy import stats

import dynaxx
from architectures import CASES
from dynaxx.errors import InputError
from dynaxx.reduction import reduce
from dynaxx.reduction.subspaces import Random


def draw(size, seed=0):
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 4, 11])
def test_random_is_distributed_as_a_projection_on_a_drawn_basis(k):
    """Against QR of Gaussian matrices: energy, a coordinate of P d, and its part along another vector."""
    p, runs = 12, 1500
    d, a = draw(p), draw(p, 1)
    rng = np.random.default_rng(0)
    found, wanted = [], []
    for seed in range(runs):
        projected = next(Random(d, seed).projections([k]))
        basis = torch.from_numpy(np.linalg.qr(rng.normal(size=(p, k)))[0])
        for out, vector in ((found, projected), (wanted, basis @ (basis.T @ d))):
            out.append([float(vector @ vector), float(vector[0]), float(vector @ a)])
    for column in range(3):
        one, two = (np.array(rows)[:, column] for rows in (found, wanted))
        assert stats.ks_2samp(one, two).pvalue > 1e-3
    energies = np.array(found)[:, 0] / float(d @ d)
    assert abs(energies.mean() - k / p) < 4 * energies.std() / runs**0.5


def test_random_projects():
    d = draw(500)
    random = Random(d, seed=3)
    for k, projected in zip([1, 50, 499], random.projections([1, 50, 499]), strict=True):
        assert float(projected @ (d - projected)) == pytest.approx(0, abs=1e-9)  # an orthogonal projection
        assert float(projected @ projected / (d @ d)) == pytest.approx(random.energy(k), rel=1e-9)
    assert torch.equal(next(random.projections([500])), d)
    assert float(next(random.projections([0])).norm()) == 0
    again = next(Random(d, seed=3).projections([50]))
    assert torch.equal(again, next(random.projections([50])))
    assert not torch.allclose(again, next(Random(d, seed=4).projections([50])))
    one = Random(torch.tensor([2.0]), seed=0)
    assert [float(v) for v in one.projections([0, 1])] == [0, 2]


@pytest.mark.parametrize("centre", ["origin", "elsewhere"])
def test_coordinates_are_the_largest(centre):
    model, batch = CASES["cnn"].build()
    w = torch.cat([value.detach().flatten() for value in model.parameters()])
    c = torch.zeros_like(w) if centre == "origin" else draw(len(w))
    reduction = reduce(model, batch, centre=c)
    scores = {"magnitude": (w - c).abs(), "diagonal": dynaxx.fisher(model, batch, form="diagonal").diagonal()}
    for name, score in scores.items():
        for k in (0, 5, 60, 112):
            keep = np.argsort(-score.numpy(), kind="stable")[:k]
            wanted = c.clone()
            wanted[keep] = w[keep]
            control = reduction.control(name)
            small = control.apply(k)
            found = torch.cat([value.detach().flatten() for value in small.parameters()])
            assert torch.allclose(found, wanted, atol=1e-14, rtol=0)
            energy = float(((wanted - c) @ (wanted - c)) / ((w - c) @ (w - c)))
            assert control.energy(k) == pytest.approx(energy)


def test_no_more_than_a_few_vectors_at_a_time():
    """A million parameters, half of the dimensions: the projection is still one vector."""
    d = draw(1_000_000)
    projected = next(Random(d, seed=0).projections([500_000]))
    assert projected.shape == d.shape
    assert float(projected @ projected / (d @ d)) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("centre", ["origin", "elsewhere"])
@pytest.mark.parametrize("name", ["mlp", "convolution"])
def test_data_keeps_the_first_layer_on_the_principal_components_of_its_inputs(name, centre):
    """Against numpy's singular value decomposition of the inputs, or of their patches."""
    model, batch = CASES["mlp"].build()
    x = batch[0]
    if name == "convolution":
        torch.manual_seed(0)
        first = torch.nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        model = torch.nn.Sequential(first, torch.nn.Flatten(), torch.nn.Tanh(), torch.nn.Linear(48, 3)).double()
        x = batch = torch.randn(9, 2, 6, 6, dtype=torch.float64)
    place, layer = next((i, m) for i, m in enumerate(model) if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)))
    a = torch.nn.Sequential(*list(model)[:place])(x)
    if isinstance(layer, torch.nn.Conv2d):
        a = torch.nn.functional.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
    components = np.linalg.svd(a.flatten(0, -2).numpy(), full_matrices=False)[2]
    w = torch.cat([value.detach().flatten() for value in model.parameters()])
    c = torch.zeros_like(w) if centre == "origin" else draw(len(w))
    control = reduce(model, batch, centre=c).control("data")
    outputs, inputs = layer.weight.flatten(1).shape
    least = len(w) - outputs * inputs
    assert (control.subspace.least, control.subspace.largest) == (least, len(w))
    shift = c[: outputs * inputs].view(outputs, inputs)
    for m in (0, 1, 2):
        basis = torch.from_numpy(components[:m].T.copy())
        wanted = (layer.weight.detach().flatten(1) - shift) @ basis @ basis.T + shift
        for k in (least + m * outputs, least + (m + 1) * outputs - 1):  # a component is kept whole or not at all
            small = control.apply(k)
            assert torch.allclose(small[place].weight.flatten(1), wanted, atol=1e-12, rtol=0)
            found = torch.cat([value.detach().flatten() for value in small.parameters()])
            assert torch.allclose(found[outputs * inputs :], w[outputs * inputs :], atol=1e-14, rtol=0)
            kept = found - c
            assert control.energy(k) == pytest.approx(float(kept @ kept / ((w - c) @ (w - c))))
    whole = torch.cat([value.detach().flatten() for value in control.apply(len(w)).parameters()])
    assert torch.allclose(whole, w, atol=1e-12, rtol=0)


def test_data_needs_a_first_layer_and_as_many_dimensions_as_the_others_have():
    model, batch = CASES["mlp"].build()
    reduction = reduce(model, batch)
    with pytest.raises(InputError, match="parameters outside the first layer are kept"):
        reduction.control("data").apply(1)
    with pytest.raises(InputError, match="outside the first layer"):
        reduction.curve(lambda m: pytest.fail("work before the check"), [1], controls=["data"])
    weights = [name for name, parameter in model.named_parameters() if parameter.dim() == 1]
    with pytest.raises(InputError, match="none has its weight among the selected"):
        reduce(model, batch, params=weights).control("data")
    with pytest.raises(InputError, match=r"the first of them here is Conv2d.*groups=2"):
        reduce(*CASES["cnn"].build()).control("data")
    assert not any(module._forward_pre_hooks for module in model.modules())
