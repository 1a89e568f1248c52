import math

import pytest
import torch

import dynaxx
from dynaxx.monitor.look import Look
from dynaxx.monitor.signals import (
    Change,
    DeadLayers,
    Divergence,
    EdgeOfStability,
    LossShift,
    LossSpike,
    NotFinite,
    Observation,
    RankCollapse,
    Signal,
    ValidationSlope,
    drop_by_a_fifth,
    overfitting,
)


def fired(signal, losses, rate=0.1):
    """Steps at which a signal fires on a list of losses."""
    alarms = [signal.observe(Observation(step, loss=loss, learning_rate=rate)) for step, loss in enumerate(losses)]
    return [alarm.step for alarm in alarms if alarm is not None]


def noise(count, scale=0.1, seed=0):
    return (scale * torch.randn(count, generator=torch.Generator().manual_seed(seed))).tolist()


def falling(count, start=2.3, end=0.3, scale=0.1, seed=0):
    return [end + (start - end) * math.exp(-5 * i / count) + e for i, e in enumerate(noise(count, scale, seed))]


def looks(signal, values, name="m", **options):
    """Steps at which a signal fires on a list of looks with one number and its influences."""
    out, previous, start, smoothed = [], None, None, None
    for step, value in enumerate(values):
        look = value if isinstance(value, Look) else Look({name: value})
        start = start or look
        seen = Observation(
            step,
            None,
            {**look.values, **options.get("extra", {}).get(step, {})},
            look,
            previous,
            smoothed,
            start,
            0.1,
            options.get("limit"),
            options.get("adaptive", False),
        )
        alarm = signal.observe(seen)
        previous, smoothed = look, look if smoothed is None else smoothed.blended(look, 0.3)
        if alarm is not None:
            out.append(alarm.step)
    return out


class Plain(Signal):
    name = "plain"

    def statistic(self, seen):
        return seen.loss


def test_patience_hysteresis_and_cooldown():
    assert fired(Plain(1.0), [0, 1, 1, 0, 1]) == [1, 4]  # fires once, and again after it came back
    assert fired(Plain(1.0, patience=2), [1, 0, 1, 1, 1]) == [3]
    assert fired(Plain(1.0, release=0.2), [1, 0.5, 1, 0.1, 1]) == [0, 4]  # 0.5 does not end it
    assert fired(Plain(1.0, cooldown=4), [1, 0, 1, 0, 1, 0]) == [0, 4]
    assert fired(Plain(1.0), [math.nan, 1]) == [1]  # nothing known is not an observation
    assert fired(Plain(1.0, patience=2), [1, math.nan, 1]) == [2]


def test_bad_options():
    with pytest.raises(dynaxx.InputError, match="release=2 is above"):
        Plain(1.0, release=2)
    with pytest.raises(dynaxx.InputError, match="patience=0"):
        Plain(1.0, patience=0)
    with pytest.raises(dynaxx.InputError, match="choose one of 'info'"):
        Plain(1.0, level="bad")
    for wrong in (
        lambda: Divergence(span=0),
        lambda: LossSpike(3),
        lambda: LossShift(2),
        lambda: ValidationSlope(points=2),
        lambda: RankCollapse(0.5),
    ):
        with pytest.raises(dynaxx.InputError):
            wrong()
    with pytest.raises(dynaxx.InputError, match="choose one of 'stderr'"):
        Change("m", unit="percent")


def test_not_finite_sees_losses_numbers_and_parameters():
    assert fired(NotFinite(), [1.0, math.nan, math.nan, 1.0, math.inf]) == [1, 4]
    signal = NotFinite()
    alarm = signal.observe(Observation(3, values={"dynaxx/parameters_not_finite": 2.0}))
    assert "2 parameter tensors" in alarm.text
    assert NotFinite().observe(Observation(3, values={"a": 1.0, "dynaxx/parameters_not_finite": 0.0})) is None
    assert "trace" in NotFinite().observe(Observation(3, values={"dynaxx/trace": math.inf})).text
    # the mean over steps that were each seen by themselves tells nothing new
    assert NotFinite().observe(Observation(3, values={"dynaxx/train_loss": math.nan})) is None


@pytest.mark.parametrize("seed", range(5))
def test_divergence_is_silent_on_a_falling_or_flat_loss_and_sees_a_rising_one(seed):
    healthy = falling(500, seed=seed)
    assert fired(Divergence(), healthy) == []
    assert fired(Divergence(), [2.3 + e for e in noise(500, 0.1, seed)]) == []
    late = fired(Divergence(), healthy[:300] + [2.5 + e for e in noise(100, 0.1, seed)])
    assert len(late) == 1
    assert 300 < late[0] < 400
    early = fired(Divergence(), [2.3, 2.4, 2.9, 4.0] + [8.0 + e for e in noise(100, 0.1, seed)])
    assert len(early) == 1
    assert early[0] < 40


def test_spike():
    losses = falling(400)
    losses[300] += 3
    assert fired(LossSpike(), losses) == [300]
    assert fired(LossSpike(), falling(400, seed=3)) == []


def test_shift_needs_the_same_learning_rate():
    losses = [0.3 + e for e in noise(200)] + [0.6 + e for e in noise(200, seed=1)]
    (step,) = fired(LossShift(), losses)
    assert 200 < step < 260
    signal = LossShift()
    rates = [0.1] * 200 + [0.2] * 200
    alarms = [
        signal.observe(Observation(i, loss=l, learning_rate=r))
        for i, (l, r) in enumerate(zip(losses, rates, strict=True))
    ]
    assert not any(alarms)
    assert fired(LossShift(), falling(1000)) == []


def test_validation_slope():
    down = [Observation(i, values={"v": 1 / (i + 1)}) for i in range(20)]
    up = [Observation(20 + i, values={"v": 0.05 + 0.01 * i + (-1) ** i * 0.0005}) for i in range(10)]
    signal = ValidationSlope("v")
    assert not any(signal.observe(seen) for seen in down)
    assert sum(signal.observe(seen) is not None for seen in up) == 1
    flat = ValidationSlope("v")
    assert not any(flat.observe(Observation(i, values={"v": 1 + e})) for i, e in enumerate(noise(60, 0.01)))


def test_change_in_standard_errors_nats_and_relative():
    base = torch.tensor([1.0, 2.0, 3.0, 4.0])
    wobble = torch.tensor([0.01, -0.01, 0.02, -0.02])
    small = [Look.of_means({"m": base}), Look.of_means({"m": base + wobble})]
    assert looks(Change("m", 4.0, patience=1), small) == []
    assert looks(Change("m", 4.0, patience=1), [small[0], Look.of_means({"m": base + wobble + 0.1})]) == [1]
    assert looks(Change("m", 4.0, patience=1), [1.0, 50.0]) == []  # no error known, nothing said
    assert looks(Change("m", 5.0, unit="nats", reference="start", patience=1), [-10.0, -13, -16]) == [2]
    assert looks(Change("m", 5.0, unit="nats", reference="start", patience=1, direction="up"), [-10.0, -16]) == []
    assert looks(
        Change("m", 0.2, unit="relative", reference="smoothed", direction="down", patience=1), [10.0, 10.0, 7.9]
    ) == [2]


def test_guides_rule_and_sound_rule():
    assert looks(drop_by_a_fifth("m"), [60.0, 40.0, 39.0]) == [1]
    base = torch.tensor([1.0, 2.0, 3.0, 4.0])
    steps = [Look.of_means({"m": base - 0.5 * i + 0.001 * i * torch.arange(4.0)}) for i in range(9)]
    rising = {"extra": {i: {"v": 0.1 * i} for i in range(9)}}
    falling_loss = {"extra": {i: {"v": -0.1 * i} for i in range(9)}}
    assert looks(overfitting("m", "v"), steps, **rising) == [4]  # three looks after the slope is known
    assert looks(overfitting("m", "v"), steps, **falling_loss) == []


def test_edge_of_stability_reads_what_fits_the_optimizer():
    name = "dynaxx/hessian/top_eigenvalue"
    assert looks(EdgeOfStability(patience=1), [19.0, 31.0], name, limit=20.0) == [1]
    assert looks(EdgeOfStability(patience=1), [19.0, 29.0], name, limit=20.0) == []
    assert looks(EdgeOfStability(patience=1), [100.0, 100.0], name, limit=20.0, adaptive=True) == []
    assert looks(EdgeOfStability(patience=1), [100.0], "dynaxx/hessian/preconditioned", limit=20.0, adaptive=True) == [
        0
    ]
    assert looks(EdgeOfStability(patience=1), [100.0], "dynaxx/top_eigenvalue", limit=20.0) == [0]
    assert looks(EdgeOfStability(patience=1), [100.0], name) == []


def test_dead_layers_and_rank_collapse():
    alive = Look({"dynaxx/layer/a/share": 0.5, "dynaxx/layer/b/share": 0.5})
    dead = Look({"dynaxx/layer/a/share": 1.0, "dynaxx/layer/b/share": 0.0})
    signal = DeadLayers()
    assert looks(signal, [alive, dead, dead, dead]) == [2]
    assert "b" in signal.text
    assert looks(RankCollapse(), [20.0, 1.2, 1.1], "dynaxx/effective_rank") == [2]
