"""The sloppiness studies run in quick mode and find what they found at full size; what they are made of is right."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------------------------------------------------------------
# Quick modes


@pytest.mark.slow
@pytest.mark.parametrize("part", ["spectra", "reduction", "synthetic", "pac_bayes", "trajectories"])
def test_quick_study_of_sloppiness_holds(studies, capsys, part):
    assert studies("sloppiness").main(["--quick", "--parts", part]) == 0
    said = capsys.readouterr().out
    assert "every check holds" in said
    assert "skipped" in said or not re.search(r"^0 cells", said, re.MULTILINE)


def test_sloppiness_checks_can_fail(studies):
    curved = {"0.1": 0.5}
    cell = {"stages": [{"fisher": {"stiff": curved, "trace": trace, "decades": {"0.9": 2.0}}} for trace in (1.0, 3.0)]}
    noise = cell | {"data_centred": {"decades": {"0.9": 2.0}}}
    said = studies("spectra").check(
        {"mnist-1x32-0": cell | {"data_centred": {"decades": {"0.9": 1.0}}}, "noise-1x32-0": noise}
    )
    assert len(said) == 4

    rows = [{"subspace": name, "k": k, "score": 0.5} for name in ("eigenvectors", "random") for k in (1, 9)]
    alike = {"init, rank": {"neighbours": 0.1}, "shuffled": {"neighbours": 0.1}}
    projected = {"curves": {"origin": rows, "init": rows}, "map": {"k": {"1%": 1, "rank": 9}, "alike": alike}}
    assert len(studies("model_reduction").check({"mnist-0": projected})) == 4

    fisher = {"fisher": {"end": {"slope": 0.1, "rank": 10}}, "validation_error": 0.5}
    assert len(studies("synthetic").check({"b0.001-overlapping-0": fisher, "b0.2-overlapping-0": fisher})) == 2

    scale = {"certificate": 0.4, "test_error": {"mean": 0.5}, "loss_rise": {"mean": 1.0}}
    bounded = {"formula": {"bound": 1}, "formula_of_flat_spectrum": {"bound": 1}, "by_scale": [scale, scale]}
    assert len(studies("pac_bayes").check({"true-0": bounded, "random-0": bounded})) == 6

    seen = {"stress": [0.1, 0.2, 0.5], "stress_of_paths_elsewhere": [0.1, 0.2, 0.48]}
    assert len(studies("trajectories").check({"map-1": {"runs": [0], "train": seen, "test": seen}})) == 2


def test_no_cell_is_begun_after_the_time_is_up(studies, tmp_path, capsys):
    arguments = ["--parts", "synthetic", "--minutes", "0", "--results", str(tmp_path)]
    assert studies("sloppiness").main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("left for another run") == 14
    assert "0 cells" in said
    assert list(tmp_path.rglob("*.json")) == []


def test_the_command_line_of_a_study_says_what_to_do_and_how_it_went(studies, tmp_path, capsys):
    runs, seen = studies("runs"), []

    def compute(options):
        seen.append((options.parts, options.quick, options.results.is_dir(), torch.get_num_threads()))
        return len(options.parts), [f"{part} is wrong" for part in options.parts if part == "c"]

    about = {"about": "A study.", "parts": ["a", "b", "c"], "quick_parts": ["b"], "results": tmp_path / "results"}
    run = lambda *words: runs.main(list(words), **about, compute=compute, show=lambda folder: f"from {folder.name}")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [run("--quick"), run("--parts", "a", "b"), run()] == [0, 0, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [(["b"], True, True, 1), (["a", "b"], False, False, 2), (["a", "b", "c"], False, False, 2)]
    assert run("--figures") == 0
    assert len(seen) == 3
    said = capsys.readouterr().out
    assert "2 cells, every check holds" in said
    assert "c is wrong" in said
    assert "from results" in said


def test_every_mode_names_its_cells_once(studies, tmp_path):
    sloppiness = studies("sloppiness")
    for module in sloppiness.STUDIES.values():
        for sizes in (module.QUICK, module.Sizes()):
            names = [name for name, options, _ in module.cells(sizes, None, tmp_path) if json.dumps(options)]
            assert len(names) == len(set(names)) > 0


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def test_the_published_loader_sees_1049_examples(studies):
    """50,000 examples in batches of 1,000 that begin one example apart."""
    synthetic = studies("synthetic")
    sizes = synthetic.Sizes()
    seen = {
        kind: {i for part in synthetic.batches(sizes, kind) for i in range(50_000)[part]}
        for kind in ("overlapping", "all")
    }
    assert len(seen["overlapping"]) == 1049
    assert len(seen["all"]) == 50_000


def test_synthetic_inputs_have_the_published_correlation(studies):
    """Eigenvalues c^2 exp(-2 b i) / d; loud ones have the mean square of the sloppiest b."""
    synthetic = studies("synthetic")
    sizes = synthetic.Sizes(runs=((0.01, "all", 1), (0.5, "all", 1)), train=20_000, validation=0, width=10)
    i = torch.arange(10.0)
    squares = {b: (50 * b) ** 2 * torch.exp(-2 * b * i) / 10 for b in (0.01, 0.5)}
    x, y = synthetic.draw(sizes, 0.01, 0)
    torch.testing.assert_close(x.square().mean(0), squares[0.01], rtol=0.06, atol=0)
    assert y.unique().numel() > 1
    loud, _ = synthetic.draw(sizes, 0.01, 0, loud=True)
    assert float(loud.square().sum(1).mean()) == pytest.approx(float(squares[0.5].sum()), rel=0.03)
    torch.testing.assert_close(loud / loud.norm(), x / x.norm())


def test_a_factor_explains_the_share_of_squares_between_its_groups(studies):
    """Points on a line: the squared distances' decomposition is that of the variance."""
    share = studies("trajectories").share
    x = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    found = share((x[:, None] - x).square(), list("aaabbb"))
    within, total = 2 * 2.0, float((x - x.mean()).square().sum())
    assert found["value"] == pytest.approx(1 - within / total)
    assert found["chance"] == pytest.approx(1 / 5)
    assert found["p"] == pytest.approx(0.1, abs=0.04)  # 2 of the 20 splits explain as much
    mixed = share((x[:, None] - x).square(), list("ababab"))["value"]
    within = sum(float((part - part.mean()).square().sum()) for part in (x[::2], x[1::2]))
    assert mixed == pytest.approx(1 - within / total)


def test_runs_are_looked_at_from_the_first_step_to_the_last(studies):
    trajectories = studies("trajectories")
    for sizes in (trajectories.QUICK, trajectories.Sizes()):
        steps = trajectories.steps(sizes)
        assert steps[:2] == [0, 1]
        assert steps[-1] == sizes.epochs * math.ceil(sizes.train / sizes.batch)


def test_paths_that_end_elsewhere_need_more_than_three_coordinates(studies):
    labels = torch.randint(10, (100,), generator=torch.Generator().manual_seed(0))
    along = torch.linspace(0.1, 0.9, 5).expand(12, 5)
    assert studies("trajectories").elsewhere(along, labels)[2] < 0.8


def test_drawn_weights_raise_the_loss_as_the_second_order_says_where_it_holds(studies):
    """Logistic regression at its optimum: the first order is zero, and F is the Hessian."""
    import dynaxx

    pac_bayes = studies("pac_bayes")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    x = torch.randn(60, 3, dtype=torch.float64)
    y = (x[:, 0] + 2 * torch.randn(60) > 0).long()
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimiser.step(closure)
    space = dynaxx.eigenspace(model, x)
    found = dynaxx.manifold.pac_bayes(space.spectrum, displacement=1.0, count=1000, prior_precisions=(1e3,))
    parts = dict.fromkeys(("probe", "train", "test"), (x, y))
    drawn = pac_bayes.sampled(model, space, found, parts=parts, draws=200, seed=0)
    # a quadratic form of four normal coordinates has a relative spread of at most sqrt(2)
    assert drawn["loss_rise"]["mean"] == pytest.approx(drawn["loss_rise_expected"], rel=4 * math.sqrt(2 / 200))
    precisions = 1e3 + found.precision_per_eigenvalue * space.values
    squared = float((1 / precisions).sum()) + (8 - space.rank) / 1e3
    assert math.sqrt(squared) / 1.15 < drawn["length"]["mean"] < math.sqrt(squared)  # a mean is below its mean square


def test_networks_are_what_they_are_called(studies):
    networks = studies("networks")
    model = networks.all_cnn(4)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in model) == 9
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    full = networks.all_cnn(96)
    convolutions = sum(layer.weight.numel() for layer in full if isinstance(layer, torch.nn.Conv2d))
    assert convolutions == 1_368_480  # the 1.3 M of Springenberg et al. 2015, without biases
    assert networks.Transformer(28, 7, 8, 1, 2)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert networks.small_cnn(4)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_rates_fall_as_a_cosine_to_their_share(studies):
    networks, rates = studies("networks"), []

    def optimiser(parameters):
        made = torch.optim.SGD(parameters, lr=0.2)
        optimiser.made = made
        return made

    x, y = torch.zeros(4, 2), torch.zeros(4, 1)
    step = lambda: rates.append(optimiser.made.param_groups[0]["lr"])
    networks.train(torch.nn.Linear(2, 1), x, y, optimiser, epochs=4, batch=4, seed=0, final=0.5, on_step=step)
    wanted = [0.2 * (0.5 + 0.5 * (1 + math.cos(math.pi * epoch / 4)) / 2) for epoch in range(4)]
    assert rates == pytest.approx(wanted)


def test_trained_weights_are_kept_and_a_spectrum_does_not_change_them(studies, tmp_path):
    spectra = studies("spectra")
    task = spectra.Task("noise", "perceptron", (4,), 20, 5, 5, 2, 10, 0.1, 1)
    split = task.load(None, 0)
    before, after = task.trained(split, 0, tmp_path)
    _, again = task.trained(split, 0, tmp_path)
    for one, other, first in zip(after.parameters(), again.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, first)
    kept = next(tmp_path.glob("*.safetensors")).read_bytes()
    found = spectra.run(task, (0.0, 1.0), None, tmp_path / "other", 0)
    assert next((tmp_path / "other").glob("*.safetensors")).read_bytes() == kept
    assert [stage["step"] for stage in found["stages"]] == [0, 4]


def test_a_table_leaves_out_rows_with_a_gap_and_is_standardised(studies, monkeypatch, tmp_path):
    public_data = studies("public_data")
    text = "a,medv\n" + "".join(f"{i},{2 * i}\n" for i in range(10)) + ",5\n"
    (tmp_path / "table.csv").write_text(text)
    monkeypatch.setattr(public_data, "_file", lambda data, name: data / "table.csv")
    split = public_data.table(tmp_path, "boston", 8, 0)
    assert (len(split.x), len(split.x_test)) == (8, 2)
    assert float(split.x.mean()) == pytest.approx(0, abs=1e-6)
    assert float(split.y.std()) == pytest.approx(1)
    torch.testing.assert_close(split.x_test, split.y_test)


def test_images_are_shifted_and_mirrored_and_nothing_else(studies):
    """An image of pixel numbers: what is shown is one window of the padded image or of its mirror image."""
    x = torch.arange(1.0, 1 + 2 * 5 * 6).view(1, 2, 5, 6).expand(300, 2, 5, 6)
    shown = studies("networks").moved(x, torch.Generator().manual_seed(0), reach=2)
    padded = torch.nn.functional.pad(x[0], (2, 2, 2, 2))
    windows = [padded[:, i : i + 5, j : j + 6] for i in range(5) for j in range(5)]
    wanted = torch.stack([*windows, *(window.flip(2) for window in windows)]).flatten(1)
    which = [int((wanted == one.flatten()).all(1).nonzero()) for one in shown]
    assert len(set(which)) == 50
    assert sum(place < 25 for place in which) / 300 == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(300))


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_figures_of_sloppiness_come_from_the_kept_results(studies, tmp_path):
    studies("sloppiness_figures").make(studies("sloppiness").RESULTS, tmp_path)
    made = {path.name for path in tmp_path.glob("*.svg")}
    shown = {path.name for path in (ROOT / "docs" / "studies" / "images").glob("sloppiness-*.svg")}
    assert made == shown


def test_every_table_of_the_page_is_what_the_kept_results_give(studies):
    sloppiness, module = studies("sloppiness"), studies("sloppiness_tables")
    page, made = sloppiness.PAGE.read_text(encoding="utf-8"), module.tables(sloppiness.RESULTS)
    assert module.placed(page, made) == page
    assert page.count("<!-- table: ") == len(made)
    assert page.count("\n|---") + page.count("\n| ---") == 1 + len(made)  # the verdicts alone are words
    with pytest.raises(ValueError, match="0 places for the table 'none'"):
        module.placed(page, {"none": ""})


def test_every_kept_cell_is_one_that_the_study_would_keep(studies, tmp_path):
    """Made with the options of today, and none missing or left over."""
    sloppiness = studies("sloppiness")
    for part, module in sloppiness.STUDIES.items():
        wanted = {
            name: json.loads(json.dumps(about)) for name, about, _ in module.cells(module.Sizes(), None, tmp_path)
        }
        kept = studies("runs").records(sloppiness.RESULTS / part)
        assert {name: record["options"] for name, record in kept.items()} == wanted


def test_numbers_of_the_page_are_rounded_to_significant_digits(studies):
    module = studies("sloppiness_tables")
    said = {
        0.0: "0",
        2.35e-05: "2.35e-05",
        0.01294: "0.0129",
        9.996: "10.0",
        99.96: "100",
        1234.5: "1,230",
        2e7: "2e+07",
    }
    assert {value: module.short(value) for value in said} == said
    assert module.told([1.0]) == module.told([1.0, 1.0]) == "1.00"
    # two seeds: 1.5 +- 12.706 * 0.7071 / sqrt(2), the t quantile of one degree of freedom from tables
    assert module.told([1.0, 2.0], module.fixed(2)) == "1.50 (-4.85, 7.85)"
