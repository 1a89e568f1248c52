import pytest

import dynaxx
from dynaxx.monitor.schedule import Adaptive, Fixed, schedule


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def simulate(seconds, moved, share=0.01, steps=20_000, step_seconds=0.01):
    """Steps looked at, and the share of training time that looks took after the first."""
    clock = Clock()
    plan, at, spent = Adaptive(share, clock), [], 0.0
    for step in range(steps):
        clock.now += step_seconds
        if plan.due(step):
            clock.now += seconds
            plan.looked(step, seconds, moved(step))
            spent += seconds if at else 0.0
            at.append(step)
    return at, spent / (steps * step_seconds)


def test_fixed_is_every_so_many():
    assert [step for step in range(1, 12) if Fixed(5).due(step)] == [5, 10]


@pytest.mark.parametrize("seconds", [0.001, 0.05, 1.0])
def test_budget_holds_whatever_a_look_costs(seconds):
    _, share = simulate(seconds, lambda step: True, steps=400_000 if seconds == 1.0 else 20_000)
    assert 0.009 < share <= 0.0101


def test_calm_is_looked_at_less_and_a_stir_at_once():
    at, share = simulate(0.05, lambda step: step > 15_000)
    calm = sum(8_000 < step < 15_000 for step in at)
    after = next(i for i, step in enumerate(at) if step > 15_000)
    gaps = [b - a for a, b in zip(at[after:], at[after + 1 :], strict=False)]
    assert share <= 0.0101
    assert calm == pytest.approx(7_000 / 4_000, abs=1)  # 8 looks' worth of 5 s of training, 100 steps a second
    assert gaps[1] == pytest.approx(125, abs=10)  # what calm had saved is spent four times as fast
    assert gaps[-1] == pytest.approx(500, abs=10)  # then one look per 5 s


def test_bad_input():
    for wrong in (0, -1, 2.5, True, "often"):
        with pytest.raises(dynaxx.InputError, match="every="):
            schedule(wrong, 0.01)
    with pytest.raises(dynaxx.InputError, match="budget="):
        schedule("adaptive", 1.5)
