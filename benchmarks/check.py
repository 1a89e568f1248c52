"""Is the timed answer right? Every cell of dynaxx is held against float64 brute force on a reduced batch before it is
timed; a peer's answers are held against the same, and a difference is recorded beside its figure.

The references use plain autograd in float64 and the formulas: Jacobians row by row, K-FAC factors by hooks, Fisher
products in forward mode, Hessian products by central differences of the gradient. Sampled quantities are compared for
the same random cotangents, which the references take from the estimator itself; that those have the right mean and
variance is what the project's tests check.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from ours import SAMPLED, fisher, vectors
from registry import CELLS, DAMPING, TOP
from torch import Tensor, nn
from workloads import Workload, make

from dynaxx import estimators, likelihoods
from dynaxx.model.network import Output

EXAMPLES = {"mlp": 4, "cnn": 4, "lm": 2}
POSITIONS = 16  # of the language model
TOLERANCE = {
    "hessian_product": 2e-3,
    **dict.fromkeys(("kfac_step", "kfac_step_10", "kfac_step_spaced", "kfac_step_drawn"), 2e-3),
    "top_eigenvalues": 1e-3,
}
SEEDS, PROBES = 8, 50
DEFAULT_TOLERANCE = 1e-4  # relative; float32 against float64


def reduced(name: str, device: str = "cpu") -> Workload:
    """The workload on a few examples."""
    return make(name, device).part(EXAMPLES[name], POSITIONS)


def flat(gradients: Any) -> Tensor:
    """One vector from one tensor per parameter."""
    return torch.cat([g.flatten() for g in gradients])


def metric(z: Tensor, v: Tensor) -> Tensor:
    """I(z) v of the categorical likelihood along the last axis: p * v - p (p . v)."""
    p = z.softmax(-1)
    return p * (v - (p * v).sum(-1, keepdim=True))


def columns(z: Tensor) -> Tensor:
    """sqrt(p_c) (e_c - p) for all c, (C, ..., C): their outer products add up to I(z)."""
    p = z.softmax(-1)
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    every = p.sqrt()[..., None] * (eye - p[..., None, :])  # (..., c, C)
    return every.movedim(-2, 0)


def drawn(z: Tensor) -> Tensor:
    """The cotangents (1, N, ..., C) that dynaxx draws for these outputs with its default seed."""
    count, keys = len(z), torch.arange(len(z), device=z.device)
    chosen = estimators.resolve(SAMPLED, likelihoods.resolve("categorical"))
    output = Output(z.reshape(count, -1, z.shape[-1]), None, None)
    return chosen.cotangents(output, keys, 0, 1).reshape(1, *z.shape)


def observed(w: Workload) -> Tensor:
    """p - e_y for the observed labels, (1, N, ..., C)."""
    p = output(w).softmax(-1)
    return (p - nn.functional.one_hot(w.y, p.shape[-1]))[None]


def rows(w: Workload, cotangents: Tensor) -> Tensor:
    """Per-example gradients (K N, p), each by its own forward and backward pass."""
    found = []
    for n in range(w.count):
        z = w.model(w.x[n : n + 1])
        found += [flat(torch.autograd.grad(z, list(w.model.parameters()), u[n : n + 1], retain_graph=True))
                  for u in cotangents]  # fmt: skip
    return torch.stack(found)


def output(w: Workload) -> Tensor:
    with torch.no_grad():
        return w.model(w.x)


def diagonal(w: Workload, cotangents: Tensor) -> Tensor:
    return rows(w, cotangents).square().sum(0) / w.count


def eigenvalues(w: Workload) -> Tensor:
    """Of (1/N) G G^T, descending."""
    G = rows(w, columns(output(w)))
    return torch.linalg.eigvalsh(G @ G.T / w.count).flip(0)


def fisher_product(w: Workload) -> Tensor:
    """J^T I J v / N with J v in forward mode."""
    names = [name for name, _ in w.model.named_parameters()]
    values = tuple(parameter.detach() for parameter in w.model.parameters())
    v, start = [], 0
    for value in values:
        v.append(vectors(w)[0][start : start + value.numel()].reshape(value.shape))
        start += value.numel()

    def forward(*given: Tensor) -> Tensor:
        return torch.func.functional_call(w.model, dict(zip(names, given, strict=True)), (w.x,))

    z, jv = torch.func.jvp(forward, values, tuple(v))[:2]
    pull = torch.func.vjp(forward, *values)[1]
    return flat(pull(metric(z, jv))) / w.count


def hessian_product(w: Workload) -> Tensor:
    """(g(w + e v) - g(w - e v)) / 2e, with e |v| = 1e-6.

    Larger steps cross kinks of the ReLUs, where the gradient jumps: 1e-4 does in the CNN, and between 1e-5 and 1e-8 the
    answer is the same to 1e-7.
    """
    v, parameters = vectors(w)[0], list(w.model.parameters())
    start = nn.utils.parameters_to_vector(parameters).detach()
    step = 1e-6 / float(v.norm())
    slopes = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * step * v, parameters)
        loss = w.loss(w.model(w.x).flatten(0, -2), w.y.flatten())
        slopes.append(flat(torch.autograd.grad(loss, parameters)))
    nn.utils.vector_to_parameters(start, parameters)
    return (slopes[0] - slopes[1]) / (2 * step)


def patches(layer: nn.Module, a: Tensor) -> Tensor:
    """What the weight multiplies, (N, T, I + 1): patches of a convolution, features of a linear layer, and a 1."""
    if isinstance(layer, nn.Conv2d):
        a = nn.functional.unfold(a, layer.kernel_size, padding=layer.padding, stride=layer.stride).transpose(1, 2)  # type: ignore[arg-type]
    else:
        a = a.reshape(len(a), -1, a.shape[-1])
    return torch.cat([a, torch.ones_like(a[..., :1])], -1)


def factors(w: Workload, cotangents: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """K-FAC expand: A = 1/N sum_nt a a^T, G = 1/(N T) sum_nt sum_k g g^T."""
    layers = {name: m for name, m in w.model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args[0].detach(), out)}))
        for name, layer in layers.items()
    ]
    z = w.model(w.x)
    for handle in handles:
        handle.remove()
    outs = [seen[name][1] for name in layers]
    left = {name: torch.zeros((), dtype=z.dtype, device=z.device) for name in layers}
    for u in cotangents:
        for (name, layer), g in zip(layers.items(), torch.autograd.grad(z, outs, u, retain_graph=True), strict=True):
            g = g.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else g.reshape(len(g), -1, g.shape[-1])
            left[name] = left[name] + torch.einsum("nto,ntp->op", g, g) / (g.shape[0] * g.shape[1])
    right = {name: patches(layer, seen[name][0]) for name, layer in layers.items()}
    return {f"{name}.weight": (torch.einsum("nti,ntj->ij", a, a) / w.count, left[name]) for name, a in right.items()}


def kfac_step(w: Workload, u: Tensor) -> Tensor:
    """(G + sqrt(damping)/pi)^{-1} M (A + pi sqrt(damping))^{-1} of each layer's gradient M, pi^2 the ratio of the mean
    eigenvalues of A and G; other parameters by dense blocks up to 1024 entries and the diagonal beyond, as dynaxx
    documents it."""
    loss = w.loss(w.model(w.x).flatten(0, -2), w.y.flatten())
    named = dict(w.model.named_parameters())
    slopes = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    answer = {}
    for name, (A, G) in factors(w, u).items():
        bias = name.removesuffix("weight") + "bias"
        root, pi = DAMPING**0.5, float(A.diagonal().mean() / G.diagonal().mean()) ** 0.5
        A, G = A + pi * root * torch.eye(len(A), dtype=A.dtype), G + root / pi * torch.eye(len(G), dtype=G.dtype)
        M = torch.cat([slopes[name].flatten(1), slopes[bias][:, None]], 1)
        M = torch.linalg.solve(A, torch.linalg.solve(G, M).T).T
        answer[name], answer[bias] = M[:, :-1].reshape(slopes[name].shape), M[:, -1]
    rest = [name for name in named if name not in answer]
    if rest:
        every, start = rows(w, u), 0
        for name, value in named.items():
            part, start = every[:, start : start + value.numel()], start + value.numel()
            if name in rest and value.numel() <= 1024:
                block = part.T @ part / w.count + DAMPING * torch.eye(value.numel(), dtype=part.dtype)
                answer[name] = torch.linalg.solve(block, slopes[name].flatten()).reshape(value.shape)
            elif name in rest:
                answer[name] = slopes[name] / (part.square().sum(0).reshape(value.shape) / w.count + DAMPING)
    return flat([answer[name] for name in named])


def spectrum(w: Workload) -> Tensor:
    return eigenvalues(w)


REFERENCES: dict[str, Callable[[Workload], Any]] = {
    "diagonal_sampled": lambda w: diagonal(w, drawn(output(w))),
    "diagonal_exact": lambda w: diagonal(w, columns(output(w))),
    "kfac_sampled": lambda w: factors(w, drawn(output(w))),
    "kfac_exact": lambda w: factors(w, columns(output(w))),
    "fisher_product": fisher_product,
    "hessian_product": hessian_product,
    "trace": lambda w: float(rows(w, drawn(output(w))).square().sum() / w.count),
    "top_eigenvalues": lambda w: eigenvalues(w)[:TOP],
    "spectrum": spectrum,
    "kfac_step": lambda w: kfac_step(w, observed(w)),
    "kfac_step_10": lambda w: kfac_step(w, observed(w)),
    "kfac_step_spaced": lambda w: kfac_step(w, observed(w)),
    "kfac_step_drawn": lambda w: kfac_step(w, drawn(output(w))),
}


def difference(found: Any, wanted: Any) -> float:
    """Relative difference in norm, the largest over layers where there are layers; compared in float64."""
    if isinstance(wanted, dict):
        if set(found) != set(wanted):
            raise ValueError(f"layers {sorted(found)} were answered, {sorted(wanted)} expected")
        return max(difference(f, w) for key in wanted for f, w in zip(found[key], wanted[key], strict=True))
    found, wanted = (torch.as_tensor(value, dtype=torch.float64).cpu() for value in (found, wanted))
    if found.dim() == 1 and found.shape != wanted.shape:  # spectra: what one side lacks is zero
        size = max(len(found), len(wanted))
        found, wanted = (nn.functional.pad(values, (0, size - len(values))) for values in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


def accuracy(w: Workload) -> dict[str, float]:
    """Relative standard deviation of the sampled trace, from SEEDS seeds, and that of a mean of 50 probes over
    parameters, from SEEDS single probes. The row of the trace is fair only if the first is no larger than the second.
    """
    traces = [float(fisher(w, estimator=SAMPLED, seed=seed).trace()) for seed in range(SEEDS)]
    F = fisher(w)
    probes = [float(F.quadratic(vector.sign())) for vector in vectors(w)[:SEEDS]]
    ours, theirs = (statistics.stdev(values) / statistics.mean(values) for values in (traces, probes))
    return {"sampled": ours, "probes": theirs / PROBES**0.5}


def check(quantity: str, library: str, workload: str, device: str = "cpu") -> dict[str, float] | None:
    """Run one cell on the reduced batch and hold it against float64.

    Returns:
        The relative difference and the tolerance, or None where the cell gives nothing that can be compared.
    """
    w = reduced(workload, device)
    wanted = REFERENCES[quantity](w.double())
    prepared = CELLS[quantity, library](w)
    if prepared.answer is None:
        return None
    found = difference(prepared.answer(prepared.run()), wanted)
    record = {"difference": found, "tolerance": TOLERANCE.get(quantity, DEFAULT_TOLERANCE)}
    return record | accuracy(make(workload, device)) if (quantity, library) == ("trace", "dynaxx") else record
