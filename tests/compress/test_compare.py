import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.compress import compare as module
from dynaxx.compress.compare import compare, surviving
from dynaxx.monitor import Probe


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    masks = {name: torch.rand(model.get_parameter(name).shape) > 0.6 for name in ("0.weight", "2.weight")}
    probe = Probe("random", torch.randn(12, 6).double())
    dense = dynaxx.fisher(model.eval(), probe.batch, form="dense")
    whole = {name: masks.get(name, torch.ones(shape, dtype=torch.bool)) for name, shape in dense.layout.shapes.items()}
    keep = dense.ravel(whole).bool()
    return model, masks, probe, dense.to_dense()[keep][:, keep]


def test_spectrum_is_that_of_the_submatrix(case):
    model, masks, probe, block = case
    for found in (surviving(model, probe, masks, 4), _iterated(model, probe, masks)):
        values, vectors = torch.linalg.eigh(block)
        assert float(found.spectrum.trace()) == pytest.approx(float(block.trace()), rel=1e-9)
        overlap = (vectors[:, -4:].T @ found.vectors).square().sum() / 4
        assert float(overlap) == pytest.approx(1.0, abs=1e-8)
        assert float(found.spectrum.eigenvalues[0]) == pytest.approx(float(values[-1]), rel=1e-9)


def _iterated(model, probe, masks):
    limit, module.DENSE = module.DENSE, 1
    try:
        return surviving(model, probe, masks, 4)
    finally:
        module.DENSE = limit


def test_wide_and_tall_sides_agree(case):
    """With fewer rows than coordinates the Gram side is decomposed; both must give the submatrix."""
    model, masks, _, _ = case
    few = Probe("few", torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double())
    found = surviving(model, few, masks, 4)
    whole = dynaxx.fisher(model.eval(), few.batch, form="dense")
    flags = {name: masks.get(name, torch.ones(shape, dtype=torch.bool)) for name, shape in whole.layout.shapes.items()}
    keep = whole.ravel(flags).bool()
    block = whole.to_dense()[keep][:, keep]
    values = torch.linalg.eigvalsh(block).flip(0)
    torch.testing.assert_close(found.spectrum.eigenvalues[:6], values[:6], rtol=1e-8, atol=1e-14)
    residual = block @ found.vectors - found.vectors * values[:4]
    assert float(residual.abs().max()) < 1e-10


def test_compare_with_itself_and_with_another(case):
    model, masks, probe, _ = case
    mine = surviving(model, probe, masks, 4)
    assert compare(mine, mine).overlap == pytest.approx(1.0, abs=1e-10)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(8, 6))
    assert compare(mine, surviving(model, probe, masks, 4)).overlap < 0.95
    everything = {name: torch.ones_like(mask) for name, mask in masks.items()}
    with pytest.raises(dynaxx.InputError, match="under the same masks"):
        compare(mine, surviving(model, probe, everything, 4))
