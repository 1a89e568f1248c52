"""``dynaxx.fisher``: likelihood x estimator x form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from dynaxx import estimators, likelihoods
from dynaxx.assembly.entries import BlockCollector, DenseCollector, DiagonalCollector
from dynaxx.assembly.gradient import LossGradient
from dynaxx.assembly.gram import GramCollector, require_gram
from dynaxx.assembly.kronecker import EigenvalueCollector, KroneckerCollector
from dynaxx.assembly.pullback import Pullback
from dynaxx.assembly.spread import diagonal_stderr
from dynaxx.assembly.sweep import Collector, Sweeper
from dynaxx.errors import InputError, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.data import Data
from dynaxx.model.network import Network, Predict
from dynaxx.model.selection import Selector
from dynaxx.operators.base import Operator, Sampling
from dynaxx.operators.block import BlockDiagonal
from dynaxx.operators.diagonal import Diagonal
from dynaxx.operators.gram import Gram
from dynaxx.operators.implicit import Implicit

FORMS = ("implicit", "dense", "diagonal", "block", "kfac", "ekfac", "gram")
SEVERAL_PASSES = {"implicit", "gram", "ekfac"}


@torch.inference_mode(False)  # a caller under inference_mode would get sums that cannot be added to
def fisher(
    model: nn.Module,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    estimator: str = "exact",
    form: str | Sequence[str] = "implicit",
    params: Selector = None,
    samples: int = 1,
    seed: int = 0,
    predict: Predict | None = None,
    progress: bool = False,
    sharing: str = "expand",
    factor: str = "symmetric",
    probes: str = "rademacher",
    group: str | int = "example",
    rank: int | None = None,
    method: str | None = None,
    head: str = "sampled",
    gradient: bool = False,
) -> Any:
    """The Fisher information matrix of a model on data, as an operator.

        F = (1/N) sum_n  J_n^T I(z_n) J_n,      J_n = dz_n/dw,   I(z) = Cov_{y ~ p(.|z)}[d log p(y|z)/dz]

    F is the mean over examples of the per-example Fisher, whatever the batch size, the order or the reduction of
    anybody's loss; for sequences an example's Fisher is the sum over its unmasked positions. KL(w || w + e d) = e^2/2
    d^T F d + O(e^3), in nats.

    Args:
        model: any module in evaluation mode. It is left as it was found, also after an error.
        data: a batch (tensor, tuple (x, y), dict) or an iterable of batches, such as a DataLoader. Labels are needed by
            estimator="empirical" alone; elsewhere -100 in them masks positions. A batch (x, y, weights), or
            "sample_weight" in a dict, weighs examples (N,) or positions (N, P); F stays the mean over N.
        likelihood: "categorical", "bernoulli", "gaussian", "poisson", or a Likelihood object such as
            ``Gaussian(variance=0.1)``.
        estimator: "exact"; "hutchinson" (random signs, one reverse pass per sample); "monte_carlo" (sampled labels);
            "empirical" (observed labels: not the Fisher information, see Kunstner et al. 2019); "lower", "upper"
            (bounds in the Loewner order).
        form: "implicit" (products), "dense", "diagonal", "block" (per module), "kfac", "ekfac", "gram" (exact non-zero
            spectrum); a tuple of forms shares one sweep over the data and returns a tuple.
        params: None (all that require grad), names, a predicate (name, parameter) -> bool, or a list of parameters.
        samples: draws per example of a random estimator.
        seed: keys the draws together with the example's index in the data, so that batching changes nothing.
        predict: predict(model, batch) -> outputs, where the model cannot simply be called with the batch.
        progress: show a progress bar.
        sharing: "expand" or "reduce", for K-FAC where a weight is shared over positions.
        factor: what Hutchinson signs multiply: a square root of the metric ("symmetric", "householder", "cholesky",
            "eigen"), or a bound of it ("lower", "upper": one random draw of the bound instead of all its columns).
        probes: "rademacher", or "hadamard" for an example's samples to be orthogonal.
        group: whose gradients are summed before they are squared, for "hutchinson" and "monte_carlo": "example"; a
            number of consecutive examples of a batch; "batch", which is one ordinary backward pass and has a relative
            error near sqrt 2 whatever the batch size.
        rank, method: of the envelope for "lower" and "upper", as in ``Likelihood.lower`` and ``Likelihood.upper``.
        head: "exact" takes the diagonal of the layer that makes the logits in closed form, one product whatever the
            number of classes, where form="diagonal" would sample it; tied embeddings are handled. "sampled" keeps one
            estimator throughout, so that all forms of one seed are forms of one matrix.
        gradient: answer (F, g) with g, name -> tensor, the gradient of the mean over examples of -log p(y|x, w) from
            the same forward pass, and with "empirical" the same reverse pass, so that ``F.solve(g, damping=...)`` is
            the natural gradient. Needs labels, and a form beside "implicit", which makes its passes later.

    Returns:
        An Operator, or a tuple of them; a pair with the gradient if that is wanted. See its verbs: ``F @ v``,
        ``solve``, ``eigh``, ``trace``, ``spectrum``, ...

    Raises:
        InputError: anything about model, data or options that would make the answer wrong. SizeError: a form that
            would not fit.

    Cost, in forward and reverse passes to layer outputs: exact needs C - 1 reverse passes for C classes (times the
        positions of a sequence),
    the random estimators ``samples``, empirical one. No parameter gradient is formed but where a form needs it.

    Source: Amari 1998; Martens 2020 (exact Fisher of exponential families = Gauss-Newton); Sun 2025 (Hutchinson's
        cotangents).

    >>> import torch, dynaxx
    >>> F = dynaxx.fisher(torch.nn.Linear(2, 3).double(), torch.randn(5, 2).double(), form="diagonal")
    >>> F.shape, F.count, len(F.diagonal())
    ((9, 9), 5, 9)
    """
    forms = tuple(form) if isinstance(form, (tuple, list)) else (form,)
    for name in forms:
        choose("form", name, FORMS)
    if not forms:
        raise InputError(f"form={form!r} names no form; choose from {', '.join(map(repr, FORMS))}")
    meaning = likelihoods.resolve(likelihood)
    chosen = estimators.resolve(
        estimator,
        meaning,
        samples=samples,
        seed=seed,
        factor=factor,
        probes=probes,
        group=group,
        rank=rank,
        method=method,
    )
    if chosen.group != 1 and {"gram", "kfac", "ekfac"} & set(forms):
        raise InputError(f"group={group!r} is defined for the forms implicit, dense, diagonal and block; got {form!r}")
    choose("head", head, ("sampled", "exact"))
    if head == "exact" and not (chosen.samples_metric and forms == ("diagonal",)):
        raise InputError(
            f"head='exact' belongs to form='diagonal' with estimator 'hutchinson' or 'monte_carlo'; got form={form!r}, "
            f"estimator={estimator!r}"
        )
    network = Network(model, meaning, params, predict)
    stream = Data(data, network.device)
    if SEVERAL_PASSES & set(forms):
        stream.require_repeatable()
    sweeper = Sweeper(network, stream, chosen, progress)

    made: dict[str, Operator] = {}
    collectors: dict[str, Collector] = {}
    source: Pullback | None = None
    if {"implicit", "gram"} & set(forms):
        source = Pullback(sweeper)
        count, columns = source.count()
        if "gram" in forms:
            require_gram(count * columns)
            collectors["gram"] = GramCollector(network.layout, source, sweeper.estimator.number)
        if "implicit" in forms:
            made["implicit"] = _implicit(sweeper, source, count, columns)
    if "diagonal" in forms:
        collectors["diagonal"] = DiagonalCollector(network.layout, head=head == "exact")
    if "dense" in forms:
        collectors["dense"] = DenseCollector(network.layout)
    if "block" in forms:
        collectors["block"] = BlockCollector(network.layout, module_groups(network))
    if {"kfac", "ekfac"} & set(forms):
        collectors["kfac"] = KroneckerCollector(network.layout, sharing)
    if gradient and not collectors:
        raise InputError(
            f"gradient=True shares the forward pass of a form that makes one at once, and form={form!r} does not; add "
            f"another form, or take torch.autograd.grad"
        )
    slopes = LossGradient(network, chosen) if gradient else None
    if collectors:
        made |= dict(zip(collectors, sweeper.run(list(collectors.values()), [slopes] if slopes else []), strict=True))
    sampled = made.get("diagonal")
    if isinstance(sampled, Diagonal) and chosen.samples:
        sampled.stderr = partial(diagonal_stderr, sweeper, head=head == "exact")
    if "ekfac" in forms:
        factors = collectors["kfac"]
        kfac = made["kfac"]
        assert isinstance(factors, KroneckerCollector)
        assert isinstance(kfac, BlockDiagonal)
        (made["ekfac"],) = sweeper.run([EigenvalueCollector(kfac, factors.factors or {})])
    answer: Any = made[form] if isinstance(form, str) else tuple(made[name] for name in forms)
    return answer if slopes is None else (answer, slopes.finish(made[forms[0]].count))


def _implicit(sweeper: Sweeper, source: Pullback, count: int, columns: int) -> Implicit:
    layout, samples = sweeper.network.layout, sweeper.estimator.samples

    def entries() -> Operator:
        return sweeper.run([DiagonalCollector(layout)])[0]

    def gram() -> Gram:
        (operator,) = sweeper.run([GramCollector(layout, source, sweeper.estimator.number)])
        assert isinstance(operator, Gram)
        return operator

    sampling = Sampling(samples, float("nan")) if samples else None
    return Implicit(source, layout, count, sampling, entries, gram, count * columns)


def module_groups(network: Network) -> list[tuple[str, ...]]:
    """Selected names grouped by the layer that owns them; shared parameters, and bare ones of modules with parts,
    stand alone."""
    aliases = Counter(id(parameter) for _, parameter in network.model.named_parameters(remove_duplicate=False))
    leaves = {name for name, module in network.model.named_modules() if not any(True for _ in module.children())}
    groups: dict[str, list[str]] = {}
    for name, parameter in network.parameters.items():
        owner = name.rpartition(".")[0]
        owner = owner if owner in leaves and aliases[id(parameter)] == 1 else name
        groups.setdefault(owner, []).append(name)
    return [tuple(names) for names in groups.values()]
