import math
import sys

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.compress.training import fit
from dynaxx.monitor import Probe, snapshot
from dynaxx.monitor import snapshot as package_snapshot

LABELS = torch.arange(12) % 3


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def data():
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(1)), LABELS


def test_numbers_are_those_of_the_dense_matrix():
    net, probe = model().double(), Probe("twelve", (data()[0].double(), LABELS))
    look = snapshot(net, probe, prior_precision=2.0, count=100)
    net.eval()
    values = torch.linalg.eigvalsh(dynaxx.fisher(net, probe.batch, form="dense").to_dense()).clamp(min=0)
    values = values[values > 1e-12 * values.max()]
    q = values / values.sum()
    p = torch.softmax(net(probe.batch[0]), 1)
    expected = {
        "dynaxx/trace": values.sum(),
        "dynaxx/top_eigenvalue": values.max(),
        "dynaxx/effective_rank": (-(q * q.log()).sum()).exp(),
        "dynaxx/effective_dimension": (100 * values / (100 * values + 2)).sum(),
        "dynaxx/posterior_entropy": -0.5 * (1 + 50 * values).log().sum(),
        "dynaxx/predictive_entropy": -(p * p.log()).sum(1).mean(),
    }
    assert set(look.values) == set(expected)
    for name, value in expected.items():
        assert float(look.values[name]) == pytest.approx(value.item(), rel=1e-8), name
    assert (look.exact, look.rows, look.rank_bound) == (True, 24, 24)


def test_beyond_the_gram_limit_numbers_are_sampled_and_say_so(monkeypatch):
    net, probe = model().double(), Probe("twelve", data()[0].double())
    exact = snapshot(net, probe)
    monkeypatch.setattr(sys.modules["dynaxx.monitor.snapshot"], "GRAM_ROWS", 1)
    monkeypatch.setattr("dynaxx.operators.implicit.GRAM_ROWS", 1)
    monkeypatch.setattr("dynaxx.operators.base.DENSE_SIZE", 1)
    sampled = snapshot(net, probe)
    assert not sampled.exact
    trace = sampled.values["dynaxx/trace"]
    assert trace.samples == 4  # and not one reverse pass for every row
    assert abs(trace - exact.values["dynaxx/trace"]) < 5 * trace.stderr
    dimension = sampled.values["dynaxx/effective_dimension"]
    assert abs(dimension - exact.values["dynaxx/effective_dimension"]) < 5 * max(dimension.stderr, 1e-6)


def test_training_with_snapshots_is_bit_equal():
    plain, watched = model(), model()
    probe, looks = Probe("twelve", data()), []
    options = {"epochs": 4, "lr": 0.1, "seed": 5}
    batches = [(data()[0][:6], LABELS[:6]), (data()[0][6:], LABELS[6:])]
    fit(plain, batches, **options)
    fit(watched, batches, callback=lambda epoch: looks.append(snapshot(watched, probe)), **options)
    assert len(looks) == 4
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_modes_of_partly_frozen_models_come_back():
    net = model().train()
    net[1].eval()
    snapshot(net, Probe("twelve", data()))
    assert [module.training for module in net] == [True, False, True, True, True]


def test_digest_is_the_protocol():
    x, y = data()
    one = Probe("a", (x, y))
    assert one.digest == Probe("a", (x.clone(), y.clone())).digest
    others = [Probe("b", (x, y)), Probe("a", (x, y), seed=1), Probe("a", (x, y), "gaussian"), Probe("a", (x + 1e-6, y))]
    assert len({probe.digest for probe in [one, *others]}) == 5
    assert package_snapshot is snapshot


def test_predictive_entropy_of_ignorance_is_ln_c():
    net = nn.Linear(5, 3)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    assert snapshot(net, Probe("p", data())).values["dynaxx/predictive_entropy"] == pytest.approx(math.log(3), rel=1e-6)


def test_bad_input():
    with pytest.raises(dynaxx.InputError, match="says nothing"):
        Probe(" ", data())
    with pytest.raises(dynaxx.InputError, match="read once"):
        Probe("generator", iter([data()]))
    with pytest.raises(dynaxx.InputError, match="prior_precision=0"):
        snapshot(model(), Probe("p", data()), prior_precision=0)
