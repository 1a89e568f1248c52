"""One model's geometry as a document."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from dynaxx import likelihoods
from dynaxx.errors import InputError
from dynaxx.fisher import fisher
from dynaxx.model.reading import gather
from dynaxx.monitor.snapshot import Probe, predictive_entropy
from dynaxx.operators.implicit import GRAM_ROWS
from dynaxx.report import Document, Eigenvalues, Note, Section, Spectra, Table
from dynaxx.spectrum import Spectrum
from dynaxx.version import __version__

THRESHOLD = 1e-2


def document(
    model: nn.Module,
    data: Any,
    *,
    name: str,
    likelihood: str,
    estimator: str,
    examples: int,
    prior_precision: float,
    top: int,
    seed: int,
) -> Document:
    """Everything ``dynaxx inspect`` shows of a model in evaluation mode.

    Args:
        model, data, likelihood, estimator, seed: as for ``dynaxx.fisher``; the first ``examples`` examples are looked
            at.
        prior_precision: d > 0 of the Gaussian prior; N is the number of examples looked at.
        top: how many eigenvalues to list.

    Raises:
        InputError: as for ``dynaxx.fisher``, or a number out of range.
    """
    if examples < 1 or top < 1:
        raise InputError(f"--examples {examples}, --top {top}; both must be at least 1")
    start = time.perf_counter()
    meaning = likelihoods.resolve(likelihood)
    probe = Probe(f"first {examples}", gather(data, examples, seed), meaning, seed)
    options: dict[str, Any] = {"likelihood": meaning, "estimator": estimator, "seed": seed}
    operator = fisher(model, probe.batch, form="implicit", **options)
    rows = operator.rows
    if rows <= GRAM_ROWS:
        operator, diagonal = fisher(model, probe.batch, form=("gram", "diagonal"), **options)
    else:
        diagonal = fisher(model, probe.batch, form="diagonal", **options)
    spectrum = operator.spectrum()
    k = min(top, operator.rank_bound)
    largest = spectrum.eigenvalues[:k] if isinstance(spectrum, Spectrum) else operator.eigenvalues(k)
    entropy = predictive_entropy(model, probe)
    prior = {"prior_precision": prior_precision}
    facts: list[tuple[str, Any, str]] = [
        ("parameters p", operator.shape[0], "those that require grad"),
        ("examples N", operator.count, ""),
        ("rank bound", operator.rank_bound, f"min(p, {rows:,} rows)"),
        (
            "rank",
            spectrum.rank if isinstance(spectrum, Spectrum) else "sampled",
            f"eigenvalues above the rounding floor {spectrum.floor:.2g}",
        ),
        ("trace", operator.trace(), ""),
        *((f"eigenvalue {i}", float(value), "") for i, value in enumerate(largest, 1)),
        ("effective rank", spectrum.effective_rank(), "exp of the spectral entropy"),
        (
            "effective dimension",
            spectrum.effective_dimension(**prior),
            f"prior precision {prior_precision:g}, N examples",
        ),
        ("posterior entropy", spectrum.posterior_entropy(**prior), "nats, relative to the prior"),
        ("predictive entropy", entropy, "nats, mean over examples"),
        (
            "stiff fraction",
            spectrum.stiff_fraction(THRESHOLD),
            f"share of the non-zero eigenvalues above {THRESHOLD:g} of the largest",
        ),
        ("decades", spectrum.decades(), "that 90 % of the non-zero eigenvalues span"),
    ]
    if isinstance(spectrum, Spectrum):
        slope = spectrum.slope()
        facts.append(
            (
                "slope",
                slope.slope,
                f"decades lost per eigenvalue; R² = {float(slope.r_squared):.3f} over {slope.points} of them",
            )
        )
    seconds = time.perf_counter() - start
    facts.append(("cost", f"{seconds:.1f} s", f"{rows:,} rows, {torch.get_num_threads()} threads"))
    blocks: list[Any] = [Table(["quantity", "value", ""], facts)]
    if estimator == "empirical":
        blocks.append(
            Note("The empirical Fisher uses the observed labels; it is not the Fisher information.", "warning")
        )
    drawn: list[Any] = []
    if isinstance(spectrum, Spectrum):
        drawn = [
            Spectra(
                "Fisher spectrum",
                [Eigenvalues(name, spectrum.eigenvalues, spectrum.floor)],
                note="Dashed: the rounding floor.",
            )
        ]
    sections = [
        Section("Geometry", "", blocks),
        Section("Spectrum", "", drawn),
        Section("Layers", "", [_layers(diagonal)]),
    ]
    footer = {
        "dynaxx": __version__,
        "torch": torch.__version__,
        "estimator": estimator,
        "seed": str(seed),
        "probe": probe.digest[:12],
    }
    return Document(name, f"{type(model).__name__}, {meaning!r}", [s for s in sections if s.blocks], footer)


def _layers(diagonal: Any) -> Table:
    """Each parameter's share of the trace."""
    parts = {
        name: (value.numel(), float(value.double().sum()))
        for name, value in diagonal.unravel(diagonal.diagonal()).items()
    }
    total = sum(trace for _, trace in parts.values())
    rows = [
        [name, size, trace, f"{100 * trace / total:.1f} %" if total else "–"] for name, (size, trace) in parts.items()
    ]
    return Table(
        ["parameter", "size", "trace", "share"],
        rows,
        "Share of the Fisher trace: where the model's outputs are sensitive.",
    )
