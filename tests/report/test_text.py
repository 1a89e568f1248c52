"""The same document on a terminal."""

import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from dynaxx.report import Document, Lines, Marker, Section, Series, render, to_text
from dynaxx.report.text import sparkline
from report.demo_documents import demo, hostile


@pytest.mark.parametrize("width", [64, 80, 200])
def test_every_block_is_there_at_any_width(width):
    text = to_text(demo(), width)
    assert max(map(len, text.split("\n"))) <= width
    flat = re.sub(r"\s+", " ", text)
    for words in (
        "Fisher spectrum",
        "Summary",
        "41.32 ± 0.21",
        "Warning A note that is warning.",
        "Eigenvalues",
        "100 of 153",
        "seed 0",
        "[image: Drawing]",
    ):
        assert words in flat or words.replace(" ", "") in flat.replace(" ", ""), words
    assert re.search("[▁▂▃▄▅▆▇█]{3}", text)


def test_a_very_narrow_terminal_gets_lines_that_fit():
    text = to_text(demo(), 30)
    assert max(map(len, text.split("\n"))) <= 30
    assert "41.32 ± 0.21" in text
    assert "fc1" in text


def test_words_from_outside_do_not_steer_the_terminal():
    text = to_text(hostile("[bold red]x[/] \x1b[2J\x07 [link=http://a]"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold red]x[/]" in text
    stream = io.StringIO()
    render(hostile("[red]\x1b]0;title\x07"), Console(file=stream, force_terminal=True, width=80))
    assert "\x1b]" not in stream.getvalue()


def test_a_sparkline_has_a_column_for_each_value_and_a_blank_for_each_gap():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, math.nan, math.inf, 0]) == "█  ▁"
    assert sparkline([math.nan] * 3) == "   "
    assert sparkline([1, 10, 100], log=True) == "▁▅█"
    assert sparkline([0, 1, 10], log=True) == " ▁█"  # zero has no logarithm
    assert sparkline([-1e308, 1e308]) == "▁█"
    long = sparkline(np.linspace(0, 1, 1000), width=20)
    assert len(long) == 20
    assert list(long) == sorted(long)


def test_markers_and_the_last_value_are_told():
    chart = Lines("Loss", [Series("a", [0, 1, 2], [3.0, 1.0, math.nan])], markers=[Marker(1, "half")])
    text = to_text(Document("d", sections=[Section("s", blocks=[chart])]))
    assert re.search(r"a +█▁ +1 +3 +NaN", text)
    assert "1 half" in text
    assert "1 of 3 values are not finite" in text
