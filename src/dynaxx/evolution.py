"""``dynaxx.track_spectrum``: the spectra of a training at chosen steps, beside the data's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import nn

from dynaxx import likelihoods
from dynaxx.errors import InputError
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Predict
from dynaxx.model.selection import Selector
from dynaxx.monitor.snapshot import Probe, evaluating
from dynaxx.report.document import Spectra
from dynaxx.spectra import data_spectrum, fisher_spectrum, ntk_spectrum
from dynaxx.spectrum import Spectrum
from dynaxx.spectrum.figure import draw_shapes


@dataclass(frozen=True)
class SpectrumRecord:
    """The spectra of one step.

    Args:
        step: optimisation steps before it.
        fisher: of the Fisher matrix.
        ntk: of the logits' tangent kernel; None where it was not asked for.
        seconds: what measuring took.
    """

    step: int
    fisher: Spectrum
    ntk: Spectrum | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        ntk = None if self.ntk is None else self.ntk.as_dict()
        return {"step": self.step, "fisher": self.fisher.as_dict(), "ntk": ntk, "seconds": self.seconds}


class SpectrumTrack:
    """Spectra of a training, taken at chosen steps. Made by ``track_spectrum``.

    Attributes:
        records: one SpectrumRecord for each measured step.
        data: the spectrum of the probe's inputs, or None where they have none (token ids).
        steps: optimisation steps so far.
    """

    def __init__(
        self, model: nn.Module, probe: Probe, steps: Iterable[int] | None, params: Selector, ntk: bool
    ) -> None:
        self.model, self.probe = model, probe
        self._chosen = None if steps is None else _checked(steps)
        self._params, self._ntk = params, ntk
        self.records: list[SpectrumRecord] = []
        self.steps = 0
        try:
            self.data: Spectrum | None = data_spectrum(probe.batch)
        except InputError:
            self.data = None

    def __enter__(self) -> SpectrumTrack:
        if self._chosen is None or 0 in self._chosen:
            self.measure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and (not self.records or self.records[-1].step != self.steps):
            self.measure()

    def __iter__(self) -> Iterator[SpectrumRecord]:
        return iter(self.records)

    def step(self) -> SpectrumRecord | None:
        """Count one optimisation step, and measure if it is a chosen one. Call it after ``optimizer.step()``.

        Returns:
            The new record, or None.
        """
        self.steps += 1
        return self.measure() if self._chosen is not None and self.steps in self._chosen else None

    def measure(self) -> SpectrumRecord:
        """Measure now, chosen step or not.

        The model is looked at in evaluation mode and left as it was found: modes, buffers, gradients and random state,
        so that a training with it is bit-equal to one without.
        """
        start = time.perf_counter()
        probe = self.probe
        options: dict[str, Any] = {
            "likelihood": probe.likelihood,
            "predict": probe.predict,
            "seed": probe.seed,
            "params": self._params,
        }
        with evaluating(self.model):
            fisher = fisher_spectrum(self.model, probe.batch, **options)
            ntk = ntk_spectrum(self.model, probe.batch, **options) if self._ntk else None
        record = SpectrumRecord(self.steps, fisher, ntk, time.perf_counter() - start)
        self.records.append(record)
        return record

    # what was found

    def rows(self) -> list[dict[str, Any]]:
        """The sloppiness metrics of every spectrum as JSON takes them, the data's first."""
        found: list[tuple[int | None, str, Spectrum | None]] = [(None, "data", self.data)]
        for record in self.records:
            found += [(record.step, "fisher", record.fisher), (record.step, "ntk", record.ntk)]
        return [
            {"step": step, "spectrum": name} | spectrum.sloppiness().as_dict()
            for step, name, spectrum in found
            if spectrum is not None
        ]

    def figure(self, ax: Any = None, *, kind: str = "fisher") -> Any:
        """Draw the spectra at the beginning, the middle and the end over the data's, each divided by its largest.

        Args:
            ax: matplotlib axes; default a new figure's.
            kind: "fisher" or "ntk".

        Returns:
            The axes.

        Raises:
            InputError: nothing has been measured yet.
        """
        spectra = {f"step {record.step}": self._of(record, kind) for record in self._three()}
        return draw_shapes(spectra, ax, {} if self.data is None else {"data": self.data})

    def block(self, title: str = "Spectrum during training", *, kind: str = "fisher") -> Spectra:
        """The same spectra, each divided by its largest eigenvalue, as a chart of a report."""
        named = {f"step {record.step}": self._of(record, kind) for record in self._three()}
        if self.data is not None:
            named["data"] = self.data
        curves = []
        for name, spectrum in named.items():
            top = float(spectrum.eigenvalues[0]) if len(spectrum.eigenvalues) else 0.0
            unit = top if top > 0 else 1.0
            curves.append((name, spectrum.eigenvalues / unit, spectrum.floor / unit))
        return Spectra(title, curves, y_label="eigenvalue / largest", note=f"Probe: {self.probe.name}.")

    def as_dict(self) -> dict[str, Any]:
        """Everything measured as JSON takes it."""
        return {
            "probe": self.probe.name,
            "digest": self.probe.digest,
            "data": None if self.data is None else self.data.as_dict(),
            "records": [record.as_dict() for record in self.records],
        }

    def _three(self) -> list[SpectrumRecord]:
        if not self.records:
            raise InputError("nothing has been measured yet; use the track as a context, or call measure()")
        places = sorted({0, len(self.records) // 2, len(self.records) - 1})
        return [self.records[place] for place in places]

    def _of(self, record: SpectrumRecord, kind: str) -> Spectrum:
        found = {"fisher": record.fisher, "ntk": record.ntk}.get(kind)
        if found is None:
            raise InputError(f"kind={kind!r} was not measured; choose 'fisher'" + (" or 'ntk'" if self._ntk else ""))
        return found


def track_spectrum(
    model: nn.Module,
    probe: Any,
    *,
    steps: Iterable[int] | None = None,
    likelihood: str | Likelihood = "categorical",
    params: Selector = None,
    ntk: bool = True,
    seed: int = 0,
    predict: Predict | None = None,
) -> SpectrumTrack:
    """Follow the spectra of the Fisher matrix and the tangent kernel through a training, beside the data's.

        with dynaxx.track_spectrum(model, probe, steps=(0, 100, 1000)) as track:
            for batch in loader:
                ...; optimizer.step(); track.step()
        track.figure()

    Args:
        model: the one that is trained, in whatever mode.
        probe: a ``Probe``, or data as for ``fisher`` that can be read again. A Probe's likelihood, seed and predict
            come before those given here.
        steps: optimisation steps at which to measure, 0 for before the first; None for none. The end of the context is
            measured in any case, and the beginning when steps is None.
        likelihood, params, seed, predict: as for ``fisher``.
        ntk: measure the tangent kernel too, which costs a little more than the Fisher matrix.

    Returns:
        A SpectrumTrack: ``step()``, ``records``, ``rows()``, ``figure()``, ``block()``.

    Raises:
        InputError: steps that are no whole numbers >= 0; a probe that cannot be read again.

    Cost: at each measured step as for ``fisher_spectrum`` and ``ntk_spectrum``; nothing at the others.

    >>> import torch
    >>> with track_spectrum(nn.Linear(3, 2), torch.randn(6, 3), steps=[0]) as track:
    ...     _ = track.step()
    >>> [record.step for record in track]
    [0, 1]
    """
    if not isinstance(probe, Probe):
        probe = Probe("unnamed", probe, likelihoods.resolve(likelihood), seed, predict)
    return SpectrumTrack(model, probe, steps, params, ntk)


def _checked(steps: Iterable[int]) -> frozenset[int]:
    chosen = [steps] if isinstance(steps, int) else list(steps)
    for step in chosen:
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise InputError(f"steps holds {step!r}; expected whole numbers >= 0, 0 for before the first step")
    return frozenset(chosen)
