"""What does not fit is refused with its bytes and the way out before anything is allocated; what should fit does."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx import errors

SRC = Path(dynaxx.__file__).parents[1]


@pytest.fixture
def small_machine(monkeypatch):
    """A machine with 20 kB free, of which a request may take half; allocations beyond that are noted."""
    monkeypatch.setattr(errors, "_free_memory", lambda: 20e3)


@pytest.fixture
def allocated(monkeypatch):
    """Sizes in bytes of what torch.zeros and torch.eye made."""
    sizes = []

    def noting(make, *args, **options):
        out = make(*args, **options)
        sizes.append(out.numel() * out.element_size())
        return out

    for name in ("zeros", "eye"):
        monkeypatch.setattr(torch, name, partial(noting, getattr(torch, name)))
    return sizes


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def batch(count=6):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_messages_restate_the_request():
    with pytest.raises(dynaxx.SizeError, match=r"^a table would take 3\.2 GB \(limit here 1\.0 kB\); leave it$"):
        errors.require_memory("a table", 3.2e9, "leave it", limit=1000)
    errors.require_memory("a table", 1000, "leave it", limit=1000)


def test_the_default_limit_is_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(errors, "_free_memory", lambda: 1000.0)
    errors.require_memory("a table", 500, "leave it")
    with pytest.raises(dynaxx.SizeError, match=r"501 B \(limit here 500 B\)"):
        errors.require_memory("a table", 501, "leave it")


def test_free_memory_is_that_of_the_machine():
    free = errors._free_memory()
    assert 1e6 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (9e12, "9.0 TB"), (1e16, "10000.0 TB")],
)
def test_bytes_as_text(count, text):
    assert errors.bytes_as_text(count) == text


FORMS = {
    # 43 parameters: 43**2 * 8 bytes
    "dense": (lambda: dynaxx.fisher(mlp(), batch(), form="dense"), "14.8 kB", r"43 x 43.*implicit.*diagonal.*params="),
    # blocks of 25 and 18: (25**2 + 18**2) * 8 bytes do fit; of 60 and 33 they do not
    "block": (
        lambda: dynaxx.fisher(nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 3)), batch().float(), form="block"),
        "41.0 kB", r"blocks for 2 modules.*kfac.*diagonal",
    ),
    # 24 examples of 2 rows each, twice: 2 * 8 * 48**2 bytes
    "gram": (lambda: dynaxx.fisher(mlp(), batch(24), form="gram"), "36.9 kB", r"48 per-example.*fewer.*implicit"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_do_not_fit(form, small_machine, allocated):
    make, size, remedy = FORMS[form]
    with pytest.raises(dynaxx.SizeError, match=remedy) as raised:
        make()
    assert f"would take {size} (limit here 10.0 kB)" in str(raised.value)
    assert isinstance(raised.value, MemoryError)
    assert isinstance(raised.value, dynaxx.InputError)
    assert max(allocated, default=0) < 10e3


@pytest.mark.parametrize("form", ["implicit", "diagonal", "kfac"])
def test_dense_matrices_that_do_not_fit(form, monkeypatch, allocated):
    operator = dynaxx.fisher(mlp(), batch(), form=form)
    monkeypatch.setattr(errors, "_free_memory", lambda: 20e3)
    allocated.clear()
    with pytest.raises(dynaxx.SizeError, match=r"43 x 43 matrix would take 14\.8 kB .*F @ v, F\.diagonal\(\)"):
        operator.to_dense()
    assert max(allocated, default=0) < 10e3
    assert operator.diagonal().shape == (43,)  # what the message names does work


@pytest.mark.parametrize("form", ["implicit", "diagonal"])
def test_forms_that_are_named_as_the_way_out_fit(form, small_machine):
    assert float(dynaxx.fisher(mlp(), batch(), form=form).trace()) > 0


def test_lanczos_that_does_not_fit(small_machine):
    model = nn.Linear(400, 3).double()
    operator = dynaxx.fisher(model, torch.randn(4, 400, dtype=torch.float64))
    with pytest.raises(dynaxx.SizeError, match=r"Lanczos.*kB.*fewer"):
        operator.eigenvalues(k=3)


# ---------------------------------------------------------------------------------------------------------------------
# A vocabulary of 50,000

VOCABULARY = """
import json, resource, torch
from torch import nn
import dynaxx

VOCABULARY, WIDTH = 50_000, 64

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.decode = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        return self.decode(torch.tanh(self.mix(self.embed(tokens))))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
torch.manual_seed(0)
model = Tiny()
small = torch.nn.Sequential(nn.Linear(2, 3))
dynaxx.fisher(small, torch.randn(2, 2), estimator="hutchinson", form="diagonal")  # imports and their buffers
tokens = torch.randint(VOCABULARY, (16, 2))
before = peak()
F = dynaxx.fisher(model, tokens, estimator="hutchinson", form="diagonal")
grown = peak() - before
by_name = {name: float(value.sum()) for name, value in F.unravel(F.diagonal()).items()}
print(json.dumps({"grown": grown, "count": F.count, "sums": by_name}))
"""


def test_a_vocabulary_of_50000_stays_small():
    """Limit: 400 MB of growth; 273 MB were measured, most of it chunks of gradients of the decoder (128 MiB at a time).

    The tables, their diagonal and their copies are 13 MB each, logits 6 MB. All gradients of one table would be 205 MB
    and took 537 MB when planted; the metric of one token would be 10 GB.
    """
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", VOCABULARY], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(re.findall(r"^\{.*\}$", done.stdout, re.MULTILINE)[-1])
    assert found["grown"] < 400e6
    assert found["count"] == 16
    assert set(found["sums"]) == {"embed.weight", "mix.weight", "mix.bias", "decode.weight"}
    assert all(value > 0 for value in found["sums"].values())
