"""Counter-based random numbers: determined by (seed, key, stream, draw) alone, and evenly spread."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaxx import counter

KEYS = torch.arange(4000)


def splitmix(x):
    """The finaliser in Python's integers, modulo 2**64."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def signed(x):
    return x - 2**64 if x >= 2**63 else x


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), key=st.integers(0, 2**40), stream=st.integers(0, 1000), draw=st.integers(0, 5))
def test_bits_are_those_of_the_finaliser(seed, key, stream, draw):
    golden = 0x9E3779B97F4A7C15
    first, second = (splitmix(value * golden % 2**64) for value in (seed * 2 + 1, stream + 1))
    row = splitmix((splitmix((key + first) % 2**64) + second) % 2**64)
    wanted = signed(splitmix((row + (draw + 1) * golden) % 2**64))
    assert int(counter.bits(seed, torch.tensor([key]), (6,), stream)[0, draw]) == wanted


def test_known_answer_of_the_finaliser():
    """The first outputs of splitmix64 seeded with 0, as published with it."""
    golden = 0x9E3779B97F4A7C15
    assert [splitmix(golden * n % 2**64) for n in (1, 2, 3)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip


def test_draws_depend_on_nothing_else():
    whole = counter.bits(5, KEYS[:20], (3, 2), stream=1)
    assert whole.shape == (20, 3, 2)
    assert torch.equal(counter.bits(5, KEYS[7:11], (3, 2), stream=1), whole[7:11])
    assert torch.equal(counter.bits(5, KEYS[:20].flip(0), (3, 2), stream=1).flip(0), whole)
    more = counter.bits(5, KEYS[:20], (9,), stream=1)
    assert torch.equal(more[:, :6], whole.flatten(1))  # more draws extend fewer
    assert counter.bits(5, KEYS[:3]).shape == (3,)


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    counter.uniform(1, KEYS, (3,))
    counter.signs(1, KEYS, (3,))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("seed", [0, 1, 17, -3, 2**40])
@pytest.mark.parametrize("stream", [0, 1, 7])
def test_uniform_moments(seed, stream):
    """8000 draws: each moment within 4 standard errors."""
    u = counter.uniform(seed, KEYS, (2,), stream)
    assert u.dtype == torch.float64
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    n = u.numel()
    assert abs(float(u.mean()) - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(float(u.square().mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / n)
    counts = torch.histc(u, 16, 0, 1)
    # chi-square with 15 degrees of freedom: 44 is passed once in 10000 times
    assert float(((counts - n / 16) ** 2 / (n / 16)).sum()) < 44


def correlation(left, right):
    return abs(float((left * right).double().mean())) * math.sqrt(left.numel())


def test_signs_are_balanced_and_apart():
    """Products of signs have mean zero and variance one: each mean within 4 standard errors."""
    one = counter.signs(0, KEYS, (4,))
    assert set(one.unique().tolist()) == {-1.0, 1.0}
    pairs = {
        "ones": torch.ones_like(one),
        "the next key": counter.signs(0, KEYS + 1, (4,)),
        "the next draw": one.roll(1, 1),
        "the next seed": counter.signs(1, KEYS, (4,)),
        "the next stream": counter.signs(0, KEYS, (4,), stream=1),
        "seed and stream exchanged": counter.signs(2, KEYS, (4,), stream=0) * counter.signs(0, KEYS, (4,), stream=2),
        "keys far apart": counter.signs(0, KEYS + 2**32, (4,)),
    }
    for kind, other in pairs.items():
        assert correlation(one, other) < 4, kind


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64, torch.bfloat16])
def test_dtype_of_signs(dtype):
    found = counter.signs(0, KEYS[:5], (2,), dtype=dtype)
    assert found.dtype == (torch.get_default_dtype() if dtype is None else dtype)
    assert torch.equal(found.double(), counter.signs(0, KEYS[:5], (2,), dtype=torch.float64))


def test_no_two_alike():
    draws = torch.cat([counter.bits(seed, KEYS, (2,), stream).flatten() for seed in (0, 1) for stream in (0, 1, 2)])
    assert len(draws.unique()) == len(draws)
