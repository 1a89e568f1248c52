"""Spectra through a training: taken at the steps that were asked for, and without a trace in the model."""

import json

import matplotlib as mpl
import pytest
import torch
from torch import nn

from dynaxx.errors import InputError
from dynaxx.evolution import track_spectrum
from dynaxx.monitor.snapshot import Probe
from dynaxx.report import Document, Section, page
from dynaxx.spectra import data_spectrum, fisher_spectrum, ntk_spectrum
from dynaxx.spectrum import Spectrum

mpl.use("Agg")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def data():
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


def train(model, track=None, steps=6):
    x, y = data()
    torch.manual_seed(7)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if track is not None:
            track.step()


def test_training_with_it_is_bit_equal():
    plain, watched = network(), network()
    train(plain)
    with track_spectrum(watched, data(), steps=range(5)) as track:
        train(watched, track)
    assert [record.step for record in track] == [0, 1, 2, 3, 4, 6]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert watched.training
    for one, two in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_records_are_the_spectra_of_that_step():
    model = network()
    with track_spectrum(model, Probe("twelve", data()), steps=[0]) as track:
        train(model, track)
    model.eval()
    first, last = track.records
    assert torch.equal(last.fisher.eigenvalues, fisher_spectrum(model, data()).eigenvalues)
    assert torch.equal(last.ntk.eigenvalues, ntk_spectrum(model, data()).eigenvalues)
    assert torch.equal(track.data.eigenvalues, data_spectrum(data()).eigenvalues)
    assert not torch.equal(first.fisher.eigenvalues, last.fisher.eigenvalues)
    rows = track.rows()
    assert [(row["step"], row["spectrum"]) for row in rows] == [
        (None, "data"), (0, "fisher"), (0, "ntk"), (6, "fisher"), (6, "ntk")
    ]  # fmt: skip
    assert rows[1]["stiff"]["0.1"] == pytest.approx(first.fisher.stiff_fraction(0.1))
    record = json.loads(json.dumps(track.as_dict()))
    assert torch.equal(Spectrum.from_dict(record["records"][1]["fisher"]).eigenvalues, last.fisher.eigenvalues)
    assert record["digest"] == Probe("twelve", data()).digest


def test_figure_shows_begin_middle_and_end_over_the_data():
    model = network()
    with track_spectrum(model, data(), steps=[0, 2, 3, 4]) as track:
        train(model, track)
    axes = track.figure()
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["step 0", "step 3", "step 6", "data"]
    for line, record in zip(axes.get_lines(), [track.records[0], track.records[2], track.records[4]], strict=False):
        values = record.fisher.eigenvalues[record.fisher.eigenvalues > record.fisher.floor]
        assert line.get_ydata().tolist() == pytest.approx((values / values[0]).tolist())
        assert line.get_xdata()[-1] == 1
    assert track.figure(kind="ntk").get_yscale() == "log"
    text = page(Document("t", "", [Section("s", "", [track.block()])]))
    assert "step 3" in text
    mpl.pyplot.close("all")


def test_default_is_the_beginning_and_the_end():
    model = network()
    with track_spectrum(model, data(), ntk=False) as track:
        train(model, track, steps=2)
    assert [record.step for record in track] == [0, 2]
    assert track.records[0].ntk is None
    with pytest.raises(InputError, match="kind='ntk'"):
        track.figure(kind="ntk")


def test_token_ids_have_no_data_spectrum():
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 2))
    with track_spectrum(model, torch.randint(0, 7, (5, 4))) as track:
        track.step()
    assert track.data is None
    assert {row["spectrum"] for row in track.rows()} == {"fisher", "ntk"}


def test_after_an_error_nothing_more_is_measured():
    track = track_spectrum(network(), data(), steps=[])
    with pytest.raises(ArithmeticError), track:
        raise ArithmeticError
    assert track.records == []
    with pytest.raises(InputError, match="nothing has been measured"):
        track.figure()


@pytest.mark.parametrize(("steps", "words"), [([-1], "-1"), ([0.5], "0.5"), (["end"], "'end'"), ([True], "True")])
def test_bad_steps(steps, words):
    with pytest.raises(InputError, match=f"steps holds {words}"):
        track_spectrum(network(), data(), steps=steps)
    with pytest.raises(InputError, match="read once"):
        track_spectrum(network(), iter([data()]))
