"""A joint removal under Kronecker curvature against dense algebra: any rank, both dtypes, and where it stops."""

import pytest
import torch

from dynaxx.compress.curvature import descent, stiff
from dynaxx.compress.curvature.descent import descend
from dynaxx.compress.curvature.kronecker import ACCURACY, Kronecker
from dynaxx.compress.curvature.stiff import Stiff
from dynaxx.errors import ConvergenceWarning
from dynaxx.layout import Layout
from dynaxx.operators.kronecker import Kronecker as Factors

DAMPING = 1e-3


def factor(n, seed):
    """Eigenvalues over five decades, in no special basis."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    return basis * torch.logspace(1, -4, n, dtype=torch.float64) @ basis.T


def problem(outputs, inputs, kind="kfac", dtype=torch.float64):
    """(curvature, H, weights, dropped) of a layer with a bias that stays."""
    left, right = factor(outputs, 1), factor(inputs + 1, 2)
    layout = Layout({"w": (outputs, inputs), "b": (outputs,)}, dtype, torch.device("cpu"))
    operator = Factors(left.to(dtype), right.to(dtype), "oi", True, layout, 1)
    operator = operator if kind == "kfac" else operator.rotated
    size = layout.size
    F = operator.product(torch.eye(size, dtype=dtype)).double()
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(size, dtype=dtype, generator=generator)
    dropped = torch.rand(size, generator=generator) < 0.6
    dropped[outputs * inputs :] = False
    H = F + DAMPING * torch.eye(size, dtype=torch.float64)
    return Kronecker(operator, torch.arange(size), DAMPING), (H + H.T) / 2, w, dropped


def optimum(H, w, dropped):
    change, w = torch.zeros(len(w), dtype=torch.float64), w.double()
    change[dropped] = -w[dropped]
    change[~dropped] = torch.linalg.solve(H[~dropped][:, ~dropped], H[~dropped][:, dropped] @ w[dropped])
    return change


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
@pytest.mark.parametrize("shape", [(5, 17), (17, 5)])
@pytest.mark.parametrize("rank", [1, 7, 1000])
def test_any_rank_ends_at_the_optimum(shape, kind, rank, monkeypatch):
    monkeypatch.setattr(stiff, "RANK", rank)
    curvature, H, w, dropped = problem(*shape, kind)
    change = curvature.change(w, dropped)
    expected = optimum(H, w, dropped)
    assert float((change - expected).norm()) < 1e-8 * float(expected.norm())
    assert torch.equal(change[dropped], -w[dropped])


@pytest.mark.parametrize("shape", [(5, 17), (17, 5)])
def test_the_preconditioner_is_the_inverse_of_what_it_says(shape, monkeypatch):
    """D + U S U^T with U the kept rows of the seven stiffest eigenvectors, D the rest's diagonal and the damping."""
    monkeypatch.setattr(stiff, "RANK", 7)
    curvature, _, w, dropped = problem(*shape)
    op = curvature.operator.rotated
    kept = curvature._spread((~dropped).double())
    found = Stiff(op.left, op.right, op.scales, kept, DAMPING)
    places = op.scales.flatten().argsort(descending=True)
    vectors = torch.kron(op.left, op.right)[:, places]
    values = op.scales.flatten()[places]
    U, inside = vectors[:, :7], kept.flatten().bool()
    rest = (vectors[:, 7:].square() * values[7:]).sum(1) + DAMPING
    dense = (torch.diag(rest) + U * values[:7] @ U.T)[inside][:, inside]
    v = curvature._spread(w) * kept
    image = found(v).flatten()
    torch.testing.assert_close(image[inside], torch.linalg.solve(dense, v.flatten()[inside]), rtol=1e-7, atol=1e-9)
    assert not bool(image[~inside].any())


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_single_precision_is_within_its_accuracy_of_the_least_increase(kind, monkeypatch):
    monkeypatch.setattr(stiff, "RANK", 16)
    curvature, H, w, dropped = problem(24, 31, kind, torch.float32)
    change, least = curvature.change(w, dropped), optimum(H, w, dropped)
    increase, lowest = (float(0.5 * c @ H @ c) for c in (change, least))
    bare = -w.double() * dropped
    assert lowest * (1 - 1e-6) <= increase <= lowest * (1 + ACCURACY)
    assert float(0.5 * bare @ H @ bare) > 3 * lowest  # there was something to gain


@pytest.mark.parametrize("damping", [1e-3, 1e-4, 1e-5])
def test_rounding_leaves_the_preconditioner_positive(damping):
    """Single precision, curvatures up to ten million times the damping, and more stiff directions than kept weights."""
    curvature, _, _, dropped = problem(12, 15, dtype=torch.float32)
    op, kept = curvature.operator.rotated, curvature._spread((~dropped).double()).float()
    found = Stiff(op.left.float(), op.right.float(), op.scales.float(), kept, damping)
    inside = kept.flatten().nonzero()[:, 0]
    unit = torch.eye(kept.numel())[inside].view(-1, *kept.shape)
    P = torch.stack([found(v).flatten()[inside] for v in unit]).double()
    assert float(torch.linalg.eigvalsh((P + P.T) / 2)[0]) > 0


def test_stiff_directions_save_steps(monkeypatch):
    """As many products as the steps: a diagonal alone, the whole layer's inverse, and a few stiff directions."""
    curvature, _, w, dropped = problem(24, 31)
    op, kept = curvature.operator.rotated, curvature._spread((~dropped).double())
    away = curvature._spread(-w * dropped)
    right = -curvature._times(away) * kept
    energy = -0.5 * float((away * right).sum()) + 0.5 * float((away * curvature._times(away)).sum())
    whole = lambda v: op.left @ ((op.left.T @ v @ op.right) / (op.scales + DAMPING)) @ op.right.T * kept
    steps = {}
    for name, rank in (("diagonal", 0), ("stiff", 64), ("whole", None)):
        count = []
        apply = lambda v, count=count: count.append(0) or curvature._times(v) * kept
        if rank is not None:
            monkeypatch.setattr(stiff, "RANK", rank)
        precondition = whole if rank is None else Stiff(op.left, op.right, op.scales, kept, DAMPING)
        descend(apply, precondition, right.clone(), energy, 1e-6)
        steps[name] = len(count)
    assert steps["stiff"] < 0.7 * steps["whole"]
    assert steps["stiff"] < 0.5 * steps["diagonal"]


def test_weights_that_went_before_are_not_there(monkeypatch):
    monkeypatch.setattr(stiff, "RANK", 7)
    curvature, H, w, dropped = problem(6, 9)
    chosen = (torch.arange(len(w)) % 4 != 1).nonzero()[:, 0]
    part = Kronecker(curvature.operator, chosen, DAMPING)
    expected = optimum(H[chosen][:, chosen], w[chosen], dropped[chosen])
    torch.testing.assert_close(part.change(w[chosen], dropped[chosen]), expected, rtol=1e-7, atol=1e-9)


def test_stopping_early_is_said(monkeypatch):
    curvature, _, w, dropped = problem(24, 31, dtype=torch.float32)
    monkeypatch.setattr(stiff, "RANK", 0)
    monkeypatch.setattr(descent, "STEPS", 3)
    with pytest.warns(ConvergenceWarning, match=r"change of w stopped within.*raise damping=0\.001"):
        curvature.change(w, dropped)


def test_an_increase_below_rounding_is_said(monkeypatch):
    curvature, _, w, dropped = problem(6, 9, dtype=torch.float32)
    monkeypatch.setattr(Kronecker, "_times", lambda self, matrix: -self.damping * matrix)  # as a factor's rounding is
    with pytest.warns(ConvergenceWarning, match=r"change of w stopped where .* nothing but rounding; raise damping"):
        curvature.change(w, dropped)
