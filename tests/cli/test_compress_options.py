"""What ``dynaxx compress`` hands on to the workflow, and that a command given again goes on where it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynaxx.cli import main, options
from dynaxx.compress import workflow
from dynaxx.compress.result import PruningResult
from dynaxx.errors import InputError
from dynaxx.track import Store

TOY = [
    "toy_models:model", "--data", "toy_models:data", "--tolerance", 0.5, "--lr", 0.1,
    "--epochs", 3, "--fine-tune-epochs", 1, "--probe-size", 10, "--trials", 1,
]  # fmt: skip


@pytest.fixture
def compress(monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parent)

    def call(out, *arguments):
        """(exit code, stderr on one line)"""
        monkeypatch.setattr(sys, "argv", ["dynaxx", "compress", *map(str, [*TOY, "--out", out, *arguments])])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return ended.value.code, " ".join(capsys.readouterr().err.split())

    return call


def test_help_names_every_option():
    done = subprocess.run(
        [sys.executable, "-m", "dynaxx.cli.main", "compress", "--help"],
        env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for option in (
        "criterion", "scope", "pattern", "curvature", "compensation", "damping", "steps", "rounds", "target-accuracy",
        "resume",
    ):  # fmt: skip
        assert f"--{option} " in done.stdout, option
    for value in ("snip", "grasp", "synflow", "erk", "ekfac", "2:4", "auto"):
        assert value in done.stdout, value


def test_options_reach_the_workflow(compress, tmp_path):
    code, err = compress(
        tmp_path, "--sparsity", 0.5, "--criterion", "obs", "--curvature", "kfac",
        "--scope", "erk", "--steps", 2, "--rounds", 2, "--damping", "auto", "--target-accuracy", 0.3,
    )  # fmt: skip
    assert code == 0, err
    report = PruningResult.load(tmp_path / "pruning.safetensors").report
    assert (report["criterion"], report["curvature"], report["scope"], report["steps"]) == ("obs", "kfac", "erk", 2)
    assert len(report["dampings"]) == 2  # chosen anew at every step
    with Store(tmp_path / "dynaxx.db") as store:
        (run,) = store.runs()
        config = run.config
    assert (config["rounds"], config["target_accuracy"], config["damping"]) == (2, 0.3, "auto")


def test_magnitude_with_compensation_and_a_pattern(compress, tmp_path):
    code, err = compress(
        tmp_path, "--criterion", "magnitude", "--compensation", "obs",
        "--damping", 0.01, "--pattern", "2:4",
    )  # fmt: skip
    assert code == 0, err
    found = PruningResult.load(tmp_path / "pruning.safetensors")
    assert found.report["sparsity"] == 0.5
    assert found.report["damping"] == 0.01
    assert found.masks["0.weight"].sum(1).tolist() == [2] * 6  # of four inputs each
    assert found.masks["2.weight"].all()  # six inputs are not divided by four


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--damping", "plenty"], "--damping 'plenty' is neither a number nor 'auto'"),
        (["--damping", "auto"], "use criterion='obs'"),
        (["--curvature", "kfac"], "belongs to criterion='obs'"),
        (["--pattern", "2:4", "--sparsity", "0.8"], "drops 0.5 of the weights, not sparsity=0.8"),
        (["--pattern", "4"], "pattern='4' is not known"),
        (["--scope", "all"], "erk"),
        (["--rounds", "0"], "rounds=0"),
        (["--target-accuracy", "97"], "for 97 percent give 0.97"),
    ],
)
def test_bad_options_are_refused_before_work_starts(given, says, compress, tmp_path):
    code, err = compress(tmp_path, *given)
    assert code == 2
    assert says in err
    assert not (tmp_path / "report.html").exists()


def test_damping_of_a_command_line():
    assert [options.damping(given) for given in (None, "auto", "1e-3")] == [None, "auto", 1e-3]
    with pytest.raises(InputError, match="neither a number"):
        options.damping("")


def test_an_interrupted_command_given_again_ends_as_if_it_had_not_been(compress, monkeypatch, tmp_path):
    def command(name, *more):
        return compress(tmp_path / name, "--sparsity", 0.5, "--resume", tmp_path / f"{name}-kept", *more)

    def stop(session):
        raise KeyboardInterrupt

    assert command("whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "validate", stop)
        code, err = command("cut")
    assert code == 130
    assert "interrupted" in err
    assert not (tmp_path / "cut" / "pruning.safetensors").exists()
    trained = (tmp_path / "cut-kept" / "train.safetensors").stat().st_mtime_ns
    assert command("cut")[0] == 0
    assert (tmp_path / "cut-kept" / "train.safetensors").stat().st_mtime_ns == trained  # not trained again
    whole, cut = (PruningResult.load(tmp_path / name / "pruning.safetensors") for name in ("whole", "cut"))
    for part in ("masks", "weights"):
        one, other = getattr(whole, part), getattr(cut, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    with Store(tmp_path / "cut" / "dynaxx.db") as store, Store(tmp_path / "whole" / "dynaxx.db") as other:
        (run,), (reference,) = store.runs(), other.runs()  # it went on in the run that it had begun
        assert run.status == "finished"
        assert store.metric_names(run.id) == other.metric_names(reference.id)
        said = [[(alert.title, alert.step) for alert in each.alerts(1)] for each in (store, other)]
        assert said[0] == said[1]
        (spectrum,) = store.arrays(run.id, "dynaxx/eigenvalues", [0])
        assert spectrum.attributes["floor"] > 0
    code, err = command("cut", "--scope", "layer")
    assert code == 2
    assert "begun with other options (scope)" in err
