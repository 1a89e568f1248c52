"""What is saved loads again into the same function, without pickle; what was shrunk exports; costs are counted."""

import copy
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import dynaxx
from compress.structured.resnet import ResNet, pretrained
from dynaxx.compress.measure import Latency, cost, flops, latency
from dynaxx.compress.scoring import evaluate
from dynaxx.compress.structured import StructuredResult, eigendamage, shrink
from dynaxx.model.data import read_batch

pytest.importorskip("torch_pruning", reason="structured pruning follows channels with torch-pruning")
CPU = torch.device("cpu")


def resnet():
    return ResNet(1, (8, 8, 12, 16))


def bert():
    transformers = pytest.importorskip("transformers", reason="heads are tested on a HuggingFace model")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, vocab_size=30,
        max_position_embeddings=16, num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def images():
    return torch.randn(6, 3, 8, 8)


def tokens():
    ids = torch.randint(0, 30, (6, 5))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


CASES = {
    "channels": (resnet, images, shrink),
    "heads": (bert, tokens, shrink),
    "bottlenecks": (resnet, images, eigendamage),
}


def made(name, reduction=0.3):
    factory, inputs, method = CASES[name]
    torch.manual_seed(0)
    model = factory().eval()
    data = inputs()
    return factory, data, method(model, data, reduction=reduction, repeats=0)


def logits(model, data):
    out = model(**data) if isinstance(data, dict) else model(data)
    return getattr(out, "logits", out).detach()


@pytest.mark.parametrize("name", CASES)
def test_save_and_load_after_fine_tuning(name, tmp_path):
    factory, data, result = made(name)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.01)  # a step of somebody's optimizer
    path = result.save(tmp_path / "deep" / "small.safetensors")
    again = StructuredResult.load(path, factory)
    assert torch.equal(logits(again.model, data), logits(result.model, data))
    assert again.report == json.loads(json.dumps(result.report))
    assert again.architecture == result.architecture
    assert again.predicted == pytest.approx(result.predicted)
    assert repr(again) == repr(result)
    assert {name: set(sides) for name, sides in again.kept.items()} == {n: set(s) for n, s in result.kept.items()}
    for layer, sides in result.kept.items():
        assert all(torch.equal(again.kept[layer][side], index) for side, index in sides.items())
    dense = cost(factory(), read_batch(data, CPU))
    assert path.stat().st_size < 0.9 * dense.bytes + 40_000  # the header holds the report
    assert not (tmp_path / "deep" / "small.safetensors.tmp").exists()


def test_heads_were_taken_out():
    _, _, result = made("heads", reduction=0.4)
    lost = [row for row in result.report["layers"] if row["unit"] == "heads" and row["kept"] < row["total"]]
    assert lost
    for name, values in result.architecture.attributes.items():
        module = result.model.get_submodule(name)
        assert values == {
            "num_attention_heads": module.num_attention_heads,
            "all_head_size": module.query.out_features,
        }
        assert module.query.out_features == 4 * module.num_attention_heads < 16


def test_bad_files_and_other_factories(tmp_path):
    factory, _, result = made("channels")
    path = result.save(tmp_path / "small")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(dynaxx.InputError, match="cannot read a structured result"):
        StructuredResult.load(tmp_path / "junk", factory)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(dynaxx.InputError, match="holds no structured result"):
        StructuredResult.load(tmp_path / "other", factory)
    with pytest.raises(dynaxx.InputError, match="no prunable layer"):
        StructuredResult.load(path, lambda: nn.Linear(2, 2))
    with pytest.raises(dynaxx.InputError, match="does not fit"):
        StructuredResult.load(path, lambda: ResNet(1, (16, 16, 24, 32)))
    with pytest.raises(dynaxx.InputError, match="fewer channels"):
        StructuredResult.load(path, lambda: ResNet(1, (2, 2, 2, 2)))
    (tmp_path / "file").write_text("")
    with pytest.raises(dynaxx.InputError, match="cannot write"):
        result.save(tmp_path / "file" / "below")


def test_a_file_sets_no_attribute_but_numbers_of_heads(tmp_path):
    factory, _, result = made("heads")
    path = result.save(tmp_path / "small")
    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()["dynaxx"])
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    for change in ({"training": 1}, {"forward": 3}, {"__class__": 0}):
        header["architecture"]["attributes"] = {"bert.encoder.layer.0.attention.self": change}
        save_file(tensors, tmp_path / "changed", {"dynaxx": json.dumps(header)})
        with pytest.raises(dynaxx.InputError, match="no number of heads"):
            StructuredResult.load(tmp_path / "changed", factory)


def called(name, data):
    """Arguments and the name of each, as the exporters take them; which axes are the examples'."""
    inputs = data if isinstance(data, dict) else {"x": data}
    return inputs, {key: {0: torch.export.Dim("examples", min=2, max=64)} for key in inputs}


@pytest.mark.parametrize("name", CASES)
def test_shrunk_models_export(name):
    """torch.export's program, at another number of examples than it was traced with."""
    _, data, result = made(name)
    inputs, axes = called(name, data)
    program = torch.export.export(result.model, (), inputs, dynamic_shapes=axes).module()
    for few in (inputs, {key: value[:3] for key, value in inputs.items()}):
        out = program(**few)
        torch.testing.assert_close(getattr(out, "logits", out), logits(result.model, few))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_shrunk_models_run_under_onnx(name, tmp_path):
    """onnxruntime knows nothing of torch: its answers against the shrunk module's; and the file holds what is left."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"exporting to ONNX needs {package}")
    import onnx
    import onnxruntime

    factory, data, result = made(name)
    inputs, axes = called(name, data)
    options = {"dynamo": True, "dynamic_shapes": axes, "external_data": False, "verbose": False}
    torch.onnx.export(result.model, (), tmp_path / "small.onnx", kwargs=inputs, **options)
    held = sum(math.prod(tensor.dims) for tensor in onnx.load(tmp_path / "small.onnx").graph.initializer)
    assert held < sum(value.numel() for value in factory().parameters())
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(inputs)
    for few in (inputs, {key: value[:3] for key, value in inputs.items()}):
        (out,) = session.run(None, {key: value.numpy() for key, value in few.items()})
        torch.testing.assert_close(torch.from_numpy(out), logits(result.model, few), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [shrink, eigendamage])
def test_nothing_but_the_result_is_left_behind(method):
    """Random states, the loader's order, modes, hooks and gradients are as they were."""
    torch.manual_seed(0)
    model, x = resnet().eval(), images()
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(x, batch_size=3, shuffle=True, generator=generator)
    before = torch.get_rng_state(), generator.get_state(), {n: v.clone() for n, v in model.state_dict().items()}
    result = method(model, loader, reduction=0.2, repeats=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(generator.get_state(), before[1])
    assert all(torch.equal(value, before[2][name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in (*model.parameters(), *result.model.parameters()))
    for module in (*model.modules(), *result.model.modules()):
        assert not module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


# ---------------------------------------------------------------------------------------------------------------------
# Costs


def test_costs_by_hand():
    """3 x 3 convolution from 2 to 4 channels on 6 x 6, no padding; 64 to 5."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)).eval()
    batch = read_batch(torch.randn(3, 2, 6, 6), CPU)
    found = flops(model, batch)
    assert found["0"] == 2 * 16 * 4 * 2 * 9
    assert found["3"] == 2 * 64 * 5
    assert found[""] == found["0"] + found["3"]
    counted = cost(model, batch)
    parameters = 4 * 2 * 9 + 4 + 8 + 64 * 5 + 5
    assert counted.parameters == parameters
    assert counted.bytes == 4 * (parameters + 8) + 8  # running statistics, and the count of batches in int64


def test_attention_is_counted_whatever_kernel_runs_it():
    """Scores and values: 2 heads x 2 (T x d x T) multiply-adds."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    found = flops(layer, read_batch(torch.randn(2, 5, 8), CPU))[""]
    linear = 2 * 5 * (8 * 24 + 8 * 8 + 8 * 12 + 12 * 8)
    assert found == linear + 2 * 2 * 2 * (5 * 4 * 5)


def test_models_take_turns_and_intervals_hold_their_medians():
    class Waits(nn.Module):
        def __init__(self, rounds):
            super().__init__()
            self.weight, self.rounds = nn.Parameter(torch.zeros(1)), rounds

        def forward(self, x):
            calls.append(self.rounds)
            return x + self.weight

    calls: list[int] = []
    batch = read_batch(torch.randn(4, 2), CPU)
    found = latency({"one": Waits(1), "two": Waits(2)}, batch, repeats=7)
    assert calls == [1, 2] * 8  # turns, and one round that is not counted
    for value in found.values():
        assert 0 < value.low <= value.median <= value.high
    with pytest.raises(dynaxx.InputError, match="repeats=0"):
        latency({"one": Waits(1)}, batch, repeats=0)


def test_interval_of_the_median_is_that_of_the_tables():
    """n = 11: the 2nd smallest and the 2nd largest enclose the median with probability 98.8 %, the 3rd with 93.5 %."""
    from dynaxx.compress.measure import _median

    assert _median([float(i) for i in range(11, 0, -1)]) == Latency(6.0, 2.0, 10.0)
    assert _median([1.0]) == Latency(1.0, 1.0, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# A real model


@pytest.mark.slow
def test_pretrained_resnet_loses_a_fifth_of_its_operations_and_still_knows():
    """ResNet-20, one shot, no fine-tuning; 300 test images, of which the dense model knows about 90 %."""
    model, (x, y), test = pretrained(512, 300)
    data = list(zip(x.split(128), y.split(128), strict=True))
    dense = evaluate(model, test)
    result = shrink(model, data, reduction=0.2, estimator="monte_carlo", repeats=3)
    small = evaluate(result.model, test)
    random = evaluate(shrink(model, data, reduction=0.2, criterion="random", repeats=0).model, test)
    assert dense.score > 0.88
    assert result.report["flops"]["small"] <= 0.8 * result.report["flops"]["dense"]
    assert result.report["bytes"]["small"] < 0.9 * result.report["bytes"]["dense"]
    assert small.score > 0.75
    assert small.score > random.score
    assert copy.deepcopy(result.model)(test[0][:2]).shape == (2, 10)
