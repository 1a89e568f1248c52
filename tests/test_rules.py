"""The contract of the layer rules: gradients are autograd's, and every override is what ``Rule`` derives from them."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dynaxx.errors import InputError
from dynaxx.model.rules import base, convolution
from dynaxx.model.rules.base import Given, Grouped, Rule, Use
from dynaxx.model.rules.layers import layer_of
from dynaxx.model.rules.linear import LinearWeight, Shift, TransposedLinearWeight

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
K, N = 2, 5


class Conv1D(nn.Module):
    """A map whose weight is stored as (inputs, outputs), under the name by which such layers are known."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


def floats(*shape):
    return lambda count: torch.randn(count, *shape)


def tokens(vocabulary, *shape):
    return lambda count: torch.randint(vocabulary, (count, *shape))


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(2, 3, 3), floats(2, 7)),
    "1d stride, padding, dilation": (lambda: nn.Conv1d(2, 4, 2, stride=3, padding=2, dilation=2), floats(2, 9)),
    "1d same, groups": (lambda: nn.Conv1d(4, 6, 4, padding="same", groups=2), floats(4, 6)),
    "1d longer than wide": (lambda: nn.Conv1d(1, 2, 5), floats(1, 5)),
    "2d": (lambda: nn.Conv2d(2, 3, (2, 3)), floats(2, 4, 5)),
    "2d stride leaves a rest": (lambda: nn.Conv2d(2, 3, 2, stride=(2, 3)), floats(2, 5, 6)),
    "2d depthwise": (lambda: nn.Conv2d(3, 6, 2, groups=3, dilation=(1, 2)), floats(3, 4, 5)),
    "2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), floats(2, 4, 4)),
    "2d replicate": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate", stride=2), floats(2, 4, 5)),
    "2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False), floats(2, 4, 3)),
    "2d same": (lambda: nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)), floats(2, 4, 3)),
    "3d": (lambda: nn.Conv3d(2, 2, (1, 2, 2), stride=(1, 2, 1), padding=(0, 1, 0)), floats(2, 2, 3, 3)),
    "3d groups": (lambda: nn.Conv3d(2, 4, 2, groups=2, dilation=(1, 1, 2)), floats(2, 2, 3, 4)),
}
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), floats(4)),
    "linear, few positions": (lambda: nn.Linear(6, 5), floats(2, 6)),
    "linear, many positions": (lambda: nn.Linear(2, 3), floats(7, 2)),
    "linear, two axes of positions": (lambda: nn.Linear(4, 3), floats(2, 3, 4)),
    "transposed linear": (lambda: Conv1D(3, 4), floats(4)),
    "transposed linear, many positions": (lambda: Conv1D(3, 2), floats(7, 2)),
    "layer norm": (lambda: nn.LayerNorm(5), floats(5)),
    "layer norm, positions": (lambda: nn.LayerNorm((2, 3), eps=0.1), floats(4, 2, 3)),
    "layer norm without bias": (lambda: nn.LayerNorm(5, bias=False), floats(2, 5)),
    "rms norm": (lambda: nn.RMSNorm(5, eps=0.1), floats(3, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=0.1), floats(4, 3, 2)),
    "group norm, no space": (lambda: nn.GroupNorm(2, 4), floats(4)),
    "batch norm": (lambda: nn.BatchNorm1d(4), floats(4)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3), floats(3, 2, 4)),
    "embedding": (lambda: nn.Embedding(4, 3), tokens(4, 6)),
    "embedding, padding": (lambda: nn.Embedding(4, 3, padding_idx=2), tokens(4, 6)),
    "embedding, one token": (lambda: nn.Embedding(4, 3), tokens(4)),
    "embedding, two axes": (lambda: nn.Embedding(5, 2, padding_idx=0), tokens(5, 2, 3)),
    **CONVOLUTIONS,
}


def uses_of(make, draw, dtype=torch.float64, count=N, columns=K, seed=0):
    """(module, input, cotangents (K, N, *out), use by own parameter name) of one call."""
    torch.manual_seed(seed)
    module = make().to(dtype).eval()
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.5 + torch.rand_like(value))
    x = draw(count)
    x = x.to(dtype) if x.is_floating_point() else x
    g = torch.randn(columns, *module(x).shape, dtype=dtype)
    layer = layer_of(module)
    a = layer.input(x)
    return module, x, g, layer.uses(a, layer.cotangent(g))


def by_autograd(module, x, g, name):
    """(K, N, *S): one example and one cotangent at a time."""
    value = dict(module.named_parameters())[name]
    rows = [[torch.autograd.grad(module(x[n : n + 1]), value, u[n : n + 1])[0] for n in range(len(x))] for u in g]
    return torch.stack([torch.stack(row) for row in rows])


def near(found, wanted, dtype):
    assert found.shape == wanted.shape
    assert float((found.double() - wanted.double()).norm()) <= TOLERANCE[dtype] * (1e-30 + float(wanted.norm()))


def contract(left, right, dtype):
    """Every override of a rule, for two uses of one parameter, against what ``Rule`` makes of its gradients."""
    rule = left.rule
    near(rule.squares(left.a, left.g), Rule.squares(rule, left.a, left.g), dtype)
    near(rule.norms(left.a, left.g), Rule.norms(rule, left.a, left.g), dtype)
    inner = rule.inner(left.a, left.g, right.a, right.g)
    assert inner.dtype == torch.float64
    near(inner, Rule.inner(rule, left.a, left.g, right.a, right.g), dtype)
    own = [completed(f(left.a, left.g, left.a, left.g)) for f in (rule.inner, partial(Rule.inner, rule))]
    near(*own, dtype)


def completed(inner):
    """Inner products of a batch with itself, of which only half is made."""
    return base.mirrored(inner.reshape(inner.shape[:2].numel(), -1)).view(inner.shape)


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    if request.param == "many chunks":
        monkeypatch.setattr(base, "CHUNK_BYTES", 400)
        monkeypatch.setattr(base, "TILE", 4)
        monkeypatch.setattr(convolution, "GROUPED_EXAMPLES", 2)
        monkeypatch.setattr(convolution, "GROUPED_BYTES", 400)
        monkeypatch.setattr(convolution, "SLICE_BYTES", 800)
        monkeypatch.setattr(convolution, "SLICE", 2)
        monkeypatch.setattr(convolution, "PATCHED_EXAMPLES", 2)
        assert base.chunk(150) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", LAYERS)
class TestLayers:
    def test_gradients_are_those_of_autograd(self, name, dtype, chunks):
        module, x, g, uses = uses_of(*LAYERS[name], dtype)
        own = dict(module.named_parameters())
        assert set(own) <= set(uses)
        for parameter in own:
            near(base.gradients([uses[parameter]]), by_autograd(module, x, g, parameter), dtype)

    def test_overrides_are_what_they_override(self, name, dtype, chunks):
        module, _, _, left = uses_of(*LAYERS[name], dtype)
        _, _, _, right = uses_of(*LAYERS[name], dtype, count=4, columns=3, seed=1)
        for parameter, _ in module.named_parameters():
            contract(left[parameter], right[parameter], dtype)


@pytest.mark.parametrize("name", LAYERS)
class TestUses:
    """The functions over uses: the sum over uses before anything is squared, in parts, in groups."""

    def test_two_uses_add_up(self, name, chunks):
        module, *_, first = uses_of(*LAYERS[name])
        *_, second = uses_of(*LAYERS[name], seed=2)
        for parameter, value in module.named_parameters():
            uses = [first[parameter], second[parameter]]
            G = base.gradients(uses[:1]) + base.gradients(uses[1:])
            near(base.gradients(uses), G, torch.float64)
            near(base.squares(uses, value.numel()), G.square().sum((0, 1)), torch.float64)
            near(base.norms(uses, value.numel()), base.rows(G).square().sum(2), torch.float64)
            near(
                completed(base.inner(uses, uses)),
                torch.einsum("knp,lmp->knlm", base.rows(G), base.rows(G)),
                torch.float64,
            )

    @pytest.mark.parametrize("size", [2, 3, 5])
    def test_groups(self, name, size, chunks):
        """Groups of 2 and 3 leave a rest of 5 examples."""
        module, *_, uses = uses_of(*LAYERS[name])
        for parameter, value in module.named_parameters():
            each = base.gradients([uses[parameter]])
            G = torch.stack([piece.sum(1) for piece in each.split(size, 1)], 1)
            grouped = uses[parameter].grouped(size)
            assert isinstance(grouped.rule, Grouped) != uses[parameter].rule.positional
            near(base.gradients([grouped]), G, torch.float64)
            near(base.squares([grouped], value.numel()), G.square().sum((0, 1)), torch.float64)
            near(base.norms([grouped], value.numel()), base.rows(G).square().sum(2), torch.float64)
            contract(grouped, uses[parameter].grouped(size), torch.float64)

    def test_parts_are_examples(self, name, chunks):
        module, *_, uses = uses_of(*LAYERS[name])
        for parameter, value in module.named_parameters():
            pieces = [base.gradients(part) for part in base.parts([uses[parameter]], value.numel())]
            near(torch.cat(pieces, 1), base.gradients([uses[parameter]]), torch.float64)


def test_many_chunks_are_many(monkeypatch):
    """The tiny limit above does cut: every example of this use is a part of its own."""
    *_, uses = uses_of(*LAYERS["linear, many positions"])
    assert len(list(base.parts([uses["weight"]], 6))) == 1
    monkeypatch.setattr(base, "CHUNK_BYTES", 100)
    assert len(list(base.parts([uses["weight"]], 6))) == N


def test_given_gradients_are_taken_as_they_are():
    torch.manual_seed(0)
    G, H = torch.randn(K, N, 2, 3, dtype=torch.float64), torch.randn(3, 4, 2, 3, dtype=torch.float64)
    contract(Use(Given(), None, G), Use(Given(), None, H), torch.float64)
    assert torch.equal(base.gradients([Use(Given(), None, G)]), G)
    scalar = Use(Given(), None, G[..., 0, 0])
    near(base.norms([scalar], 1), G[..., 0, 0].square(), torch.float64)


@pytest.mark.parametrize("rule", [LinearWeight(), TransposedLinearWeight(), Shift()], ids=lambda r: type(r).__name__)
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 5), positions=st.integers(1, 9), others=st.integers(1, 9),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_linear_maps_of_any_shape(rule, sizes, positions, others, seed):
    """Also inner products between uses with different numbers of positions."""
    columns, count, inputs, outputs, second = sizes
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    left = Use(rule, normal(count, positions, inputs), normal(columns, count, positions, outputs))
    right = Use(rule, normal(second, others, inputs), normal(1, second, others, outputs))
    contract(left, right, torch.float64)
    if not isinstance(rule, Shift):
        G = torch.einsum("knto,nti->knoi", left.g, left.a)
        near(rule.gradients(left.a, left.g), G.mT if isinstance(rule, TransposedLinearWeight) else G, torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 5), positions=st.integers(1, 8), vocabulary=st.integers(1, 6), width=st.integers(1, 4),
    padding=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_embeddings_of_any_shape(count, positions, vocabulary, width, padding, seed):
    make = lambda: nn.Embedding(vocabulary, width, padding_idx=vocabulary - 1 if padding else None)
    module, x, g, uses = uses_of(make, tokens(vocabulary, positions), count=count, seed=seed)
    near(base.gradients([uses["weight"]]), by_autograd(module, x, g, "weight"), torch.float64)
    contract(uses["weight"], uses["weight"], torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 4), groups=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.integers(0, 2), dilation=st.integers(1, 2), extra=st.integers(0, 3), seed=st.integers(0, 2**20),
    mode=st.sampled_from(["zeros", "replicate", "circular"]),
)  # fmt: skip
def test_convolutions_of_any_shape(count, groups, kernel, stride, padding, dilation, extra, seed, mode):
    length = max(dilation * (kernel - 1) + 1, padding) + extra
    make = lambda: nn.Conv1d(
        groups, 2 * groups, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode
    )
    module, x, g, uses = uses_of(make, floats(groups, length), count=count, seed=seed)
    for name in ("weight", "bias"):
        near(base.gradients([uses[name]]), by_autograd(module, x, g, name), torch.float64)
        contract(uses[name], uses[name], torch.float64)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if "groups" not in name and "depthwise" not in name])
def test_patches_meet_the_kernel(name):
    """rows(a) @ weight is the convolution: what Kronecker factors are made of."""
    make, draw = CONVOLUTIONS[name]
    module, x, _, _ = uses_of(make, draw)
    layer = layer_of(module)
    rows = layer.rows(layer.input(x))
    out = rows @ module.weight.flatten(1).T + (0 if module.bias is None else module.bias)
    near(out.detach(), module(x).flatten(2).transpose(1, 2).detach(), torch.float64)
    assert rows.shape[2] == layer.width(layer.input(x))


@pytest.mark.parametrize("ghost", [0, torch.inf], ids=["by inner products", "by gradients"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_norms_of_convolutions_both_ways(name, ghost, monkeypatch):
    """The sum of squares of the gradients, whichever way the cost model would take."""
    monkeypatch.setattr(convolution, "GHOST", ghost)
    *_, uses = uses_of(*CONVOLUTIONS[name])
    rule, a, g = uses["weight"].rule, uses["weight"].a, uses["weight"].g
    near(rule.norms(a, g), Rule.norms(rule, a, g), torch.float64)


class _Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_no_rule_knows_has_none():
    assert layer_of(_Doubled(2, 2)) is None
    assert layer_of(nn.Bilinear(2, 2, 2)) is None
    assert layer_of(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))) is None
    assert layer_of(nn.Conv1d(1, 1, 1)) is not None  # torch's own is no transposed map, whatever its name


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_that_cannot_be_measured(option):
    with pytest.raises(InputError, match="turn both off"):
        layer_of(nn.Embedding(3, 2, **option))
