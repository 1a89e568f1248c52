"""Layout: a vector and a dict of tensors are the same thing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynaxx import InputError
from dynaxx.layout import Layout

SHAPES = {"weight": (2, 3), "scale": (), "kernel": (1, 2, 2), "empty": (0, 3)}
LAYOUT = Layout(SHAPES, torch.float64, torch.device("cpu"))


def values(*columns):
    return {name: torch.randn((*shape, *columns), dtype=torch.float64) for name, shape in SHAPES.items()}


def test_what_it_says():
    assert LAYOUT.names == ("weight", "scale", "kernel", "empty")
    assert LAYOUT.size == 6 + 1 + 4
    assert LAYOUT.slices == {
        "weight": slice(0, 6), "scale": slice(6, 7), "kernel": slice(7, 11), "empty": slice(11, 11),
    }  # fmt: skip
    zeros = LAYOUT.zeros(2)
    assert (zeros.shape, zeros.dtype, float(zeros.abs().sum())) == ((11, 2), torch.float64, 0.0)


def test_order_is_the_layouts_and_rows_are_flattened_last_axis_first():
    held = values()
    shuffled = {name: held[name] for name in reversed(SHAPES)}
    wanted = torch.cat([held[name].flatten() for name in SHAPES])
    assert torch.equal(LAYOUT.ravel(shuffled), wanted)


@pytest.mark.parametrize("columns", [(), (1,), (4,)])
def test_there_and_back(columns):
    held = values(*columns)
    vector = LAYOUT.ravel(held)
    assert vector.shape == (11, *columns)
    again = LAYOUT.unravel(vector)
    assert list(again) == list(SHAPES)
    for name, value in held.items():
        assert torch.equal(again[name], value)


def test_each_column_is_a_vector():
    held = values(3)
    for j in range(3):
        column = {name: value[..., j] for name, value in held.items()}
        assert torch.equal(LAYOUT.ravel(held)[:, j], LAYOUT.ravel(column))


def test_unravel_gives_views():
    vector = LAYOUT.zeros()
    LAYOUT.unravel(vector)["kernel"].fill_(1)
    assert vector.tolist() == [0.0] * 7 + [1.0] * 4


def test_part():
    part = LAYOUT.part(["kernel", "weight"])
    assert part.names == ("kernel", "weight")
    assert (part.size, part.dtype, part.device) == (10, LAYOUT.dtype, LAYOUT.device)
    with pytest.raises(KeyError):
        LAYOUT.part(["elsewhere"])


@given(st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=5), st.integers(0, 2))
def test_any_shapes(shapes, columns):
    named = {f"p{i}": shape for i, shape in enumerate(shapes)}
    layout = Layout(named, torch.float64, torch.device("cpu"))
    tail = (columns,) if columns else ()
    vector = torch.arange(float(layout.size * max(1, columns)), dtype=torch.float64).reshape(layout.size, *tail)
    assert torch.equal(layout.ravel(layout.unravel(vector)), vector)
    assert {name: value.shape for name, value in layout.unravel(vector).items()} == {
        name: (*shape, *tail) for name, shape in named.items()
    }


BAD = {
    "missing": ({"scale": None}, ["missing", "scale", "kernel"]),
    "unknown": ({"elsewhere": torch.ones(2)}, ["unknown", "elsewhere"]),
    "wrong shape": ({"weight": torch.ones(3, 2)}, ["weight", "(3, 2)", "(2, 3)"]),
    "too many axes": ({"weight": torch.ones(2, 3, 1, 1)}, ["weight", "(2, 3, 1, 1)"]),
    "flat": ({"weight": torch.ones(6)}, ["weight", "(6,)"]),
    "some columns": ({"weight": torch.ones(2, 3, 4)}, ["column"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_dicts_that_do_not_fit(kind):
    change, words = BAD[kind]
    held = {name: value for name, value in {**values(), **change}.items() if value is not None}
    with pytest.raises(InputError) as raised:
        LAYOUT.ravel(held)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("shape", [(10,), (12,), (1, 11), (11, 1, 1), ()])
def test_vectors_that_do_not_fit(shape):
    with pytest.raises(InputError, match=r"\(11,\) or \(11, k\)"):
        LAYOUT.unravel(torch.zeros(shape))


def test_long_lists_of_names_are_cut():
    layout = Layout({f"p{i}": (1,) for i in range(20)}, torch.float64, torch.device("cpu"))
    with pytest.raises(InputError) as raised:
        layout.ravel({})
    assert "..." in str(raised.value)
    assert "'p19'" not in str(raised.value)
