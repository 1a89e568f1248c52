import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaxx.errors import ConvergenceWarning, InputError, SizeError
from dynaxx.linalg import lanczos, tridiagonal
from linalg.matrices import Counted, hadamard, power, with_spectrum

SPECTRA = {
    "power": power(150, 1.0),
    "clustered": torch.cat([torch.full((12,), 5.0), torch.full((3,), 4.9999), torch.linspace(0, 1, 135)]),
    "low rank": torch.cat([torch.arange(10.0, 0, -1), torch.zeros(140)]),
    "identity": torch.ones(150),
    "zero": torch.zeros(150),
    "indefinite": torch.linspace(-3, 2.5, 150),
    "nearly one": torch.cat([torch.ones(30), torch.full((120,), 0.999)]),
}


def wanted(values, which, k):
    key = {"largest": values, "smallest": -values, "magnitude": values.abs()}[which]
    return values[key.argsort(descending=True)[:k]].sort(descending=True).values


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("k", [1, 8, 20])
@pytest.mark.parametrize("which", ["largest", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_finds_every_copy(name, which, k, block):
    a = with_spectrum(SPECTRA[name])
    pairs = lanczos(a, k, which=which, block=block, tolerance=1e-9)
    scale = max(float(SPECTRA[name].abs().max()), 1e-300)
    expected = wanted(SPECTRA[name].double(), which, k)
    torch.testing.assert_close(pairs.values, expected, rtol=0, atol=2e-9 * scale)
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-12)
    true = (a @ pairs.vectors - pairs.values * pairs.vectors).norm(dim=0)
    torch.testing.assert_close(pairs.residuals, true, rtol=1e-6, atol=1e-14)


def test_smallest_and_zeros_with_their_multiplicity():
    pairs = lanczos(with_spectrum(SPECTRA["low rank"]), 15, which="smallest")
    torch.testing.assert_close(pairs.values, torch.zeros(15, dtype=torch.float64), rtol=0, atol=1e-12)
    pairs = lanczos(with_spectrum(SPECTRA["indefinite"]), 3, which="smallest", tolerance=1e-9)
    torch.testing.assert_close(pairs.values, SPECTRA["indefinite"][:3].double().flip(0), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("p", "k"), [(1, 1), (2, 2), (7, 3), (64, 64), (100, 100), (100, 90), (65, 1)])
def test_small_p_and_k_close_to_p(p, k):
    values = torch.linspace(1, 2, p, dtype=torch.float64)
    pairs = lanczos(with_spectrum(values), k)
    torch.testing.assert_close(pairs.values, values.flip(0)[:k], rtol=0, atol=1e-6)
    assert pairs.converged.all()


def test_hadamard_eigenvectors_are_seen():
    # the top eigenvectors are vectors of signs: a start vector of signs could be exactly orthogonal to them
    h = hadamard(8)
    values = torch.cat([torch.tensor([9.0, 9.0, 8.0, 7.0]), torch.linspace(0, 1, 252)]).double()
    for seed in range(5):
        pairs = lanczos((h * values) @ h.T, 4, seed=seed)
        torch.testing.assert_close(pairs.values, values[:4], rtol=0, atol=1e-6)


def test_float32_and_memory_of_the_basis():
    op = Counted(with_spectrum(power(400, 1.0)).float())
    pairs = lanczos(op, 5)
    torch.testing.assert_close(pairs.values.double(), power(400, 1.0)[:5], rtol=1e-5, atol=0)
    assert pairs.values.dtype == torch.float32
    assert op.columns == pairs.iterations + 5  # and the residuals


def test_is_deterministic_and_leaves_the_global_random_state():
    a = with_spectrum(SPECTRA["power"])
    state = torch.random.get_rng_state()
    first, second = lanczos(a, 3, seed=4), lanczos(a, 3, seed=4)
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(state, torch.random.get_rng_state())


def test_unconverged_says_so():
    a = with_spectrum(SPECTRA["indefinite"])
    with pytest.warns(ConvergenceWarning, match="max_iterations=12"):
        pairs = lanczos(a, 4, max_iterations=12, tolerance=1e-10)
    assert pairs.iterations == 12
    assert not pairs.converged.all()
    true = (a @ pairs.vectors - pairs.values * pairs.vectors).norm(dim=0)
    torch.testing.assert_close(pairs.residuals, true, rtol=1e-6, atol=1e-14)


def test_unverified_multiplicity_says_so():
    # rank one and a dozen products: the pair itself is exact, the search for a second copy is not over
    a = with_spectrum([3.0] + [0.0] * 199)
    with pytest.warns(ConvergenceWarning, match="copies"):
        pairs = lanczos(a, 1, max_iterations=12)
    assert pairs.converged.all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 101}, "there are 100"),
        ({"which": "top"}, "'largest', 'magnitude', 'smallest'"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"k": 9, "max_iterations": 3}, "at least 9"),
        ({"block": 0}, "block=0"),
    ],
)
def test_bad_input(change, words):
    given = {"k": 2} | change
    with pytest.raises(InputError, match=words):
        lanczos(torch.eye(100), given.pop("k"), **given)


class Huge:
    shape, dtype, device = (10**12, 10**12), torch.float64, torch.device("cpu")

    def __matmul__(self, v):
        raise AssertionError("no product may be made")


def test_refuses_before_allocating():
    with pytest.raises(SizeError, match="Lanczos basis"):
        lanczos(Huge(), 5)
    with pytest.raises(SizeError, match="Lanczos basis"):
        tridiagonal(Large(), torch.ones(10**6, dtype=torch.float64), 10**6)


class Large(Huge):
    shape = (10**6, 10**6)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-3, 3).map(lambda x: round(x, 2)), min_size=1, max_size=9),
    start=st.lists(st.integers(-3, 3), min_size=9, max_size=9),
    seed=st.integers(0, 50),
)
def test_full_order_process_is_exact_for_any_start_vector(values, start, seed):
    """The Krylov space is invariant at full order: A Q = Q T, and every moment of the start vector is that of T."""
    p = len(values)
    a, v = with_spectrum(values, seed), torch.tensor(start[:p], dtype=torch.float64)
    if not v.any():
        v[0] = 1
    process = tridiagonal(a, v, p)
    q, t = process.basis, process.matrix()
    torch.testing.assert_close(q.T @ q, torch.eye(q.shape[1], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(a @ q, q @ t, rtol=0, atol=1e-10)
    moment, power_of_a = v / v.norm(), torch.eye(p, dtype=torch.float64)
    power_of_t = torch.eye(len(t), dtype=torch.float64)
    for _ in range(6):
        torch.testing.assert_close(power_of_t[0, 0], moment @ power_of_a @ moment, rtol=0, atol=1e-7)
        power_of_a, power_of_t = power_of_a @ a, power_of_t @ t


def test_process_reproduces_the_matrix():
    a = with_spectrum(power(40, 0.5))
    process = tridiagonal(a, torch.arange(1, 41, dtype=torch.float64), 40)
    torch.testing.assert_close(process.basis @ process.matrix() @ process.basis.T, a, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", [torch.zeros(4), torch.ones(5), torch.full((4,), float("inf"))])
def test_bad_start(start):
    with pytest.raises(InputError, match="start vector"):
        tridiagonal(torch.eye(4), start, 3)
