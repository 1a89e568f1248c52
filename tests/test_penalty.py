"""The trace penalty: right value, and the right gradient, which a detached cotangent does not have."""

import pytest
import torch

import dynaxx
from architectures import CASES, load


def brute_force(model, x):
    """tr F as a function of the weights, by Jacobians with a graph."""
    parameters = list(model.parameters())
    total = 0.0
    for n in range(len(x)):
        z = model(x[n : n + 1])[0]
        p = z.softmax(0)
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, create_graph=True)]) for value in z
        ]
        J = torch.stack(rows)
        total = total + ((torch.diag(p) - p[:, None] * p) @ (J @ J.T)).trace()
    return total / len(x)


def flat_gradient(value, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


@pytest.mark.parametrize("factor", ["symmetric", "cholesky"])
@pytest.mark.parametrize("hidden", [True, False])
def test_value_and_gradient_are_unbiased(factor, hidden):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)] if hidden else [torch.nn.Linear(3, 3)]
    model = torch.nn.Sequential(*layers).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    wanted = brute_force(model, x)
    gradient = flat_gradient(wanted, model)
    values, gradients = [], []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        penalty = dynaxx.fisher_trace_penalty(model, x, factor=factor, generator=generator)
        values.append(float(penalty))
        gradients.append(flat_gradient(penalty, model))
    values, gradients = torch.tensor(values), torch.stack(gradients)
    assert abs(float(values.mean()) - float(wanted)) < 4 * float(values.std()) / 300**0.5
    error = gradients.std(0) / 300**0.5
    assert ((gradients.mean(0) - gradient).abs() <= 4.5 * error + 1e-12).all()
    # were u detached, the gradient of a linear model would vanish
    assert float(gradient.norm()) > 1e-3


@pytest.mark.parametrize("name", ["tied_language_model", "bernoulli", "poisson", "attention"])
def test_agrees_with_the_operator_in_the_mean(name):
    if name not in CASES:
        pytest.skip(f"no architecture named {name}")
    model, batch = load(name)
    kind = CASES[name].likelihood
    trace = dynaxx.fisher(model, batch, likelihood=kind).trace()
    values = torch.tensor(
        [
            float(
                dynaxx.fisher_trace_penalty(model, batch, likelihood=kind, generator=torch.Generator().manual_seed(s))
            )
            for s in range(200)
        ]
    )
    assert abs(float(values.mean()) - trace) < 4 * float(values.std()) / 200**0.5


def test_trains_in_training_mode_and_confident_models_do_not_break_it():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)
    )
    with torch.no_grad():
        model[3].bias[0] = 200.0
    (torch.nn.functional.cross_entropy(model(torch.randn(5, 3)), torch.zeros(5, dtype=torch.long))
     + dynaxx.fisher_trace_penalty(model, torch.randn(5, 3))).backward()  # fmt: skip
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_bad_options():
    model = torch.nn.Linear(2, 3)
    with pytest.raises(dynaxx.InputError, match="samples=0"):
        dynaxx.fisher_trace_penalty(model, torch.ones(2, 2), samples=0)
    with pytest.raises(dynaxx.InputError, match="'symmetric', 'householder', 'cholesky', 'eigen'"):
        dynaxx.fisher_trace_penalty(model, torch.ones(2, 2), factor="best")
