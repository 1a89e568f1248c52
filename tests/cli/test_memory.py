"""``dynaxx estimate-memory`` from outside."""

import re
import sys
from pathlib import Path

import pytest

from dynaxx.cli import main

HERE = Path(__file__).parent


def estimate(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr)."""
    monkeypatch.chdir(HERE)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["dynaxx", "estimate-memory", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_a_table_of_what_is_held(monkeypatch, capsys):
    code, out, err = estimate(
        monkeypatch, capsys, "toy_models:model", "--data", "toy_models:data", "--form", "diagonal", "--form", "trace",
        "--form", "product", "--form", "snapshot",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "51 parameters" in out
    assert re.search(r"model: parameters.*204 B.*204 B.*204 B.*204 B", out)
    assert {"activations", "cotangents", "workspace", "total"} <= set(re.findall(r"[a-z]+", out))


def test_more_examples_take_more(monkeypatch, capsys):
    totals = []
    for size in (10, 100_000):
        _, out, _ = estimate(
            monkeypatch, capsys, "toy_models:model", "--data", "toy_models:data", "--form", "diagonal",
            "--batch-size", size,
        )  # fmt: skip
        totals.append(re.search(r"total\W+([\d.]+ \w+)", out).group(1))
    assert totals[0].endswith("kB")
    assert totals[1].endswith("MB")


def test_wrong_input(monkeypatch, capsys):
    arguments = ["toy_models:model", "--data", "toy_models:data"]
    code, _, err = estimate(monkeypatch, capsys, *arguments, "--form", "diag")
    assert code == 2
    assert "--form='diag' is not known" in err
    code, _, err = estimate(monkeypatch, capsys, *arguments, "--batch-size", 0)
    assert code == 2
    assert "--batch-size 0" in err
    code, _, err = estimate(monkeypatch, capsys, "toy_models:not_a_model", "--data", "toy_models:data")
    assert code == 2
    assert "must return a torch.nn.Module" in err
