"""The whole spectrum on the probe, and how sure its numbers are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynaxx.fisher import fisher
from dynaxx.model.data import Data
from dynaxx.monitor import influence
from dynaxx.monitor.economy import joined
from dynaxx.monitor.look import Look
from dynaxx.monitor.snapshot import evaluating, spectral, spectrum_of, top_of, trace_of
from dynaxx.monitor.subject import Subject, diagonal_summary, layers, of_outputs, shares
from dynaxx.operators.gram import Gram
from dynaxx.spectrum import SampledSpectrum, Spectrum


def standard(subject: Subject) -> Look:
    """The exact spectrum of F on the probe through its Gram matrix, with standard errors over the probe's examples.

        dynaxx/effective_rank = exp(-sum q ln q),    dynaxx/effective_dimension = sum N l / (N l + d),
        dynaxx/posterior_entropy = -1/2 sum ln(1 + N l / d),    dynaxx/participation_ratio = T^2 / sum l^2

    Effective rank and dimension grow with the number of examples until that exceeds what the model can resolve: compare
    them between looks on one probe, as the probe's digest says.

    Args:
        subject: model and probe.

    Returns:
        A Look with the names above, ``dynaxx/trace``, ``dynaxx/top_eigenvalue``, ``dynaxx/predictive_entropy``,
        ``dynaxx/probe_loss`` (with labels), ``dynaxx/layer/<name>/trace`` and ``.../share``, ``dynaxx/diagonal/...``,
        ``dynaxx/spectrum_floor`` and the array ``dynaxx/spectrum``. Where the Gram matrix would have more than 4096
        rows or not fit, numbers are sampled (their standard errors are then the sampling's) and there are no layers.

    Raises:
        InputError: as for ``dynaxx.fisher``.

    Cost: a sweep with all columns of the metric's root, inner products of all pairs of per-example gradients (for
        convolutions 2 p M^2 flops for M rows), one symmetric eigenproblem of order M in float64.

    Source: Roy & Vetterli 2007; MacKay 1992; errors in ``dynaxx.monitor.influence``.
    """
    with evaluating(subject.model):
        implicit = fisher(subject.model, subject.probe.batch, form="implicit", **subject.options)
        operator = spectral(implicit, subject.memory)
        network = subject.network()
        with network.guarded(), torch.no_grad():
            batches = Data(subject.probe.batch, network.device)
            outputs = [of_outputs(network.likelihood, network(batch)) for batch in batches]
        look = Look.of_means(joined(outputs))
        prior = {"prior_precision": subject.prior_precision, "count": subject.count or subject.probe.count}
        if isinstance(operator, Gram):
            return look.joined(_exact(operator, subject, prior), _layers(operator, subject, layers(network)))
        spectrum = spectrum_of(operator, subject.memory)
        trace = trace_of(operator, spectrum, subject.model, subject.probe.batch, subject.options)
        top = {"dynaxx/trace": trace, "dynaxx/top_eigenvalue": top_of(operator, spectrum, subject.memory)}
    return look.joined(Look(top | numbers(spectrum, prior)))


def numbers(spectrum: Spectrum | SampledSpectrum, prior: dict[str, Any]) -> dict[str, float]:
    """What a spectrum says, by metric name."""
    return {
        "dynaxx/effective_rank": spectrum.effective_rank(),
        "dynaxx/participation_ratio": spectrum.participation_ratio(),
        "dynaxx/effective_dimension": spectrum.effective_dimension(**prior),
        "dynaxx/posterior_entropy": spectrum.posterior_entropy(**prior),
        "dynaxx/spectrum_floor": spectrum.floor,
    }


def slopes(information: float) -> dict[str, influence.Slopes]:
    """The derivatives of these numbers by the eigenvalues; N / d = ``information``."""
    return {
        "dynaxx/trace": influence.trace,
        "dynaxx/top_eigenvalue": influence.top_eigenvalue,
        "dynaxx/effective_rank": influence.effective_rank,
        "dynaxx/participation_ratio": influence.participation_ratio,
        "dynaxx/effective_dimension": influence.effective_dimension(information),
        "dynaxx/posterior_entropy": influence.posterior_entropy(information),
    }


def _exact(gram: Gram, subject: Subject, prior: dict[str, Any]) -> Look:
    eigenvalues, vectors = gram._decomposition  # first, so that the spectrum below reads it
    spectrum = gram.spectrum()
    kept = eigenvalues > spectrum.floor
    l = eigenvalues[kept].cpu()
    s = influence.shares(vectors[:, kept], gram.count).cpu()
    top: Tensor = spectrum.eigenvalues[:1]
    values = numbers(spectrum, prior) | {
        "dynaxx/trace": float(spectrum.trace()),
        "dynaxx/top_eigenvalue": float(top.sum()),
    }
    found = {name: influence.influences(l, s, slope) for name, slope in slopes(subject.information).items() if len(l)}
    return Look.of_influences(values, found).joined(Look({}, {}, {"dynaxx/spectrum": spectrum.eigenvalues.numpy()}))


def _layers(gram: Gram, subject: Subject, names: dict[str, tuple[str, ...]]) -> Look:
    diagonal = gram.diagonal()
    pieces = gram.unravel(diagonal)
    traces = torch.stack([sum((pieces[n].double().sum() for n in group), torch.zeros(())) for group in names.values()])
    by_layer = dict(zip(names, traces.tolist(), strict=True))
    return Look(shares(by_layer) | diagonal_summary(diagonal, subject.information))
