import json
import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.linalg import quadrature
from dynaxx.spectrum import SampledSpectrum, Spectrum, jackknife
from linalg.matrices import power, with_spectrum

mpl.use("Agg")

eigenvalues = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30)
VERBS = {
    "trace": lambda s: s.trace(),
    "entropy": lambda s: s.entropy(),
    "normalised_entropy": lambda s: s.normalised_entropy(),
    "effective_rank": lambda s: s.effective_rank(),
    "participation_ratio": lambda s: s.participation_ratio(),
    "effective_dimension": lambda s: s.effective_dimension(prior_precision=1.0, count=10),
    "posterior_entropy": lambda s: s.posterior_entropy(prior_precision=1.0, count=10),
    "stiff_fraction": lambda s: s.stiff_fraction(),
    "decades": lambda s: s.decades(),
    "logdet": lambda s: s.logdet(1e-3),
}
LISTED = {
    "slope": lambda s: s.slope().slope,
    "uniformity": lambda s: s.uniformity(),
    "gap": lambda s: s.gap().decades,
    "rank": lambda s: Estimate(s.rank),
}


@given(value=st.floats(1e-200, 1e200), k=st.integers(1, 40), zeros=st.integers(0, 40))
def test_k_equal_eigenvalues(value, k, zeros):
    s = Spectrum([value] * k + [0.0] * zeros, count=5)
    assert s.entropy() == pytest.approx(math.log(k), abs=1e-12)
    assert s.effective_rank() == pytest.approx(k)
    assert s.participation_ratio() == pytest.approx(k)
    assert s.rank == k
    assert s.stiff_fraction() == 1
    assert s.decades() == 0
    assert s.slope().slope == pytest.approx(0, abs=1e-12)
    assert s.uniformity() == 1


@given(values=eigenvalues, scale=st.floats(1e-3, 1e3))
def test_bounds_and_scale(values, scale):
    s, t = Spectrum(values), Spectrum([v * scale for v in values])
    assert 0 <= s.entropy() <= math.log(len(values)) + 1e-12
    assert 1 - 1e-12 <= s.participation_ratio() <= s.effective_rank() * (1 + 1e-12)
    for verb in ("entropy", "effective_rank", "participation_ratio", "normalised_entropy"):
        assert VERBS[verb](t) == pytest.approx(VERBS[verb](s), rel=1e-9, abs=1e-9)


@given(values=eigenvalues, count=st.integers(1, 10**6), prior=st.floats(1e-3, 1e3))
def test_effective_dimension_is_the_slope_of_the_posterior_entropy(values, count, prior):
    s, step = Spectrum(values), 1e-4
    up, down = (s.posterior_entropy(prior_precision=prior, count=count * math.exp(sign * step)) for sign in (1, -1))
    found = s.effective_dimension(prior_precision=prior, count=count)
    assert found == pytest.approx(-2 * (up - down) / (2 * step), rel=1e-5, abs=1e-6)
    assert 0 <= found <= len(values)
    assert s.posterior_entropy(prior_precision=prior, count=count) <= 0


@given(seed=st.integers(0, 100), damping=st.floats(0.1, 10))
def test_hadamard(seed, damping):
    """log det(I + N A / d) is at most the sum over the diagonal: a diagonal metric overstates the information."""
    matrix = with_spectrum(torch.rand(8, generator=torch.Generator().manual_seed(seed)).double(), seed)
    full = Spectrum(torch.linalg.eigvalsh(matrix)).posterior_entropy(prior_precision=damping, count=50)
    diagonal = Spectrum(matrix.diagonal()).posterior_entropy(prior_precision=damping, count=50)
    assert diagonal <= full + 1e-12


def test_against_formulas_written_out():
    s = Spectrum(torch.tensor([1.0, 8.0, 0.5, 2.0]), dimension=6, count=10)
    q = [v / 11.5 for v in (8, 2, 1, 0.5)]
    assert s.eigenvalues.tolist() == [8, 2, 1, 0.5]
    assert s.trace() == 11.5
    assert s.entropy() == pytest.approx(-sum(x * math.log(x) for x in q))
    assert s.normalised_entropy() == pytest.approx(s.entropy() / math.log(6))
    assert s.participation_ratio() == pytest.approx(11.5**2 / (64 + 4 + 1 + 0.25))
    expected = sum(10 * v / (10 * v + 3) for v in (8, 2, 1, 0.5))
    assert s.effective_dimension(prior_precision=3.0) == pytest.approx(expected)
    expected = -0.5 * sum(math.log(1 + 20 * v / 3) for v in (8, 2, 1, 0.5))
    assert s.posterior_entropy(prior_precision=3.0, count=20) == pytest.approx(expected)
    assert s.logdet(0.1) == pytest.approx(sum(math.log(v + 0.1) for v in (8, 2, 1, 0.5, 0, 0)))
    assert s.stiff_fraction(0.2) == 0.5
    assert s.decades(0.75) == pytest.approx(math.log10(8))
    assert s.decades(1.0) == pytest.approx(math.log10(16))
    gap = s.gap()
    assert (gap.above, gap.decades) == (1, pytest.approx(math.log10(4)))
    assert isinstance(s.entropy(), Estimate)
    assert s.entropy().exact


def test_a_sloppy_spectrum_is_read_as_one():
    """Evenly spread over 6 decades: slope, fit, uniformity and decades in closed form."""
    n = 101
    s = Spectrum(10.0 ** torch.linspace(0, -6, n, dtype=torch.float64))
    fit = s.slope()
    assert fit.slope == pytest.approx(6 / (n - 1))
    assert fit.r_squared == pytest.approx(1)
    assert fit.points == 90 - 6 + 1  # i from ceil(5.05) = 6 to floor(90.9) = 90
    assert s.uniformity() == pytest.approx(1 / n, rel=1e-6)
    assert s.decades(0.9) == pytest.approx(6 * 90 / 100)
    assert Spectrum([1.0] * 50 + [1e-6] * 50).uniformity() == pytest.approx(0.5)


def test_slope_against_polyfit():
    values = np.sort(np.random.default_rng(0).lognormal(size=40))[::-1]
    y = np.log10(values)[1:36]  # i from 2 to 36
    b, a = np.polyfit(np.arange(len(y)), y, 1)
    fit = Spectrum(values.copy()).slope()
    assert fit.slope == pytest.approx(-b)
    assert fit.r_squared == pytest.approx(
        1 - np.square(y - a - b * np.arange(len(y))).sum() / np.square(y - y.mean()).sum()
    )


def test_rounding_is_not_an_eigenvalue():
    matrix = with_spectrum([4.0, 2.0, 1.0] + [0.0] * 97)
    values = torch.linalg.eigvalsh(matrix)
    assert (values != 0).sum() > 3
    s = Spectrum(values)
    assert (s.rank, s.negative) == (3, 0)
    assert s.floor == pytest.approx(torch.finfo(torch.float64).eps * 100 * 4, rel=1e-6)
    assert s.decades(1.0) == pytest.approx(math.log10(4))
    assert s.effective_dimension(prior_precision=1e-30, count=1) == pytest.approx(3)
    single = Spectrum(torch.linalg.eigvalsh(matrix.float()))
    assert single.floor == pytest.approx(torch.finfo(torch.float32).eps * 100 * 4, rel=1e-3)
    assert single.rank == 3
    assert Spectrum(values, precision=torch.float32).floor == pytest.approx(single.floor, rel=1e-3)
    assert Spectrum([2.0, 1e-30], floor=0.0).rank == 2


@pytest.mark.parametrize("values", [[], [0.0] * 5])
@pytest.mark.parametrize("verb", [*VERBS, *LISTED])
def test_the_zero_spectrum_has_answers(verb, values):
    s = Spectrum(values, dimension=5)
    expected = {"logdet": 5 * math.log(1e-3), "uniformity": 1.0}.get(verb, 0.0)
    assert (VERBS | LISTED)[verb](s) == pytest.approx(expected)
    assert math.copysign(1, s.posterior_entropy(prior_precision=1, count=1)) == 1
    assert "rank 0" in repr(s)


def test_one_eigenvalue():
    s = Spectrum([3.0])
    assert (s.entropy(), s.effective_rank(), s.decades(), s.gap().above, s.slope().points) == (0, 1, 0, 0, 0)
    assert s.normalised_entropy() == 0


def test_normalised_entropy_refers_to_the_rank_bound():
    assert Spectrum([1.0] * 9, dimension=1000, rank_bound=9).normalised_entropy() == pytest.approx(1)


@pytest.mark.parametrize("verb", [v for v in [*VERBS, *LISTED] if v not in ("trace", "rank")])
def test_indefinite_spectra_are_told_which_verbs_are_theirs(verb):
    s = Spectrum([3.0, 1.0, -2.0, 0.0])
    with pytest.raises(InputError, match=rf"{verb} needs a positive semi-definite.*\.negative"):
        (VERBS | LISTED)[verb](s)
    assert (s.negative, s.rank, s.trace()) == (1, 3, 2)


@pytest.mark.parametrize("verb", [v for v in [*VERBS, *LISTED] if v != "gap"])
def test_partial_spectra_name_the_remedy(verb):
    s = Spectrum([100.0, 3.0, 1.0], dimension=1000, partial=True)
    with pytest.raises(InputError, match=rf"{verb} needs the whole spectrum.*F\.spectrum\(\)"):
        (VERBS | LISTED)[verb](s)
    assert s.gap().above == 1
    assert "top 3 of 1000" in repr(s)


def test_bad_input():
    s = Spectrum([1.0])
    for call, words in {
        (lambda: s.effective_dimension(prior_precision=1.0)): "give count=",
        (lambda: s.posterior_entropy(prior_precision=0.0, count=3)): "prior_precision=0.0",
        (lambda: s.effective_dimension(prior_precision=1.0, count=-3)): "count=-3",
        (lambda: s.logdet(0.0)): "damping=0.0",
        (lambda: s.decades(0.0)): "fraction=0.0",
        (lambda: s.stiff_fraction(2.0)): "threshold=2.0",
        (lambda: Spectrum([[1.0]])): "1-D",
        (lambda: Spectrum([1.0, float("nan")])): "1 of 2",
        (lambda: Spectrum([1.0, 2.0], dimension=1)): "dimension=1",
        (lambda: Spectrum([1.0], floor=-1.0)): "floor=-1.0",
        (lambda: jackknife([s], Spectrum.trace)): "two or more",
    }.items():
        with pytest.raises(InputError, match=words):
            call()


def test_a_sampled_operator_is_not_exact():
    found = Spectrum([2.0, 1.0], exact=False).entropy()
    assert not found.exact
    assert math.isnan(found.stderr)


def test_survives_json():
    s = Spectrum([2.0, 1 / 3, 1e-20], dimension=9, count=4, rank_bound=5, partial=True, exact=False)
    back = Spectrum.from_dict(json.loads(json.dumps(s.as_dict())))
    assert back.as_dict() == s.as_dict()
    assert torch.equal(back.eigenvalues, s.eigenvalues)


def test_plot_draws_eigenvalues_and_floor():
    s = Spectrum([4.0, 2.0, 1e-20], floor=1e-15)
    axes = s.plot(label="model")
    assert axes.get_yscale() == "log"
    points, floor = axes.get_lines()
    assert points.get_ydata().tolist() == [4.0, 2.0, 1e-20]
    assert points.get_xdata().tolist() == [1, 2, 3]
    assert set(floor.get_ydata()) == {1e-15}
    axes.clear()
    again = s.plot(axes, reference=Spectrum([10.0, 1.0], floor=0.0))
    assert again is axes
    assert axes.get_lines()[0].get_ydata()[0] == 1.0
    assert axes.get_lines()[2].get_ydata().tolist() == [1.0, 0.1]
    hessian = Spectrum([1.0, -3.0], floor=0.0).plot()
    assert [line.get_ydata().tolist() for line in hessian.get_lines()] == [[1.0], [3.0]]
    assert len(Spectrum([0.0]).plot().get_lines()) == 1
    mpl.pyplot.close("all")


def test_jackknife_of_a_linear_quantity_is_the_standard_error_of_the_mean():
    parts = torch.rand(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    without = [Spectrum((parts.sum(0) - part) / 11) for part in parts]
    found = jackknife(without, Spectrum.trace, whole=Spectrum(parts.mean(0)))
    traces = parts.sum(1)
    assert found == pytest.approx(float(traces.mean()))
    assert found.stderr == pytest.approx(float(traces.std() / 12**0.5))
    assert (found.samples, found.exact) == (12, False)


def test_jackknife_covers_the_spread_over_data():
    """Entropy of a covariance spectrum over fresh data sets, against the error bar that each reports about itself."""
    scale = torch.tensor([2.0, 1.0, 0.5, 0.2], dtype=torch.float64)

    def run(seed):
        x = torch.randn(100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
        grams = torch.stack([part.T @ part for part in x.chunk(10)])
        leave = [Spectrum(torch.linalg.eigvalsh((grams.sum(0) - gram) / 90)) for gram in grams]
        return jackknife(leave, Spectrum.entropy, whole=Spectrum(torch.linalg.eigvalsh(grams.sum(0) / 100)))

    runs = [run(seed) for seed in range(200)]
    spread = float(torch.tensor([float(r) for r in runs], dtype=torch.float64).std())
    assert math.sqrt(sum(r.stderr**2 for r in runs) / 200) / spread == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("verb", VERBS)
def test_sampled_spectrum_with_all_eigenvalues_agrees_with_the_list(verb):
    values = torch.cat([power(40, 2.0), torch.zeros(20, dtype=torch.float64)])
    sampled = SampledSpectrum(quadrature(with_spectrum(values)))
    found = VERBS[verb](sampled)
    assert found.exact
    assert found == pytest.approx(VERBS[verb](Spectrum(values)), rel=1e-9, abs=1e-12)


SMOOTH = [v for v in VERBS if v not in ("stiff_fraction", "decades")]


@pytest.mark.parametrize("verb", SMOOTH)
def test_sampled_spectrum_error_bars(verb):
    """Over seeds: the mean within 4 standard errors (and a little for the bias of ratios), error bars within 25 %."""
    values = power(100, 1.0)
    a, exact = with_spectrum(values), VERBS[verb](Spectrum(values))
    runs = [VERBS[verb](SampledSpectrum(quadrature(a, probes=8, steps=12, seed=seed))) for seed in range(200)]
    found = torch.tensor([float(r) for r in runs], dtype=torch.float64)
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / 200**0.5 + 0.25 * float(found.std())
    assert math.sqrt(sum(r.stderr**2 for r in runs) / 200) / float(found.std()) == pytest.approx(1, abs=0.25)
    assert not runs[0].exact


def test_sampled_spectrum_counts_and_decades_at_gaps():
    values = torch.cat([torch.full((20,), 10.0), torch.full((60,), 0.01), torch.zeros(120)])
    sampled = SampledSpectrum(quadrature(with_spectrum(values), probes=16, steps=5))
    stiff = sampled.stiff_fraction(0.5)
    assert abs(stiff - 0.25) < 4 * stiff.stderr
    assert sampled.decades(0.9) == pytest.approx(3, abs=1e-6)
    assert math.isnan(SampledSpectrum(quadrature(with_spectrum(values), probes=1, steps=5)).entropy().stderr)


def test_sampled_spectrum_of_zero_and_of_a_hessian():
    zero = SampledSpectrum(quadrature(torch.zeros(300, 300), probes=2, steps=3))
    assert zero.entropy() == zero.effective_rank() == zero.trace() == 0
    hessian = SampledSpectrum(quadrature(with_spectrum(torch.linspace(-1, 1, 200)), probes=2, steps=10))
    with pytest.raises(InputError, match="entropy needs a positive semi-definite"):
        hessian.entropy()
    assert abs(hessian.trace()) < 50


def test_sampled_density():
    sampled = SampledSpectrum(quadrature(with_spectrum(power(200, 0.5)), probes=4, steps=20))
    grid, density = sampled.density()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=0.01)
    assert "probes" in repr(sampled)


def test_slope_interval_covers_the_spacing_of_independent_gaps():
    """Eigenvalues whose logarithms step down by independent exponential gaps: the mean gap is the true slope."""
    rng, runs, hits, naive = np.random.default_rng(0), 600, 0, 0
    for _ in range(runs):
        logs = -np.cumsum(rng.exponential(0.05, size=200))
        fit = Spectrum(10.0**logs, floor=0.0).slope()
        low, high = fit.interval
        hits += low <= 0.05 <= high
        y = logs[9:180]  # and the interval of the textbook regression, which takes residuals for independent
        x = np.arange(len(y)) - (len(y) - 1) / 2
        left = y - y.mean() + float(fit.slope) * x
        error = math.sqrt((left @ left) / (len(y) - 2) / (x @ x))
        naive += abs(float(fit.slope) - 0.05) < 1.96 * error
    assert abs(hits / runs - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs) + 0.01
    assert naive / runs < 0.5


def test_slope_interval_of_a_straight_line_is_a_point():
    low, high = Spectrum(10.0 ** torch.linspace(0, -6, 101, dtype=torch.float64)).slope().interval
    assert (low, high) == (pytest.approx(0.06), pytest.approx(0.06))
    assert all(map(math.isnan, Spectrum([2.0, 1.0]).slope().interval))


def test_sloppiness_is_the_verbs_side_by_side():
    s = Spectrum(np.random.default_rng(1).lognormal(sigma=4, size=60), dimension=100)
    found = s.sloppiness(thresholds=(0.1, 1e-4), fractions=(0.3,))
    assert found.stiff == {0.1: s.stiff_fraction(0.1), 1e-4: s.stiff_fraction(1e-4)}
    assert found.decades == {0.3: s.decades(0.3)}
    assert (found.slope, found.uniformity, found.gap) == (s.slope(), s.uniformity(), s.gap())
    assert (found.rank, found.floor, found.dimension) == (s.rank, s.floor, 100)
    assert found.effective_rank == s.effective_rank()
    assert found.participation_ratio == s.participation_ratio()
    assert json.loads(json.dumps(found.as_dict()))["stiff"]["0.0001"] == pytest.approx(float(s.stiff_fraction(1e-4)))
    rows = {(name, against): value for name, value, against in found.rows()}
    assert rows["stiff fraction", "share of the rank with l >= 0.1 l_1"] == s.stiff_fraction(0.1)
    assert any(f"{s.floor:.2g}" in against for _, against in rows)
    assert Spectrum([0.0, 0.0]).sloppiness().rank == 0
    with pytest.raises(InputError, match="threshold=0"):
        s.sloppiness(thresholds=(0,))
    with pytest.raises(InputError, match="needs the whole spectrum"):
        Spectrum([1.0], dimension=9, partial=True).sloppiness()


def test_what_is_rounding_changes_no_metric():
    clean = Spectrum([4.0, 2.0, 1.0, 0.5, 0.1])
    noisy = Spectrum([4.0, 2.0, 1.0, 0.5, 0.1, 1e-18, 3e-19, -1e-19], floor=clean.floor)
    assert clean.sloppiness().as_dict() == noisy.sloppiness().as_dict() | {"dimension": 5}


def test_shapes_lie_over_each_other():
    from dynaxx.spectrum.figure import draw_shapes

    axes = draw_shapes({"a": Spectrum([8.0, 4.0, 1e-30])}, references={"data": Spectrum([3.0, 1.5, 0.3])})
    model, data = axes.get_lines()
    assert model.get_xdata().tolist() == [0.5, 1.0]
    assert model.get_ydata().tolist() == [1.0, 0.5]
    assert data.get_ydata().tolist() == pytest.approx([1.0, 0.5, 0.1])
    mpl.pyplot.close("all")
