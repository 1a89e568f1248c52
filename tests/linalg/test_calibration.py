"""Unbiased over seeds, and reported standard errors against the spread over seeds.

200 seeds determine the spread to about 5 %, and the mean to a fourteenth of it. The sketching estimators' error bars
rest on an argument (``sketch.standard_error``) that is exact for one order of interaction among probes, so they are
held to a band of 25 % here on spectra of several kinds. Where the number of outlying eigenvalues comes close to the
number of probes they are known to be too large; never too small.
"""

import pytest
import torch

from dynaxx.linalg import hutch_plus_plus, hutchinson, xdiag, xnystrace, xtrace
from linalg.matrices import power, with_spectrum

SEEDS = 200
SPECTRA = {
    "power 1": power(80, 1.0),
    "power 2": power(80, 2.0),
    "exponential": 0.8 ** torch.arange(80, dtype=torch.float64),
    "flat": torch.linspace(1, 2, 80, dtype=torch.float64),
}
OUTLIERS = torch.cat([torch.full((8,), 30.0), torch.linspace(0, 1, 72)]).double()


def over_seeds(method, values, samples=24):
    a = with_spectrum(values)
    runs = [method(a, samples=samples, seed=seed) for seed in range(SEEDS)]
    found = torch.tensor([float(run) for run in runs], dtype=torch.float64)
    reported = torch.tensor([run.stderr for run in runs], dtype=torch.float64).square().mean().sqrt()
    return float((found.mean() - values.sum()) / (found.std() / SEEDS**0.5)), float(reported / found.std())


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", [hutchinson, hutch_plus_plus, xtrace, xnystrace])
def test_trace(method, name):
    score, ratio = over_seeds(method, SPECTRA[name])
    assert abs(score) < 4
    assert 0.75 < ratio < 1.25


@pytest.mark.parametrize("method", [xtrace, xnystrace])
def test_trace_is_not_overconfident_at_its_worst(method):
    score, ratio = over_seeds(method, OUTLIERS)
    assert abs(score) < 4
    assert 0.75 < ratio < 2


@pytest.mark.parametrize("name", SPECTRA)
def test_diagonal(name):
    a = with_spectrum(SPECTRA[name])
    runs = [xdiag(a, samples=24, seed=seed) for seed in range(SEEDS)]
    spread = torch.stack([run.diagonal for run in runs]).std(0)
    reported = torch.stack([run.stderr for run in runs]).square().mean(0).sqrt()
    assert 0.75 < float((reported / spread).median()) < 1.35
    assert float((reported / spread).min()) > 0.7
