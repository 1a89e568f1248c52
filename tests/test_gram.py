"""Inner products of per-example gradients, and the largest eigenvalues found through them."""

import pytest
import torch
from torch import nn

import dynaxx
import oracles
from architectures import CASES, NAMES, load
from dynaxx import estimators, likelihoods
from dynaxx.assembly import coordinates
from dynaxx.assembly.gram import InnerProducts
from dynaxx.model.network import Output
from dynaxx.model.rules import base
from dynaxx.operators import implicit


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def wide(dtype=torch.float64):
    """More than 1024 parameters, so that nothing is dense."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4))
    return model.to(dtype).eval(), 2 * draw(12, 20).to(dtype)


def exact(model, x):
    """Eigenvalues of the brute-force Fisher matrix, descending."""
    F = oracles.exact_fisher(oracles.examples(model.double(), x.double(), "categorical"), "categorical")
    return torch.linalg.eigvalsh(F).flip(0)


@pytest.mark.parametrize("name", NAMES)
def test_gram_matrix_has_the_spectrum(name, monkeypatch):
    """The bias joins the weight, tiles below the diagonal are mirrored, slices of outputs add up."""
    monkeypatch.setattr(base, "TILE", 3)
    monkeypatch.setattr(base, "CHUNK_BYTES", 400)
    model, data = load(name)
    F, dense = (dynaxx.fisher(model, data, likelihood=CASES[name].likelihood, form=form) for form in ("gram", "dense"))
    dense = dense.to_dense()
    wanted = torch.linalg.eigvalsh(dense).flip(0)[: F.rank_bound]
    assert oracles.distance(F.eigenvalues(), wanted) < 1e-10
    assert torch.equal(F.matrix, F.matrix.T)


@pytest.mark.parametrize("sizes", [[12], [5, 7], [4, 4, 4], [1, 11]])
@pytest.mark.parametrize("chunk", [1, 100])
def test_batches_and_chunks_of_cotangents_are_one_matrix(sizes, chunk, monkeypatch):
    from dynaxx.assembly import sweep

    model, x = wide()
    wanted = dynaxx.fisher(model, x, form="gram").matrix
    monkeypatch.setattr(sweep, "COTANGENT_BYTES", chunk)
    assert oracles.distance(dynaxx.fisher(model, list(x.split(sizes)), form="gram").matrix, wanted) < 1e-12


def test_sequences_of_different_lengths():
    """Batches with numbers of rows of their own cannot be laid end to end; the missing rows are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4)).double().eval()
    data = [torch.randint(5, (2, 3)), torch.randint(5, (3, 2))]
    F, dense = (dynaxx.fisher(model, data, form=form) for form in ("gram", "dense"))
    wanted = torch.linalg.eigvalsh(dense.to_dense()).flip(0)
    found = torch.nn.functional.pad(F.eigenvalues(), (0, max(0, len(wanted) - F.rank_bound)))
    assert oracles.distance(found, wanted[: len(found)]) < 1e-10


@pytest.mark.parametrize("limit", [0, 8192])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3), (torch.float32, 1e-6)])
def test_largest_eigenvalues_meet_the_tolerance(limit, dtype, tolerance, monkeypatch):
    """Through the Gram matrix and, with a limit of 0, through products."""
    monkeypatch.setattr(implicit, "TOP_ROWS", limit)
    model, x = wide(dtype)
    found = dynaxx.fisher(model, x).eigenvalues(10, tolerance=tolerance).double()
    wanted = exact(model, x)[:10]
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted[0])


def test_a_looser_tolerance_takes_fewer_products(monkeypatch):
    monkeypatch.setattr(implicit, "TOP_ROWS", 0)
    model, x = wide()
    made = []
    F = dynaxx.fisher(model, x)
    product = F.source.product
    monkeypatch.setattr(F.source, "product", lambda v: made.append(v.shape[1]) or product(v))
    counts = []
    for tolerance in (1e-2, 1e-12):
        made.clear()
        F.eigenvalues(3, tolerance=tolerance)
        counts.append(sum(made))
    assert counts[0] < counts[1]


def test_what_does_not_fit_goes_through_products(monkeypatch):
    model, x = wide()
    F = dynaxx.fisher(model, x)
    monkeypatch.setattr(InnerProducts, "matrix", refuse)
    assert oracles.distance(F.eigenvalues(3), exact(model, x)[:3]) < 1e-6


def refuse(self, ordered=True):
    raise dynaxx.errors.SizeError("too large")


def test_groups_go_through_products():
    model, x = wide()
    F = dynaxx.fisher(model, x, estimator="hutchinson", group=4)
    dense = dynaxx.fisher(model, x, estimator="hutchinson", group=4, form="dense").to_dense()
    assert oracles.distance(F.eigenvalues(2), torch.linalg.eigvalsh(dense).flip(0)[:2]) < 1e-6


@pytest.mark.parametrize("tolerance", [0, -1.0])
def test_a_tolerance_is_positive(tolerance):
    model, x = wide()
    with pytest.raises(dynaxx.errors.InputError, match="tolerance"):
        dynaxx.fisher(model, x).eigenvalues(3, tolerance=tolerance)


@pytest.mark.parametrize("estimator", ["exact", "hutchinson", "lower", "upper", "empirical"])
@pytest.mark.parametrize("name", ["mlp", "language model", "masked"])
@pytest.mark.parametrize("size", [1, 2**28])
def test_rows_are_the_cotangents_products(name, estimator, size, monkeypatch):
    """U^T w and U c without U are the same as with it."""
    monkeypatch.setattr(coordinates, "COTANGENT_BYTES", size)
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(3, 1 if name == "mlp" else 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1.0, 0, 2, 1]] * 3, dtype=torch.float64) if name == "masked" else None
    output, keys = Output(z, torch.randint(5, z.shape[:2], generator=generator), mask), torch.arange(3)
    chosen = estimators.resolve(estimator, likelihoods.resolve("categorical"))
    U = chosen.cotangents(output, keys, 0, chosen.number(output))  # (K, N, P, C)
    w, c = draw(2, *z.shape), draw(2, 3, len(U))
    found = coordinates.project(chosen, output, keys, w)
    assert oracles.distance(found, torch.einsum("knpc,jnpc->nkj", U, w)) < 1e-12
    found = torch.stack(list(coordinates.combine(chosen, output, keys, c)))
    assert oracles.distance(found, torch.einsum("knpc,jnk->jnpc", U, c)) < 1e-12
