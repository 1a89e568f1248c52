"""Lower and upper envelopes are bounds in the Loewner order for every input, and as tight as they claim."""

import itertools

import pytest
import torch

from dynaxx.errors import InputError
from dynaxx.likelihoods import Categorical
from dynaxx.likelihoods.envelopes import nystrom
from dynaxx.likelihoods.simplex import SimplexPoint
from likelihoods.cases import DIAGONAL, EVERY, draw, many, outer

L = Categorical()
LOWER = [(method, rank) for method in L.lower_methods for rank in (1, 2, 4)]
UPPER = [("diagonal", 1), ("laplacian", 1), ("tail", 1), ("tail", 3)]
COUNT = 10_000


def relative(z: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B B^T - I) / tr I, for positions that have any information."""
    trace = L.trace(z.double())
    alive = trace > 0
    scale = trace[alive, None, None]
    return outer(columns[alive].double() / scale.sqrt()) - L.metric(z.double())[alive] / scale


@pytest.fixture(scope="module")
def inputs():
    return many(5, COUNT)


@pytest.mark.parametrize(("method", "rank"), LOWER)
def test_lower_envelopes_are_below_for_every_input(inputs, method, rank):
    columns = L.lower(inputs, rank, method)
    assert columns.shape == (COUNT, 5, rank)
    assert torch.isfinite(columns).all()
    assert torch.linalg.eigvalsh(relative(inputs, columns)).max() <= 1e-10


@pytest.mark.parametrize(("method", "rank"), UPPER)
def test_upper_envelopes_are_above_for_every_input(inputs, method, rank):
    columns = L.upper(inputs, method, rank)
    assert torch.isfinite(columns).all()
    difference = relative(inputs, columns)
    largest = difference.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1.0)
    # diag(p) is huge in units of tr I near a corner: the solver's rounding is relative to it
    assert (torch.linalg.eigvalsh(difference)[:, 0] >= -1e-10 * largest).all()
    assert torch.linalg.eigvalsh(difference)[:, -1].max() > 0.05


@pytest.mark.parametrize("method", L.lower_methods)
def test_lower_envelopes_in_float32_are_below_up_to_float32_rounding(inputs, method):
    z = inputs[L.trace(inputs) > 1e-30].float()
    assert torch.linalg.eigvalsh(relative(z, L.lower(z, 2, method))).max() < 1e-4


@pytest.mark.parametrize("method", L.lower_methods)
def test_full_rank_is_the_metric_and_more_rank_is_never_worse(method):
    z = draw(50, 5, scale=2.0)
    traces = [outer(L.lower(z, rank, method)).diagonal(dim1=-2, dim2=-1).sum(-1) for rank in (1, 2, 3, 4)]
    assert all((more >= less * (1 - 1e-12)).all() for less, more in itertools.pairwise(traces))
    torch.testing.assert_close(outer(L.lower(z, 9, method)), L.metric(z), atol=1e-13, rtol=1e-10)
    assert L.lower_noise_size(z, 9, method) == 4


def test_eigen_captures_the_leading_eigenvalues_and_nystrom_lies_between():
    z = draw(200, 6, scale=2.0)
    eigenvalues = torch.linalg.eigvalsh(L.metric(z)).flip(-1)
    trace = {m: [L.lower(z, k, m).square().sum((-2, -1)) for k in (1, 2, 3)] for m in L.lower_methods}
    for k in (1, 2, 3):
        torch.testing.assert_close(trace["eigen"][k - 1], eigenvalues[:, :k].sum(-1))
    for best, middle, simple in zip(trace["eigen"], trace["nystrom"], trace["cholesky"], strict=True):
        assert (middle <= best * (1 + 1e-12)).all()
        assert (simple <= middle * (1 + 1e-9)).all()


def test_one_cholesky_column_is_the_closed_form():
    z = draw(20, 5, scale=2.0)
    p = torch.softmax(z, -1)
    p_t, t = p.max(-1, keepdim=True)
    expected = (p_t / (1 - p_t)).sqrt() * (torch.zeros_like(p).scatter(-1, t, 1.0) - p)
    torch.testing.assert_close(L.lower(z, 1, "cholesky").squeeze(-1), expected)


def test_unconverged_power_iteration_is_no_bound_but_nystrom_with_the_same_vector_is():
    # the trap of neuromanifold.md 3.2
    z = draw(120, 5, scale=2.0)
    v = draw(120, 5, seed=9)
    for _ in range(3):
        v = L.apply(z, v)
        v = v / v.norm(dim=-1, keepdim=True)
    rayleigh = (v * L.apply(z, v)).sum(-1, keepdim=True)
    naive = torch.linalg.eigvalsh(relative(z, (rayleigh.sqrt() * v).unsqueeze(-1)))[:, -1]
    assert (naive > 1e-6).sum() > 60
    fixed = torch.linalg.eigvalsh(relative(z, nystrom(SimplexPoint(z), v.unsqueeze(-1))))[:, -1]
    assert fixed.max() < 1e-12


def test_nystrom_is_a_bound_for_any_subspace(inputs):
    directions = torch.linalg.qr(draw(COUNT, 5, 3, seed=4)).Q
    assert torch.linalg.eigvalsh(relative(inputs, nystrom(SimplexPoint(inputs), directions))).max() <= 1e-10


def test_traces_of_the_upper_envelopes():
    z = draw(40, 6, scale=2.0)
    p = torch.softmax(z, -1)
    trace = lambda columns: columns.square().sum((-2, -1))
    torch.testing.assert_close(trace(L.upper(z, "diagonal")), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(trace(L.upper(z, "laplacian")), 2 * L.trace(z))
    # the tail's excess is p_tail p_tail^T / t_{k+1}
    tail = p.sort(-1).values[:, :3]
    excess = tail.square().sum(-1) / tail.sum(-1)
    torch.testing.assert_close(trace(L.upper(z, "tail", 3)) - L.trace(z), excess, atol=1e-13, rtol=1e-10)


@pytest.mark.parametrize(
    ("power", "rank", "below", "above"),
    [(1.1, 1, 0.125, 1.0113), (1.1, 8, 0.332, 1.0019), (2.2, 1, 0.526, 1.155), (2.2, 8, 0.922, 1.0041)],
)
def test_published_trace_ratios_for_fifty_thousand_zipf_classes(power, rank, below, above):
    # neuromanifold.md 3.1 (E2) gives them to three digits; its "zipf" has exponent 1.1 (p_max = .14 and, at T = 2, .67)
    z = -power * torch.arange(1, 50_001, dtype=torch.float64).log()
    trace = L.trace(z).item()
    assert L.lower(z, rank, "cholesky").square().sum().item() / trace == pytest.approx(below, abs=6e-4)
    # the diagonal columns are disjoint, so all of them at once have their squared norms' sum
    basis = torch.cat([torch.eye(rank), torch.zeros(1, rank)])
    xi = torch.cat([basis, torch.tensor([0.0] * rank + [1.0])[:, None].expand(rank + 1, 50_000)], 1)
    assert L.upper_factor(z, xi, "tail", rank).square().sum().item() / trace == pytest.approx(above, abs=6e-4)


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_products_with_noise_agree_with_columns(likelihood):
    z = draw(3, 4)
    for method in likelihood.lower_methods:
        for rank in (1, 2):
            xi = draw(2, 3, likelihood.lower_noise_size(z, rank, method), seed=3)
            product = (likelihood.lower(z, rank, method) @ xi.unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(likelihood.lower_factor(z, xi, rank, method), product)
    for method in likelihood.upper_methods:
        xi = draw(2, 3, likelihood.upper_noise_size(z, method, 2), seed=3)
        product = (likelihood.upper(z, method, 2) @ xi.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(likelihood.upper_factor(z, xi, method, 2), product)


@pytest.mark.parametrize("likelihood", DIAGONAL, ids=str)
def test_diagonal_likelihoods_are_their_own_envelope(likelihood):
    z = draw(6, 4)
    for method in likelihood.upper_methods:
        torch.testing.assert_close(outer(likelihood.upper(z, method)), likelihood.metric(z))
    diagonal = likelihood.metric(z).diagonal(dim1=-2, dim2=-1)
    kept = outer(likelihood.lower(z, 2))
    torch.testing.assert_close(kept.diagonal(dim1=-2, dim2=-1).sum(-1), diagonal.sort(-1).values[:, -2:].sum(-1))
    assert torch.linalg.eigvalsh(likelihood.metric(z) - kept).min() > -1e-12
    assert likelihood.lower(z, 9).shape == (6, 4, 4)


def test_eigen_of_many_classes_names_the_remedy():
    z = draw(1, 3_000)
    with pytest.raises(InputError, match=r"method='cholesky'.*O\(C\)"):
        L.lower(z, 2, "eigen")
    with pytest.raises(InputError, match="kind='cholesky'"):
        L.factor(z, draw(1, 2_999), "eigen")
    assert L.lower(z, 1, "eigen").shape == (1, 3_000, 1)
