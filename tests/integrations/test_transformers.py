"""The Transformers callback in real trainings of a tiny BERT and a tiny GPT-2, on English sentences."""

import json
import pydoc_data.topics
import re
import warnings
import zlib

import pytest
import torch

from dynaxx.errors import ConvergenceWarning, InputError
from dynaxx.monitor import MonitorWarning, Probe
from dynaxx.monitor.signals import Signal
from dynaxx.track import Store

transformers = pytest.importorskip("transformers", reason="pip install transformers accelerate (extra: transformers)")
pytest.importorskip("accelerate", reason="the Trainer needs it; pip install accelerate")

from dynaxx.integrations.transformers import STATE, DynaxxCallback  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*(pin_memory|weights_only|torch.cpu.amp).*")]

WORDS, LENGTH, VOCABULARY = re.compile(r"[a-z]+"), 16, 500


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Each test has a precision of its own: the Trainer leaves it in the environment, Accelerate in its state."""
    from accelerate.state import AcceleratorState, GradientState

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def sentences():
    """Sentences of Python's own manual on statements (label 0) and on expressions' operators and types (label 1)."""
    topics = pydoc_data.topics.topics
    parts = (
        ("if", "while", "for", "try", "with", "import"),
        ("operator-summary", "numeric-types", "typesseq", "shifting"),
    )
    found = []
    for label, names in enumerate(parts):
        text = " ".join(topics[name] for name in names if name in topics)
        kept = [words for line in re.split(r"[.:]\s", text) if len(words := WORDS.findall(line.lower())) > 4]
        found += [(words, label) for words in kept[:80]]
    return found


def encode(words):
    """Word numbers by a hash, padded: a tokenizer that needs no file."""
    numbers = [2 + zlib.crc32(word.encode()) % (VOCABULARY - 2) for word in words][:LENGTH]
    pad = LENGTH - len(numbers)
    return {
        "input_ids": torch.tensor(numbers + [0] * pad),
        "attention_mask": torch.tensor([1] * len(numbers) + [0] * pad),
    }


def examples(causal=False):
    items = [encode(words) | {"labels": torch.tensor(label)} for words, label in sentences()]
    if causal:
        for item in items:
            item["labels"] = item["input_ids"].masked_fill(item["attention_mask"] == 0, -100)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    return [items[i] for i in order]


def probe(items):
    return Probe("last twelve", {name: torch.stack([item[name] for item in items[-12:]]) for name in items[0]})


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
    )
    return transformers.BertForSequenceClassification(config)


def train(folder, model, callbacks, items, resume=None, **options):
    options = {"max_steps": 6, "logging_steps": 2, "save_strategy": "no", "learning_rate": 1e-3, **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=3,
        **options,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=items[:64], eval_dataset=items[64:96], callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def looks(watch):
    return [record for record in watch.monitor.history if "dynaxx/trace" in record.values]


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_accumulated_steps_losses_and_validation(tmp_path):
    items = examples()
    without, model = bert(), bert()
    options = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    train(tmp_path / "a", without, [], items, **options)
    watch = DynaxxCallback(probe(items), every=2, preset="standard", store=tmp_path / "runs.db", name="bert")
    trainer = train(tmp_path / "b", model, [watch], items, **options)
    assert same(weights(model), weights(without))
    monitor = watch.monitor
    assert monitor.events == []
    assert [record.step for record in looks(watch)] == [0, 2, 4, 6]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [loss for _, loss in monitor.losses.values] == logged
    validated = [record for record in monitor.history if "validation_loss" in record.values]
    expected = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [(record.step, record.values["validation_loss"]) for record in validated] == list(
        zip((3, 6), expected, strict=True)
    )
    assert any("layer/bert.encoder.layer.0.attention.self.query/" in name for name in looks(watch)[0].values)
    with Store(tmp_path / "runs.db", readonly=True) as store:
        (info,) = store.runs()
        assert (info.status, info.config["gradient_accumulation_steps"]) == ("finished", 2)
        assert store.metrics(info.id, "dynaxx/effective_dimension").steps.tolist() == [0, 2, 4, 6]


def test_a_training_that_goes_on_equals_one_that_never_stopped(tmp_path):
    items, save = examples(), {"save_strategy": "steps", "save_steps": 3}
    whole, watch = bert(), DynaxxCallback(probe(items), every=2)
    train(tmp_path, whole, [watch], items, **save)
    assert torch.load(tmp_path / "checkpoint-3" / STATE, weights_only=True)["steps"] == 3
    again, model = DynaxxCallback(probe(items), every=2), bert()
    train(tmp_path, model, [again], items, resume=str(tmp_path / "checkpoint-3"), **save)
    assert [record.step for record in looks(watch)] == [0, 2, 4, 6]
    assert [record.step for record in looks(again)] == [4, 6]
    assert same(weights(model), weights(whole))
    for a, b in zip(looks(watch)[2:], looks(again), strict=True):
        for name in ("dynaxx/trace", "dynaxx/relative/trace", "dynaxx/change/predictive_entropy"):
            assert a.values[name] == pytest.approx(float(b.values[name]), rel=1e-6), name
            assert a.values[name].stderr == pytest.approx(b.values[name].stderr, rel=1e-6), name


def test_going_on_without_the_monitors_state_is_said(tmp_path):
    items, save = examples(), {"save_strategy": "steps", "save_steps": 3}
    train(tmp_path, bert(), [], items, **save)
    watch = DynaxxCallback(probe(items), every=1)
    with pytest.warns(MonitorWarning, match="goes on at step 3 without the monitor's state"):
        train(tmp_path, bert(), [watch], items, resume=str(tmp_path / "checkpoint-3"), **save)
    assert watch.monitor.events == []  # looks between two logs have no loss, which is not a NaN
    assert ["dynaxx/train_loss" in record.values for record in looks(watch)] == [False, False, True, False]
    assert [record.step for record in looks(watch)] == [3, 4, 5, 6]


def test_mixed_precision(tmp_path):
    """The looks are outside the Trainer's autocast, so those of the preset "full" converge and equal float32's."""
    items = examples()
    without, model, watch = bert(), bert(), DynaxxCallback(probe(items), every=6, preset="full")
    train(tmp_path, without, [], items, bf16=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        train(tmp_path, model, [watch], items, bf16=True)
    assert same(weights(model), weights(without))
    assert watch.monitor.events == []
    assert [record.step for record in looks(watch)] == [0, 6]
    single = DynaxxCallback(probe(items), every=6, preset="full")
    train(tmp_path, bert(), [single], items, max_steps=1)
    found, expected = (looks(each)[0].values for each in (watch, single))
    for name in ("dynaxx/trace", "dynaxx/hessian/top_eigenvalue", "dynaxx/hessian/gap", "dynaxx/logit_ntk/trace"):
        assert float(found[name]) == float(expected[name]), name
    assert looks(watch)[1].values["dynaxx/hessian/preconditioned"] > 0


def test_a_compiled_model_is_looked_at_uncompiled(tmp_path):
    items = examples()
    model, watch = bert(), DynaxxCallback(probe(items), every=3)
    trainer = train(tmp_path, model, [watch], items, torch_compile=True, torch_compile_backend="eager")
    assert hasattr(trainer.model_wrapped, "_orig_mod")
    reference = DynaxxCallback(probe(items), every=3)
    train(tmp_path, bert(), [reference], items)
    assert watch.monitor.events == []
    for a, b in zip(looks(watch), looks(reference), strict=True):
        assert a.step == b.step
        assert a.values["dynaxx/trace"] == pytest.approx(float(b.values["dynaxx/trace"]), rel=1e-4)
        assert not any("_orig_mod" in name for name in a.values)


class Fires(Signal):
    name = "fires"

    def statistic(self, seen):
        return float(seen.step >= 2)


def test_a_signal_stops_the_training(tmp_path):
    items = examples()
    stop = lambda monitor, alarm: setattr(monitor, "should_stop", True)
    watch = DynaxxCallback(probe(items), every=1, signals=[Fires(1, level="info", actions=[stop])])
    trainer = train(tmp_path, bert(), [watch], items)
    assert trainer.state.global_step == 2


def test_a_causal_language_model(tmp_path):
    items = examples(causal=True)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2)
    watch = DynaxxCallback(probe(items), every=2)
    train(tmp_path, transformers.GPT2LMHeadModel(config), [watch], items, max_steps=2)
    assert watch.monitor.events == []
    assert [record.step for record in looks(watch)] == [0, 2]
    # at the start all words are about equally likely at each of the positions that count
    kept = int((probe(items).batch["labels"][:, 1:] != -100).sum()) / 12
    entropy = float(looks(watch)[0].values["dynaxx/predictive_entropy"])
    assert entropy == pytest.approx(kept * torch.tensor(float(VOCABULARY)).log().item(), rel=0.02)


def test_a_causal_language_model_in_full(tmp_path):
    """Labels stand one position off, so what needs a loss needs the user's; without it that look fails and says so."""
    items = examples(causal=True)
    config = transformers.GPT2Config(vocab_size=30, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=1)
    small = [item | {name: item[name] % 30 for name in ("input_ids",)} for item in items]
    for item in small:
        item["labels"] = item["input_ids"].masked_fill(item["attention_mask"] == 0, -100)

    def loss(output, labels):
        z = getattr(output, "logits", output)[:, :-1].mT
        return torch.nn.functional.cross_entropy(z, labels[:, 1:], reduction="none").sum(1)

    found = {}
    for given in (loss, None):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        found[given] = watch = DynaxxCallback(probe(small), every=10, preset="full", loss=given)
        if given is None:
            with pytest.warns(MonitorWarning, match="give Monitor"):
                train(tmp_path, model, [watch], small, max_steps=1)
        else:
            train(tmp_path, model, [watch], small, max_steps=1)
    assert found[None].monitor.history == []
    assert found[loss].monitor.events == []
    values = found[loss].monitor.history[0].values
    assert values["dynaxx/hessian/top_eigenvalue"] > 0
    assert values["dynaxx/sharpness"] > 0


def test_a_state_that_cannot_be_saved_does_not_end_the_training(tmp_path, monkeypatch):
    items = examples()
    watch = DynaxxCallback(probe(items), every=3)
    monkeypatch.setattr(watch._companion, "state", lambda: 1 / 0)
    with pytest.warns(MonitorWarning, match="state could not be saved"):
        trainer = train(tmp_path, bert(), [watch], items, save_strategy="steps", save_steps=3)
    assert trainer.state.global_step == 6
    assert json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3


def test_wrong_arguments_are_refused_before_training(tmp_path):
    items = examples()
    with pytest.raises(InputError, match="option='evry' is not known"):
        DynaxxCallback(probe(items), evry=3)
    with pytest.raises(InputError, match="module='head' is no submodule of the model; it has 'bert', "):
        train(tmp_path, bert(), [DynaxxCallback(probe(items), module="head")], items)
    with pytest.raises(InputError, match="carries its own"):
        DynaxxCallback(probe(items), likelihood="gaussian")
