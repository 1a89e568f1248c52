"""A sink for a Weights & Biases run, online or offline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynaxx.errors import InputError
from dynaxx.track.records import Alert
from dynaxx.track.sinks.base import Record
from dynaxx.track.sinks.series import histograms, numbers, refuse_beside_a_run, require

TITLE = 63  # characters of an alert's title


class WandB:
    """Numbers as metrics with ``dynaxx/step`` as their axis, spectra as histograms of log10 of the positive
    eigenvalues, events as alerts.

    No ``step=`` is passed to ``run.log``: on a run that others write to as well, W&B keeps one step counter for all and
    drops what comes late. A program that passes ``step=`` itself should give this sink a run of its own.

    Args:
        run: what ``wandb.init`` gave; default the run that is open, and without one a new run, which is finished when
            the sink is closed. WANDB_MODE=offline and the other settings of W&B hold for it.
        project, name: of the new run.

    Raises:
        InputError: wandb is not installed, or ``project``/``name`` beside a run.
    """

    def __init__(self, run: Any = None, *, project: str | None = None, name: str | None = None) -> None:
        self._wandb = require("WandB()", "wandb", "wandb")
        run = run if run is not None else self._wandb.run
        if run is not None:
            refuse_beside_a_run("WandB()", project=project, name=name)
        self.owned = run is None
        self.run = self._wandb.init(project=project or "dynaxx", name=name) if run is None else run
        self.run.define_metric("dynaxx/step")
        self.run.define_metric("dynaxx/*", step_metric="dynaxx/step")

    def write(self, records: Sequence[Record]) -> None:
        """One call for each record, so that its numbers stand in one row."""
        for record in records:
            row: dict[str, Any] = {"dynaxx/step": record.step, **numbers(record)}
            for name, (_, counts, edges) in histograms(record.arrays).items():
                row[name] = self._wandb.Histogram(np_histogram=(counts, edges))
            self.run.log(row)

    def event(self, event: Alert) -> None:
        """An alert; alerts of one title within a minute are sent once."""
        level = {"info": "INFO", "warning": "WARN", "error": "ERROR"}.get(event.level, "WARN")
        where = "" if event.step is None else f"step {event.step}: "
        self.run.alert(title=event.title[:TITLE], text=where + event.text, level=level)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Show an HTML report in the run's workspace, as ``dynaxx/report``.

        Raises:
            InputError: there is no such file.
        """
        if not Path(path).is_file():
            raise InputError(f"there is no file {os.fspath(path)!r}; write the report first")
        self.run.log({"dynaxx/report": self._wandb.Html(os.fspath(path), inject=False)})

    def flush(self) -> None:
        """W&B sends in a process of its own."""

    def close(self) -> None:
        """Finish the run if this sink started it."""
        if self.owned:
            self.run.finish()
