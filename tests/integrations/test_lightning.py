"""The Lightning callback in real fits of a perceptron on scikit-learn's digits."""

import csv
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.errors import InputError
from dynaxx.monitor import MonitorWarning, Probe
from dynaxx.monitor.economy import economy
from dynaxx.monitor.signals import Signal
from dynaxx.track import Store

pytest.importorskip("lightning", reason="pip install lightning (extra: lightning)")
datasets = pytest.importorskip("sklearn.datasets", reason="trains on scikit-learn's digits (extra: demo)")

import lightning.pytorch  # noqa: E402
import pytorch_lightning  # noqa: E402

from dynaxx.integrations import lightning as integration  # noqa: E402

PACKAGES = {"lightning.pytorch": lightning.pytorch, "pytorch_lightning": pytorch_lightning}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(num_workers|LeafSpec|litlogger|log_every_n_steps|isinstance.treespec).*"),
]


def data():
    digits = datasets.load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    split = lambda a, b: torch.utils.data.TensorDataset(x[a:b], y[a:b])
    load = lambda part: torch.utils.data.DataLoader(part, batch_size=32)
    return load(split(0, 256)), load(split(256, 384)), Probe("held out", (x[400:440], y[400:440]))


def classifier(package="lightning.pytorch", fault=None, part=None):
    class Classifier(PACKAGES[package].LightningModule):
        def __init__(self, width=12):
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(64, width), nn.Dropout(0.2), nn.Tanh(), nn.Linear(width, 10))
            if part is not None:
                self.net = part(self.net)
            self.seen = []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            self.seen.append(float(loss.detach()))
            if fault == len(self.seen):
                raise RuntimeError("on purpose")
            return loss

        def validation_step(self, batch, index):
            self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Classifier()


def fit(folder, model, callbacks, package="lightning.pytorch", ckpt_path=None, **options):
    train, validation, _ = data()
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    trainer = PACKAGES[package].Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(model, train, validation, ckpt_path=ckpt_path)
    return trainer


def callback(**options):
    return integration.DynaxxCallback(data()[2], **{"every": 2, **options})


def plain(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_accumulated_steps_losses_and_validation(tmp_path):
    without = classifier()
    fit(tmp_path, without, [], accumulate_grad_batches=2)
    model, watch = classifier(), callback(store=tmp_path / "runs.db", name="digits", every=1)
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
    fit(tmp_path, model, [watch], accumulate_grad_batches=2, logger=logger)
    assert same(plain(model), plain(without))
    monitor = watch.monitor
    assert monitor.events == []
    looks = [record for record in monitor.history if "dynaxx/trace" in record.values]
    assert [record.step for record in looks] == [0, 1, 2, 3, 4]
    # 8 batches of 32 make 4 steps of 2; a step's loss is the mean over its batches
    expected = [(a + b) / 2 for a, b in zip(model.seen[::2], model.seen[1::2], strict=True)]
    assert [loss for _, loss in monitor.losses.values] == pytest.approx(expected, rel=1e-6)
    assert [step for step, _ in monitor.losses.values] == [1, 2, 3, 4]
    assert [record.values["dynaxx/train_loss"] for record in looks[1:]] == pytest.approx(expected, rel=1e-6)
    (validation,) = [record for record in monitor.history if "validation_loss" in record.values]
    assert validation.step == 4
    assert any(name.startswith("dynaxx/layer/net.0/") for name in looks[0].values)
    with Store(tmp_path / "runs.db", readonly=True) as store:
        (info,) = store.runs()
        assert (info.status, info.name, info.config["width"]) == ("finished", "digits", 12)
        assert store.metrics(info.id, "dynaxx/trace").steps.tolist() == [0, 1, 2, 3, 4]
    # and in the trainer's own logger
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["dynaxx/trace"]]
    assert [(int(row["step"]), float(row["dynaxx/trace"])) for row in rows] == [
        (record.step, pytest.approx(record.values["dynaxx/trace"])) for record in looks
    ]
    assert not any("layer" in name for name in rows[0])


def test_a_fit_that_goes_on_keeps_count_and_start(tmp_path):
    whole, watch = classifier(), callback()
    fit(tmp_path, whole, [watch], max_epochs=2)
    first = callback()
    trainer = fit(tmp_path, classifier(), [first], max_epochs=1, enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]  # nothing but numbers, text and tensors
    second, model = callback(), classifier()
    fit(tmp_path, model, [second], max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    looked = lambda monitor: [record for record in monitor.history if "dynaxx/trace" in record.values]
    assert [record.step for record in looked(first.monitor)] == [0, 2, 4, 6, 8]
    assert [record.step for record in looked(second.monitor)] == [10, 12, 14, 16]
    through = {record.step: record for record in looked(watch.monitor)}
    # dropout draws other masks after a resume, so weights differ; what was measured against the start must still be
    # against step 0
    start = through[0].values["dynaxx/trace"]
    for record in looked(second.monitor):
        ratio = record.values["dynaxx/trace"] / record.values["dynaxx/relative/trace"]
        assert ratio == pytest.approx(float(start), rel=1e-6)
    x, y = data()[2].batch
    other = integration.DynaxxCallback(Probe("held out", (x[:20], y[:20])))
    with pytest.raises(InputError, match="another probe"):
        fit(tmp_path, classifier(), [other], max_epochs=2, ckpt_path=tmp_path / "half.ckpt")


def test_going_on_without_the_monitors_state_is_said(tmp_path):
    trainer = fit(tmp_path, classifier(), [], enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    watch = callback()
    with pytest.warns(MonitorWarning, match="goes on at step 8 without the monitor's state"):
        fit(tmp_path, classifier(), [watch], max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert [record.step for record in watch.monitor.history if "dynaxx/trace" in record.values] == [8, 10, 12, 14, 16]


def test_mixed_precision(tmp_path):
    without, model, watch = classifier(), classifier(), callback(preset="standard")
    fit(tmp_path, without, [], precision="bf16-mixed")
    fit(tmp_path, model, [watch], precision="bf16-mixed")
    assert same(plain(model), plain(without))
    assert watch.monitor.events == []
    assert [loss for _, loss in watch.monitor.losses.values] == pytest.approx(model.seen, rel=1e-6)


def test_a_compiled_module_is_looked_at_uncompiled(tmp_path):
    compiled, during = [], []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def own(subject):
        before = len(compiled)
        look = economy(subject)
        during.append(len(compiled) - before)
        return look

    eager, model = classifier(), classifier()
    reference, watch = callback(), callback(preset=own, store=tmp_path / "runs.db")
    fit(tmp_path, eager, [reference])
    fit(tmp_path, torch.compile(model, backend=backend), [watch])
    assert compiled
    assert during == [0] * 5
    assert watch.monitor.events == []
    assert model.forward is not model._compiler_ctx["original_forward"]  # put back
    for a, b in zip(reference.monitor.history, watch.monitor.history, strict=True):
        numbers = [{n: float(v) for n, v in each.values.items() if n != "dynaxx/look_seconds"} for each in (a, b)]
        assert numbers[0] == numbers[1]
    with Store(tmp_path / "runs.db", readonly=True) as store:
        assert store.runs()[0].config["dynaxx"]["preset"] == "own"


def test_a_module_that_compiles_a_part_of_itself(tmp_path):
    model = classifier(part=lambda net: torch.compile(net, backend="eager"))
    watch = callback(module="net", preset="standard")
    fit(tmp_path, model, [watch])
    assert watch.monitor.events == []
    assert any(name.startswith("dynaxx/layer/0/") for name in watch.monitor.history[0].values)
    with pytest.raises(InputError, match=r"module='body' is no submodule of the model; it has 'net'"):
        fit(tmp_path, classifier(), [callback(module="body")])


class Fires(Signal):
    name = "fires"

    def statistic(self, seen):
        return float(seen.step >= 3)


def test_a_signal_stops_the_fit(tmp_path):
    watch = callback(
        every=1, signals=[Fires(1, level="info", actions=[lambda m, alarm: setattr(m, "should_stop", True)])]
    )
    trainer = fit(tmp_path, classifier(), [watch], max_epochs=5)
    assert (trainer.global_step, trainer.should_stop) == (3, True)


def test_an_error_ends_the_run_as_failed(tmp_path):
    watch = callback(store=tmp_path / "runs.db")
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(tmp_path, classifier(fault=5), [watch])
    with Store(tmp_path / "runs.db", readonly=True) as store:
        assert store.runs()[0].status == "failed"


def test_a_logger_that_raises_is_said_and_the_fit_goes_on(tmp_path):
    class Broken(lightning.pytorch.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            if "dynaxx/trace" in metrics:
                raise ConnectionError("nobody there")

    model = classifier()
    with pytest.warns(MonitorWarning, match="Broken did not take the monitor's numbers: nobody there"):
        trainer = fit(tmp_path, model, [callback()], logger=Broken(tmp_path))
    assert trainer.global_step == 8


@pytest.mark.parametrize("loaded", [["lightning.pytorch"], ["pytorch_lightning"], list(PACKAGES)])
def test_whichever_package_was_imported(tmp_path, monkeypatch, loaded):
    monkeypatch.delitem(integration.__dict__, "DynaxxCallback", raising=False)
    for name in set(PACKAGES) - set(loaded):
        monkeypatch.delitem(sys.modules, name)
    made = integration.DynaxxCallback
    assert [issubclass(made, package.Callback) for package in PACKAGES.values()] == [n in loaded for n in PACKAGES]
    assert integration.DynaxxCallback is made
    monkeypatch.undo()
    for name in loaded:
        watch = made(data()[2], every=4)
        fit(tmp_path, classifier(name), [watch], package=name)
        assert [record.step for record in watch.monitor.history if "dynaxx/trace" in record.values] == [0, 4, 8]
    monkeypatch.delitem(integration.__dict__, "DynaxxCallback", raising=False)


def test_wrong_arguments_are_refused_before_training(tmp_path):
    with pytest.raises(InputError, match=r"option='evry' is not known; choose one of .*'every'"):
        callback(evry=3)
    with pytest.raises(InputError, match="preset='ful'"):
        fit(tmp_path, torch.compile(classifier(), backend="eager"), [callback(preset="ful")])
    with pytest.raises(AttributeError, match="it has DynaxxCallback"):
        _ = integration.Callback
    with warnings.catch_warnings():
        warnings.simplefilter("error", MonitorWarning)
        assert callback().monitor is None
