"""The studies run in quick mode and find what they found at full size; what they are made of is right."""

import json
import math
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------------------------------------------------------------
# Quick mode


def test_quick_study_of_the_next_token_model_holds(studies, capsys):
    assert studies("neuromanifold").main(["--quick", "--parts", "language"]) == 0
    assert "every check holds" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_study_of_the_classifier_holds_or_says_what_is_missing(studies, capsys):
    assert studies("neuromanifold").main(["--quick", "--parts", "sst2"]) == 0
    said = capsys.readouterr().out
    assert "every check holds" in said
    assert ("order-sst2-before: skipped" in said) == ("4 cells" not in said)


def test_checks_can_fail(studies):
    check = studies("neuromanifold").check
    layer = {"violations": {"lower": 3, "upper": 0}, "lower_trace_share": 0.9}
    said = "\n".join(check({"density-sst2-after": {"layers": {"all": layer}}}))
    assert "3 lower bounds broken" in said
    assert "two classes, and the lower bound is not exact" in said
    measured = {"signs, example, 1": 1.0, "signs, example, 4": 0.9, "signs, batch, 1": 1.0}
    draws = {"estimators": {name: {"diagonal": {"value": value}} for name, value in measured.items()}}
    assert len(check({"draws": draws})) == 2
    row = lambda group, value: {"factor": "symmetric", "group": group, "diagonal": [0, value, 2]}
    flat = {str(n): [row("example", 0.5), row("batch", 0.5)] for n in (8, 64)}
    assert len(check({"spread-ag_news-before": {"predicted": flat}})) == 2


def test_classifier_is_skipped_with_a_message_where_the_package_is_missing(studies, monkeypatch, capsys, tmp_path):
    neuromanifold, classifiers = studies("neuromanifold"), studies("classifiers")
    monkeypatch.setattr(classifiers.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "sst2").mkdir()
    sizes = neuromanifold.QUICK
    found = neuromanifold.Study(sizes, tmp_path / "cells", tmp_path, tmp_path).run(["sst2"])
    assert found == {}
    assert "skipped" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def test_a_cell_is_computed_once_and_again_when_its_options_change(studies, tmp_path):
    runs, calls = studies("runs"), []

    def compute():
        calls.append(1)
        return {"answer": len(calls)}

    for sizes, wanted in (((1, 2), 1), ((1, 2), 1), ((1, 3), 2), ((1, 3), 2)):
        assert runs.Cells(tmp_path).get("cell", {"sizes": sizes}, compute) == {"answer": wanted}
    assert runs.read(tmp_path) == {"cell": {"answer": 2}}
    kept = json.loads((tmp_path / "cell.json").read_text())
    assert set(kept) == {"machine", "options", "result", "seconds"}
    assert "versions" in kept["machine"]


def test_an_interrupted_cell_leaves_nothing_behind(studies, tmp_path):
    runs = studies("runs")

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.Cells(tmp_path).get("cell", {}, fail)
    assert list(tmp_path.iterdir()) == []


def test_machine_description_names_no_machine(studies):
    import platform
    import socket

    said = json.dumps(studies("runs").machine())
    for name in {platform.node(), socket.gethostname()} - {"", "localhost"}:
        assert name not in said


def test_a_changed_file_is_refused_and_a_missing_one_skipped(studies, tmp_path):
    runs, path = studies("runs"), tmp_path / "weights"
    with pytest.raises(runs.Skipped, match="weights is not there"):
        runs.require_hash(path, "0")
    path.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert runs.require_hash(path, abc) == path
    with pytest.raises(ValueError, match="fetch the pinned version"):
        runs.require_hash(path, "0" * 64)


def test_every_fine_tuning_has_cells_of_its_own_and_the_first_keeps_its_names(studies, monkeypatch, tmp_path):
    neuromanifold = studies("neuromanifold")
    made = []
    for kind in ("accuracy", "spread", "density", "order"):

        def cell(self, task, stage, tuning=0, kind=kind):
            made.append((kind, stage, tuning))
            return {}

        cell.__name__ = kind
        monkeypatch.setattr(neuromanifold.Study, kind, cell)
    monkeypatch.setattr(neuromanifold.Study, "cost", lambda self, task: {})
    run = lambda count: neuromanifold.Study(neuromanifold.Sizes(tunings=count), tmp_path, tmp_path, None).run(["sst2"])
    assert len(run(1)) == 2 * 4 + 1
    assert len(made) == 8
    found = run(3)
    assert len(made) == 8 + 2 * 4  # what was there was kept: the number of fine-tunings is no option of the first
    assert set(made[8:]) == {(k, "after", n) for k in ("accuracy", "spread", "density", "order") for n in (1, 2)}
    assert {"density-sst2-after", "density-sst2-after-1", "density-sst2-after-2", "cost-sst2"} < set(found)
    assert json.loads((tmp_path / "density-sst2-after-2.json").read_text())["options"]["tuning"] == 2


def test_ranges_over_fine_tunings_are_lowest_and_highest(studies):
    figures = studies("figures")

    def cells(mean, accuracy):
        layer = {
            "mean": {"value": mean},
            "small": {"value": 0.5},
            "small_of_sum": 0.1,
            "lower_trace_share": 1.0,
            "upper_trace_share": 2.0,
        }
        row = {"estimator": "monte_carlo", "group": "batch", "diagonal": [0, mean, 9]}
        return (
            {"accuracy": {"value": accuracy}},
            {"layers": {"all": layer}, "output_space": {"confidence": 0.9}},
            {"predicted": {"2": [], "32": [row]}},
        )

    kept = {}
    for end, parts in (("", cells(3.0, 0.7)), ("-1", cells(1.0, 0.9)), ("-2", cells(2.0, 0.8))):
        for kind, cell in zip(("accuracy", "density", "spread"), parts, strict=True):
            kept[f"{kind}-sst2-after{end}"] = cell
    said = "\n".join(figures._ranges(kept))
    assert "3 fine-tunings" in said
    assert "accuracy 70.0% to 90.0%" in said
    assert "all: mean 1.0e+00 to 3.0e+00" in said
    assert "batch, 32 texts: 1.00 to 3.00" in said
    assert list(figures._ranges({"density-sst2-after": kept["density-sst2-after"]})) == []


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


def test_jackknife_of_a_mean_is_the_t_interval(studies):
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    leave_one_out = [float((values.sum() - v) / 3) for v in values]
    found = studies("runs").jackknife(leave_one_out, float(values.mean()))
    half = 3.182446305 * float(values.std()) / math.sqrt(4)  # t quantile 0.975 with 3 degrees of freedom, from tables
    assert found == pytest.approx({"value": 4.0, "low": 4.0 - half, "high": 4.0 + half}, rel=1e-8)


def test_proportion_is_wilsons_interval(studies):
    """10 of 20: (0.2993, 0.7007), as tabulated."""
    found = studies("runs").proportion(10, 20)
    assert found == pytest.approx({"value": 0.5, "low": 0.29930, "high": 0.70070}, abs=1e-4)


def test_bootstrap_covers_the_mean_of_normal_draws(studies):
    draws = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = studies("runs").bootstrap(draws, lambda d: float(d.mean()))
    half = 1.96 * float(draws.std()) / 20
    assert found["low"] == pytest.approx(float(draws.mean()) - half, abs=0.25 * half)
    assert found["high"] == pytest.approx(float(draws.mean()) + half, abs=0.25 * half)


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def test_layers_are_described_by_hand_counted_numbers(studies):
    """Two blocks of three entries in one layer; the bounds are broken in one entry each."""
    blocks = torch.tensor([[1e-6, 4.0, 0.0], [1e-6, 2.0, 0.0]])
    lower, upper = torch.tensor([2e-6, 1.5, 0.0]), torch.tensor([2e-6, 2.0, 0.0])
    found = studies("densities").describe(lower, blocks, upper, [slice(0, 3)], examples=20)
    assert found["entries"] == 3
    assert found["zeros"] == pytest.approx(1 / 3)
    assert sum(found["histogram"]) == 2
    assert found["small"]["value"] == pytest.approx(2 / 3)  # 1e-6 and 0
    assert found["small_of_sum"] == pytest.approx(1 / 3)  # twenty examples sum to 2e-5
    assert found["mean"]["value"] == pytest.approx(1.0, rel=1e-5)
    assert found["violations"] == {"lower": 1, "upper": 1}
    assert found["lower_trace_share"] == pytest.approx(0.5, rel=1e-5)


def test_output_space_shares_in_closed_form(studies):
    """Two classes: the eigenpair is everything, the diagonal envelope has 1 / (1 - |p|^2) of the trace, and the
    Laplacian one twice."""
    z = torch.tensor([[0.0, 1.0]])
    p = z.double().softmax(-1)[0]
    found = studies("densities").output_space(z)
    assert found["lower_eigen"] == pytest.approx(1, rel=1e-12)
    assert found["upper_diagonal"] == pytest.approx(1 / (1 - float(p @ p)), rel=1e-12)
    assert found["upper_laplacian"] == pytest.approx(2, rel=1e-12)


def test_next_token_model_is_causal_and_learns(studies):
    language = studies("language")
    tokens, size = language.encode("abcd" * 500)
    torch.manual_seed(0)
    model = language.NextToken(size, width=16, hidden=32, blocks=1, heads=2).eval()
    x = language.windows(tokens, 3, 9, seed=0)
    changed = x.clone()
    changed[:, 5] = (changed[:, 5] + 1) % size
    difference = (model(x) - model(changed)).abs().amax((0, 2))
    assert difference[:5].max() == 0
    assert difference[5:].min() > 0
    before = language.surprise(model, x)
    language.train(model, tokens, steps=150, batch=8, length=16, seed=0)
    assert language.surprise(model, x) < 0.1 < before  # what follows is certain after the first character


def test_rotary_products_depend_on_distance_alone(studies):
    language = studies("language")
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles = torch.arange(6.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=torch.float64)
    products = (
        language.rotate(q.expand(1, 1, 6, 8), angles)[0, 0] @ language.rotate(k.expand(1, 1, 6, 8), angles)[0, 0].T
    )
    for distance in range(5):
        assert float(products.diagonal(distance).std()) < 1e-12
    assert float(products[0].std()) > 1e-3
