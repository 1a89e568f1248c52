import copy
from itertools import combinations

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.compress.masks import erk, select, shuffled
from dynaxx.compress.patterns import parse, to_semi_structured


def scores(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 8), (4, 8, 3, 3)])
def test_two_of_four_keeps_the_best_of_every_four_inputs(shape):
    given = {"w": scores(*shape)}
    mask = select(given, given, 0.5, pattern=parse("2:4"))["w"]
    flat, kept = given["w"].flatten(2) if len(shape) > 2 else given["w"][..., None], mask.reshape(*shape[:2], -1)
    for o in range(shape[0]):
        for i in range(0, 8, 4):
            for k in range(flat.shape[2]):
                group, chosen = flat[o, i : i + 4, k], kept[o, i : i + 4, k]
                assert int(chosen.sum()) == 2
                best = max(float(group[list(pair)].sum()) for pair in combinations(range(4), 2))
                assert float(group[chosen].sum()) == pytest.approx(best)


def test_ties_in_a_group_go_by_the_second_key_then_by_position():
    zero = {"w": torch.zeros(2, 4)}
    ties = {"w": torch.tensor([[1.0, 4.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])}
    assert select(zero, ties, 0.5, pattern=parse("2:4"))["w"].tolist() == [
        [False, True, True, False],
        [False, False, True, True],
    ]


def test_blocks_go_as_a_whole_and_the_cheapest_first():
    given = {"w": scores(8, 6), "k": scores(4, 6, 3, 3, seed=1)}
    masks = select(given, given, 0.5, pattern=parse((4, 1)))
    sums = torch.cat(
        [given["w"].view(2, 4, 6).sum(1).flatten(), given["k"].flatten(2).view(1, 4, 6, 9).sum(1).flatten()]
    )
    kept = torch.cat(
        [masks["w"].view(2, 4, 6).sum(1).flatten(), masks["k"].flatten(2).view(1, 4, 6, 9).sum(1).flatten()]
    )
    assert set(kept.tolist()) == {0, 4}
    assert int((kept == 0).sum()) == round(0.5 * len(kept))
    assert float(sums[kept == 0].max()) <= float(sums[kept == 4].min())


def test_what_a_pattern_does_not_divide_stays_whole_and_is_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    result = dynaxx.prune(model, torch.randn(20, 6), pattern="2:4", criterion="obs")
    assert bool(result.masks["0.weight"].all())
    assert float(result.masks["2.weight"].double().mean()) == 0.5
    assert any(
        "0.weight of shape (8, 6) is not divided by pattern 2:4" in remark for remark in result.report["remarks"]
    )
    pruned = result.apply(copy.deepcopy(model))
    assert int((pruned[2].weight.detach().view(-1, 4) != 0).sum(1).max()) == 2


def test_erk_shares_add_up_and_large_tensors_lose_more():
    shapes = {"first": (20, 3, 3, 3), "wide": (300, 200), "last": (10, 300)}
    for sparsity in (0.1, 0.5, 0.9, 0.99):
        shares = erk(shapes, sparsity)
        sizes = {"first": 540, "wide": 60000, "last": 3000}
        dropped = sum(shares[name] * sizes[name] for name in sizes)
        assert dropped == pytest.approx(round(sparsity * 63540), abs=1e-6)
        assert shares["wide"] > shares["last"] >= 0
    # where none is clipped, kept weights are proportional to the sum of the axes
    kept = {name: (1 - erk(shapes, 0.99)[name]) * sizes[name] for name in sizes}
    assert kept["wide"] / kept["last"] == pytest.approx(500 / 310, rel=0.01)
    masks = select({n: scores(*s) for n, s in shapes.items()}, {n: scores(*s) for n, s in shapes.items()}, 0.9, "erk")
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.9 * 63540)


def test_what_went_stays_away_and_counts():
    given = {"w": scores(10, 10)}
    live = select(given, given, 0.5)
    flipped = {"w": 1 - given["w"]}
    again = select(flipped, flipped, 0.7, live=live)["w"]
    assert int((~again).sum()) == 70
    assert not bool((again & ~live["w"]).any())


def test_shuffled_masks_keep_their_numbers():
    masks = {"a": scores(10, 10) > 0.3, "b": scores(5, 5, seed=1) > 0.6}
    first, again, other = (shuffled(masks, seed) for seed in (0, 0, 1))
    for name, mask in masks.items():
        assert int(first[name].sum()) == int(mask.sum())
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["a"], masks["a"])
    assert not torch.equal(first["a"], other["a"])


def test_bad_input():
    model, x = nn.Linear(8, 4), torch.randn(10, 8)
    for bad in ("4:2", "2/4", "0x4", (4,), (0, 1), (True, 2), 3):
        with pytest.raises(dynaxx.InputError, match="pattern="):
            dynaxx.prune(model, x, sparsity=0.5, pattern=bad)
    with pytest.raises(dynaxx.InputError, match=r"drops 0.5 of the weights, not sparsity=0.6"):
        dynaxx.prune(model, x, sparsity=0.6, pattern="2:4")
    with pytest.raises(dynaxx.InputError, match="divides no prunable weight"):
        dynaxx.prune(model, x, sparsity=0.5, pattern=(3, 1))
    with pytest.raises(dynaxx.InputError, match="no Linear weight"):
        to_semi_structured(copy.deepcopy(model))
    if not torch.cuda.is_available():
        pruned = dynaxx.prune(model, x, pattern="2:4").apply(copy.deepcopy(model))
        before = pruned.weight
        with pytest.raises(dynaxx.InputError, match=r"compute capability 8.0"):
            to_semi_structured(pruned)
        assert pruned.weight is before


def test_the_workflow_takes_its_sparsity_from_the_pattern():
    torch.manual_seed(0)
    x = torch.randn(80, 8)
    y = x[:, :4].argmax(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    options = {"epochs": 2, "fine_tune_epochs": 1, "probe_size": 10, "lr": 0.1, "pattern": "1:4", "criteria": ()}
    result = dynaxx.compress(model, [(x[:60], y[:60])], (x[60:], y[60:]), tolerance=0.0, trials=4, **options)
    (trial,) = result.journal.trials  # passed or not: there is no other sparsity to try
    assert trial.sparsity == 0.75
    assert {point.sparsity for point in result.journal.one_shot} == {0.75}
    assert result.pruning.report["sparsity"] == (0.75 if trial.accepted else 0.0)
    assert trial.kept == (8 * 12 + 12 * 4) // 4
    with pytest.raises(dynaxx.InputError, match=r"drops 0.75 of the weights, not sparsity=0.5"):
        dynaxx.compress(model, [(x, y)], (x, y), sparsity=0.5, **options)
