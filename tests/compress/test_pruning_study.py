"""studies/pruning.py: the quick mode holds, its checks can fail, its network is the pretrained one, and what its tables
say follows from the cells.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(studies):
    return studies("pruning")


@pytest.fixture(scope="module")
def models(studies):
    return studies("pruning_models")


@pytest.fixture(scope="module")
def data(studies, study):
    try:
        return study.data_folder(None)
    except studies("runs").Skipped as reason:
        pytest.skip(str(reason))


@pytest.fixture
def small(models):
    """A case of four classes in six dimensions that a perceptron learns in a moment."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(4, 6, generator=generator)
    y = torch.arange(600) % 4
    x = centres[y] + torch.randn(600, 6, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:300]), y[:300]).backward()
        optimizer.step()
    parts = [(x[part], y[part]) for part in (slice(0, 300), slice(300, 400), slice(400, 600))]
    return models.Case(model.eval(), x[:200], x[300:350], x[:200], parts[2], y[:200], parts[0], parts[1])


# ---------------------------------------------------------------------------------------------------------------------
# The whole


@pytest.mark.slow
def test_quick_study_holds(study, data, capsys):
    if not (data / "mnist").is_dir():
        pytest.skip("MNIST is not there")
    assert study.main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert "every check holds" in said
    assert "OBS, recomputed (1)" in said
    assert "| OBS, K-FAC, recomputed (1) | 0." in said  # the fine-tuned one, with its learning rate


def test_missing_data_is_said(study, tmp_path, capsys):
    assert (
        study.main(["--models", "mlp", "--seeds", "0", "--data", str(tmp_path), "--results", str(tmp_path / "r")]) == 0
    )
    assert "skipped, mnist" in capsys.readouterr().out
    assert torch.is_grad_enabled()


def test_checks_can_fail(study):
    cell = lambda hits: {"count": 100, "dense": 95, "rows": {"0.95": {"hits": hits}}}
    found = {
        f"mlp|0|{name}": cell(h) for name, h in (("magnitude", 70), ("lowest Fisher", 20), ("OBS, recomputed", 74))
    }
    assert len(study.check(found)) == 1
    found["mlp|0|OBS, recomputed"] = cell(80)
    assert study.check(found) == []
    found["mlp|0|lowest Fisher"] = cell(90)
    assert len(study.check(found)) == 1


def test_checks_of_tuning_and_loss_can_fail(study, models):
    hits = lambda before, after: {"hits": {"before": before, "after": after}}
    assert study.check_tuned({"net|0|magnitude|0.8": hits(5, 6), "net|0|grasp|0.8": hits(6, 6)}) == []
    assert len(study.check_tuned({"net|0|curvature|0.8": hits(6, 6)})) == 1
    right = lambda hits: models.packed(torch.arange(1000) < hits)
    cell = lambda low, high: {
        "m": {"count": 1000, "right": right(900), "rows": {"0.1": {"right": right(low)}, "0.9": {"right": right(high)}}}
    }
    assert study.check_loss(cell(895, 500)) == []
    assert len(study.check_loss(cell(880, 500))) == 1
    assert len(study.check_loss(cell(895, 893))) == 1


# ---------------------------------------------------------------------------------------------------------------------
# What is pruned


def test_resnet_is_the_pretrained_one(studies, models, data):
    try:
        case = models.resnet_case(20, models.Sizes(curvature=8, held=8, calibration=8), data, 0)
    except studies("runs").Skipped as reason:
        pytest.skip(str(reason))
    assert sum(p.numel() for p in case.model.parameters()) == 269_722
    part = case.test[0][:250], case.test[1][:250]
    assert models.hits(case.model, part) / 250 > 0.88  # 91.5 % on all thousand, as the data's page says
    assert len({id(t) for t in (case.curvature, case.held, case.calibration)}) == 3
    assert not bool((case.curvature[:, None] == case.held[None]).flatten(2).all(2).any())
    assert len(case.train[1]) + len(case.chosen[1]) + len(case.held) == 4000
    seen = {image.numpy().tobytes() for image in case.train[0].contiguous()}
    for unseen in (case.held, case.chosen[0], case.test[0]):
        assert not seen & {image.numpy().tobytes() for image in unseen.contiguous()}


def test_answers_survive_packing(models):
    right = torch.rand(1003, generator=torch.Generator().manual_seed(0)) < 0.9
    assert models.unpacked(models.packed(right), 1003).equal(right)


def test_batchnorm_is_kept_where_that_is_closer_to_the_dense_model(studies, models):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
    x, y = torch.randn(400, 6), torch.arange(400) % 4
    model(x)  # one momentum step: statistics that new ones would not repeat
    part = x[200:], y[200:]
    case = models.Case(model.eval(), x[:100], x[100:150], x[150:200], part, y[:100], part, part)
    before, sizes = model[1].running_mean.clone(), models.Sizes(grid=(0.1,))
    for norms, kept in (((False, True), True), ((True,), False)):
        pruned = studies("pruning_methods").pruned(case, "magnitude", sizes, 0, (0.02,), norms)
        assert [under[1].running_mean.equal(before) for _, _, under, _ in pruned] == [kept]


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning


def test_both_starts_are_tuned_alike_and_their_masks_hold(studies, models, small, tmp_path):
    tuning = studies("pruning_tuning")
    plan = tuning.Plan({0.8: (1e-3, 0.1)}, (0.5, 0.8), tuning.Budget(3, 200, 50))
    sizes = models.Sizes(curvature=200, held=50, calibration=200, steps=1, grid=(0.1,))
    kinds = ("magnitude", "curvature")
    found = tuning.run("net", [0, 1], tmp_path / "r", tmp_path / "c", lambda seed: small, sizes, plan, kinds)
    assert sorted(found) == [f"net|{s}|{word}|0.8" for s in (0, 1) for word in ("curvature", "magnitude")]
    # the first seed tries both rates, and the other scopes at the better one; the second takes over its choices
    assert [len(list((tmp_path / "r").glob(f"net-{seed}-*"))) for seed in (0, 1)] == [6, 2]
    before = small.model.state_dict()
    for word in ("magnitude", "curvature"):
        start = tuning.starts(small, word, sizes, 0, tmp_path / "c", "net", plan)[0.8]
        kept = sum(int(mask.sum()) for mask in start.masks.values())
        assert kept == round(0.2 * 120)
        losses = found[f"net|0|{word}|0.8"]["losses"]
        assert losses[-1] < losses[0]
    assert all(value.equal(small.model.state_dict()[name]) for name, value in before.items())


def test_every_kind_of_start_is_tuned_and_told_beside_magnitude(studies, models, small, tmp_path):
    tuning, tables = studies("pruning_tuning"), studies("pruning_tables")
    plan = tuning.Plan({0.8: (0.1,)}, (0.5, 0.8), tuning.Budget(2, 200, 50))
    sizes = models.Sizes(curvature=200, held=50, calibration=200, steps=1, grid=(0.1,))
    found = tuning.run("net", [0], tmp_path / "r", tmp_path / "c", lambda seed: small, sizes, plan)
    assert {key.split("|")[2] for key in found} == set(tuning.KINDS)
    assert {cell["method"] for cell in found.values()} >= {"SNIP", "GraSP", "SynFlow", "random", "lowest Fisher"}
    said = tables.tuned_tables(found).splitlines()
    rows = {line.split(" | ")[1]: line for line in said if line.startswith("| 80 %")}
    assert len(rows) == len(tuning.KINDS)
    assert next(iter(rows.values())).endswith("|  |  |")  # magnitude, in whichever scope
    gained = 100 * (found["net|0|obd|0.8"]["hits"]["after"] - found["net|0|magnitude|0.8"]["hits"]["after"]) / 200
    assert f"| {gained:+.1f} |" in rows["OBD (1)"]


def test_starts_are_read_back_and_made_anew_for_other_sizes(studies, models, small, tmp_path):
    tuning = studies("pruning_tuning")
    plan = tuning.Plan({0.8: (0.1,)}, (0.8,))
    sizes = models.Sizes(curvature=200, held=50, calibration=200, steps=1, grid=(0.1,))
    first = tuning.starts(small, "curvature", sizes, 0, tmp_path, "net", plan)[0.8]
    path = next(tmp_path.glob("*.safetensors"))
    written = path.stat().st_mtime_ns
    again = tuning.starts(small, "curvature", sizes, 0, tmp_path, "net", plan)[0.8]
    assert path.stat().st_mtime_ns == written
    assert all(first.state[name].equal(value) for name, value in again.state.items())
    assert all(first.masks[name].equal(mask) and mask.dtype == torch.bool for name, mask in again.masks.items())
    tuning.starts(small, "curvature", replace(sizes, grid=(1.0,)), 0, tmp_path, "net", plan)
    assert path.stat().st_mtime_ns > written


def test_a_diverged_rate_is_kept_and_not_chosen(studies, models, small, tmp_path):
    tuning = studies("pruning_tuning")
    plan = tuning.Plan({0.5: (0.01, 1e30)}, (0.5,), tuning.Budget(2, 200, 50))
    sizes = models.Sizes(curvature=200, held=50, calibration=200, steps=1, grid=(0.1,))
    kinds = ("magnitude", "curvature")
    found = tuning.run("net", [0], tmp_path / "r", tmp_path / "c", lambda seed: small, sizes, plan, kinds)
    kept = [json.loads(path.read_text())["result"] for path in (tmp_path / "r").glob("*1e+30.json")]
    assert ["lower lr" in cell["diverged"] for cell in kept] == [True, True]
    assert {cell["rate"] for cell in found.values()} == {0.01}


# ---------------------------------------------------------------------------------------------------------------------
# Before training


def test_networks_pruned_before_training_keep_their_masks(studies, models, data, tmp_path):
    if not (data / "mnist").is_dir():
        pytest.skip("MNIST is not there")
    untrained, tables = studies("pruning_untrained"), studies("pruning_tables")
    sizes = models.Sizes(curvature=100, train=1000, epochs=1)
    train, _ = models.mlp_images(data)
    start = models.perceptron(0)
    masks = untrained.chosen("SNIP, shuffled", start, train, 0, sizes)(0.9)
    alone = untrained.chosen("SNIP", start, train, 0, sizes)(0.9)
    assert [int(m.sum()) for m in masks.values()] == [int(m.sum()) for m in alone.values()]
    assert not all(masks[name].equal(alone[name]) for name in masks)
    trained = models.train_perceptron(start, train, sizes, 0, masks)
    for name, mask in masks.items():
        value = dict(trained.named_parameters())[name]
        assert not value[~mask].any()
        assert value[mask].count_nonzero() == mask.sum()
    names = (untrained.AFTER, "SNIP", "SNIP, shuffled")
    found = untrained.run([0], tmp_path, data, sizes, names, (0.5, 0.9))
    assert found == tables.kept_untrained(tmp_path)
    said = tables.untrained_tables(found)
    hits = [found[f"0|{name}"]["rows"]["0.9"]["hits"] for name in names]
    assert f"| {100 * (hits[1] - hits[2]) / 10000:.1f} [" in said.splitlines()[-1]
    assert all(f"| {hit / 100:.1f} [" in said for hit in hits)


# ---------------------------------------------------------------------------------------------------------------------
# More images behind the curvature


def test_more_images_come_from_where_nothing_else_is_taken(studies, small):
    images, (x, y) = studies("pruning_images"), small.train
    apart = replace(small, curvature=x[:40], labels=y[:40], calibration=x[60:90])
    more = images.with_images(apart, 100)
    expected = [*range(60), *range(90, 130)]
    assert torch.equal(more.curvature, x[expected])
    assert torch.equal(more.labels, y[expected])
    assert torch.equal(images.with_images(apart, 30).curvature, x[:30])
    with pytest.raises(ValueError, match="400 images behind the curvature, but there are 270; ask for fewer"):
        images.with_images(apart, 400)


def test_images_are_told_beside_magnitude(studies, models, small, tmp_path):
    images, tables = studies("pruning_images"), studies("pruning_tables")
    plan = {"magnitude + K-FAC update": (20, 250), "OBS, K-FAC, recomputed": (20,)}
    found = images.run(
        "net", [0, 1], tmp_path, lambda seed: small, models.Sizes(steps=1, grid=(0.1,)), plan, (0.5, 0.8)
    )
    assert tables.kept_images(tmp_path) == found
    said = tables.images_tables(found).splitlines()
    rows = [line for line in said if line.startswith("| magnitude + K-FAC update (2) | ")]
    assert [row.split(" | ")[1] for row in rows] == ["20", "250"] * 2
    cell, magnitude = (found[f"net|0|{name}"] for name in ("magnitude + K-FAC update|250", "magnitude|0"))
    gained = (cell["rows"]["0.8"]["hits"] - magnitude["rows"]["0.8"]["hits"]) / 2  # points, of 200 answers
    assert rows[-1].split(" | ")[3].startswith(f"{gained:.1f} [")


# ---------------------------------------------------------------------------------------------------------------------
# What the tables say


def test_scope_and_rate_of_a_table_are_chosen_with_the_first_seed_and_never_on_the_test(studies, tmp_path):
    tables, cells = studies("pruning_tables"), [
        (0, "magnitude", 0.01, 0.5, 90), (0, "magnitude", 0.1, 0.7, 99), (0, "erk", 0.01, 0.4, 85),
        (1, "magnitude", 0.01, 0.1, 99), (1, "erk", 0.01, 0.9, 80),
    ]  # fmt: skip
    for seed, word, rate, loss, after in cells:
        cell = {"result": {"choosing_loss": loss, "after": "", "hits": {"after": after}}}
        (tmp_path / f"net-{seed}-{word}-0.9-{rate}.json").write_text(json.dumps(cell))
    found = tables.kept_tuned(tmp_path)
    assert {key: (cell["rate"], cell["hits"]["after"]) for key, cell in found.items()} == {
        "net|0|magnitude|0.9": (0.01, 85), "net|1|magnitude|0.9": (0.01, 80),
    }  # fmt: skip


def test_loss_of_a_point_is_told_with_how_sure_it_is(studies, models):
    tables = studies("pruning_tables")
    right = lambda wrong: models.packed(torch.arange(1000) >= wrong)  # the first ones wrong
    rows = {"0.1": 101, "0.2": 108, "0.3": 112, "0.4": 105, "0.5": 200}
    cell = {"count": 1000, "right": right(100), "rows": {s: {"right": right(wrong)} for s, wrong in rows.items()}}
    change = tables.lost([cell], "0.2")
    # McNemar's variance by hand: 8 changed answers, all lost
    spread = ((8 / 1000 - 0.008**2) / 999) ** 0.5
    assert change.value == pytest.approx(0.008)
    assert change.high - change.value == pytest.approx(1.959964 * spread, rel=1e-5)
    said = tables.loss_tables({"net|0|magnitude": cell}).splitlines()[-1]
    assert said.endswith("| 20 % | 10 % | 50 % |")  # 40 % lies beyond a loss of 1.2 points
    twice = tables.lost([cell, cell], "0.2")  # a seed with the same answers is no further sample
    assert twice.high == pytest.approx(change.high)


def test_page_shows_the_kept_results(studies, tmp_path):
    folder = ROOT / "studies" / "results" / "pruning"
    page = (ROOT / "docs" / "studies" / "pruning.md").read_text(encoding="utf-8")
    rows = [line for line in studies("pruning_tables").everything(folder).splitlines() if line.startswith("| ")]
    assert len(rows) > 30
    assert not set(rows) - set(page.splitlines())
    studies("pruning_figures").make(folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pruning-accuracy.svg"]
    assert "images/pruning-accuracy.svg" in page
