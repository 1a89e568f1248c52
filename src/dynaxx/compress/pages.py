"""A journal as sections of a report. Every section shows what there is, so a run that broke off has a page too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from dynaxx.compress.foresight import rank_correlation
from dynaxx.compress.intervals import Change, Interval
from dynaxx.compress.journal import Journal, Trial
from dynaxx.compress.scoring import Evaluation
from dynaxx.report import Document, Eigenvalues, Facts, Lines, Marker, Note, Section, Series, Spectra, Table
from dynaxx.report.document import Block
from dynaxx.report.numerals import MINUS
from dynaxx.spectrum import Spectrum
from dynaxx.version import __version__

ENDED = {
    "running": Note(
        "The run was still going when this page was written. If no process is writing it any more, it was killed, "
        "and what is below is "
        "what had been found.",
        "warning",
    ),
    "interrupted": Note("The run was interrupted. What is below had been found by then.", "warning"),
    "failed": Note("The run failed; the error is in the run store. What is below had been found by then.", "bad"),
}
PAIRS = (
    ("dynaxx/trace", "Trace of the Fisher matrix"),
    ("dynaxx/top_eigenvalue", "Largest eigenvalue"),
    ("dynaxx/effective_rank", "Effective rank"),
    ("dynaxx/effective_dimension", "Effective dimension"),
    ("dynaxx/posterior_entropy", "Posterior entropy, nats"),
    ("dynaxx/predictive_entropy", "Predictive entropy, nats"),
)


def document(journals: Sequence[Journal], title: str, subtitle: str = "") -> Document:
    """One report of one or several runs of the workflow.

    >>> document([Journal("mlp", {})], "Compression").sections[0].title
    'Result'
    """
    blocks: list[Block] = [ENDED[journal.status] for journal in journals if journal.status in ENDED]
    blocks.append(overview(journals))
    found = scores(journals)
    if found is not None:
        blocks.append(found)
    sections = [Section("Result", "", blocks)]
    for journal in journals:
        prefix = f"{journal.name}: " if len(journals) > 1 else ""
        parts = (initialisation(journal), training(journal), one_shot(journal), validation(journal))
        sections += [Section(prefix + part.title, part.text, part.blocks) for part in parts if part is not None]
    footer: dict[str, Any] = {
        "dynaxx": __version__,
        "torch": torch.__version__,
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }
    for journal in journals[:1]:
        footer |= {"seed": str(journal.config.get("seed")), "threads": str(torch.get_num_threads())}
    return Document(title, subtitle, sections, footer)


def share(value: float, digits: int = 1) -> str:
    """A share as percent.

    >>> share(0.97)
    '97.0 %'
    """
    return f"{100 * value:.{digits}f} %"


def score(interval: Interval, measure: str) -> str:
    """A score with its 95 % interval."""
    if measure == "accuracy":
        return f"{share(interval.value)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def difference(change: Change, measure: str) -> str:
    """A change with its 95 % interval, of an accuracy in points.

    >>> difference(Change(-0.01, -0.021, 0.0009, 0.1), "accuracy")
    '−1.0 [−2.1, +0.1]'
    """
    unit, form = (100, "+.1f") if measure == "accuracy" else (1, "+.3g")
    value, low, high = (format(unit * number + 0.0, form).replace("-", MINUS) for number in change[:3])
    return f"{value} [{low}, {high}]"


def _scored(evaluation: Evaluation | None) -> str:
    return "–" if evaluation is None else score(evaluation.interval(), evaluation.measure)


def overview(journals: Sequence[Journal]) -> Table:
    """What was kept of each model, and how long it took."""
    rows = []
    for journal in journals:
        kept = (
            [journal.kept, journal.prunable, share(1 - journal.kept / journal.prunable)]
            if journal.prunable
            else [None, None, None]
        )
        parameters = journal.initialisation.parameters if journal.initialisation else None
        rows.append([journal.name, parameters, *kept, f"{sum(journal.seconds.values()):.0f} s"])
    return Table(["model", "parameters", "weights kept", "of", "sparsity", "time"], rows)


def scores(journals: Sequence[Journal]) -> Table | None:
    """Scores before and after on each set of data, with the paired change."""
    rows = []
    for journal in journals:
        for data, before, after in (
            ("validation", journal.dense, journal.final),
            ("test", journal.dense_test, journal.final_test),
        ):
            if before is None:
                continue
            text = "–"
            if after is not None:
                change = before.change_to(after)
                text = difference(change, before.measure)
            rows.append([journal.name, data, before.measure, _scored(before), _scored(after), text])
    if not rows:
        return None
    points = all(row[2] == "accuracy" for row in rows)
    caption = (
        "With 95 % intervals (Wilson; of the change, paired: Agresti and Min 2005). Epoch and sparsity were chosen "
        "on the validation data, which "
        "flatters “pruned”; test data were used for no choice."
    )
    return Table(["model", "data", "score", "dense", "pruned", "change, points" if points else "change"], rows, caption)


def initialisation(journal: Journal) -> Section | None:
    """Phase 1."""
    start = journal.initialisation
    if start is None:
        return None
    values = start.snapshot.values
    rank = "sampled" if start.rank is None else start.rank
    facts = Facts(
        [
            ("parameters p", start.parameters, f"{start.prunable:,} prunable"),
            ("rank bound", start.train_rank_bound, f"min(p, N (C−1)), N = {start.examples:,}"),
            ("rank on probe", rank, f"at most min(p, n (C−1)) = {start.rank_bound:,}, n = {start.probe_examples}"),
            ("effective rank", values["dynaxx/effective_rank"], "exp of the spectral entropy"),
            (
                "effective dimension",
                values["dynaxx/effective_dimension"],
                f"prior precision {start.prior_precision:g}, N = {start.examples:,}",
            ),
            ("learning-rate ceiling", start.learning_rate_ceiling, f"2 / λmax(H), λmax(H) = {start.top_curvature:.3g}"),
        ]
    )
    text = (
        "The rank of a Fisher matrix on a subset is as large as the subset allows, so it is shown and not judged by. "
        "The ceiling is for plain gradient "
        "descent at initialisation; curvature changes as training goes on."
    )
    return Section("Initialise", text, [facts, Note(start.verdict, "info")])


def training(journal: Journal) -> Section | None:
    """Phase 2."""
    points = journal.points
    if not points:
        return None
    steps = [point.step for point in points]
    losses = Lines(
        "Loss, nats per example",
        [
            Series("train", steps, [p.train_loss for p in points]),
            Series("validation", steps, [p.validation_loss for p in points]),
        ],
        x_label="optimizer steps",
        log_y=min(p.validation_loss for p in points) > 0,
        note="Train: mean over the epoch, in training mode.",
    )
    measure = journal.dense.measure if journal.dense is not None else "score"
    scores = Lines(
        f"Validation {measure}",
        [Series("validation", steps, [p.validation_score for p in points])],
        x_label="optimizer steps",
    )
    looked = [point for point in points if point.values]
    charts = [
        Lines(
            title,
            [_series(title, looked, name)],
            x_label="optimizer steps",
            log_y=name in ("dynaxx/trace", "dynaxx/top_eigenvalue"),
        )
        for name, title in PAIRS
    ]
    drawn = [_drawn(name, spectrum) for name, spectrum in journal.spectra.items() if isinstance(spectrum, Spectrum)]
    spectra = (
        [
            Spectra(
                "Fisher spectrum on the probe",
                drawn,
                note="Dashed: the rounding floor; what lies below it is not an eigenvalue.",
            )
        ]
        if drawn
        else []
    )
    text = (
        f"Geometry on a fixed probe: {journal.config.get('probe', '')}. Fisher information goes to zero when the "
        f"model merely becomes confident; read "
        "trace and entropies beside the predictive entropy."
    )
    return Section("Train", text, [losses, scores, *charts, *spectra])


def _series(title: str, points: Sequence[Any], name: str) -> Series:
    values = [float(point.values[name]) for point in points]
    errors = [float(getattr(point.values[name], "stderr", 0.0)) for point in points]
    steps = [point.step for point in points]
    if any(error > 0 for error in errors):
        return Series(
            title,
            steps,
            values,
            [v - 2 * e for v, e in zip(values, errors, strict=True)],
            [v + 2 * e for v, e in zip(values, errors, strict=True)],
        )
    return Series(title, steps, values)


def _drawn(name: str, spectrum: Spectrum, unit: float = 1.0) -> Eigenvalues:
    return Eigenvalues(name, spectrum.eigenvalues / unit, spectrum.floor / unit)


def one_shot(journal: Journal) -> Section | None:
    """Phase 3."""
    points = journal.one_shot
    if not points:
        return None
    criteria = list(dict.fromkeys(point.criterion for point in points))
    sparsities = sorted({point.sparsity for point in points})
    found = {(point.criterion, point.sparsity): point for point in points}
    measure = journal.dense.measure if journal.dense is not None else "score"
    series = []
    for criterion in criteria:
        mine = [point for point in points if point.criterion == criterion]
        columns = [[getattr(point.score, side) for point in mine] for side in ("value", "low", "high")]
        series.append(Series(criterion, [100 * point.sparsity for point in mine], *columns))
    chart = Lines(
        f"One-shot {measure}, no fine-tuning",
        series,
        x_label="sparsity, %",
        note="Bands: 95 % intervals. BatchNorm re-calibrated.",
    )
    table = Table(
        ["sparsity", *criteria],
        [
            [share(s, 0), *(score(found[c, s].score, measure) if (c, s) in found else "–" for c in criteria)]
            for s in sparsities
        ],
    )
    text = (
        "What each criterion keeps of the trained model before any repair. Random is the control. Curvature need not "
        "beat magnitude, least of all at high sparsity."
    )
    return Section("Prune", text, [chart, table, *_foreseen(journal)])


def _foreseen(journal: Journal) -> list[Block]:
    """Predicted against measured, by layer and sparsity."""
    rows = journal.foreseen
    if not rows:
        return []
    sparsities = sorted({row.sparsity for row in rows})
    found = {(row.layer, row.sparsity): row for row in rows}
    cells = [
        [layer, *(f"{found[layer, s].predicted:.3g} / {found[layer, s].measured:.3g}" for s in sparsities)]
        for layer in dict.fromkeys(row.layer for row in rows)
    ]
    alone = [row for row in rows if row.layer != "all"]
    caption = (
        "Loss increase in nats per example, predicted / measured, each layer pruned alone and all together: the "
        "criterion's second-order prediction against the divergence from the dense model on the probe. A quadratic "
        "model is wrong where the measured number is large."
    )
    if len(alone) >= 3:
        caption += f" Rank correlation over layers and sparsities: {rank_correlation(alone):.2f}."
    return [Table(["pruned alone", *(share(s, 0) for s in sparsities)], cells, caption)]


def validation(journal: Journal) -> Section | None:
    """Phase 4."""
    if not journal.trials:
        return None
    blocks: list[Block] = []
    for level, title, text in journal.remarks:
        blocks.append(Note(f"{title}. {text}", level))
    measure = journal.trials[0].evaluation.measure
    rows = [
        [
            i,
            share(t.sparsity),
            t.kept,
            score_number(t.before, measure),
            score(t.evaluation.interval(), measure),
            t.epoch,
            "kept" if t.accepted else "too low",
        ]
        for i, t in enumerate(journal.trials, 1)
    ]
    blocks.append(
        Table(
            ["trial", "sparsity", "weights kept", "before fine-tuning", "after", "best epoch", "verdict"],
            rows,
            highlight=_best(journal.trials),
        )
    )
    curves = [Series(f"{share(t.sparsity)} sparse", *zip(*t.curve, strict=True)) for t in journal.trials]
    markers = [Marker(journal.trials[0].curve[0][0], "pruned")]
    blocks.append(Lines(f"Validation {measure} while fine-tuning", curves, x_label="optimizer steps", markers=markers))
    if journal.comparison is not None:
        blocks += _comparison(journal)
    if journal.costs:
        costs = [[what, f"{dense:.4g}", f"{pruned:.4g}"] for what, (dense, pruned) in journal.costs.items()]
        caption = (
            "FLOPs and file as a kernel and a format that skip zeros would have them. Latency is measured, with the "
            "dense kernels that are there: zeros alone make nothing faster; structured pruning and 2:4 do."
        )
        blocks.append(Table(["cost", "dense", "pruned"], costs, caption))
    if journal.layers:
        layers = [[row["name"], row["kept"], row["total"], share(row["kept"] / row["total"])] for row in journal.layers]
        blocks.append(Table(["parameter", "kept", "of", "share"], layers))
    return Section("Fine-tune and validate", "", blocks)


def score_number(value: float, measure: str) -> str:
    """A score alone."""
    return share(value) if measure == "accuracy" else f"{value:.4g}"


def _best(trials: Sequence[Trial]) -> list[int]:
    passed = [i for i, trial in enumerate(trials) if trial.accepted]
    return [min(passed, key=lambda i: trials[i].kept)] if passed else []


def _comparison(journal: Journal) -> list[Block]:
    comparison = journal.comparison
    assert comparison is not None
    dense, pruned = comparison.dense, comparison.pruned
    blocks: list[Block] = []
    if isinstance(dense, Spectrum) and isinstance(pruned, Spectrum):
        drawn = [_drawn(name, s, float(s.eigenvalues[0]) or 1.0) for name, s in (("dense", dense), ("pruned", pruned))]
        note = (
            f"On the {comparison.coordinates:,} surviving coordinates, each divided by its largest eigenvalue; dashed: "
            "rounding floors."
        )
        blocks.append(Spectra("Spectra before and after", drawn, y_label="eigenvalue / largest", note=note))
    rows = [
        ["trace", dense.trace(), pruned.trace()],
        ["effective rank", dense.effective_rank(), pruned.effective_rank()],
        ["participation ratio", dense.participation_ratio(), pruned.participation_ratio()],
    ]
    caption = (
        f"The {comparison.k} stiffest directions of the two overlap by {comparison.overlap:.2f} "
        f"(1: the same subspace; chance: {comparison.k / comparison.coordinates:.3f})."
    )
    blocks.append(Table(["on the surviving coordinates", "dense", "pruned"], rows, caption))
    return blocks
