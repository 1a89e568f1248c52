"""studies/pruning.py: the quick mode holds, its checks can fail, its network is the pretrained one."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study():
    """The module of that name in studies/, which is no package."""
    sys.path.insert(0, str(ROOT / "studies"))
    try:
        yield importlib.import_module("pruning")
    finally:
        sys.path.remove(str(ROOT / "studies"))
        for name in ("pruning", "runs"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(study):
    try:
        return study.data_folder(None)
    except study.Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.slow
def test_quick_study_holds(study, data, capsys):
    if not (data / "mnist").is_dir():
        pytest.skip("MNIST is not there")
    assert study.main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert "every check holds" in said
    assert "OBS, recomputed (1)" in said


def test_checks_can_fail(study):
    cell = lambda hits: {"count": 100, "dense": 95, "rows": {"0.95": {"hits": hits}}}
    found = {
        f"mlp|0|{name}": cell(h) for name, h in (("magnitude", 70), ("lowest Fisher", 20), ("OBS, recomputed", 74))
    }
    assert len(study.check(found)) == 1
    found["mlp|0|OBS, recomputed"] = cell(80)
    assert study.check(found) == []
    found["mlp|0|lowest Fisher"] = cell(90)
    assert len(study.check(found)) == 1


def test_resnet_is_the_pretrained_one(study, data):
    try:
        case = study.resnet_case(20, study.Sizes(curvature=8, held=8, calibration=8), data, 0)
    except study.Skipped as reason:
        pytest.skip(str(reason))
    assert sum(p.numel() for p in case.model.parameters()) == 269_722
    part = case.test[0][:250], case.test[1][:250]
    assert study.hits(case.model, part) / 250 > 0.88  # 91.5 % on all thousand, as the data's page says
    assert len({id(t) for t in (case.curvature, case.held, case.calibration)}) == 3
    assert not bool((case.curvature[:, None] == case.held[None]).flatten(2).all(2).any())


def test_missing_data_is_said(study, tmp_path, capsys):
    assert (
        study.main(["--models", "mlp", "--seeds", "0", "--data", str(tmp_path), "--results", str(tmp_path / "r")]) == 0
    )
    assert "skipped, mnist" in capsys.readouterr().out
    assert torch.is_grad_enabled()
