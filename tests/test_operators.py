"""Every operator x every verb, against its dense matrix."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
import market
import oracles
from dynaxx.operators import implicit
from market import MARKET, NAMES, WITH_PRODUCTS

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
ITERATED = {torch.float64: 1e-7, torch.float32: 2e-4}  # solves by conjugate gradients
DTYPES = (torch.float64, torch.float32)
every = pytest.mark.parametrize("name", NAMES)
multiplying = pytest.mark.parametrize("name", WITH_PRODUCTS)
precision = pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])


def columns(operator, k=3):
    draw = torch.randn(operator.shape[0], k, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return draw.to(operator.dtype)


def near(found, wanted, dtype, tolerance=TOLERANCE, scale=None):
    """|found - wanted| in units of |wanted| (or of scale), both in float64."""
    norm = float(wanted.norm()) if scale is None else scale
    assert float((found.double() - wanted).norm()) <= tolerance[dtype] * norm


def damping_of(name):
    return 0.05 if MARKET[name].definite else 2.0  # the Hessians here have no eigenvalue below -1


def damped(name, dense):
    return dense + damping_of(name) * torch.eye(len(dense), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Products


@precision
@multiplying
class TestVectors:
    """Each verb that takes a vector takes (p,), (p, k), a dict and a dict with columns, and answers in kind."""

    def answers(self, operator, verb):
        """(answer, the vector it answers) for each kind."""
        v = columns(operator)
        yield verb(v[:, 0]), v[:, :1].double().squeeze(1)
        yield verb(v), v.double()
        for vectors in (v[:, 0], v):
            answer = verb(operator.unravel(vectors))
            assert list(answer) == list(operator.names)
            assert {key: value.shape for key, value in answer.items()} == {
                key: value.shape for key, value in operator.unravel(vectors).items()
            }
            yield operator.ravel(answer), vectors.double()

    def test_product(self, name, dtype):
        operator, dense = market.load(name, dtype)
        for answer, v in self.answers(operator, lambda v: operator @ v):
            assert answer.shape == v.shape
            assert (answer.dtype, answer.device) == (dtype, operator.device)
            near(answer, dense @ v, dtype, scale=float(dense.norm() * v.norm()))

    def test_solve(self, name, dtype):
        operator, dense = market.load(name, dtype)
        tolerance = ITERATED if market.needs_model(operator) else TOLERANCE
        for answer, v in self.answers(operator, lambda v: operator.solve(v, damping=damping_of(name))):
            assert answer.shape == v.shape
            assert answer.dtype == dtype
            near(answer, torch.linalg.solve(damped(name, dense), v), dtype, tolerance)

    def test_quadratic(self, name, dtype):
        operator, dense = market.load(name, dtype)
        v = columns(operator)
        wanted = torch.einsum("pk,pq,qk->k", v.double(), dense, v.double())
        scale = float(dense.norm() * v.double().norm() ** 2)
        for found in (operator.quadratic(v), operator.quadratic(operator.unravel(v))):
            assert found.shape == (3,)
            near(found, wanted, dtype, scale=scale)
        one = operator.quadratic(v[:, 0])
        assert one.shape == ()
        near(one, wanted[0], dtype, scale=scale)

    def test_to_dense(self, name, dtype):
        operator, dense = market.load(name, dtype)
        found = operator.to_dense()
        assert found.dtype == dtype
        near(found, found.T.double(), dtype, {torch.float64: 1e-14, torch.float32: 1e-6})
        near(found, dense, dtype)


@multiplying
def test_other_dtypes_are_brought_to_the_operators_own(name):
    operator, dense = market.load(name)
    v = columns(operator)[:, 0]
    answer = operator @ v.float()
    assert answer.dtype == operator.dtype
    near(answer, dense @ v.float().double(), torch.float64, scale=float(dense.norm() * v.norm()))


@multiplying
def test_answers_are_cut_off_from_autograd(name):
    operator, _ = market.load(name)
    v = columns(operator)[:, 0].requires_grad_()
    for answer in (operator @ v, operator.solve(v, damping=2.0), operator.quadratic(v)):
        assert not answer.requires_grad


@every
def test_ravel_and_unravel_are_inverse(name):
    operator, _ = market.load(name)
    for v in (columns(operator), columns(operator)[:, 0]):
        assert torch.equal(operator.ravel(operator.unravel(v)), v)
    assert operator.layout.size == operator.shape[0] == operator.shape[1]


# ---------------------------------------------------------------------------------------------------------------------
# Entries and scalars


@precision
@every
class TestScalars:
    def test_diagonal(self, name, dtype):
        operator, dense = market.load(name, dtype)
        assert operator.diagonal().dtype == dtype
        near(operator.diagonal(), dense.diagonal(), dtype)

    def test_trace(self, name, dtype):
        operator, dense = market.load(name, dtype)
        trace = operator.trace()
        assert float(trace) == pytest.approx(float(dense.trace()), rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        samples = MARKET[name].samples
        assert (trace.exact, trace.samples) == (samples == 0, samples)
        assert trace.stderr == 0 if samples == 0 else 0 < trace.stderr < float(trace)

    def test_frobenius(self, name, dtype):
        operator, dense = market.load(name, dtype)
        norm = operator.frobenius()
        assert float(norm) == pytest.approx(float(dense.norm()), rel=TOLERANCE[dtype])
        self.check_error(name, norm)

    def test_logdet(self, name, dtype):
        operator, dense = market.load(name, dtype)
        logdet = operator.logdet(damping=damping_of(name))
        # each of p logarithms is off by the error of its eigenvalue over the damping
        slack = TOLERANCE[dtype] * len(dense) * (1 + float(dense.norm()) / damping_of(name))
        assert float(logdet) == pytest.approx(float(torch.logdet(damped(name, dense))), abs=slack)
        self.check_error(name, logdet)

    @staticmethod
    def check_error(name, estimate):
        """Exact, or sampled with an error that the operator cannot know."""
        samples = MARKET[name].samples
        assert (estimate.exact, estimate.samples) == (samples == 0, samples)
        assert estimate.stderr == 0 if samples == 0 else math.isnan(estimate.stderr)


@pytest.mark.parametrize("name", [name for name in NAMES if not MARKET[name].definite])
def test_a_logarithm_that_is_not_real_is_refused(name):
    operator, dense = market.load(name)
    least = float(torch.linalg.eigvalsh(dense)[0])
    assert least < -0.01
    with pytest.raises(dynaxx.InputError, match="raise damping"):
        operator.logdet(damping=-least / 2)
    assert not operator.definite


# ---------------------------------------------------------------------------------------------------------------------
# Spectra


@precision
@every
class TestSpectra:
    def test_eigenvalues(self, name, dtype):
        operator, dense = market.load(name, dtype)
        wanted = torch.linalg.eigvalsh(dense).flip(0)
        found = operator.eigenvalues()
        assert found.dtype == dtype
        assert len(found) == min(operator.rank_bound, len(dense)) or len(found) == len(dense)
        assert bool((found.diff() <= 0).all())
        near(found, wanted[: len(found)], dtype, scale=float(wanted.norm()))
        assert float(wanted[len(found) :].abs().sum()) <= 1e-12
        near(operator.eigenvalues(k=3), wanted[:3], dtype, scale=float(wanted.norm()))

    def test_spectrum(self, name, dtype):
        operator, dense = market.load(name, dtype)
        wanted = torch.linalg.eigvalsh(dense).flip(0)
        spectrum = operator.spectrum()
        assert (spectrum.dimension, spectrum.count) == (len(dense), operator.count)
        values = spectrum.eigenvalues.double()
        near(values, wanted[: len(values)], dtype, scale=float(wanted.norm()))
        if MARKET[name].definite:
            assert float(spectrum.trace()) == pytest.approx(float(dense.trace()), rel=10 * TOLERANCE[dtype])
        top = operator.spectrum(k=3)
        assert top.partial
        near(top.eigenvalues.double(), wanted[:3], dtype, scale=float(wanted.norm()))

    def test_eigh(self, name, dtype):
        operator, dense = market.load(name, dtype)
        if not MARKET[name].products and "gram" in name:
            with pytest.raises(dynaxx.InputError, match="loaded from a file"):
                operator.eigh()
            return
        # vectors below M eps of the largest eigenvalue are no better than rounding; they are not returned or not large
        values, vectors = operator.eigh()
        assert (values.dtype, vectors.dtype) == (dtype, dtype)
        values, vectors = values.double(), vectors.double()
        wide = {torch.float64: 1e-8, torch.float32: 1e-3}
        near(vectors * values @ vectors.T, dense, dtype, wide)
        near((vectors.T @ vectors)[:2, :2], torch.eye(2, dtype=torch.float64), dtype, wide)
        values, vectors = (part.double() for part in operator.eigh(k=2))
        assert vectors.shape == (len(dense), 2)
        near(dense @ vectors, vectors * values, dtype, wide, scale=float(dense.norm()))
        near(values, torch.linalg.eigvalsh(dense).flip(0)[:2], dtype, scale=float(dense.norm()))


@every
def test_answers_do_not_lead_into_the_operator(name):
    """Writing into what a verb returned leaves the operator as it was."""
    operator, dense = market.load.__wrapped__(name)  # one of its own: it would spoil the shared one
    operator.diagonal().zero_()
    operator.eigenvalues().zero_()
    operator.spectrum().eigenvalues.zero_()
    if MARKET[name].products:
        operator.to_dense().zero_()
        for part in operator.eigh():
            part.zero_()
        near(operator.to_dense(), dense, torch.float64)
    assert float(operator.frobenius()) == pytest.approx(float(dense.norm()), rel=1e-9)
    assert float(operator.eigenvalues()[0]) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-8)


# ---------------------------------------------------------------------------------------------------------------------
# What it says of itself


@every
def test_description(name):
    operator, dense = market.load(name)
    assert operator.shape == tuple(dense.shape)
    assert operator.count == (8 if MARKET[name].wide else 6)
    assert operator.definite == MARKET[name].definite
    assert set(operator.coverage()) == set(operator.names)
    kinds = {"kronecker"} if "kfac" in operator.form else {operator.form, "dense"}
    assert set(operator.coverage().values()) <= kinds
    assert repr(operator) == (
        f"{type(operator).__name__}({len(dense)} x {len(dense)}, {len(operator.names)} parameters, "
        f"{operator.count} examples)"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Bad arguments


@every
@pytest.mark.parametrize("damping", [0, 0.0, -1.0, math.nan, math.inf, "1", None])
def test_damping_must_be_positive(name, damping):
    operator, _ = market.load(name)
    with pytest.raises(dynaxx.InputError, match="damping"):
        operator.solve(columns(operator), damping=damping)
    with pytest.raises(dynaxx.InputError, match="damping"):
        operator.logdet(damping=damping)


@every
@pytest.mark.parametrize("k", [0, -1, 44, 1.5, True, "3"])
def test_k_must_be_in_range(name, k):
    operator, _ = market.load(name)
    for verb in (operator.eigh, operator.eigenvalues, operator.spectrum):
        with pytest.raises(dynaxx.InputError, match=r"k="):
            verb(k=k)


def unfit(operator):
    p, whole = operator.shape[0], operator.unravel(columns(operator))
    first = operator.names[0]
    return {
        "too long": torch.ones(p + 1),
        "transposed": torch.ones(2, p),
        "three axes": torch.ones(p, 1, 1),
        "a number": torch.tensor(1.0),
        "a list": [1.0] * p,
        "nothing": None,
        "a missing name": {key: value for key, value in whole.items() if key != first},
        "an unknown name": {**whole, "elsewhere": torch.ones(2)},
        "a wrong shape": {**whole, first: torch.ones(2, 2, 2, 2)},
        "some columns": {**whole, first: whole[first][..., 0]},
    }


@multiplying
def test_vectors_must_fit(name):
    operator, _ = market.load(name)
    for kind, vector in unfit(operator).items():
        for verb in (operator.__matmul__, operator.quadratic, lambda v, solve=operator.solve: solve(v, damping=1.0)):
            try:
                verb(vector)
            except dynaxx.InputError:
                continue
            pytest.fail(f"{kind} was accepted")


def test_indefinite_solves_say_so_or_are_exact():
    """Conjugate gradients refuse what a factorisation can do."""
    operator, dense = market.load("hessian dense")
    v = columns(operator)
    shifted = dense + 0.01 * torch.eye(len(dense), dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(shifted)[0]) < 0
    near(operator.solve(v, damping=0.01), torch.linalg.solve(shifted, v), torch.float64)
    with pytest.raises(dynaxx.InputError, match="damping"):
        market.load("hessian")[0].solve(v, damping=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# More than 1024 parameters: iterations


class TestLarge:
    """A linear softmax with 1505 parameters: Hessian = Fisher = (1/N) sum_n (diag p - p p^T) (x) (x, 1)(x, 1)^T."""

    @pytest.fixture(scope="class")
    @classmethod
    def problem(cls):
        torch.manual_seed(6)
        model = nn.Linear(300, 5).double().eval()
        x, y = torch.randn(7, 300, dtype=torch.float64), torch.randint(5, (7,))
        inputs = torch.cat([x, torch.ones(7, 1, dtype=torch.float64)], 1)
        full = sum(
            torch.kron(oracles.metric("categorical", z), torch.outer(a, a))
            for z, a in zip(model(x).detach(), inputs, strict=True)
        )
        index = torch.arange(5 * 301).reshape(5, 301)
        order = torch.cat([index[:, :-1].flatten(), index[:, -1]])
        dense = full[order][:, order] / 7
        return model, (x, y), dense, torch.linalg.eigvalsh(dense).flip(0)

    @pytest.fixture(params=["gram", "gram rows beyond the limit", "form gram", "hessian"])
    def operator(self, problem, request, monkeypatch):
        model, batch, *_ = problem
        if request.param == "gram rows beyond the limit":
            monkeypatch.setattr(implicit, "GRAM_ROWS", 4)
        if request.param == "hessian":
            return dynaxx.hessian(model, batch, functional.cross_entropy)
        return dynaxx.fisher(model, batch, form="gram" if request.param == "form gram" else "implicit")

    def test_top_eigenpairs(self, operator, problem):
        _, _, dense, wanted = problem
        values, vectors = operator.eigh(k=3)
        assert oracles.distance(values, wanted[:3]) < 1e-8
        assert oracles.distance(dense @ vectors, vectors * values) < 1e-5
        assert oracles.distance(operator.eigenvalues(k=3), wanted[:3]) < 1e-8
        assert oracles.distance(operator.spectrum(k=3).eigenvalues, wanted[:3]) < 1e-8

    def test_scalars_within_their_error(self, operator, problem):
        """4 standard errors, and 1e-8 of the value for what is exact."""
        _, _, dense, wanted = problem
        for found, value in (
            (operator.trace(), float(dense.trace())),
            (operator.frobenius(), float(dense.norm())),
            (operator.logdet(damping=0.1), float((wanted.clamp(min=0) + 0.1).log().sum())),
        ):
            assert math.isfinite(found.stderr)
            assert abs(float(found) - value) <= 4 * found.stderr + 1e-8 * abs(value)
            assert found.stderr < 0.3 * abs(value)
            assert found.exact == (found.stderr == 0)

    def test_spectrum_within_its_error(self, operator, problem):
        _, _, dense, wanted = problem
        spectrum = operator.spectrum()
        assert spectrum.dimension == 1505
        trace = spectrum.trace()
        assert abs(float(trace) - float(dense.trace())) <= 4 * trace.stderr + 1e-8 * float(trace)
        ratio = spectrum.participation_ratio()
        exact = float(wanted.sum() ** 2 / wanted.square().sum())
        assert abs(float(ratio) - exact) <= 4 * ratio.stderr + 1e-8 * exact

    def test_solve(self, operator, problem):
        _, _, dense, _ = problem
        v = columns(operator, 2)
        wanted = torch.linalg.solve(dense + 0.1 * torch.eye(1505, dtype=torch.float64), v)
        assert oracles.distance(operator.solve(v, damping=0.1), wanted) < 1e-7
