import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dynaxx
from dynaxx.compress.masks import select


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.95),
    levels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_exact_counts_whatever_the_ties(sizes, sparsity, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.randint(levels, (n,), generator=generator).double() for i, n in enumerate(sizes)}
    ties = {name: torch.zeros_like(score) for name, score in scores.items()}
    drop = round(sparsity * sum(sizes))
    if drop == sum(sizes):
        return
    masks = select(scores, ties, sparsity)
    assert sum(int((~mask).sum()) for mask in masks.values()) == drop
    flat, kept = torch.cat(list(scores.values())), torch.cat(list(masks.values()))
    if drop > 0:
        assert float(flat[~kept].max()) <= float(flat[kept].min())


def test_layer_scope_drops_the_same_share_of_each():
    scores = {"small": torch.arange(10.0), "large": 100 + torch.arange(20.0)}
    masks = select(scores, scores, 0.3, "layer")
    assert (masks["small"].tolist(), int((~masks["large"]).sum())) == ([False] * 3 + [True] * 7, 6)
    assert int((~select(scores, scores, 0.3)["small"]).sum()) == 9


def test_biases_and_norms_are_kept_unless_asked_for():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert list(dynaxx.prune(model, x, sparsity=0.5).masks) == ["0.weight", "3.weight"]
    assert list(dynaxx.prune(model, x, sparsity=0.5, params=["3.weight", "3.bias"]).masks) == ["3.weight", "3.bias"]


def test_bad_input():
    nan = {"w": torch.tensor([1.0, float("nan")])}
    with pytest.raises(dynaxx.InputError, match="1 saliencies of w are NaN"):
        select(nan, nan, 0.5)
    with pytest.raises(dynaxx.InputError, match="drops all 1 weights of w"):
        select({"w": torch.ones(1)}, {"w": torch.ones(1)}, 0.9)
    with pytest.raises(dynaxx.InputError, match="scope='model'"):
        select({"w": torch.ones(4)}, {"w": torch.ones(4)}, 0.5, "model")
