"""Blocks check themselves, numbers read well, and what a chart hides it says."""

import math

import numpy as np
import pytest
import torch

from dynaxx.errors import InputError
from dynaxx.estimate import Estimate
from dynaxx.report import (
    Document,
    Eigenvalues,
    Facts,
    Image,
    Lines,
    Marker,
    Note,
    Section,
    Series,
    Spectra,
    Table,
    charts,
)
from dynaxx.report.numerals import cell, number, plain, with_error


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Facts([("a",)]), r"\(label, value, note\)"),
        (lambda: Table(("a", "b"), [(1, 2), (1,)]), "row 1 of the table has 1 cells for 2 columns"),
        (lambda: Table(("a",), [(1,)], highlight=[1]), r"highlight=\[1\] is outside"),
        (lambda: Series("s", [1, 2], [1]), r"different lengths: \{'x': 2, 'y': 1\}"),
        (lambda: Series("s", [1, math.nan], [1, 2]), "x that is not finite"),
        (lambda: Series("s", [1], ["a"]), "y are not numbers"),
        (lambda: Series("s", [[1]], [[1]]), r"shape \(1, 1\)"),
        (lambda: Series("s", [1], [1], low=[0]), "give low and high, or neither"),
        (lambda: Lines("t", [([1], [1])]), "series has a tuple; expected Series"),
        (lambda: Eigenvalues("e", [1.0], floor=-1.0), "floor=-1.0"),
        (lambda: Note("x", "loud"), "level='loud'.*'info', 'good', 'warning', 'bad'"),
        (lambda: Image("i", "not svg"), "no SVG"),
        (lambda: Section("s", blocks=["text"]), "blocks has a str; expected Facts, Table"),
        (lambda: Document("d", sections=[Note("x")]), "sections has a Note; expected Section"),
    ],
)
def test_a_block_that_makes_no_sense_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_series_are_sorted_and_tensors_are_taken():
    series = Series("s", torch.tensor([3, 1, 2]), torch.tensor([30.0, 10.0, 20.0], requires_grad=True).bfloat16())
    assert series.x.tolist() == [1, 2, 3]
    assert series.y.tolist() == [10, 20, 30]


def test_a_spectrum_sorts_itself_and_brings_its_floor():
    class Given:
        eigenvalues = torch.tensor([1.0, 3.0, math.nan, 2.0])
        floor = 1e-3

    made = Spectra("s", [("a", Given())]).spectra[0]
    assert made.eigenvalues.tolist() == [3, 2, 1]
    assert (made.floor, made.missing) == (1e-3, 1)
    assert Eigenvalues("zero", [1.0], 0.0).floor is None


@pytest.mark.parametrize(
    "value", [1.0, 0.1234, 99995.0, 999949.0, 123456.7, 1.5e-4, 9.9996e-5, 7e22, -3e-30, 5e-324, 1e308]
)
def test_numbers_keep_four_digits(value):
    raised = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-", "\u202f")
    mantissa, _, power = number(value).partition("×10")
    read = float(f"{mantissa.translate(raised)}e{power.translate(raised) or 0}")
    expected = round(value) if 1e4 <= abs(value) < 999950 else float(f"{value:.3e}")
    assert read == pytest.approx(expected, rel=1e-12)


def test_an_error_decides_how_many_digits_are_shown():
    assert cell(Estimate(41.3187, 0.2149, 64)) == "41.32 ± 0.21"
    assert with_error(0.0, 0.5) == "0 ± 0.5"
    assert with_error(123456.0, 789.0) == "123\u202f456 ± 789"
    assert cell(Estimate(2.0)) == "2"
    assert cell(Estimate(2.0, math.nan, 1)) == "2"
    assert cell(torch.tensor(0.5)) == cell(np.float32(0.5)) == "0.5"
    assert cell(10**30) == "1×10³⁰"


def test_control_characters_are_removed():
    assert plain("a\x1b[2Jb\x00\x9b\ud800c\n") == "a[2Jbc\n"


def test_a_chart_carries_seven_digits_exact_steps_and_none_for_gaps():
    data = charts.chart(Lines("t", [Series("s", [2**40 + 1, 2**40 + 2], [math.pi, math.nan])]))
    assert data["curves"] == [{"name": "s", "x": [2**40 + 1, 2**40 + 2], "y": [3.141593, None]}]


def test_what_is_not_drawn_is_said():
    block = Lines("t", [Series("s", [0, 1, 2, 3], [1.0, -1.0, math.inf, 0.0])], log_y=True, log_x=True, note="Mine.")
    assert charts.remarks(block) == [
        "Mine.",
        "s: 1 of 4 values are not finite (gaps).",
        "s: 3 values are not positive and have no place on a logarithmic scale.",
    ]
    assert charts.chart(block)["curves"] == [{"name": "s", "x": [1, 2, 3], "y": [None, None, None]}]


def test_a_spectrum_is_split_at_its_floor_and_cut_far_below_it():
    block = Spectra("t", [("a", [4.0, 2.0, 1e-3, 1e-6, 1e-9, 0.0, -1.0, math.nan], 1e-2)])
    (curve,) = charts.chart(block)["curves"]
    assert (curve["x"], curve["y"], curve["above"]) == ([1, 2, 3], [4, 2, 1e-3], 2)  # 1e-6 is the depth itself
    assert charts.remarks(block) == [
        "a: 4 of 7 eigenvalues are zero, negative or far below the floor and not drawn.",
        "a: 1 eigenvalues are not finite.",
    ]
    (curve,) = charts.chart(Spectra("t", [("a", [1.0, 1e-30, 0.0])]))["curves"]
    assert (curve["y"], curve["above"], curve["floor"]) == ([1, 1e-30], 2, None)


def test_thinning_keeps_every_peak_and_every_gap():
    rng = np.random.default_rng(0)
    y = rng.normal(size=100_000)
    y[[12_345, 54_321]] = 50.0, -50.0
    y[70_000:70_003] = np.nan
    thinned = charts.thin(Series("s", np.arange(100_000), y))
    assert len(thinned.x) <= charts.MOST_POINTS + charts.MOST_POINTS // 4 + 2
    assert {12_345, 54_321, 0, 99_999} <= set(thinned.x.astype(int))
    assert np.nanmax(thinned.y) == 50.0
    assert np.nanmin(thinned.y) == -50.0
    assert np.isnan(thinned.y).any()
    np.testing.assert_array_equal(thinned.y, y[thinned.x.astype(int)])


def test_the_table_behind_a_chart_joins_curves_and_stays_short():
    table = charts.table(Lines("t", [Series("a", [0, 1], [1.0, math.nan]), Series("b", [1, 2.5], [3.0, 4.0])]))
    assert table.columns == ("step", "a", "b")
    assert [row[0] for row in table.rows] == [0, 1, 2.5]
    assert [row[2] for row in table.rows] == ["", 3.0, 4.0]
    assert math.isnan(table.rows[1][1])
    long = charts.table(Lines("t", [Series("a", range(1000), range(1000))]))
    assert len(long.rows) == charts.MOST_ROWS
    assert (long.rows[0][0], long.rows[-1][0]) == (0, 999)
    assert long.caption == "60 of 1000 rows"
    assert charts.table(Lines("t", [])).rows == ()


def test_a_chart_is_told_in_words():
    block = Lines("Trace", [Series("a", [0, 1], [1.0, 2.0]), Series("b", [0], [math.nan])], markers=[Marker(1, "m")])
    assert charts.describe(block) == "Chart: Trace. a: 2 points, from 1 to 2; b: 1 points, none of them finite."


def test_columns_have_seven_digits_whole_numbers_stay_and_what_is_not_finite_is_none():
    rng = np.random.default_rng(0)
    values = rng.normal(size=3000) * 10.0 ** rng.integers(-300, 300, 3000)
    near = rng.normal(size=3000) * 10.0 ** rng.integers(-6, 9, 3000)
    for given in (values, near):
        shown = charts.chart(Lines("t", [Series("s", np.arange(3000), given)]))["curves"][0]["y"]
        assert [float(one) for one in shown] == [
            float(one) if one.is_integer() and abs(one) < 2**53 else float(f"{one:.7g}") for one in given.tolist()
        ]
    odd = [0.0, -0.0, 2.0**52 + 1, -3.0, 1e22, math.nan, math.inf, 5e-324, 1 / 3]
    (curve,) = charts.chart(Lines("t", [Series("s", np.arange(9), odd)]))["curves"]
    assert curve["x"] == list(range(9))
    assert curve["y"] == [0, 0, 2**52 + 1, -3, 1e22, None, None, 5e-324, 0.3333333]
    assert [type(one) for one in curve["y"][:5]] == [int, int, int, int, float]
    (curve,) = charts.chart(Lines("t", [Series("s", [1, 2, 3], [-1.0, 0.0, 1e-30])], log_y=True))["curves"]
    assert curve["y"] == [None, None, 1e-30]


def test_curves_over_the_same_places_share_them():
    x, y = np.arange(4.0), np.ones(4)
    block = Lines("t", [Series("a", x, y), Series("b", x.copy(), 2 * y), Series("c", x + 1, y), Series("d", x + 1, y)])
    assert [curve["x"] for curve in charts.chart(block)["curves"]] == [[0, 1, 2, 3], 0, [1, 2, 3, 4], 2]
