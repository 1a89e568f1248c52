"""Predicted peaks against closed forms, and against what the operating system saw of the real call."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx import errors
from dynaxx.memory.estimate import estimate_memory
from dynaxx.memory.peak import measured

SRC = Path(dynaxx.__file__).parents[1]
SAMPLED = {"form": "diagonal", "estimator": "hutchinson"}


def mlp(width=64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 4)).eval()


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


def test_what_is_held_before_is_counted_by_its_bytes():
    model, x = mlp(), torch.randn(16, 8)
    found = estimate_memory(model, x, **SAMPLED)
    assert found.model == 4 * sum(p.numel() for p in model.parameters())
    assert found.data == x.numel() * 4
    assert found.total == found.model + found.data + found.growth
    assert found.growth == sum(
        getattr(found, part) for part in ("activations", "cotangents", "result", "workspace", "holes")
    )


def test_activations_are_the_layers_outputs():
    model = nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 4)).eval()
    # the outputs of both layers and of tanh; the graph keeps tanh's output only, but the first layer's is live until
    # tanh has run, so the peak lies between the two
    found = estimate_memory(model, torch.zeros(1000, 8), **SAMPLED)
    assert 4 * 1000 * (512 + 4) <= found.activations <= 4 * 1000 * (2 * 512 + 4)


def test_the_result_of_a_diagonal_is_p_numbers():
    found = estimate_memory(nn.Linear(1000, 1000), torch.zeros(2, 1000), **SAMPLED)
    assert found.result == 4 * 1_001_000
    assert found.growth >= 2 * found.result  # the sums are there while the vector is made of them


def test_a_dense_matrix_is_counted_in_float64():
    found = estimate_memory(nn.Linear(30, 30), torch.zeros(2, 30), form="dense", estimator="monte_carlo")
    assert found.growth >= 2 * 8 * 930**2  # the sum, and the matrix divided by N
    assert found.growth <= 3 * 8 * 930**2


@pytest.mark.parametrize("form", ["diagonal", "kfac", "implicit", "gram", "ekfac", "block"])
def test_every_form_runs_without_numbers(form):
    found = estimate_memory(mlp(), torch.randn(6, 8), form=form)
    assert found.growth > 0
    assert not found.stopped


def test_more_columns_than_fit_at_once_are_chunks():
    few, many = (
        estimate_memory(
            nn.Sequential(nn.Linear(64, 500_000), nn.Linear(500_000, outputs)).eval(),
            torch.zeros(8, 64),
            call=lambda m, x: dynaxx.fisher(m, x).trace(),
        )
        for outputs in (40, 80)
    )
    assert few.cotangents > 0
    assert many.cotangents < 1.3 * few.cotangents  # twice the columns, not twice the memory


def test_a_batch_of_another_size():
    model = mlp()
    from_few = estimate_memory(model, torch.randn(3, 8), batch_size=300, **SAMPLED)
    assert from_few == estimate_memory(model, torch.randn(300, 8), **SAMPLED)


def test_two_batches_are_held_for_a_moment():
    model, x = mlp(256), torch.randn(2000, 8)
    one, several = estimate_memory(model, x, **SAMPLED), estimate_memory(model, [x, x, x], **SAMPLED)
    assert several.growth > one.growth + 0.9 * 4 * 2000 * 256


def test_a_trace_and_any_other_call():
    model, x = mlp(), torch.randn(200, 8)
    found = estimate_memory(model, x, call=lambda m, d: dynaxx.fisher(m, d).trace())
    assert found.growth > estimate_memory(model, x, call=lambda m, d: m(d)).growth > 0


def test_a_run_that_lasts_too_long_is_cut_off_and_says_so():
    found = estimate_memory(mlp(), torch.randn(4, 8), seconds=0.0)
    assert found.stopped == "it lasts longer than 0 s even without numbers"
    assert "at least" in str(found)


def test_statistics_of_a_spectrum_need_numbers():
    found = estimate_memory(mlp(), torch.randn(4, 8), call=lambda m, d: dynaxx.fisher(m, d, form="gram").spectrum())
    assert found.growth > 0
    assert not found.stopped or "goes by numbers" in found.stopped


# ---------------------------------------------------------------------------------------------------------------------
# The operating system

MEASURED = """
import json, sys, torch
from torch import nn
import dynaxx
from dynaxx.memory.estimate import estimate_memory
from dynaxx.memory.peak import measured

class Mixer(nn.Module):
    def __init__(self, width, blocks, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)

torch.set_num_threads(1)
torch.manual_seed(0)
if sys.argv[1] == "exact diagonal":
    mlp = lambda w: nn.Sequential(nn.Linear(256, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 10)).eval()
    make = lambda n, w: (mlp(w), torch.randn(n, 256))
    small, large, options = (4, 8), (2048, 1024), {"form": "diagonal"}
else:
    make = lambda n, w: (Mixer(w, 3, 10 * w).eval(), torch.randint(10 * w, (n, 32)))
    small, large, options = (2, 8), (48, 192), {"form": "kfac", "estimator": "hutchinson"}
dynaxx.fisher(*make(*small), **options)  # what libraries load at first use
model, x = make(*large)
predicted = estimate_memory(model, x, **options)
with measured() as seen:
    F = dynaxx.fisher(model, x, **options)
print(json.dumps([predicted.growth, predicted.live, seen.growth]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("case", "returning", "tolerance"),
    [("K-FAC of a sequence model", False, 0.2), ("exact diagonal", True, 0.1)],
)
def test_close_to_what_the_system_saw(case, returning, tolerance):
    """As a process usually is, and with a C library told to give freed tensors back, so that there are no holes."""
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    if returning:
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, case],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with_holes, live, seen = json.loads(re.findall(r"^\[.*\]$", done.stdout, re.MULTILINE)[-1])
    assert seen > 80e6  # small enough for a test, large enough for the libraries' own buffers not to show
    assert live <= with_holes
    assert (live if returning else with_holes) == pytest.approx(seen, rel=tolerance)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_an_earlier_peak_does_not_hide_a_later_one():
    torch.ones(75_000_000)  # 300 MB, gone at once
    with measured() as seen:
        held = torch.ones(25_000_000)
    assert seen.growth == pytest.approx(held.numel() * 4, rel=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# What it leaves alone, and what it refuses


def test_model_data_and_random_state_are_left_alone():
    model, x = mlp(), torch.randn(5, 8)
    before = [p.clone() for p in model.parameters()]
    kinds, state = [type(p) for p in model.parameters()], torch.get_rng_state()
    estimate_memory(model, x, form="kfac", estimator="monte_carlo")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert [type(p) for p in model.parameters()] == kinds
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    assert dynaxx.fisher(model, x, form="diagonal").trace() > 0  # and no tensor without numbers stays behind


class ReadsValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(torch.as_tensor(x.detach().numpy().copy()))


def test_bad_input():
    model, x = mlp(), torch.randn(5, 8)
    with pytest.raises(dynaxx.InputError, match=r"options \['form'\] belong to dynaxx\.fisher"):
        estimate_memory(model, x, call=lambda m, d: m(d), form="diagonal")
    with pytest.raises(dynaxx.InputError, match="batch_size=0; expected a whole number"):
        estimate_memory(model, x, batch_size=0)
    with pytest.raises(dynaxx.InputError, match="would take it away from the call"):
        estimate_memory(model, iter([x]))
    with pytest.raises(dynaxx.InputError, match="form='diag' is not known"):
        estimate_memory(model, x, form="diag")
    with pytest.raises(dynaxx.InputError, match=r"cannot be run without numbers.*small batch"):
        estimate_memory(ReadsValues(), x)


def test_what_the_call_refuses_is_refused(monkeypatch):
    with pytest.raises(dynaxx.InputError, match="eval"):
        estimate_memory(nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5)).train(), torch.randn(5, 8))
    monkeypatch.setattr(errors, "_free_memory", lambda: 20e3)
    with pytest.raises(dynaxx.SizeError, match=r"would take"):
        estimate_memory(mlp(), torch.randn(5, 8), form="dense")
