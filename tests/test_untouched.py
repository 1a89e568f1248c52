"""Whatever is called, and however it ends, the user's model and process are as they were."""

import random
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
from architectures import CASES

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
GLOBAL_HOOKS = tuple(
    name for name in vars(torch.nn.modules.module) if name.startswith("_global") and name.endswith("hooks")
)


def process_state():
    """Everything of the process that a curvature engine is tempted to change."""
    numbers: Any = numpy.random.get_state()  # noqa: NPY002  the global state is what is being watched
    return {
        "torch random state": torch.get_rng_state().tolist(),
        "python random state": random.getstate(),
        "numpy random state": (numbers[0], numbers[1].tolist(), numbers[2]),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "attention": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
        ),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "matmul precision": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "global hooks": {name: len(getattr(torch.nn.modules.module, name)) for name in GLOBAL_HOOKS},
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True),
    }


def module_state(model):
    """Per module: flags, attribute names, hooks, class. Per parameter and buffer: identity, storage, flags, values."""
    modules = {
        name: {
            "class": type(module),
            "training": module.training,
            "attributes": sorted(vars(module)),
            "hooks": {hook: list(getattr(module, hook).items()) for hook in HOOKS},
        }
        for name, module in model.named_modules(remove_duplicate=False)
    }
    tensors = {}
    for name, value in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        tensors[name] = {
            "identity": id(value),
            "storage": value.data_ptr(),
            "requires_grad": value.requires_grad,
            "is_leaf": value.is_leaf,
            "attributes": sorted(vars(value)),
            "hooks": len(value._backward_hooks or ()),
            "accumulation hooks": len(getattr(value, "_post_accumulate_grad_hooks", None) or ()),
            "version": value._version,
            "bits": value.detach().numpy().tobytes(),
            "grad": None if value.grad is None else (id(value.grad), value.grad.numpy().tobytes()),
        }
    return {"modules": modules, "tensors": tensors}


def prepared(name):
    """A model with gradients, a hook of the user's own and a frozen parameter, whose traces must all stay."""
    model, batch = CASES[name].build()
    values = list(model.parameters())
    for index, value in enumerate(values):
        if index % 2 == 0 and value.requires_grad:
            value.grad = torch.full_like(value, float(index))
    values[-1].requires_grad_(False)
    next(iter(model.children())).register_forward_hook(lambda module, args, out: None)
    return model, batch


def product(build, *args, **options):
    """Build an operator and multiply by it: implicit ones run the model only then."""
    operator = build(*args, **options)
    return operator @ torch.ones(operator.shape[0], dtype=torch.float64)


class Watch:
    """Fails on leaving unless model and process are as on entering."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        torch.manual_seed(17)
        self.before = module_state(self.model), process_state()
        return self

    def __exit__(self, *error):
        if error[0] is None:
            after = module_state(self.model), process_state()
            assert after[0]["modules"] == self.before[0]["modules"]
            assert after[0]["tensors"] == self.before[0]["tensors"]
            assert after[1] == self.before[1]


def test_the_watch_sees_changes():
    """The watch itself can fail: on a hook, a gradient, a buffer, the random state, a flag."""
    changes = (
        lambda model: model[0].register_forward_hook(lambda *_: None),
        lambda model: setattr(model[0].weight, "grad", torch.zeros_like(model[0].weight)),
        lambda model: model[0].weight.data.add_(1e-12),
        lambda model: model[0].weight.requires_grad_(False),
        lambda model: model.train(),
        lambda model: torch.rand(1),
        lambda model: setattr(model[2], "cache", 1),
        lambda model: random.random(),
    )
    for change in changes:
        model, _ = CASES["mlp"].build()
        with pytest.raises(AssertionError), Watch(model):
            change(model)


MODELS = (
    "mlp",
    "residual_batch_norm",
    "transformer_encoder",
    "tied_language_model",
    "gru",
    "in_place",
    "bare_parameters",
)
FORMS = ("implicit", "dense", "diagonal", "block", "kfac", "ekfac", "gram")


@pytest.mark.parametrize("estimator", ["exact", "empirical", "hutchinson", "monte_carlo"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_fisher(name, form, estimator):
    model, batch = prepared(name)
    with Watch(model):
        operator = dynaxx.fisher(model, batch, likelihood=CASES[name].likelihood, estimator=estimator, form=form)
        v = torch.ones(operator.shape[0], dtype=torch.float64)
        operator @ v
        operator.trace()
        operator.diagonal()


@pytest.mark.parametrize("estimator", ["lower", "upper"])
@pytest.mark.parametrize("form", ["implicit", "diagonal"])
def test_envelopes(form, estimator):
    model, batch = prepared("mlp")
    with Watch(model):
        operator = dynaxx.fisher(model, batch, estimator=estimator, form=form)
        operator @ torch.ones(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("form", ["implicit", "dense", "diagonal", "block"])
@pytest.mark.parametrize("name", ["mlp", "residual_batch_norm", "layer_norm_mlp"])
def test_hessian(name, form):
    model, batch = prepared(name)
    with Watch(model):
        operator = dynaxx.hessian(model, batch, functional.cross_entropy, form=form)
        operator @ torch.ones(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize(
    "verb", ["eigenvalues", "eigh", "solve", "logdet", "frobenius", "quadratic", "spectrum", "to_dense"]
)
def test_verbs_of_the_implicit_operator(verb):
    model, batch = prepared("mlp")
    v = torch.ones(40, dtype=torch.float64)
    arguments = {
        "eigenvalues": lambda f: f.eigenvalues(k=2),
        "eigh": lambda f: f.eigh(k=2),
        "solve": lambda f: f.solve(v, damping=0.1),
        "logdet": lambda f: f.logdet(damping=0.1),
        "quadratic": lambda f: f.quadratic(v),
    }
    with Watch(model):
        operator = dynaxx.fisher(model, batch, form="implicit")
        assert operator.shape == (40, 40)
        arguments.get(verb, lambda f: getattr(f, verb)())(operator)


@pytest.mark.parametrize("form", FORMS)
def test_flags_of_parameters_that_were_not_selected(form):
    """To leave a parameter out its flag may have to change for a while; afterwards it is what it was."""
    model, batch = prepared("mlp")
    with Watch(model):
        product(dynaxx.fisher, model, batch, form=form, params=["2.weight"])


@pytest.mark.parametrize("mode", [True, False])
def test_training_flags_stay_module_by_module(mode):
    """Without dropout or batch norm the mode changes nothing, and a model in train mode stays in it."""
    model, batch = prepared("mlp")
    model.train(mode)
    model[1].train(not mode)
    with Watch(model):
        dynaxx.fisher(model, batch, form="dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_dtype_stays(dtype):
    model, batch = prepared("mlp")
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with Watch(model):
            dynaxx.fisher(model, batch, estimator="hutchinson", form="diagonal")
    finally:
        torch.set_default_dtype(old)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_works_in_either_grad_mode(context):
    model, batch = prepared("mlp")
    with context(), Watch(model):
        operator = dynaxx.fisher(model, batch, form="implicit")
        assert float(operator.trace()) > 0
        assert not (operator @ torch.ones(operator.shape[0], dtype=torch.float64)).requires_grad


def test_backends_chosen_by_the_user_stay():
    model, batch = prepared("transformer_encoder")
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        for enabled in (True, False):
            torch.backends.mha.set_fastpath_enabled(enabled)
            torch.backends.cuda.enable_flash_sdp(enabled)
            with Watch(model):
                dynaxx.fisher(model, batch, form="implicit") @ torch.ones(1, 1, dtype=torch.float64).expand(
                    sum(value.numel() for value in model.parameters() if value.requires_grad), 1
                )
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        torch.backends.cuda.enable_flash_sdp(True)


# ---------------------------------------------------------------------------------------------------------------------
# When something fails on the way


class _Failing(nn.Module):
    """Runs ``calls`` times, then raises in the middle of its forward."""

    def __init__(self, calls):
        super().__init__()
        self.first, self.attend = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.budget = [calls]

    def forward(self, x):
        h = self.first(x)[:, None]
        h = self.attend(h, h, h)[0][:, 0]
        if self.budget[0] == 0:
            raise RuntimeError("the forward broke")
        self.budget[0] -= 1
        return self.last(self.norm(h))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_exception_in_the_forward(calls, form):
    torch.manual_seed(0)
    model = _Failing(calls).double().eval()
    x = [torch.randn(3, 4, dtype=torch.float64) for _ in range(4)]
    with Watch(model), pytest.raises(RuntimeError, match="the forward broke"):
        product(dynaxx.fisher, model, x, form=form)


@pytest.mark.parametrize("form", FORMS)
def test_exception_in_the_likelihood(form):
    model, (x, y) = prepared("residual_batch_norm")
    y = y.clone()
    y[-1] = 99
    with Watch(model), pytest.raises(dynaxx.InputError):
        product(dynaxx.fisher, model, [(x[:3], y[:3]), (x[3:], y[3:])], estimator="empirical", form=form)


def test_exception_in_a_likelihood_of_the_users_own():
    from dynaxx import likelihoods

    class Breaks(likelihoods.Categorical):
        def columns(self, *args, **options):
            raise ArithmeticError("the likelihood broke")

        metric = factor = apply = noise_size = columns  # whichever of them is asked first

    model, batch = prepared("residual_batch_norm")
    with Watch(model), pytest.raises(ArithmeticError, match="the likelihood broke"):
        dynaxx.fisher(model, batch, likelihood=Breaks(), form="dense")


def test_exception_in_the_loss():
    model, batch = prepared("mlp")

    def loss(z, y):
        raise ArithmeticError("the loss broke")

    with Watch(model), pytest.raises(ArithmeticError, match="the loss broke"):
        product(dynaxx.hessian, model, batch, loss)


def test_exception_in_the_data():
    model, (x, y) = prepared("mlp")

    class Broken:
        def __iter__(self):
            yield x[:3], y[:3]
            raise OSError("the disk broke")

    with Watch(model), pytest.raises(OSError, match="the disk broke"):
        dynaxx.fisher(model, Broken(), form="diagonal")


def test_data_are_not_written_to():
    model, (x, y) = prepared("in_place")
    before = x.clone(), y.clone()
    dynaxx.fisher(model, (x, y), form="dense")
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert not x.requires_grad
