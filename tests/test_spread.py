"""Position embeddings, called once for all examples with a leading axis of 1: on the fast path, and exact."""

import pytest
import torch
from torch import nn

import dynaxx
import oracles
from dynaxx.assembly.sweep import Sweeper
from dynaxx.estimators import resolve
from dynaxx.likelihoods import Categorical
from dynaxx.model.data import Data
from dynaxx.model.network import Network


class _Positions(nn.Module):
    """``how`` positions meet tokens: by broadcasting, or so that an expanded axis would change or break it."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.tokens, self.places = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        places = self.places(torch.arange(tokens.shape[1])[None])  # (1, T, D)
        if self.how == "add":
            h = self.tokens(tokens) + places
        elif self.how == "squeeze":
            h = self.tokens(tokens) + places.view(tokens.shape[1], 4)  # refuses an expanded axis
        else:
            h = self.tokens(tokens) + places.sum(0)  # takes an expanded axis and means something else
        return self.head(torch.tanh(self.mix(h)).mean(1))


def tokens(count, length=5):
    return torch.randint(0, 7, (count, length), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("how", ["add", "squeeze", "sum"])
@pytest.mark.parametrize("form", ["dense", "diagonal", "implicit", "gram", "block"])
def test_exact_however_positions_are_used(how, form):
    torch.manual_seed(0)
    model = _Positions(how).double()
    x = tokens(6)
    wanted = oracles.exact_fisher(oracles.examples(model, x, "categorical"), "categorical")
    found = dynaxx.fisher(model, [x[:4], x[4:5], x[5:]], form=form)
    assert oracles.distance(found.diagonal(), wanted.diagonal()) < 1e-10


@pytest.mark.parametrize(
    ("how", "generic"), [("add", set()), ("squeeze", {"places.weight"}), ("sum", {"places.weight"})]
)
def test_only_what_broadcasts_leaves_the_generic_path(how, generic):
    torch.manual_seed(0)
    network = Network(_Positions(how).double(), Categorical())
    sweeper = Sweeper(
        network, Data([tokens(6), tokens(4), tokens(4, 3)], network.device), resolve("exact", Categorical())
    )
    with network.guarded():
        for tape, _ in sweeper.tapes():
            assert tape.generic == generic


def test_batches_of_one_and_sequences_of_other_lengths():
    torch.manual_seed(0)
    model = _Positions("add").double()
    batches = [tokens(1), tokens(4), tokens(3, 2), tokens(1, 4), tokens(4, 4)]
    wanted = (
        sum(
            len(x) * oracles.exact_fisher(oracles.examples(model, x, "categorical"), "categorical").diagonal()
            for x in batches
        )
        / 13
    )
    for order in (batches, batches[::-1]):
        assert oracles.distance(dynaxx.fisher(model, order, form="diagonal").diagonal(), wanted) < 1e-10
