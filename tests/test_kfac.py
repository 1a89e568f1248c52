"""Kronecker factors: exact where they must be, the textbook's where they are not, and nothing left out."""

import pytest
import torch
from torch import nn

import dynaxx
import oracles
from architectures import CASES, NAMES, load

TOLERANCE = 1e-10


def double(*layers):
    torch.manual_seed(1)
    return nn.Sequential(*layers).double().eval()


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def layer_blocks(model, matrix, names=None):
    """(layer name, its diagonal block of the matrix) for each layer with a weight; weight and bias together."""
    where = oracles.offsets(model, names)
    for name, module in model.named_modules():
        inside = [where[f"{name}.{kind}"] for kind in ("weight", "bias") if f"{name}.{kind}" in where]
        if inside:
            index = torch.cat([torch.arange(piece.start, piece.stop) for piece in inside])
            yield name, module, matrix[index][:, index]


def compare_blocks(model, found, wanted, layers=None):
    for (name, _, a), (_, _, b) in zip(layer_blocks(model, found), layer_blocks(model, wanted), strict=True):
        if layers is None or name in layers:
            assert oracles.distance(a, b) < TOLERANCE, name


# ---------------------------------------------------------------------------------------------------------------------
# Cases in which the approximation is none


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU, nn.Identity])
@pytest.mark.parametrize("kind", ["categorical", "gaussian", "bernoulli", "poisson"])
@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_one_example(form, kind, activation):
    """A rank-one input factor times the output factor: F = a a^T (x) G with nothing averaged."""
    model, x = double(nn.Linear(4, 5), activation(), nn.Linear(5, 3)), draw(1, 4)
    wanted = oracles.exact_fisher(oracles.examples(model, x, kind), kind)
    compare_blocks(model, dynaxx.fisher(model, x, likelihood=kind, form=form).to_dense(), wanted)


@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_one_example_empirical(form):
    model, (x, y) = load("mlp")
    wanted = oracles.empirical_fisher(oracles.examples(model, (x[:1], y[:1]), "categorical"), "categorical")
    found = dynaxx.fisher(model, (x[:1], y[:1]), estimator="empirical", form=form)
    compare_blocks(model, found.to_dense(), wanted)


def test_copies_of_one_example():
    model, (x, _) = load("mlp")
    copies = x[:1].expand(4, -1)
    wanted = oracles.exact_fisher(oracles.examples(model, x[:1], "categorical"), "categorical")
    compare_blocks(model, dynaxx.fisher(model, copies, form="kfac").to_dense(), wanted)


def deep_linear(bias=True):
    return double(nn.Linear(4, 5, bias=bias), nn.Linear(5, 3, bias=bias), nn.Linear(3, 2, bias=bias))


@pytest.mark.parametrize("data", ["one batch", "4+3"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_deep_linear_network_with_squared_error(form, bias, data):
    model, x = deep_linear(bias), draw(7, 4)
    wanted = oracles.exact_fisher(oracles.examples(model, x, "gaussian"), "gaussian")
    batches = x if data == "one batch" else list(x.split([4, 3]))
    compare_blocks(model, dynaxx.fisher(model, batches, likelihood="gaussian", form=form).to_dense(), wanted)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_without_shared_positions_the_settings_agree(sharing):
    model, x = deep_linear(), draw(7, 4)
    wanted = oracles.exact_fisher(oracles.examples(model, x, "gaussian"), "gaussian")
    found = dynaxx.fisher(model, x, likelihood="gaussian", form="kfac", sharing=sharing)
    compare_blocks(model, found.to_dense(), wanted)


@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_expand_is_exact_where_each_position_has_its_own_loss(form):
    model, x = deep_linear(), draw(5, 3, 4)
    wanted = oracles.exact_fisher(oracles.examples(model, x, "gaussian"), "gaussian")
    found = dynaxx.fisher(model, x, likelihood="gaussian", form=form, sharing="expand")
    compare_blocks(model, found.to_dense(), wanted)


class _Pool(nn.Module):
    """Sum or mean over positions (N, T, E) -> (N, E), or over space (N, E, H, W) -> (N, E)."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        axes = (2, 3) if x.dim() == 4 else (1,)
        return x.sum(axes) if self.how == "sum" else x.mean(axes)


@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("form", ["kfac", "ekfac"])
def test_reduce_is_exact_where_positions_are_pooled(form, how):
    model, x = double(nn.Linear(4, 5), nn.Linear(5, 2), _Pool(how)), draw(5, 3, 4)
    wanted = oracles.exact_fisher(oracles.examples(model, x, "gaussian"), "gaussian")
    found = dynaxx.fisher(model, x, likelihood="gaussian", form=form, sharing="reduce")
    compare_blocks(model, found.to_dense(), wanted)


def test_reduce_is_exact_for_a_pooled_convolution():
    model, x = double(nn.Conv2d(2, 3, 2), _Pool("mean")), draw(5, 2, 4, 3)
    wanted = oracles.exact_fisher(oracles.examples(model, x, "gaussian"), "gaussian")
    found = dynaxx.fisher(model, x, likelihood="gaussian", form="kfac", sharing="reduce")
    compare_blocks(model, found.to_dense(), wanted)


class _ChannelsLast(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


def test_expand_is_exact_for_a_convolution_with_a_loss_at_every_pixel():
    model, x = double(nn.Conv2d(2, 3, 2, stride=2, padding=1), nn.Conv2d(3, 2, 1), _ChannelsLast()), draw(5, 2, 4, 3)
    wanted = oracles.exact_fisher(oracles.examples(model, x, "gaussian"), "gaussian")
    found = dynaxx.fisher(model, x, likelihood="gaussian", form="kfac", sharing="expand")
    compare_blocks(model, found.to_dense(), wanted)


# ---------------------------------------------------------------------------------------------------------------------
# Elsewhere: the textbook's factors


def convolutional():
    model = double(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 3)
    )
    return model, draw(5, 2, 5, 6)


def sequential():
    return double(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), _Pool("mean")), draw(5, 3, 4)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("setting", [convolutional, sequential])
def test_factors_of_the_textbook(setting, sharing):
    model, x = setting()
    found = dynaxx.fisher(model, x, form="kfac", sharing=sharing).to_dense()
    for name, layer, block in layer_blocks(model, found):
        factors = oracles.kfac_factors(model, layer, x, "categorical", sharing)
        assert oracles.distance(block, factors.dense()) < TOLERANCE, name


def test_wide_parameters_without_structure_get_their_diagonal():
    """Past 1024 entries a dense block would be large; the table's exact diagonal stands in for it."""
    model = double(nn.Embedding(150, 8), nn.Flatten(), nn.Linear(24, 3))
    tokens = torch.randint(0, 150, (6, 3), generator=torch.Generator().manual_seed(0))
    diagonal = dynaxx.fisher(model, tokens, form="diagonal")
    exact = diagonal.unravel(diagonal.diagonal())
    for form in ("kfac", "ekfac"):
        operator = dynaxx.fisher(model, tokens, form=form)
        assert operator.coverage()["0.weight"] == "diagonal"
        assert operator.coverage()["2.weight"] == "kronecker"
        found = operator.unravel(operator.diagonal())["0.weight"]
        assert oracles.distance(found, exact["0.weight"]) < TOLERANCE


def test_factors_of_a_perceptron():
    model, batch = load("mlp")
    for data in (batch, [tuple(part[:4] for part in batch), tuple(part[4:] for part in batch)]):
        found = dynaxx.fisher(model, data, form="kfac").to_dense()
        for name, layer, block in layer_blocks(model, found):
            factors = oracles.kfac_factors(model, layer, batch, "categorical", "expand")
            assert oracles.distance(block, factors.dense()) < TOLERANCE, name


def test_blocks_of_different_layers_do_not_mix():
    model, batch = load("mlp")
    found = dynaxx.fisher(model, batch, form="kfac").to_dense()
    where = oracles.offsets(model)
    masked = oracles.keep_blocks(found, where, [("0.weight", "0.bias"), ("2.weight", "2.bias")])
    assert torch.equal(masked, found)


# ---------------------------------------------------------------------------------------------------------------------
# EKFAC


@pytest.mark.parametrize(
    "name", ["mlp", "called_twice", "frozen", "circular", "time_first", "flattened_time", "attention"]
)
def test_corrected_eigenvalues_come_no_farther_from_the_block(name):
    """EKFAC is the best diagonal in the basis K-FAC has chosen: never farther in Frobenius norm, of equal trace."""
    case, (model, batch) = CASES[name], load(name)
    exact = oracles.exact_fisher(oracles.examples(model, batch, case.kind), case.kind)
    plain, corrected = (dynaxx.fisher(model, batch, form=form) for form in ("kfac", "ekfac"))
    for (_, _, a), (_, _, b), (_, _, block) in zip(
        layer_blocks(model, plain.to_dense()),
        layer_blocks(model, corrected.to_dense()),
        layer_blocks(model, exact),
        strict=True,
    ):
        assert float((b - block).norm()) <= float((a - block).norm()) * (1 + 1e-10) + 1e-12
        assert float(b.trace()) == pytest.approx(float(block.trace()), rel=1e-9)


def test_correction_is_strict_where_activations_are_not_linear():
    model, batch = load("mlp")
    exact = oracles.exact_fisher(oracles.examples(model, batch, "categorical"), "categorical")
    exact = oracles.keep_blocks(exact, oracles.offsets(model), [("0.weight", "0.bias"), ("2.weight", "2.bias")])
    plain, corrected = (dynaxx.fisher(model, batch, form=form).to_dense() for form in ("kfac", "ekfac"))
    assert oracles.distance(corrected, exact) < oracles.distance(plain, exact) - 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Coverage


@pytest.mark.parametrize("form", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_out(name, form):
    case, (model, batch) = CASES[name], load(name)
    operator = dynaxx.fisher(model, batch, likelihood=case.likelihood, form=form)
    coverage, where = operator.coverage(), oracles.offsets(model)
    assert sorted(coverage) == sorted(where) == sorted(operator.names)
    assert set(coverage.values()) <= {"kronecker", "dense", "diagonal"}
    dense = operator.to_dense()
    floor = 1e-10 * float(dense.norm())
    assert oracles.distance(dense, dense.T) < 1e-12
    assert torch.linalg.eigvalsh(dense).min() > -floor
    exact = oracles.exact_fisher(oracles.examples(model, batch, case.kind), case.kind, case.variance)
    for parameter, kind in coverage.items():
        found, wanted = (matrix[where[parameter], where[parameter]] for matrix in (dense, exact))
        if kind == "dense":
            assert oracles.distance(found, wanted) < TOLERANCE, parameter
        if kind == "diagonal":
            assert oracles.distance(found, wanted.diagonal().diag()) < TOLERANCE, parameter


def test_coverage_knows_what_has_kronecker_structure():
    assert set(dynaxx.fisher(*load("mlp"), form="kfac").coverage().values()) == {"kronecker"}
    bare = dynaxx.fisher(*load("bare_parameters"), form="kfac").coverage()
    assert {name for name, kind in bare.items() if kind == "kronecker"} == {
        "inner.weight", "inner.bias", "head.weight", "head.bias",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Verbs


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("form", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", ["mlp", "bare_parameters", "text_convolution", "attention"])
def test_damped_solve_is_that_of_its_own_matrix(name, form, damping):
    operator = dynaxx.fisher(*load(name), form=form)
    dense = operator.to_dense()
    damped = dense + damping * torch.eye(len(dense), dtype=dense.dtype)
    for v in (draw(len(dense)), draw(len(dense), 2)):
        wanted = torch.linalg.solve(damped, v)
        # accuracy of either solve is eps times the condition number, at most |F| / damping
        assert oracles.distance(operator.solve(v, damping=damping), wanted) < 1e-14 * (
            1e3 + float(dense.norm()) / damping
        )


@pytest.mark.parametrize("form", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", ["mlp", "bare_parameters", "attention"])
def test_spectrum_is_that_of_its_own_matrix(name, form):
    operator = dynaxx.fisher(*load(name), form=form)
    dense = operator.to_dense()
    exact = torch.linalg.eigvalsh(dense).flip(0)
    values = operator.eigenvalues().sort(descending=True).values
    count = min(len(values), len(exact))
    torch.testing.assert_close(values[:count], exact[:count], rtol=1e-9, atol=1e-12 * float(exact[0]))
    assert float(exact[count:].abs().sum()) < 1e-10 * float(exact[0])
    v = draw(len(dense), 2)
    assert oracles.distance(operator @ v, dense @ v) < TOLERANCE
    assert float(operator.trace()) == pytest.approx(float(dense.trace()), rel=1e-10)
    assert float(operator.frobenius()) == pytest.approx(float(dense.norm()), rel=1e-10)


@pytest.mark.parametrize("estimator", ["hutchinson", "monte_carlo"])
def test_sampled_factors_tend_to_the_exact_ones(estimator):
    """Only the output factor is sampled, so that the product is unbiased too."""
    model, batch = load("mlp")
    exact = dynaxx.fisher(model, batch, form="kfac").to_dense()
    values = torch.stack([
        dynaxx.fisher(model, batch, form="kfac", estimator=estimator, seed=seed).to_dense() for seed in range(50)
    ])  # fmt: skip
    apart = (values.mean(0) - exact).abs() / (values.std(0) / 50**0.5 + 1e-12)
    assert (apart > 4).double().mean() < 5e-3
    assert oracles.distance(values.mean(0), exact) < 0.25


# ---------------------------------------------------------------------------------------------------------------------
# Damped factors


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_factored_solve_is_the_inverse_of_damped_factors(name, damping):
    """(G + sqrt(d)/pi I) x (A + pi sqrt(d) I), written out; parameters without factors are solved exactly."""
    model, (x, _) = load("mlp") if name == "mlp" else (small_cnn(), (draw(6, 2, 5, 5), None))
    F = dynaxx.fisher(model, x, form="kfac")
    v = draw(F.shape[0], 3)
    found = F.solve(v, damping=damping, method="factored")
    where, start = F.layout.slices, 0
    for part in F.parts:
        index = torch.cat([torch.arange(where[n].start, where[n].stop) for n in part.names])
        if not hasattr(part, "right"):
            assert oracles.distance(found[index], part.solve(v[index], damping=damping)) < TOLERANCE
            continue
        start += 1
        A, G = part.right, part.left
        pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
        A, G = A + pi * damping**0.5 * torch.eye(len(A)).double(), G + damping**0.5 / pi * torch.eye(len(G)).double()
        # rows of the weight lie before the bias: the Kronecker product's coordinates (o, i) in the layout's order
        order = torch.arange(len(G) * len(A)).view(len(G), len(A))
        order = torch.cat([order[:, :-1].flatten(), order[:, -1]])
        dense = torch.kron(G, A)[order][:, order]
        assert oracles.distance(found[index], torch.linalg.solve(dense, v[index])) < 1e-8
    assert start == 2


def small_cnn():
    return double(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 3))


def test_factored_steps_are_shorter_than_exact_ones():
    """Damped factors exceed the damped product: v^T S v is smaller for every v."""
    model, x = double(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), draw(9, 4)
    F, v = dynaxx.fisher(model, x, form="kfac"), draw(43, 50)
    exact, factored = ((v * F.solve(v, damping=1e-3, method=method)).sum(0) for method in ("exact", "factored"))
    assert (factored < exact).all()
    assert (factored > 0).all()


def test_factored_inverses_are_kept_for_the_damping_they_were_made_for(monkeypatch):
    from dynaxx.operators import kronecker

    made, inverse = [], kronecker.inverse_psd
    monkeypatch.setattr(kronecker, "inverse_psd", lambda *args: made.append(args[1]) or inverse(*args))
    model, x = double(nn.Linear(4, 3)), draw(9, 4)
    F, v = dynaxx.fisher(model, x, form="kfac"), draw(15)
    first = F.solve(v, damping=1e-2, method="factored")
    assert torch.equal(F.solve(v, damping=1e-2, method="factored"), first)
    assert len(made) == 2
    fresh = dynaxx.fisher(model, x, form="kfac").solve(v, damping=1.0, method="factored")
    assert torch.equal(F.solve(v, damping=1.0, method="factored"), fresh)
    with pytest.raises(dynaxx.errors.InputError, match="'exact', 'factored'"):
        F.solve(v, damping=1.0, method="cholesky")


def test_factored_solve_of_a_layer_that_gets_no_signal():
    """A zero output factor: pi would be infinite."""
    model, x = double(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), draw(9, 4)
    with torch.no_grad():
        model[0].bias.fill_(-100)
    F, v = dynaxx.fisher(model, x, form="kfac"), draw(23)
    assert torch.isfinite(F.solve(v, damping=1e-4, method="factored")).all()


@pytest.mark.parametrize("columns", [1, 3])
def test_products_whose_width_is_filled_up(columns, monkeypatch):
    """Rows of an odd length are laid out longer where they are long; the answer knows nothing of it."""
    model, x = double(nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 3)), draw(12, 20)
    F = dynaxx.fisher(model, x, form="kfac")
    v = draw(F.shape[0], columns)
    plain = F @ v, F.solve(v, damping=0.1, method="factored")
    monkeypatch.setattr("dynaxx.operators.kronecker.WIDE", 4)
    filled = F @ v, F.solve(v, damping=0.1, method="factored")
    assert max(oracles.distance(a, b) for a, b in zip(filled, plain, strict=True)) < 1e-12
    assert oracles.distance(filled[0], F.to_dense() @ v) < 1e-12
