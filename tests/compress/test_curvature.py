"""Every representation of F + damping I against dense algebra: the inverse, the constrained optimum, the prediction."""

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.compress.criteria import saliency
from dynaxx.compress.curvature.base import Parts
from dynaxx.compress.curvature.blocks import Blocks
from dynaxx.compress.curvature.build import measure
from dynaxx.compress.curvature.diagonal import Diagonal
from dynaxx.compress.curvature.kronecker import Kronecker
from dynaxx.compress.curvature.rebuilt import Rebuilt
from dynaxx.compress.curvature.rows import Rows
from dynaxx.layout import Layout
from dynaxx.operators.kronecker import EigenKronecker

DAMPING = 0.03


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(n, rank, seed):
    root = draw(rank, n, seed=seed)
    return root.T @ root / rank


def kronecker(outputs=3, inputs=4):
    layout = Layout({"w": (outputs, inputs)}, torch.float64, torch.device("cpu"))
    left, right = torch.linalg.qr(draw(outputs, outputs)).Q, torch.linalg.qr(draw(inputs, inputs, seed=1)).Q
    scales = draw(outputs, inputs, seed=2).square()
    full = torch.kron(left, right) @ torch.diag(scales.flatten()) @ torch.kron(left, right).T
    return EigenKronecker(left, right, scales, "oi", False, layout, 1), full


def cases():
    """(curvature without damping, F) of every representation."""
    entries = draw(7).square()
    yield "diagonal", Diagonal(entries), torch.diag(entries)
    F = positive(9, 5, 1)
    yield "dense", Blocks(F[None], 9), F
    blocks = torch.stack([positive(4, 3, 2), positive(4, 3, 3), positive(4, 3, 4)])
    blocks[-1, 2:] = blocks[-1, :, 2:] = 0  # the last block is filled up
    yield "block", Blocks(blocks, 10), torch.block_diag(*blocks)[:10, :10]
    root = draw(5, 12, seed=5)
    yield "rows", Rows(root), root.T @ root
    yield "more rows than weights", Rows(root.T.contiguous()), root @ root.T
    operator, full = kronecker()
    yield "kronecker", Kronecker(operator, torch.arange(12)), full
    F = torch.block_diag(*blocks[:2], blocks[2][:2, :2], root.T @ root)
    yield "parts", Parts([Blocks(blocks, 10), Rows(root)]), F


@pytest.mark.parametrize(("curvature", "F"), [case[1:] for case in cases()], ids=[case[0] for case in cases()])
def test_against_dense_algebra(curvature, F):
    size = len(F)
    H = F + DAMPING * torch.eye(size, dtype=torch.float64)
    H_inverse = torch.linalg.inv(H)
    damped = curvature.damped(DAMPING)
    assert curvature.damping == 0.0
    assert damped.size == size
    assert damped.trace() == pytest.approx(float(F.trace()), rel=1e-12)
    v = draw(size, seed=8)
    torch.testing.assert_close(damped.product(v), H @ v, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(damped.inverse_diagonal(), H_inverse.diagonal(), rtol=1e-8, atol=0)
    w = draw(size, seed=9)
    for share in (0.0, 0.3, 0.7, 1.0):
        dropped = torch.rand(size, generator=torch.Generator().manual_seed(3)) < share
        q = dropped.nonzero()[:, 0]
        expected = torch.zeros(size, dtype=torch.float64)
        if len(q):
            expected = -H_inverse[:, q] @ torch.linalg.solve(H_inverse[q[:, None], q], w[q])
        change = damped.change(w, dropped)
        torch.testing.assert_close(change, expected, rtol=1e-8, atol=1e-9)
        assert torch.equal(change[dropped], -w[dropped])
        increase = 0.5 * w[q] @ torch.linalg.solve(H_inverse[q[:, None], q], w[q]) if len(q) else 0.0
        assert float(0.5 * change @ damped.product(change)) == pytest.approx(float(increase), rel=1e-7, abs=1e-12)


def test_one_weight_alone_gives_the_score():
    """Group OBS with one weight is OBS: the increase of its change is w^2 / (2 [H^-1]_ii)."""
    curvature, w = Rows(draw(5, 12, seed=5), DAMPING), draw(12, seed=6)
    scores = w.square() / (2 * curvature.inverse_diagonal())
    for i in range(12):
        change = curvature.change(w, torch.arange(12) == i)
        assert float(0.5 * change @ curvature.product(change)) == pytest.approx(float(scores[i]), rel=1e-8)


def test_rounding_does_not_take_the_inverse_below_its_bound():
    """Float32 rows and a damping twelve orders below F: (1 - ...) / damping cancels, 1/H_ii does not."""
    root = draw(3, 6, seed=1).float() * 1e3
    curvature = Rows(root, 1e-9)
    assert bool((curvature.inverse_diagonal() >= 1 / (root.double().square().sum(0) + 1e-9)).all())


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    return model, draw(14, 1, 4, 4)


NAMES = ["0.weight", "0.bias", "3.weight", "3.bias"]


@pytest.mark.parametrize("batches", [1, 3])
def test_rows_and_whole_blocks_are_the_dense_fisher_matrix(net, batches):
    model, x = net
    data = x if batches == 1 else list(x.split(5))
    F = dynaxx.fisher(model, x, form="dense").to_dense()
    options = {"estimator": "exact"}
    root = measure("rows", model, data, NAMES, **options)
    torch.testing.assert_close(root.curvature.root.T @ root.curvature.root, F, rtol=1e-10, atol=1e-14)
    assert (root.count, torch.arange(len(F))[root.chosen].tolist()) == (14, list(range(len(F))))
    torch.testing.assert_close(
        root.curvature.damped(1e-3).inverse_diagonal(),
        torch.linalg.inv(F + 1e-3 * torch.eye(len(F), dtype=torch.float64)).diagonal(),
        rtol=1e-8, atol=0,
    )  # fmt: skip
    wide = measure("block", model, data, NAMES, block=100, **options).curvature
    sizes = [18, 2, 24, 3]
    for part, rows in zip(wide.parts, torch.arange(len(F)).split(sizes), strict=True):
        torch.testing.assert_close(part.blocks[0], F[rows[:, None], rows], rtol=1e-10, atol=1e-14)
    narrow = measure("block", model, data, NAMES, block=5, **options).curvature
    assert narrow.parts[0].blocks.shape == (4, 5, 5)
    torch.testing.assert_close(narrow.parts[0].blocks[1], F[5:10, 5:10], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["dense", "rows", "block", "kfac", "ekfac", "diagonal"])
def test_only_what_is_left_is_measured(net, kind):
    model, x = net
    live = {"3.weight": torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) > 0.5}
    options = {"estimator": "exact", "block": 100}
    part, whole = (measure(kind, model, x, NAMES, live=kept, **options) for kept in (live, None))
    assert part.curvature.size == 18 + 2 + int(live["3.weight"].sum()) + 3
    # F of the rest is F's own submatrix
    v = torch.zeros(47, dtype=torch.float64)
    v[part.chosen] = draw(len(part.chosen), seed=4)
    expected = torch.zeros(47, dtype=torch.float64)
    expected[whole.chosen] = whole.curvature.product(v[whole.chosen])
    torch.testing.assert_close(part.curvature.product(v[part.chosen]), expected[part.chosen], rtol=1e-9, atol=1e-12)


ROOM = 2400.0  # bytes, of which half are allowed: room for the largest parameter's blocks of 5, not for all


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compensation": "none"},
        {"steps": 3},
        {"damping": "auto"},
        {"criterion": "magnitude", "compensation": "obs"},
    ],
)
def test_blocks_that_do_not_fit_are_made_again_and_say_the_same(net, options, monkeypatch):
    model, x = net
    options = {"criterion": "obs", "curvature": "block", "block": 5, "sparsity": 0.6, "seed": 3} | options
    data = list(x.split(5))
    held = dynaxx.prune(model, data, **options)
    assert not isinstance(measure("block", model, data, NAMES, block=5).curvature.parts[0], Rebuilt)
    monkeypatch.setattr("dynaxx.errors._free_memory", lambda: ROOM)
    parts = measure("block", model, data, NAMES, block=5).curvature.parts
    assert [(type(part), part.size) for part in parts] == [(Rebuilt, 20), (Rebuilt, 24), (Rebuilt, 3)]
    model.append(nn.Dropout(0.5)).train()  # whoever asks, the model is looked at in evaluation mode
    again = dynaxx.prune(model, data, **options)
    assert model.training
    assert again.predicted == held.predicted
    assert again.report["damping"] == held.report["damping"]
    for one, other in (
        (held.masks, again.masks),
        (held.scores, again.scores),
        (held.weights or {}, again.weights or {}),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_is_made_again_wants_the_same_model_and_data_that_can_be_read_again(net, monkeypatch):
    model, x = net
    monkeypatch.setattr("dynaxx.errors._free_memory", lambda: ROOM)
    with pytest.raises(dynaxx.InputError, match="read once"):
        measure("block", model, iter([x]), NAMES, block=5)
    curvature = measure("block", model, x, NAMES, block=5).curvature.damped(0.1)
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(dynaxx.InputError, match="parameters have changed"):
        curvature.inverse_diagonal()


def test_kfac_curvature_is_the_operator(net):
    model, x = net
    F = dynaxx.fisher(model, x, form="kfac").to_dense()
    found = measure("kfac", model, x, NAMES)
    inverse = torch.linalg.inv(F + 0.01 * torch.eye(len(F), dtype=torch.float64)).diagonal()
    torch.testing.assert_close(
        found.curvature.damped(0.01).inverse_diagonal(), inverse[found.chosen], rtol=1e-8, atol=0
    )


def test_the_model_and_random_state_are_left_alone(net):
    model, x = net
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    for kind in ("rows", "block", "kfac"):
        for steps, damping in ((1, None), (2, "auto")):
            dynaxx.prune(model, x, sparsity=0.5, criterion="obs", curvature=kind, steps=steps, damping=damping)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_float32_scores_agree_with_float64(net):
    model, x = net
    wide = saliency("obs", model, x, curvature="rows").scores
    narrow = saliency("obs", model.float(), x.float(), curvature="rows").scores
    for name, score in wide.items():
        torch.testing.assert_close(narrow[name], score, rtol=1e-3, atol=1e-9)


def test_bad_input(net, monkeypatch):
    model, x = net
    with pytest.raises(dynaxx.InputError, match=r"curvature='woodbury'.*'rows'"):
        dynaxx.prune(model, x, sparsity=0.5, criterion="obs", curvature="woodbury")
    for kind in ("rows", "block"):
        with pytest.raises(dynaxx.InputError, match="singular"):
            dynaxx.prune(model, x, sparsity=0.5, criterion="obs", curvature=kind, damping=0.0)
    monkeypatch.setattr("dynaxx.errors._free_memory", lambda: 2e3)
    with pytest.raises(dynaxx.SizeError, match="curvature='block'"):
        dynaxx.prune(model, x, sparsity=0.5, criterion="obs", curvature="rows")
    with pytest.raises(dynaxx.SizeError, match="smaller block="):
        dynaxx.prune(model, x, sparsity=0.5, criterion="obs", curvature="block")
