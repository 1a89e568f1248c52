"""studies/pruning_language.py: the quick mode holds, its checks can fail, only the encoder's linear weights go."""

import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(studies):
    return studies("pruning_language")


@pytest.fixture(scope="module")
def sizes(study):
    return replace(study.QUICK, train=200, steps=3, curvature=20, held=20)


@pytest.fixture(scope="module")
def case(study, sizes):
    pytest.importorskip("transformers", reason="the study's models are a Transformers encoder")
    return study.tiny_case(sizes, 0)


@pytest.mark.slow
def test_quick_study_holds(study, case, capsys):
    assert study.main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert "every check holds" in said
    assert "6 cells" in said


def test_checks_can_fail(study, tmp_path):
    """100 sentences; at 90 % 60 are right by magnitude, 70 by one look; sixteen looks must be surely above these."""

    def gains(hits):
        cells = study.Cells(tmp_path / str(hits))
        for name, count in (("magnitude", 60), ("OBS, blocks", 70), ("OBS, blocks, 16 looks", hits)):
            right = torch.arange(100) < count
            row = {"hits": count, "right": study.packed(right), "held_out_divergence": 0.1, "damping": 0.1}
            result = {"count": 100, "rows": {"0.9": row}}
            cells.get(f"0-{study.file_name(name)}-0.9", {}, lambda result=result: result)
        return study.check(tmp_path / str(hits))

    assert gains(90) == []
    assert len(gains(70)) == 1
    assert "16 looks gains -0.100" in gains(60)[0]


def test_only_the_linear_weights_of_the_encoder_go(study, sizes, case):
    """By count, on the way over two cells; embeddings and head are bit-equal."""
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    names = [name for name, value in before.items() if ".layer." in name and value.dim() == 2]
    assert len(names) == 12
    total = sum(before[name].numel() for name in names)
    once = study.METHODS["OBS, blocks"]
    (start,) = study.pruned(case, once, sizes, 0, [0.6], case.model)
    (found,) = study.pruned(case, study.METHODS["OBS, blocks, 16 looks"], sizes, 0, [0.9], start.model)
    after = found.model.state_dict()
    assert sum(int((after[name] == 0).sum()) for name in names) == round(0.9 * total)
    gone = {name: start.model.state_dict()[name] == 0 for name in names}
    assert all(not bool(after[name][gone[name]].any()) for name in names)  # what has gone stays away
    for name, value in before.items():
        if ".layer." not in name:
            assert torch.equal(after[name], value), name
        assert torch.equal(case.model.state_dict()[name], value), name
    stays = {name: after[name] != 0 for name in names}
    assert all(not torch.equal(after[n][stays[n]], before[n][stays[n]]) for n in names)  # and makes up for what went


def test_a_path_is_even_and_ends_where_it_should(study):
    path = study.schedule(0.6, 0.9, 5)
    assert path[-1] == 0.9
    left = [0.4, *(1 - s for s in path)]
    assert [b / a for a, b in pairwise(left)] == pytest.approx([0.25**0.2] * 5)
    assert study.schedule(0.6, 0.7, 1) == [0.7]


def test_batches_by_length_lose_no_word(study):
    texts = study.made_up(50, 8, 3)
    mask = (torch.arange(8) < torch.randint(1, 9, (50, 1), generator=torch.Generator().manual_seed(0))).long()
    texts = replace(texts, ids=texts.ids * mask, mask=mask)
    batches = study.by_length(texts, 16)
    words = lambda ids: tuple(ids[ids > 0].tolist())
    found = [(words(row), int(y)) for x, labels in batches for row, y in zip(x["input_ids"], labels, strict=True)]
    assert sorted(found) == sorted((words(row), int(y)) for row, y in zip(texts.ids, texts.labels, strict=True))
    assert sum(x["input_ids"].numel() for x, _ in batches) < texts.ids.numel()


def test_choices_are_made_on_sentences_that_curvature_has_not_seen(study, sizes, case):
    def sentences(batches):
        return {tuple(row.tolist()) for x, _ in batches for row in x["input_ids"]}

    held, seen, test = (sentences(batches) for batches in (case.held, case.curvature, case.test))
    assert not held & seen
    assert not held & test
    assert len(seen) == sizes.curvature


def test_a_lost_cache_is_said(study, sizes, case, tmp_path, capsys):
    cells = study.Cells(tmp_path / "cells")
    count = study.run(["OBS, blocks, 16 looks"], sizes, cells, tmp_path / "cache", lambda seed: case, (0.6, 0.9))
    assert count == 1  # the dense one
    assert "0-obs_blocks-0.6.safetensors is not in the cache" in capsys.readouterr().out


def test_a_method_that_draws_nothing_stands_for_every_seed(study):
    """Seeds share their sentences: 2 seeds of 4 sentences are 4 differences, by hand."""
    tables = sys.modules["pruning_language_tables"]
    row = lambda bits: {"0.9": {"right": study.packed(torch.tensor(bits).bool()), "count": 4}}
    change = tables.paired({0: row([1, 0, 0, 1])}, {0: row([1, 1, 0, 1]), 1: row([1, 1, 1, 1])}, "0.9")
    differences = torch.tensor([0.0, 1.0, 0.5, 0.0])
    assert change.value == pytest.approx(float(differences.mean()))
    assert change.low < change.value < change.high
    assert change.high - change.low < 8 * float(differences.std()) / math.sqrt(4)
    assert tables.paired({0: row([1, 0, 0, 1])}, {}, "0.9") is None


def test_the_page_shows_the_kept_results(study):
    page = (ROOT / "docs" / "studies" / "pruning_language.md").read_text(encoding="utf-8").splitlines()
    made = [line for line in sys.modules["pruning_language_tables"].tables(study.RESULTS).splitlines() if "|" in line]
    assert len(made) > 3 * 9
    assert set(made) <= set(page)


def test_missing_ingredients_are_said(study, tmp_path, capsys, monkeypatch):
    classifiers = sys.modules["classifiers"]
    monkeypatch.setattr(classifiers.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "sst2").mkdir()
    given = ["--data", str(tmp_path), "--results", str(tmp_path / "r"), "--cache", str(tmp_path / "c")]
    assert study.main([*given, "--parts", "magnitude"]) == 0
    assert "0-magnitude: skipped" in capsys.readouterr().out
