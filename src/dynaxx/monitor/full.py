"""What needs the Hessian, Kronecker factors and the Jacobian by itself, beside the standard look."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dynaxx.errors import InputError
from dynaxx.fisher import fisher
from dynaxx.hessian import hessian
from dynaxx.likelihoods import Categorical, Gaussian
from dynaxx.model.data import IGNORE_INDEX, Batch, Data, tensors
from dynaxx.model.network import _shifts
from dynaxx.monitor.look import Look
from dynaxx.monitor.sharpness import sharpness
from dynaxx.monitor.snapshot import evaluating, spectral, spectrum_of, top_of, trace_of
from dynaxx.monitor.standard import standard
from dynaxx.monitor.subject import Subject, layers
from dynaxx.operators.base import Operator
from dynaxx.operators.block import BlockDiagonal
from dynaxx.operators.kronecker import Kronecker

GAP_PROBES = 4
TOLERANCE = 1e-4  # of the eigenvalues, relative; float32 products of a deep network cannot meet much less
DAMPING = 1e-3  # of a factor's mean eigenvalue: undamped, condition numbers of trained layers are rounding


def full(subject: Subject) -> Look:
    """The standard look, and what needs more than F on the probe.

        dynaxx/hessian/top_eigenvalue            l_1(H) of the probe's mean loss
        dynaxx/hessian/preconditioned            l_1(P^-1/2 H P^-1/2), where an optimizer of Adam's kind is attached
        dynaxx/hessian/gap                       |H - F|_F / |F|_F; 0 where H is the Gauss-Newton matrix
        dynaxx/sharpness, adaptive_sharpness     max of L(w + e) - L(w) to first order, |e| <= 0.05; |e / |w|| <= 0.5
        dynaxx/logit_ntk/...                     trace, top eigenvalue and effective rank of J J^T / n
        dynaxx/layer/<name>/input_condition      l_max / l_min of the K-FAC factor of the inputs, damped by a thousandth
        dynaxx/layer/<name>/gradient_condition   of its mean eigenvalue; and of the factor of the cotangents

    Args:
        subject: model and probe; what concerns the loss needs labels in the probe, or ``loss``.

    Returns:
        The Look of ``standard`` with these.

    Raises:
        InputError: as for ``dynaxx.fisher`` and ``dynaxx.hessian``; a causal language model of the Transformers library
            without ``loss``, because its labels stand one position off.

    Cost: beside the standard look about 40 to 100 Hessian products, a second Gram matrix with C rows per example, one
        sampled K-FAC sweep, three gradients.

    Source: Cohen et al. 2021 (sharpness and step size), Foret et al. 2021 and Kwon et al. 2021 (the two sharpnesses).
    """
    look = standard(subject)
    with evaluating(subject.model):
        found = conditions(subject) | logit_ntk(subject)
        if any(True for _ in labelled(subject)):
            found |= curvature(subject) | sharpness(subject.network(), list(labelled(subject)), loss_of(subject))
    return look.joined(Look(found))


def labelled(subject: Subject) -> Iterator[Batch]:
    """The probe's batches, if they have labels."""
    for batch in Data(subject.probe.batch, subject.network().device):
        if batch.targets is not None:
            yield batch


def loss_of(subject: Subject) -> Any:
    """The user's loss, or -log p(y|z) per example."""
    if subject.loss is not None:
        return subject.loss
    if _shifts(subject.model):
        raise InputError(
            f"{type(subject.model).__name__} predicts the next token, so its labels stand one position off; give "
            "Monitor(..., loss=lambda logits, labels: ...) with the shift in it"
        )
    likelihood = subject.likelihood

    def loss(output: Any, targets: Tensor) -> Tensor:
        z = getattr(output, "logits", output)
        if not isinstance(likelihood, Categorical):
            targets = targets.reshape(*targets.shape, *[1] * (z.dim() - targets.dim()))
            return -likelihood.log_prob(z, targets).reshape(len(z), -1).sum(1)
        ignored = targets == IGNORE_INDEX
        each = -likelihood.log_prob(z, targets.masked_fill(ignored, 0)).masked_fill(ignored, 0.0)
        return each.reshape(len(z), -1).sum(1)

    return loss


def curvature(subject: Subject) -> dict[str, float]:
    """The Hessian's top eigenvalue, plain and preconditioned, and its distance from F."""
    probe, options = subject.probe, {"params": subject.params, "predict": subject.probe.predict}
    H = hessian(subject.model, probe.batch, loss_of(subject), **options)
    F = fisher(subject.model, probe.batch, form="implicit", **subject.options)
    out = {"dynaxx/hessian/top_eigenvalue": float(H.eigenvalues(1, tolerance=TOLERANCE)[0])}
    diagonal = subject.preconditioner() if subject.preconditioner is not None else None
    if diagonal is not None and set(diagonal) >= set(H.names):
        out["dynaxx/hessian/preconditioned"] = float(Preconditioned(H, diagonal).eigenvalues(1, tolerance=TOLERANCE)[0])
    generator = torch.Generator().manual_seed(probe.seed)
    apart = alone = 0.0
    for _ in range(GAP_PROBES):
        v = torch.randn(H.shape[0], generator=generator).to(H.device, H.dtype)
        Fv = F @ v
        apart += float((H @ v - Fv).double().square().sum())
        alone += float(Fv.double().square().sum())
    out["dynaxx/hessian/gap"] = math.sqrt(apart / alone) if alone > 0 else math.nan
    return out


class Preconditioned(Operator):
    """P^-1/2 H P^-1/2, which has the eigenvalues of P^-1 H and is symmetric."""

    form = "preconditioned"

    def __init__(self, operator: Operator, diagonal: dict[str, Tensor]) -> None:
        super().__init__(operator.layout, operator.count, definite=False)
        self.operator = operator
        kept = {name: diagonal[name] for name in operator.names}
        self._scale = operator.ravel(kept).to(operator.dtype).rsqrt()[:, None]

    def product(self, vectors: Tensor) -> Tensor:
        """Scale, multiply, scale."""
        return self._scale * self.operator.product(self._scale * vectors)


def conditions(subject: Subject) -> dict[str, float]:
    """Condition numbers of each layer's Kronecker factors."""
    F: BlockDiagonal = fisher(
        subject.model, subject.probe.batch, form="kfac", estimator="hutchinson", **subject.options
    )
    owners = {name: layer for layer, names in layers(subject.network()).items() for name in names}
    out = {}
    for part in F.parts:
        if isinstance(part, Kronecker):
            layer = owners[part.names[0]]
            out[f"dynaxx/layer/{layer}/input_condition"] = condition(part.right)
            out[f"dynaxx/layer/{layer}/gradient_condition"] = condition(part.left)
    return out


def condition(factor: Tensor) -> float:
    """(l_max + d) / (l_min + d) with d a thousandth of the mean eigenvalue; at most 1 + 1000 n for order n.

    >>> condition(torch.eye(3)), round(condition(torch.diag(torch.tensor([1.0, 0.0]))))
    (1.0, 2001)
    """
    values = torch.linalg.eigvalsh(factor.detach().double()).clamp(min=0)
    damping = DAMPING * float(values.mean())
    return float((values[-1] + damping) / (values[0] + damping)) if damping > 0 else math.nan


def logit_ntk(subject: Subject) -> dict[str, float]:
    """The spectrum of J J^T / n: F without the metric of the outputs, so that confidence does not enter it."""
    options = {**subject.options, "likelihood": Gaussian(variance=1.0)}
    batch = inputs_only(subject)
    operator = spectral(fisher(subject.model, batch, form="implicit", **options), subject.memory)
    spectrum = spectrum_of(operator)
    return {
        "dynaxx/logit_ntk/trace": trace_of(operator, spectrum, subject.model, batch, options),
        "dynaxx/logit_ntk/top_eigenvalue": top_of(operator, spectrum, subject.memory),
        "dynaxx/logit_ntk/effective_rank": spectrum.effective_rank(),
    }


def inputs_only(subject: Subject) -> Any:
    """The probe without labels, which a Gaussian would not take; what ``predict`` reads stays."""
    if subject.probe.predict is not None:
        return subject.probe.batch
    stripped: list[Any] = []
    for batch in Data(subject.probe.batch, torch.device("cpu")):
        raw = batch.raw
        if isinstance(raw, dict):
            stripped.append({key: value for key, value in raw.items() if key not in ("labels", "label")})
        else:
            stripped.append((raw[0],) if isinstance(raw, (tuple, list)) else raw)
        assert next(tensors(stripped[-1]), None) is not None
    return stripped[0] if len(stripped) == 1 else stripped
