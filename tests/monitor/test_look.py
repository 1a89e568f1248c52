"""Looks and their error bars against brute force."""

import math

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.monitor import Probe, influence
from dynaxx.monitor.economy import economy
from dynaxx.monitor.full import condition, full
from dynaxx.monitor.look import Look, since_start
from dynaxx.monitor.standard import slopes, standard
from dynaxx.monitor.subject import Subject

RATIO = 100 / 2.0  # N / d


def model(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()


def data(count=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3


def subject(net, batch, **options):
    return Subject(net, Probe("p", batch), prior_precision=2.0, count=100, **options)


def quantities(values):
    """From the formulas."""
    values = values.clamp(min=0)
    values = values[values > 1e-12 * values.max()]
    q = values / values.sum()
    return {
        "dynaxx/trace": values.sum(),
        "dynaxx/top_eigenvalue": values.max(),
        "dynaxx/effective_rank": (-(q * q.log()).sum()).exp(),
        "dynaxx/participation_ratio": values.sum() ** 2 / values.square().sum(),
        "dynaxx/effective_dimension": (RATIO * values / (RATIO * values + 1)).sum(),
        "dynaxx/posterior_entropy": -0.5 * torch.log1p(RATIO * values).sum(),
    }


@pytest.mark.parametrize("name", sorted(slopes(RATIO)))
def test_slopes_are_the_derivatives(name):
    values = torch.tensor([3.0, 1.0, 0.2, 0.01], dtype=torch.float64, requires_grad=True)
    quantities(values)[name].backward()
    torch.testing.assert_close(slopes(RATIO)[name](values.detach()), values.grad, rtol=1e-10, atol=1e-12)


def dense(net, *batch):
    return torch.linalg.eigvalsh(dynaxx.fisher(net, batch if len(batch) > 1 else batch[0], form="dense").to_dense())


def test_standard_look_is_that_of_the_dense_matrix():
    net, (x, y) = model(), data()
    look = standard(subject(net, (x, y)))
    for name, value in quantities(dense(net, x)).items():
        assert float(look.values[name]) == pytest.approx(float(value), rel=1e-7), name
    assert look.arrays["dynaxx/spectrum"][0] == pytest.approx(float(look.values["dynaxx/top_eigenvalue"]))


def test_influences_are_derivatives_towards_an_example():
    """Central differences in the weights of the examples: (1 - e) / N each, and e more for one."""
    net, (x, y) = model(), data()
    look, n, e = standard(subject(net, (x, y))), len(x), 1e-5
    for i in (0, 7):
        towards = torch.eye(n, dtype=torch.float64)[i] * n - 1
        up, down = (quantities(dense(net, x, y, 1 + step * towards)) for step in (e, -e))
        for name in up:
            slope = float(up[name] - down[name]) / (2 * e)
            assert float(look.influences[name][i]) == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_errors_are_near_those_of_leaving_one_out():
    """First order, so they differ at N = 40; by how much for which number is in docs/concepts/monitoring.md."""
    net, (x, y) = model(), data()
    look, n = standard(subject(net, (x, y))), len(x)
    one_less = [quantities(dense(net, torch.cat([x[:i], x[i + 1 :]]))) for i in range(n)]
    for name in one_less[0]:
        without = torch.stack([each[name] for each in one_less])
        jackknife = math.sqrt((n - 1) / n * float((without - without.mean()).square().sum()))
        assert 0.5 < look.values[name].stderr / jackknife < 1.3, name


def test_error_of_the_trace_is_exactly_that_of_the_mean_of_example_traces():
    net, (x, y) = model(), data()
    each = torch.tensor([float(dynaxx.fisher(net, x[i : i + 1]).trace()) for i in range(len(x))])
    trace = standard(subject(net, (x, y))).values["dynaxx/trace"]
    assert trace.stderr == pytest.approx(float(each.std()) / math.sqrt(len(x)), rel=1e-5)


def test_influences_add_up_to_nothing():
    look = standard(subject(model(), data()))
    assert set(look.influences) >= set(slopes(1.0))
    for name, each in look.influences.items():
        assert abs(float(each.sum())) < 1e-9 * float(each.abs().sum()), name


def test_layers_share_the_trace_and_both_presets_know_the_same_ones():
    net, batch = model(), data()
    exact, sampled = standard(subject(net, batch)), economy(subject(net, batch))
    F = dynaxx.fisher(net, batch[0], form="diagonal")
    pieces = F.unravel(F.diagonal())
    for look in (exact, sampled):
        shares = [value for name, value in look.values.items() if name.endswith("/share")]
        assert sum(shares) == pytest.approx(1)
    for layer in ("0", "2"):
        wanted = float(pieces[f"{layer}.weight"].sum() + pieces[f"{layer}.bias"].sum())
        assert exact.values[f"dynaxx/layer/{layer}/trace"] == pytest.approx(wanted, rel=1e-9)
        found = sampled.values[f"dynaxx/layer/{layer}/trace"]
        assert abs(found - wanted) < 5 * found.stderr


def test_economy_trace_is_unbiased_and_its_error_right():
    """Over seeds and fresh examples: the z scores of the trace against a far larger probe have spread one."""
    net = model()
    truth = float(dynaxx.fisher(net, data(4000, seed=99)[0]).trace())
    z = []
    for seed in range(60):
        x, y = data(40, seed=seed)
        trace = economy(Subject(net, Probe("p", (x, y), seed=seed))).values["dynaxx/trace"]
        z.append((float(trace) - truth) / trace.stderr)
    z = torch.tensor(z)
    assert abs(float(z.mean())) < 4 / math.sqrt(60)
    assert 0.75 < float(z.std()) < 1.35  # 60 draws: 0.82 to 1.18 with normal errors, a little more with t


def test_economy_sums_batches_and_uses_labels_where_there_are_some():
    net, (x, y) = model(), data()
    whole = economy(subject(net, (x, y)))
    parts = economy(subject(net, [(x[:15], y[:15]), (x[15:], y[15:])]))
    for name, value in whole.values.items():
        assert float(parts.values[name]) == pytest.approx(float(value), rel=1e-9), name
    log_p = net(x).log_softmax(1)
    assert float(whole.values["dynaxx/probe_loss"]) == pytest.approx(float(-log_p[torch.arange(40), y].detach().mean()))
    entropy = -(log_p.exp() * log_p).sum(1)
    found = whole.values["dynaxx/predictive_entropy"]
    assert float(found) == pytest.approx(float(entropy.detach().mean()))
    assert found.stderr == pytest.approx(float(entropy.detach().std()) / math.sqrt(40))
    assert "dynaxx/probe_loss" not in economy(subject(net, x)).values


def test_diagonal_summary_bounds_the_posterior_entropy_from_below():
    look = standard(subject(model(), data()))
    d = dynaxx.fisher(model(), data()[0], form="diagonal").diagonal()
    assert look.values["dynaxx/diagonal/posterior_entropy"] == pytest.approx(-0.5 * float(torch.log1p(RATIO * d).sum()))
    assert look.values["dynaxx/diagonal/posterior_entropy"] < float(look.values["dynaxx/posterior_entropy"])


def test_changes_are_paired():
    """A small step of the weights moves every example alike: the change is far surer than either value."""
    net, batch = model(), data()
    before = standard(subject(net, batch))
    with torch.no_grad():
        net[0].weight.mul_(1.01)
    after = standard(subject(net, batch))
    change = after.change(before)["dynaxx/posterior_entropy"]
    assert change == pytest.approx(
        float(after.values["dynaxx/posterior_entropy"] - before.values["dynaxx/posterior_entropy"])
    )
    assert 0 < change.stderr < 0.1 * after.values["dynaxx/posterior_entropy"].stderr
    ratio = after.ratio(before)["dynaxx/trace"]
    assert ratio == pytest.approx(after.values["dynaxx/trace"] / before.values["dynaxx/trace"])
    assert 0 < ratio.stderr < 0.1
    assert after.change(after)["dynaxx/trace"].stderr == 0


def test_relative_values_are_ratios_and_for_entropies_differences_in_nats():
    then, now = (
        Look({"dynaxx/trace": 2.0, "dynaxx/posterior_entropy": -8.0}),
        Look({"dynaxx/trace": 3.0, "dynaxx/posterior_entropy": -6.0, "dynaxx/layer/a/trace": 1.0}),
    )
    assert since_start(now, then) == {"dynaxx/relative/trace": 1.5, "dynaxx/change/posterior_entropy": 2.0}


def test_moving_average_of_looks_is_linear():
    a, b = (Look.of_means({"m": torch.tensor(values)}) for values in ([1.0, 2.0, 6.0], [2.0, 2.0, 5.0]))
    mixed = a.blended(b, 0.25)
    direct = Look.of_means({"m": 0.75 * torch.tensor([1.0, 2.0, 6.0]) + 0.25 * torch.tensor([2.0, 2.0, 5.0])})
    assert mixed.values["m"] == pytest.approx(direct.values["m"])
    assert mixed.values["m"].stderr == pytest.approx(direct.values["m"].stderr)


# ---------------------------------------------------------------------------------------------------------------------
# The full look


def test_full_look_against_dense_matrices():
    net, (x, y) = model(4), data(20)
    look = full(subject(net, (x, y)))
    H = dynaxx.hessian(net, (x, y), nn.CrossEntropyLoss()).to_dense()
    F = dynaxx.fisher(net, x, form="dense").to_dense()
    assert look.values["dynaxx/hessian/top_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-5)
    # four Gaussian probes: a ratio of two chi-square-like sums, so only the size can be asked for
    assert look.values["dynaxx/hessian/gap"] == pytest.approx(float((H - F).norm() / F.norm()), rel=0.5)
    J = torch.autograd.functional.jacobian(
        lambda v: torch.func.functional_call(net, dynaxx.fisher(net, x).unravel(v), (x,)),
        torch.cat([p.detach().flatten() for p in net.parameters()]),
    )
    ntk = torch.linalg.eigvalsh(torch.einsum("ncp,mdp->ncmd", J, J).reshape(60, 60) / 20).clamp(min=0)
    assert float(look.values["dynaxx/logit_ntk/trace"]) == pytest.approx(float(ntk.sum()), rel=1e-8)
    assert look.values["dynaxx/logit_ntk/top_eigenvalue"] == pytest.approx(float(ntk[-1]), rel=1e-8)


def test_gap_is_zero_where_the_model_is_linear():
    torch.manual_seed(0)
    look = full(subject(nn.Linear(5, 3).double(), data(20)))
    assert look.values["dynaxx/hessian/gap"] < 1e-10


def test_sharpness_is_the_rise_of_the_loss_at_the_step():
    net, (x, y) = model(), data(20)
    look = full(subject(net, (x, y)))
    loss = nn.functional.cross_entropy
    here = loss(net(x), y)
    g = torch.autograd.grad(here, list(net.parameters()))
    for name, radius, adaptive in (("sharpness", 0.05, False), ("adaptive_sharpness", 0.5, True)):
        scale = [p.detach().abs() + 0.01 if adaptive else torch.ones_like(p) for p in net.parameters()]
        norm = torch.cat([(s * each).flatten() for s, each in zip(scale, g, strict=True)]).norm()
        moved = model()
        with torch.no_grad():
            for p, s, each in zip(moved.parameters(), scale, g, strict=True):
                p.add_(radius * s.square() * each / norm)
        assert look.values[f"dynaxx/{name}"] == pytest.approx((loss(moved(x), y) - here).item(), rel=1e-8)


def test_condition_numbers_of_factors():
    net, (x, y) = model(), data()
    look = full(subject(net, (x, y)))
    a = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1)
    values = torch.linalg.eigvalsh(a.T @ a / 40)
    d = 1e-3 * values.mean()
    assert look.values["dynaxx/layer/0/input_condition"] == pytest.approx(float((values[-1] + d) / (values[0] + d)))
    assert math.isnan(condition(torch.zeros(2, 2)))


def test_loss_of_ones_own_and_no_labels():
    net, (x, y) = model(), data(20)
    assert "dynaxx/sharpness" not in full(subject(net, x)).values
    twice = full(subject(net, (x, y), loss=lambda z, t: 2 * nn.functional.cross_entropy(z, t)))
    once = full(subject(net, (x, y)))
    name = "dynaxx/hessian/top_eigenvalue"
    assert twice.values[name] == pytest.approx(2 * once.values[name], rel=1e-6)


def test_beyond_the_stated_memory_the_spectrum_is_sampled():
    net, batch = model(120), data()
    assert "dynaxx/spectrum" in standard(subject(net, batch)).arrays
    sampled = standard(subject(net, batch, memory=1000.0))
    assert "dynaxx/spectrum" not in sampled.arrays
    exact = standard(subject(net, batch)).values["dynaxx/effective_dimension"]
    found = sampled.values["dynaxx/effective_dimension"]
    assert abs(found - exact) < 5 * found.stderr + 1e-6 * exact
    # with 1 kB there is no room for Lanczos vectors either: the largest node stands for the top eigenvalue
    top = "dynaxx/top_eigenvalue"
    assert sampled.values[top] == pytest.approx(standard(subject(net, batch)).values[top], rel=1e-3)


def test_influences_need_rows_by_example():
    vectors = torch.eye(4)
    torch.testing.assert_close(influence.shares(vectors, 2), torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).double())
