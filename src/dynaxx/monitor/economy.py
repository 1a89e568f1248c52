"""The cheapest look: one sampled reverse pass over the probe."""

from __future__ import annotations

import torch
from torch import Tensor

from dynaxx import estimators
from dynaxx.assembly.entries import DiagonalCollector
from dynaxx.assembly.sweep import Sweeper
from dynaxx.layout import Layout
from dynaxx.model.data import Data
from dynaxx.model.rules.base import norms
from dynaxx.model.tape import Tape
from dynaxx.monitor.look import Look
from dynaxx.monitor.snapshot import evaluating
from dynaxx.monitor.subject import Subject, diagonal_summary, layers, of_outputs, shares
from dynaxx.operators.base import Operator, Sampling


class ExampleCollector:
    """Beside the diagonal: every example's own trace, parameter by parameter, and what its outputs say.

    Memory: the diagonal's p numbers, and a few numbers per example.
    """

    head = False

    def __init__(self, layout: Layout, owners: dict[str, str], subject: Subject) -> None:
        self.diagonal = DiagonalCollector(layout)
        self.owners, self.subject = owners, subject
        self.traces: list[dict[str, Tensor]] = []
        self.outputs: list[dict[str, Tensor]] = []
        self._seen: Tape | None = None

    def add(self, tape: Tape, keys: Tensor, cotangents: Tensor) -> None:
        """Norms and squares of the same pulled cotangents."""
        if tape is not self._seen:
            self._seen = tape
            nothing = torch.zeros(tape.count, dtype=torch.float64, device=keys.device)
            self.traces.append({owner: nothing.clone() for owner in self.owners.values()})
            self.outputs.append(of_outputs(self.subject.likelihood, tape.output))
        self.diagonal.add(tape, keys, cotangents)
        traces = self.traces[-1]
        for name, uses in tape.pulled(cotangents).items():
            traces[self.owners[name]] += norms(uses, tape.network.parameters[name].numel()).sum(0).double()

    def finish(self, count: int, sampling: Sampling | None) -> Operator:
        """diag(F)."""
        return self.diagonal.finish(count, None)


def economy(subject: Subject) -> Look:
    """tr F with its standard error, layer by layer, and summaries of the diagonal, from one sampled sweep.

        E u u^T = I(z),    tr F = (1/n) sum_n |J_n^T u_n|^2

    The signs are keyed by the example, so two looks draw the same ones: what changes between them is the model.

    Args:
        subject: model and probe.

    Returns:
        A Look with ``dynaxx/trace``, ``dynaxx/predictive_entropy``, ``dynaxx/probe_loss`` (with labels),
        ``dynaxx/layer/<name>/trace`` and ``.../share``, ``dynaxx/diagonal/...``. Standard errors are over the probe's
        examples and contain the signs'.

    Raises:
        InputError: as for ``dynaxx.fisher``.

    Cost: one forward pass with a rehearsal of two examples, one reverse pass to layer outputs, and one pass over
        per-example gradients of convolutions and recurrent layers for each of squares and norms. Memory: p numbers.

    Source: Sun 2025 (the cotangents).
    """
    with evaluating(subject.model):
        network = subject.network()
        owners = {name: layer for layer, names in layers(network).items() for name in names}
        estimator = estimators.resolve("hutchinson", network.likelihood, seed=subject.probe.seed)
        collector = ExampleCollector(network.layout, owners, subject)
        (operator,) = Sweeper(network, Data(subject.probe.batch, network.device), estimator).run([collector])
    by_layer = Look.of_means(joined(collector.traces))
    examples = joined(collector.outputs)
    examples["dynaxx/trace"] = torch.stack(list(joined(collector.traces).values())).sum(0)
    extras = shares(by_layer.values) | diagonal_summary(operator.diagonal(), subject.information)
    return Look.of_means(examples).joined(Look(extras))


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Columns of several batches end to end."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
