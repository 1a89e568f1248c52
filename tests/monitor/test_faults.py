"""The scenario of studies/monitor_faults.py: every fault is seen, nothing is lost, the training is untouched."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the study uses scikit-learn's digits (extra: demo)")

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(STUDIES))
    try:
        import monitor_faults

        yield monitor_faults
    finally:
        sys.path.remove(str(STUDIES))
        for name in ("monitor_faults", "runs"):
            sys.modules.pop(name, None)


@pytest.mark.slow
def test_every_fault_is_seen(study, monkeypatch, capsys):
    monkeypatch.setattr("dynaxx.monitor.journal.PATIENCE", 0.3)  # for the sink that hangs
    monkeypatch.setattr("dynaxx.track.database.BUSY_SECONDS", 0.5)  # for the store that is locked
    assert study.main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert "every check holds" in said
    assert said.count("bit-equal True") == 6


def test_the_check_can_fail(study):
    good = {"events": [{"title": "sink"}], "warnings": [], "bit_equal": True, "looks": 3, "looks_in_store": 3}
    good |= {"events_in_store": 1}
    assert study.check({"fault-dead-sink": good}) == []
    for wrong in ({"events": []}, {"bit_equal": False}, {"looks_in_store": 2}, {"events_in_store": 0}):
        assert len(study.check({"fault-dead-sink": good | wrong})) == 1, wrong
    rules = {"divergence (default)": {"steps": [[], [40]]}, "loss spike": {"steps": [[3], []]}}
    assert study.check({"false-alarms": {"rules": rules}}) == ["divergence (default) fired on a healthy training"]


def test_weights_are_compared_bit_for_bit(study):
    import torch

    one = {"w": torch.tensor([1.0, torch.nan])}
    assert study.same(one, {"w": torch.tensor([1.0, torch.nan])})
    assert not study.same(one, {"w": torch.tensor([1.0 + 2**-23, torch.nan])})
