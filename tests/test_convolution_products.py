"""Products with F through convolutions: right whatever is selected, at the price of two convolutions a layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import dynaxx
import oracles


class Net(nn.Module):
    """Convolutions in every way they can be called."""

    def __init__(self, saving=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, groups=2, bias=False)
        self.third = nn.Conv2d(4, 3, 1, padding="same")
        self.weight = nn.Parameter(torch.randn(3, 3, 2, 2))
        self.saving = saving
        self.double().eval()

    def body(self, x):
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))

    def forward(self, x):
        h = checkpoint(self.body, x, use_reentrant=False) if self.saving else self.body(x)
        return functional.conv2d(h, weight=self.weight, dilation=(1, 2)).mean((2, 3))


X = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize(
    "params", [None, ["first.bias"], ["second.weight"], ["first.weight", "third.bias"], ["weight"]]
)
def test_products(params, saving):
    model = Net(saving)
    F = dynaxx.fisher(model, X, params=params)
    fisher = oracles.exact_fisher(oracles.examples(Net(), X, "categorical"), "categorical")
    where = oracles.offsets(Net())
    index = torch.cat([torch.arange(where[name].start, where[name].stop) for name in F.names])
    v = torch.randn(F.shape[0], 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert oracles.distance(F @ v, fisher[index][:, index] @ v) < 1e-10


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("params", [None, ["first.bias"], ["second.weight"], ["first.weight", "third.bias"]])
def test_products_with_the_hessian(params, saving):
    """Where the reverse pass is differentiated in everything."""
    labels = torch.tensor([0, 2, 1])
    H = dynaxx.hessian(Net(saving), (X, labels), functional.cross_entropy, params=params)
    wanted = oracles.hessian(Net(), (X, labels), functional.cross_entropy)
    where = oracles.offsets(Net())
    index = torch.cat([torch.arange(where[name].start, where[name].stop) for name in H.names])
    v = torch.randn(H.shape[0], 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert oracles.distance(H @ v, wanted[index][:, index] @ v) < 1e-10


@pytest.mark.parametrize("space", [1, 2, 3])
def test_unbatched_and_autocast_calls_are_left_alone(space):
    """Within one example of a model, an image without a batch axis."""
    from dynaxx.assembly.convolution import LeanConvolutions

    convolve = [functional.conv1d, functional.conv2d, functional.conv3d][space - 1]
    x, weight = torch.randn(2, *[5] * space), torch.randn(3, 2, *[2] * space, requires_grad=True)
    with LeanConvolutions(linear=True):
        alone, batched = convolve(x, weight), convolve(x[None], weight)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert convolve(x[None], weight).dtype == torch.bfloat16
    assert torch.allclose(alone, batched[0], atol=1e-6)
    assert type(batched.grad_fn).__name__ == "_ForwardBackward"


class Count(TorchDispatchMode):
    """How many convolutions run."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += "convolution" in func.__name__
        return func(*args, **(kwargs or {}))


def test_a_hessian_product_takes_no_convolution_too_many():
    """Two for the derivative of the reverse pass (one for the first layer), one for what it says of weights and one
    for inputs that have derivatives, and the two reverse passes behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 10), nn.Flatten())
    H = dynaxx.hessian(model.double().eval(), (X, torch.tensor([0, 2, 1])), functional.cross_entropy)
    v = torch.ones(H.shape[0], dtype=torch.float64)
    H @ v  # keeps the graph
    with Count() as counted:
        H @ v
    first, second, reverse = 1, 4, 2
    assert counted.number == first + second + reverse


def test_a_product_takes_no_convolution_too_many():
    """Two for J v (one for the first layer, whose input has no derivative), and one call for each reverse pass."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 8), nn.Flatten()
    )
    F = dynaxx.fisher(model.double().eval(), X)
    v = torch.ones(F.shape[0], dtype=torch.float64)
    F @ v  # keeps the graph
    with Count() as counted:
        F @ v
    assert counted.number == 2 * 3 - 1 + 3
