"""The scenarios of studies/monitor_faults.py and monitor_long.py: every fault is seen, nothing is lost, and the
training is untouched."""

import json

import pytest

pytest.importorskip("sklearn", reason="the study uses scikit-learn's digits (extra: demo)")


@pytest.fixture
def study(studies):
    return studies("monitor_faults")


@pytest.fixture
def long_study(studies):
    return studies("monitor_long")


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


@pytest.mark.slow
def test_one_training_with_every_fault_in_it(long_study, capsys):
    assert long_study.main(["--quick"]) == 0, capsys.readouterr().out


def test_the_kept_long_training_holds_and_its_check_can_fail(long_study):
    found = json.loads((long_study.OUT / "long.json").read_text())["result"]
    assert long_study.check(found) == []
    assert found["plan"]["steps"] == 12_000
    sink = [alert for alert in found["alerts"] if alert[1] == "sink"]
    for wrong in (
        {"alerts": sink},
        {"alerts": [alert for alert in found["alerts"] if alert[1] != "sink"]},
        {"alerts": [*found["alerts"], [10, "divergence"]]},
        {"warnings": []},
        {"after the kill": "running"},
        {"runs": ["interrupted", "finished"]},
        {"looks missing": [100]},
        {"bit_equal": False},
    ):
        assert long_study.check(found | wrong), wrong
