"""Estimate: a float that keeps its error."""

import copy
import json
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynaxx import Estimate

TRACE = Estimate(3.0, stderr=0.2, samples=10)


def test_it_is_a_float():
    assert isinstance(TRACE, float)
    assert TRACE == 3.0
    assert hash(TRACE) == hash(3.0)
    assert (TRACE + 1, 2 * TRACE, -TRACE, TRACE < 4, math.sqrt(TRACE)) == (4.0, 6.0, -3.0, True, math.sqrt(3.0))
    assert type(TRACE + 1) is float  # an error that was not propagated is not carried along
    assert float(torch.tensor(2.0) * TRACE) == 6.0
    assert json.dumps(TRACE) == "3.0"
    assert TRACE.value == 3.0
    assert type(TRACE.value) is float


@pytest.mark.parametrize(
    ("arguments", "exact"),
    [((1.0,), True), ((1.0, 0.1, 5), False), ((1.0, 0.0, 5, True), True), ((1.0, math.nan, 0, False), False)],
)
def test_exactness(arguments, exact):
    assert Estimate(*arguments).exact is exact


def test_text():
    assert repr(TRACE) == str(TRACE) == f"{TRACE}" == "3 ± 0.2 (10 draws)"
    assert repr(Estimate(1 / 3)) == "0.333333"
    assert f"{TRACE:.2f}" == "3.00"
    assert repr(Estimate(1.0, math.nan, 4)) == "1 ± nan (4 draws)"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("estimate", [TRACE, Estimate(2.0), Estimate(2.0, 0.5, 3, True)])
def test_copies(estimate, again):
    twin = again(estimate)
    assert isinstance(twin, Estimate)
    assert (twin.value, twin.stderr, twin.samples, twin.exact) == (
        estimate.value, estimate.stderr, estimate.samples, estimate.exact,
    )  # fmt: skip


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_mean(values):
    found = Estimate.mean(values)
    draws = torch.tensor(values, dtype=torch.float64)
    scale = 1e-12 * (1 + float(draws.abs().max()))
    assert float(found) == pytest.approx(float(draws.mean()), abs=scale)
    assert found.stderr == pytest.approx(float(draws.std()) / math.sqrt(len(values)), rel=1e-7, abs=scale)
    assert (found.samples, found.exact) == (len(values), False)


def test_mean_does_not_cancel():
    """Draws that agree in fifteen digits still tell their spread."""
    found = Estimate.mean([1e9 + 1, 1e9 + 2, 1e9 + 3])
    assert float(found) == 1e9 + 2
    assert found.stderr == pytest.approx(1 / math.sqrt(3))


def test_one_draw_has_no_known_error():
    found = Estimate.mean([2.0])
    assert (float(found), found.samples, found.exact) == (2.0, 1, False)
    assert math.isnan(found.stderr)


def test_it_holds_nothing_else():
    with pytest.raises(AttributeError):
        TRACE.unit = "nats"
