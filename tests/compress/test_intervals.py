import math

import pytest
import torch

import dynaxx
from dynaxx.compress.intervals import mean_change, paired_change, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (3, 7), (97, 100), (400, 400)])
def test_wilson_bounds_solve_the_score_equation(successes, trials):
    share, low, high = wilson(successes, trials, 0.9)
    z = 1.6448536269514722
    for p in (low, high):
        assert abs(share - p) == pytest.approx(z * math.sqrt(p * (1 - p) / trials), abs=1e-12)
    assert 0 <= low <= share <= high <= 1


def test_paired_change_against_enumeration():
    before = torch.tensor([True] * 9 + [False] * 5)
    after = torch.tensor([True] * 3 + [False] * 6 + [True] * 1 + [False] * 4)
    change = paired_change(before, after)
    assert change.value == pytest.approx((1 - 6) / 14)
    heads = [bin(outcome).count("1") for outcome in range(2**7)]  # McNemar: seven disagreements as fair coins
    assert change.p_value == pytest.approx(sum(h <= 1 or h >= 6 for h in heads) / 2**7)
    assert change.low < change.value < change.high


def test_paired_interval_covers_nominally():
    """95 % intervals over 2000 draws of 150 pairs; the binomial error of a coverage of 0.95 is 0.005."""
    generator = torch.Generator().manual_seed(0)
    truth, hits = -0.04, 0
    for _ in range(2000):
        u = torch.rand(150, generator=generator)
        before, after = u < 0.94, (u < 0.88) | (u > 0.98)  # loses 6 %, wins 2 %
        change = paired_change(before, after)
        hits += change.low <= truth <= change.high
    assert 0.93 < hits / 2000 < 0.985


def test_mean_change():
    change = mean_change(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0]), 0.6826894921370859)
    assert change[:3] == pytest.approx((2.0, 2 - 1 / math.sqrt(3), 2 + 1 / math.sqrt(3)))


def test_bad_input():
    with pytest.raises(dynaxx.InputError, match="3 successes in 2 trials"):
        wilson(3, 2)
    with pytest.raises(dynaxx.InputError, match="same examples"):
        paired_change(torch.ones(2).bool(), torch.ones(3).bool())
    with pytest.raises(dynaxx.InputError, match="level=95"):
        wilson(1, 2, 95)
