"""A sink for an MLflow run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from dynaxx.errors import InputError
from dynaxx.track.records import Alert, as_json
from dynaxx.track.sinks.base import Record
from dynaxx.track.sinks.series import numbers, refuse_beside_a_run, require

MOST = 1000  # metrics that one request may carry
TEXT = 5000  # characters of a tag's value that every store takes


class MLflow:
    """Numbers as metrics of a run, events as tags (``dynaxx.alert``: the last one) and as ``dynaxx/events.jsonl``.

    Requests are made one after the other in the sink's own thread, so that the training does not wait and a failure is
    tried again, which MLflow's own asynchronous logging would only note in a log. Spectra stay in the run store.

    Args:
        run: id of a run to write to; default the active run of the thread that makes this sink, and without one a new
            run, which is ended when the sink is closed.
        tracking_uri: of the server or database; default MLflow's own setting.
        experiment: name of the new run's experiment; it is made where it does not exist. name: of the new run.

    Raises:
        InputError: mlflow is not installed, or ``experiment``/``name`` beside a run.
    """

    def __init__(
        self,
        run: str | None = None,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        name: str | None = None,
    ) -> None:
        mlflow = require("MLflow()", "mlflow", "mlflow")
        self._entities = require("MLflow()", "mlflow.entities", "mlflow")
        self.client = mlflow.MlflowClient(tracking_uri=tracking_uri)
        active = mlflow.active_run() if tracking_uri is None else None
        if run is None and active is not None:
            run = active.info.run_id
        if run is not None:
            refuse_beside_a_run("MLflow()", experiment=experiment, name=name)
        self.owned = run is None
        self.run_id: str = self._start(experiment or "dynaxx", name) if run is None else run
        self._events: list[str] = []
        self._failed = False

    def write(self, records: Sequence[Record]) -> None:
        """Metrics at the record's step, in requests of at most a thousand."""
        for record in records:
            wall = round(1000 * record.wall)
            metrics = [self._entities.Metric(n, v, wall, record.step) for n, v in numbers(record).items()]
            for start in range(0, len(metrics), MOST):
                self.client.log_batch(self.run_id, metrics=metrics[start : start + MOST], synchronous=True)

    def event(self, event: Alert) -> None:
        """A tag, and a line of the file of events."""
        names = ("level", "title", "text", "step", "wall")
        line = json.dumps(as_json({name: getattr(event, name) for name in names}))
        self.client.log_text(self.run_id, "\n".join([*self._events, line, ""]), "dynaxx/events.jsonl")
        where = "" if event.step is None else f" (step {event.step})"
        self.client.set_tag(self.run_id, "dynaxx.alert", f"{event.level}: {event.title}{where}: {event.text}"[:TEXT])
        self._events.append(line)
        self._failed |= event.level == "error"

    def report(self, path: str | os.PathLike[str]) -> None:
        """Attach a file, such as a report, under ``dynaxx/``. It is sent now, in the caller's thread.

        Raises:
            InputError: there is no such file.
        """
        if not Path(path).is_file():
            raise InputError(f"there is no file {os.fspath(path)!r}; write the report first")
        self.client.log_artifact(self.run_id, os.fspath(path), "dynaxx")

    def flush(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """End the run if this sink started it: as failed where an event of level "error" was among what came."""
        if self.owned:
            self.client.set_terminated(self.run_id, "FAILED" if self._failed else "FINISHED")

    def _start(self, experiment: str, name: str | None) -> str:
        found = self.client.get_experiment_by_name(experiment)
        identity = self.client.create_experiment(experiment) if found is None else found.experiment_id
        return self.client.create_run(identity, run_name=name).info.run_id
