"""The gallery's examples run as they stand, and what their text says of their numbers is so."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the examples use scikit-learn's digits (extra: demo)")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Runs an example in this process, headless, and gives its variables."""
    import runpy

    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import torch

    backend, state = mpl.get_backend(), torch.get_rng_state()
    mpl.use("Agg")
    yield lambda name: runpy.run_path(str(EXAMPLES / name))
    plt.close("all")
    mpl.use(backend)
    torch.set_rng_state(state)


def curves(axes):
    """Lines that carry data: not the reference lines, which have two points."""
    return [line for line in axes.get_lines() if len(line.get_xdata()) > 2]


def test_spectrum(example):
    found = example("plot_spectrum.py")
    spectra = found["spectra"]
    trace = {number: float(spectrum.trace()) for number, spectrum in spectra.items()}
    # rises first, and then falls below where it started, while the network gets better
    assert trace[1] > 1.5 * trace[0]
    assert trace[40] < 0.5 * trace[0]
    assert found["accuracy"] > 0.94
    for spectrum in spectra.values():
        assert spectrum.dimension == 2410
        assert len(spectrum.eigenvalues) == spectrum.rank_bound == 200 * 9
        assert spectrum.floor == pytest.approx(2.0**-52 * 1800 * float(spectrum.eigenvalues[0]))
    # at initialisation the floor hides nothing, after training it does
    assert spectra[0].rank == 1800 > spectra[40].rank
    # -2 d(posterior entropy)/d(ln N) = effective dimension, from a difference quotient
    entropy = lambda count: spectra[40].posterior_entropy(prior_precision=1.0, count=count)
    slope = (entropy(1001) - entropy(999)) / (math.log(1001) - math.log(999))
    assert spectra[40].effective_dimension(prior_precision=1.0, count=1000) == pytest.approx(-2 * slope, rel=1e-4)
    (axes,) = found["figure"].axes
    drawn = [line for line in axes.get_lines() if len(line.get_ydata()) > 2]
    assert [max(line.get_ydata()) for line in drawn] == pytest.approx(
        [float(spectra[n].eigenvalues[0]) for n in (0, 40)]
    )


def test_estimators(example):
    found = example("plot_estimators.py")
    exact, sampled = found["exact"], found["sampled"]
    assert exact.exact
    assert found["empirical"].exact
    # observed labels are another quantity: here less than half
    assert found["empirical"] < 0.6 * exact
    for estimates in sampled.values():
        for estimate, samples in zip(estimates, found["samples"], strict=True):
            assert estimate.samples == samples
            assert abs(estimate - exact) < 4 * estimate.stderr
        # the law is exact up to the draws that each error was learned from, fewer of them for a single sample
        assert estimates[0].stderr / estimates[-1].stderr == pytest.approx(math.sqrt(32), rel=0.25)
    (axes,) = found["figure"].axes
    assert len(axes.containers) == len(sampled)


def test_kfac(example):
    found = example("plot_kfac.py")
    errors, operators = found["errors"], found["operators"]
    for kfac, ekfac, diagonal in zip(errors["kfac"], errors["ekfac"], errors["diagonal"], strict=True):
        assert 0.05 < ekfac <= kfac < diagonal < 1
    # three forms have the exact trace, K-FAC has not
    exact = float(operators["block"].trace())
    assert float(operators["diagonal"].trace()) == pytest.approx(exact, rel=1e-10)
    assert float(operators["ekfac"].trace()) == pytest.approx(exact, rel=1e-10)
    assert abs(float(operators["kfac"].trace()) / exact - 1) > 0.01
    # the error of the diagonal from the exact block alone: what is off the diagonal
    block = found["block"]
    outside = float((block - block.diagonal().diag()).norm() / block.norm())
    assert errors["diagonal"][-1] == pytest.approx(outside, rel=1e-8)
    left, right = found["figure"].axes
    assert len(left.patches) == 9
    assert len(curves(right)) == 3


def test_inpca_of_training(example):
    found = example("plot_inpca_of_training.py")
    made, D, progress = found["made"], found["D"], found["progress"].reshape(2, 3, 9)
    assert D.shape == (54, 54)
    # the map keeps the distances about as well as its explained stress says
    assert 0.9 < made.explained_stress(1) < made.explained_stress(3) <= 1
    error = (made.squared_distances() - D).abs().max() / D.max()
    assert float(error) < 0.1
    # every run starts at ignorance and ends nearer to the truth, the larger network nearest
    assert float(progress[:, :, 0].max()) < 0.01
    assert float(progress[0, :, -1].max()) < 0.85 < float(progress[1, :, -1].min())
    assert bool((progress[:, :, 1:] > progress[:, :, :-1] - 0.01).all())
    ignorance, truth = found["placed"]
    near = lambda point, index: float((made.coordinates[index] - point).norm(dim=-1).max())
    starts, ends = [9 * run for run in range(6)], [9 * run + 8 for run in range(3, 6)]
    assert near(ignorance, starts) < 0.5 < near(truth, starts)
    assert near(truth, ends) < near(ignorance, ends)
    # off the path by what the text says
    off = found["off"].reshape(2, 3, 9)[:, :, -1]
    assert 0.25 < float(off.min()) < float(off.max()) < 0.45
    (axes,) = found["figure"].axes
    assert len(curves(axes)) == 6


def test_reduce_a_classifier(example):
    found = example("plot_reduce_a_classifier.py")
    begin, middle, end = (float(record.fisher.trace()) for record in found["track"])
    assert end < begin < middle / 5
    k = found["ks"][3]
    for curve in found["curves"].values():
        score = {(p.subspace, p.k): p.score for p in curve.points}
        assert score["eigenvectors", k] > score["magnitude", k] + 0.03 > score["random", k] + 0.3
    assert found["found"].k < 0.6 * 1482


def test_monitor_a_training(example, tmp_path, monkeypatch, capsys):
    from dynaxx.track import Store

    monkeypatch.chdir(tmp_path)  # it keeps its store where it is run
    found = example("monitor_a_training.py")
    monitor = found["monitor"]
    assert [record.step for record in monitor.history] == [0, 40, 80, 120, 160, 200]
    assert monitor.events == []
    assert capsys.readouterr().out.count("effective dimension") >= 6
    dimension = [float(record.values["dynaxx/effective_dimension"]) for record in monitor.history]
    assert max(dimension) > 2 * dimension[0]
    assert dimension[-1] < 0.8 * max(dimension)  # rises first, then falls, in good health
    assert not found["found"]["today"][0].significant
    assert found["found"]["today, faded"][0].significant
    with Store("monitored.db", readonly=True) as store:
        (info,) = store.runs()
        assert info.status == "finished"
        assert len(store.metrics(info.id, "dynaxx/effective_dimension")) == 6


def test_sweep_with_optuna(example, tmp_path, monkeypatch, capsys):
    from dynaxx.track import Store

    optuna = pytest.importorskip("optuna", reason="pip install optuna (extra: optuna)")
    monkeypatch.chdir(tmp_path)  # it keeps its store where it is run
    study = example("sweep_with_optuna.py")["study"]
    states = [trial.state for trial in study.trials]
    complete, pruned = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    assert set(states) == {complete, pruned}
    with Store("sweep.db", readonly=True) as store:
        runs = sorted(store.runs(), key=lambda info: info.id)
        assert [info.name for info in runs] == [f"trial {number}" for number in range(len(states))]
        assert {info.status for info in runs} == {"finished"}
        assert ["pruned" in info.tags for info in runs] == [each == pruned for each in states]
        by_signal = [info for info in runs if "signal" in info.tags]
        assert by_signal
        assert any("median" in info.tags for info in runs)
        for info in by_signal:  # what ended the trial is there to be read, and it ended early
            assert {alert.title for alert in store.alerts(info.id)} <= {"divergence", "not finite"}
            assert store.alerts(info.id)
            assert info.config["rate"] > study.best_params["rate"]
        # the objective is what was recorded
        losses = [float(store.metrics(info.id, "dynaxx/probe_loss").values[-1]) for info in runs]
        assert [t.value for t in study.trials if t.state == complete] == [
            loss for loss, each in zip(losses, states, strict=True) if each == complete
        ]
        assert study.best_value == min(t.value for t in study.trials if t.state == complete)
    assert "best:" in capsys.readouterr().out


def test_without_optuna_it_says_so(example, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match="needs Optuna: pip install optuna"):
        example("sweep_with_optuna.py")


def test_the_commands_of_the_model_factories(example):
    """The factories are what the command line's import strings name; both models take the data they come with."""
    made = example("digits_models.py")
    train, validation, test = made["data"]()
    x, y = validation
    for factory in ("mlp", "cnn"):
        assert made[factory]()(x).shape == (len(y), 10)
    assert len(train.dataset) == 1000
    assert len(test[0]) == 397


def test_every_example_is_tested_here():
    named = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'example("{path.name}")' in named, f"{path.name} runs nowhere but in the gallery"


def test_an_example_runs_as_a_script(tmp_path):
    source = Path(__file__).parents[1] / "src"
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(source)}
    script = str(EXAMPLES / "plot_estimators.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("standard errors off") == 12
    assert not any(tmp_path.iterdir())  # it leaves nothing where it is run
