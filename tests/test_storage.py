"""Operators on disk: back as they were, or a clear refusal; never pickle; never half a file."""

import json
import pickletools
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import dynaxx
import market
from dynaxx import tensorfile
from market import MARKET

STORABLE = [name for name, stall in MARKET.items() if stall.storable and "from disk" not in name]
MODEL_SIDE = [name for name, stall in MARKET.items() if not stall.storable]


@pytest.fixture
def file(tmp_path):
    return market.load("kfac")[0].save(tmp_path / "operator.safetensors")


def rewrite(file, tensors=lambda held: held, header=lambda held: held):
    """The same file with its tensors or its header changed."""
    with safe_open(str(file), framework="pt") as opened:
        held = {key: opened.get_tensor(key) for key in list(opened.keys())}
        facts = json.loads(opened.metadata()["dynaxx"])
    save_file(tensors(held), file, {"dynaxx": json.dumps(header(facts))})


def refuse(file, *words):
    with pytest.raises(dynaxx.InputError) as raised:
        dynaxx.load(file)
    for word in (str(file), *words):
        assert word in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", STORABLE)
def test_round_trip(name, dtype, tmp_path):
    """Bit for bit, in whatever file name, twice over."""
    operator, _ = market.load(name, dtype)
    path = operator.save(str(tmp_path / "a folder" / "operator"))
    assert path == tmp_path / "a folder" / "operator"
    again = dynaxx.load(str(path))
    assert type(again) is type(operator)
    assert (again.form, again.count, again.definite) == (operator.form, operator.count, operator.definite)
    assert (again.names, again.dtype, again.device) == (operator.names, dtype, torch.device("cpu"))
    assert again.layout.shapes == operator.layout.shapes
    assert again.coverage() == operator.coverage()
    assert repr(again) == repr(operator)
    before, after = operator.state()[0], again.state()[0]
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert torch.equal(after[key], value)
    assert (again.trace().value, again.trace().stderr) == (operator.trace().value, operator.trace().stderr)
    assert (again.trace().samples, again.trace().exact) == (operator.trace().samples, operator.trace().exact)
    second = again.save(tmp_path / "second")
    with safe_open(str(path), framework="pt") as one, safe_open(str(second), framework="pt") as two:
        assert one.metadata() == two.metadata()


@pytest.mark.parametrize("name", ["gram, p > M, from disk", "gram, p < M, from disk"])
def test_what_needs_the_model_says_so(name):
    operator, _ = market.load(name)
    v = torch.ones(operator.shape[0], dtype=torch.float64)
    for verb in (
        lambda: operator @ v, lambda: operator.solve(v, damping=1.0), operator.eigh, operator.to_dense,
        lambda: operator.quadratic(v),
    ):  # fmt: skip
        with pytest.raises(dynaxx.InputError, match="loaded from a file"):
            verb()


@pytest.mark.parametrize("name", MODEL_SIDE)
def test_what_holds_no_numbers_is_refused(name, tmp_path):
    operator, _ = market.load(name)
    with pytest.raises(dynaxx.InputError, match=r"form='implicit'.*save form='diagonal'"):
        operator.save(tmp_path / "operator")
    assert not list(tmp_path.iterdir())


def test_no_pickle(file):
    """Neither a zip archive, as torch.save makes, nor a pickle that could be run."""
    assert not zipfile.is_zipfile(file)
    with pytest.raises(ValueError, match=r"opcode"):
        list(pickletools.genops(file.read_bytes()))
    size = int.from_bytes(file.read_bytes()[:8], "little")
    assert json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"]["dynaxx"]


# ---------------------------------------------------------------------------------------------------------------------
# Files that are not whole or not ours


def test_missing_file(tmp_path):
    refuse(tmp_path / "nowhere", "cannot read")


def test_a_folder(tmp_path):
    refuse(tmp_path, "cannot read")


@pytest.mark.parametrize("keep", [0, 4, 40, -1, -100])
def test_truncated(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    refuse(file, "cannot read")


def test_noise(file):
    file.write_bytes(bytes(range(256)) * 20)
    refuse(file, "cannot read")


def test_a_file_of_somebody_elses(tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    refuse(tmp_path / "model.safetensors", "no dynaxx operator")
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors", {"dynaxx": "{not json"})
    refuse(tmp_path / "model.safetensors", "cannot read")
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors", {"dynaxx": "[1]"})
    refuse(tmp_path / "model.safetensors", "no dynaxx operator")


def test_torch_save_is_not_opened(tmp_path):
    torch.save(market.load("dense")[0].to_dense(), tmp_path / "matrix.pt")
    refuse(tmp_path / "matrix.pt", "cannot read")


def test_another_version_of_the_format(file):
    rewrite(file, header=lambda held: {**held, "format": "dynaxx-operator/99"})
    refuse(file, "dynaxx-operator/99", "dynaxx-operator/1")


@pytest.mark.parametrize("key", ["kind", "shapes", "dtype", "facts", "count", "sampling", "definite"])
def test_a_header_without(file, key):
    rewrite(file, header=lambda held: {name: value for name, value in held.items() if name != key})
    refuse(file, "damaged")


@pytest.mark.parametrize(
    "change",
    [{"kind": "sparse"}, {"dtype": "float63"}, {"shapes": 3}, {"shapes": [["0.weight", [5, 4]]]}, {"facts": {}}],
    ids=str,
)
def test_a_header_that_does_not_fit(file, change):
    rewrite(file, header=lambda held: {**held, **change})
    refuse(file, "damaged")


def test_a_tensor_too_few(file):
    rewrite(file, tensors=lambda held: {key: value for key, value in held.items() if key != "1.left"})
    refuse(file, "damaged", "left")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def test_an_old_file_is_replaced(file):
    market.load("dense")[0].save(file)
    assert dynaxx.load(file).form == "dense"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def interrupted(tensors, path, metadata):
    """Half a file, and then no space."""
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_an_interrupted_write_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr(tensorfile, "save_file", interrupted)
    with pytest.raises(dynaxx.InputError, match=r"cannot write .*No space left"):
        market.load("dense")[0].save(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_place_that_cannot_be_written(file):
    with pytest.raises(dynaxx.InputError, match="cannot write"):
        market.load("dense")[0].save(file / "below a file")
