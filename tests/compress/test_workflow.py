"""The workflow on a few digits, in seconds: what it finds, when it relaxes, and what an interruption leaves."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynaxx
from dynaxx.compress.workflow import ReportWarning, compress
from dynaxx.monitor import Probe
from dynaxx.track import Store, StoreError

QUICK = {"epochs": 5, "fine_tune_epochs": 2, "probe_size": 20, "sparsities": (0.5, 0.9), "lr": 0.1}


def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.as_tensor(data.data / 16, dtype=torch.float32)[order], torch.as_tensor(data.target)[order]
    loader = DataLoader(
        TensorDataset(x[:400], y[:400]), batch_size=20, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    return loader, (x[400:600], y[400:600]), (x[600:800], y[600:800])


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def zeros(model):
    return sum(int((model[i].weight == 0).sum()) for i in (0, 2))


def test_all_phases(tmp_path):
    train, validation, test = digits()
    model, heard = mlp(), []
    result = compress(
        model, train, validation, test=test, sparsity=0.5, tolerance=0.03, store=tmp_path / "runs.db",
        report=tmp_path / "report.html", name="mlp", progress=lambda *told: heard.append(told), **QUICK,
    )  # fmt: skip
    journal = result.journal
    start = journal.initialisation
    assert (start.parameters, start.prunable, start.examples, start.rank_bound) == (1810, 1776, 400, 180)
    assert start.train_rank_bound == min(1810, 400 * 9)
    assert start.learning_rate_ceiling == pytest.approx(2 / start.top_curvature)
    assert [point.epoch for point in journal.points] == [0, 1, 2, 3, 4, 5]
    assert journal.points[-1].step == 100
    assert journal.dense.score > 0.7
    assert [(p.criterion, p.sparsity) for p in journal.one_shot] == [
        (c, s) for c in ("magnitude", "obd", "random") for s in (0.5, 0.9)
    ]
    assert result.pruning.kept == 888
    assert result.sparsity == 0.5
    assert zeros(model) >= 888
    assert journal.trials[0].accepted
    assert journal.comparison.coordinates == 888 + 34
    assert 0 < journal.comparison.overlap <= 1
    assert {told[0] for told in heard} == {"Initialise", "Train", "Prune", "Fine-tune and validate"}

    with torch.no_grad():  # the model that is handed back is the one that was scored, and the file makes it again
        right = (model(validation[0]).argmax(1) == validation[1]).double().mean()
        assert float(right) == pytest.approx(journal.final.score)
        fresh = result.pruning.apply(nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)))
        assert torch.equal(fresh(test[0]), model(test[0]))

    page = (tmp_path / "report.html").read_text()
    assert "Fine-tune and validate" in page
    assert "Over-parameterised" in page
    assert "was killed" not in page
    with Store(tmp_path / "runs.db", readonly=True) as store:
        (info,) = store.runs()
        assert (info.status, info.name, info.project) == ("finished", "mlp", "compress")
        assert len(store.metrics(info.id, "dynaxx/trace")) == 6
        assert store.arrays(info.id, "dynaxx/one_shot/obd")[0].value.shape == (2, 4)
        assert store.summary(info.id)["dynaxx/sparsity"] == 0.5


def test_relaxes_by_bisection_and_says_so(tmp_path):
    train, validation, _ = digits()
    model = mlp()
    result = compress(
        model, train, validation, sparsity=0.96, criterion="random", tolerance=0.02, trials=2, criteria=(), **QUICK
    )
    trials = result.journal.trials
    assert [round(trial.sparsity, 4) for trial in trials[:2]] == [0.96, 0.48]
    assert not trials[0].accepted
    assert trials[2].sparsity == pytest.approx(0.72 if trials[1].accepted else 0.24)
    passed = [trial for trial in trials if trial.accepted]
    assert result.kept == (min(trial.kept for trial in passed) if passed else 1776)
    titles = [title for _, title, _ in result.journal.remarks]
    assert titles[0] == "Sparsity 96.0% costs too much"
    assert titles[-1] == ("Sparsity relaxed" if passed else "Nothing was pruned")
    least = result.journal.dense.least(0.02)
    assert result.journal.final.score >= least - 1e-9


def test_keeps_the_dense_model_where_nothing_passes():
    train, validation, _ = digits()
    model = mlp()
    result = compress(
        model, train, validation, sparsity=0.97, criterion="random", tolerance=0.0, trials=0, criteria=(),
        epochs=5, fine_tune_epochs=0, probe_size=10, sparsities=(), lr=0.1,
    )  # fmt: skip
    assert (result.sparsity, result.kept, zeros(model)) == (0.0, 1776, 0)
    assert result.journal.final is result.journal.dense
    assert result.journal.comparison is None


def test_a_trained_model_with_batchnorm_and_no_training():
    """epochs=0 takes the model as it is; BatchNorm statistics travel with the best state."""
    train, validation, _ = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))
    from dynaxx.compress.training import fit

    fit(model, train, epochs=4, lr=0.1)
    result = compress(model.eval(), train, validation, sparsity=0.3, epochs=0, tolerance=0.05, fine_tune_epochs=1,
                      probe_size=10, sparsities=(0.5,), criteria=("obs",))  # fmt: skip
    assert result.journal.trials[-1].accepted
    with torch.no_grad():
        right = (model(validation[0]).argmax(1) == validation[1]).double().mean()
    assert float(right) == pytest.approx(result.journal.final.score)


def test_regression_is_scored_by_likelihood():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, generator=generator)
    y = x[:, :1] * 2 + 0.05 * torch.randn(120, 1, generator=generator)
    torch.manual_seed(0)
    result = compress(
        nn.Linear(4, 1), [(x[:80], y[:80])], (x[80:], y[80:]), likelihood="gaussian", sparsity=0.5, epochs=60, lr=0.2,
        fine_tune_epochs=5, probe_size=30, sparsities=(0.5,), criteria=("magnitude",),
    )  # fmt: skip
    assert result.journal.dense.measure == "mean log likelihood"
    assert result.pruning.masks["weight"][0, 0]
    assert result.journal.trials[0].accepted
    assert result.journal.dense.score == pytest.approx(-0.5 * math.log(2 * math.pi), abs=0.02)


def test_repeats_itself():
    runs = []
    for _ in range(2):
        train, validation, _ = digits()
        runs.append(compress(mlp(), train, validation, sparsity=0.5, tolerance=0.05, **(QUICK | {"epochs": 2})))
    first, second = runs
    assert all(torch.equal(mask, second.pruning.masks[name]) for name, mask in first.pruning.masks.items())
    assert [p.values for p in first.journal.points] == [p.values for p in second.journal.points]


@pytest.mark.parametrize("own_generator", [True, False])
def test_looking_more_often_changes_nothing(own_generator):
    """More criteria and sparsities read the shuffled training data more often; the result is the same."""
    finals = []
    for more in ({"criteria": ()}, {"criteria": ("magnitude", "fisher", "obs"), "sparsities": (0.2, 0.4, 0.6)}):
        train, validation, _ = digits()
        if not own_generator:
            train = DataLoader(train.dataset, batch_size=20, shuffle=True)
        model = mlp()
        compress(model, train, validation, sparsity=0.5, tolerance=0.05, **(QUICK | {"epochs": 2} | more))
        finals.append(model.state_dict())
    assert all(torch.equal(value, finals[1][name]) for name, value in finals[0].items())


@pytest.mark.parametrize("phase", ["Train", "Fine-tune and validate"])
def test_ctrl_c_leaves_store_and_report(phase, tmp_path):
    train, validation, _ = digits()
    model = mlp()

    def stop(name, done, total, note):
        if name == phase and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, train, validation, sparsity=0.5, store=tmp_path / "runs.db", report=tmp_path / "report.html",
                 progress=stop, **QUICK)  # fmt: skip
    with Store(tmp_path / "runs.db", readonly=True) as store:
        (info,) = store.runs()
        assert info.status == "interrupted"
        assert len(store.metrics(info.id, "dynaxx/validation_score")) >= 2
    page = (tmp_path / "report.html").read_text()
    assert "The run was interrupted" in page
    assert ("One-shot accuracy" in page) == (phase != "Train")
    assert zeros(model) == 0  # no trial had passed yet, so the weights are the dense ones


KILLED = """
    import sys, torch
    from torch import nn
    from dynaxx.compress.workflow import compress
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    def tell(phase, done, total, note):
        if phase == "Train" and done == 3:
            print("now", flush=True)
    compress(nn.Linear(5, 3), [(x, y)] * 20, (x, y), epochs=100000, probe_size=10, store=sys.argv[1] + "/runs.db",
             report=sys.argv[1] + "/report.html", progress=tell)
"""


def test_kill_leaves_store_and_report(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ,
        text=True,
    ) as process:
        assert process.stdout.readline() == "now\n"
        time.sleep(1.5)  # the store writes once a second
        process.send_signal(signal.SIGKILL)
    with Store(tmp_path / "runs.db", readonly=True) as store:
        (info,) = store.runs()
        assert info.status == "interrupted"
        assert len(store.metrics(info.id, "dynaxx/train_loss")) >= 3
    assert "was killed" in (tmp_path / "report.html").read_text()


def test_unwritable_places_are_found_before_work_starts(tmp_path):
    train, validation, _ = digits()
    (tmp_path / "file").write_text("")
    told = []
    options = {"progress": lambda *told_: told.append(told_), **QUICK}
    with pytest.raises(StoreError):
        compress(mlp(), train, validation, store=tmp_path / "file" / "runs.db", **options)
    with pytest.raises(dynaxx.InputError, match="cannot write the report"):
        compress(mlp(), train, validation, report=tmp_path / "file" / "report.html", **options)
    assert told == []


def test_a_report_that_can_no_longer_be_written_loses_nothing():
    train, validation, _ = digits()
    calls = []

    def full(journal):
        calls.append(journal.status)
        if len(calls) > 1:
            raise dynaxx.InputError("No space left on device")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = compress(mlp(), train, validation, sparsity=0.5, report=full, **(QUICK | {"epochs": 1}))
    assert any(issubclass(w.category, ReportWarning) and "No space left" in str(w.message) for w in caught)
    assert result.journal.status == "finished"
    assert "Result" in [section.title for section in result.document().sections]


def test_bad_input():
    train, validation, _ = digits()
    with pytest.raises(dynaxx.InputError, match="read once"):
        compress(mlp(), iter([(torch.ones(2, 64), torch.zeros(2).long())]), validation, probe=Probe("p", validation))
    with pytest.raises(dynaxx.InputError, match="no labels"):
        compress(mlp(), train, validation[0])
    with pytest.raises(dynaxx.InputError, match="tolerance=1"):
        compress(mlp(), train, validation, tolerance=1)
    with pytest.raises(dynaxx.InputError, match="epochs=-1"):
        compress(mlp(), train, validation, epochs=-1)
    with pytest.raises(dynaxx.InputError, match=r"diverged in epoch 1.*lower lr"):
        compress(mlp(), train, validation, **(QUICK | {"lr": 1e20}))
