"""The handle a training loop writes to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dynaxx.errors import InputError, SizeError, bytes_as_text, choose
from dynaxx.track import schema
from dynaxx.track.names import check_name
from dynaxx.track.records import LARGEST_BLOB, Alert, as_json, encode_array, encode_baseline, encode_number
from dynaxx.track.writer import Change, Metrics, Row, Writer

if TYPE_CHECKING:
    from dynaxx.track.store import Store

LEVELS = ("info", "warning", "error")
ENDINGS = ("finished", "failed", "interrupted")


class Run:
    """One run, open for writing; made by :meth:`dynaxx.track.Store.run`, or gone on with by its ``resume``.

    As a context manager it ends itself: "failed" after an exception, "interrupted" after Ctrl-C, else "finished", and
    what was logged is on disk either way. Logging returns at once; what the disk refuses waits in memory and never
    raises here. What does raise is input that no retry can help: a name or a value that cannot be stored.

    >>> from dynaxx.track import Store
    >>> with Store("sqlite://") as store:
    ...     with store.run(name="first", config={"lr": 0.1}) as run:
    ...         run.log({"dynaxx/trace": 2.0}, step=1)
    ...         run.log({"dynaxx/trace": float("nan")}, step=2)
    ...     store.metrics(run.id, "dynaxx/trace").values.tolist(), store.runs()[0].status
    ([2.0, nan], 'finished')
    """

    def __init__(self, store: Store, writer: Writer, run_id: int, name: str, project: str):
        self.store = store
        self.id = run_id
        self.name = name
        self.project = project
        self.status = "running"
        self._writer = writer
        self._step = -1
        self._said: set[tuple[Any, ...]] = set()  # alerts of an earlier process
        self._pid = os.getpid()

    def after(self, step: int, alerts: Iterable[Alert]) -> Run:
        """Go on behind this step, without repeating these alerts; for :meth:`dynaxx.track.Store.resume`."""
        self._step = int(step)
        self._said = {(each.step, each.level, each.title, each.text, each.rule) for each in alerts}
        return self

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record numbers. The last value for a (name, step) counts.

        Args:
            values: name -> number, Estimate (its standard error is kept), or tensor of one element. NaN and infinities
                are kept. A tensor on an accelerator is waited for.
            step: optimizer steps done, any integer; one more than the last one logged here if None.

        Raises:
            InputError: a name or value that cannot be stored, or the run has ended.
        """
        number = self._advance(step)
        encoded = tuple(
            (check_name("metric", name), *encode_number(name, value)) for name, value in dict(values).items()
        )
        if encoded:
            self._writer.put(Metrics(self.id, number, time.time(), encoded))

    def log_array(
        self, name: str, value: Any, step: int | None = None, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Record an array, such as a spectrum: a tensor or anything numpy takes, up to 256 MB. It is copied now.

        Args:
            attributes: what belongs to it, as JSON can carry it. Of a spectrum (``dynaxx/spectrum``, eigenvalues,
                descending) pages read ``floor``, ``dimension`` and ``count``; of ``dynaxx/inpca`` (points, axes)
                ``labels``, ``eigenvalues`` and ``explained_stress``.

        Raises:
            InputError: a name that cannot be stored, no numbers, or the run has ended.
            SizeError: too large.
        """
        check_name("array", name)
        number = self._advance(step)
        dtype, shape, data = encode_array(name, value)
        row = {"run_id": self.id, "step": number, "wall": time.time(), "dtype": dtype, "shape": shape, "data": data}
        row["attributes"] = as_json(dict(attributes or {}))
        self._writer.put(Row(schema.array, row, name))

    def alert(
        self, title: str, text: str = "", level: str = "warning", step: int | None = None, rule: str | None = None
    ) -> None:
        """Record something a person should look at, and write it and all before it to disk now.

        Args:
            title: at most 250 characters; a longer one is cut.
            level: "info", "warning" or "error".
            rule: what gave it, for alerts of one kind to be found again.

        Raises:
            InputError: an unknown level, or the run has ended.
        """
        self._require_open()
        choose("level", level, LEVELS)
        row = {"run_id": self.id, "step": None if step is None else int(step), "wall": time.time(), "level": level}
        row |= {
            "title": _plain(title)[:250],
            "text": _plain(text),
            "rule": None if rule is None else _plain(rule)[:250],
        }
        if tuple(row[key] for key in ("step", "level", "title", "text", "rule")) in self._said:
            return
        self._writer.put(Row(schema.alert, row))
        self._writer.hurry()

    def artifact(
        self, name: str, content: bytes | str | os.PathLike[str], mime: str = "application/octet-stream"
    ) -> None:
        """Record a file: bytes are stored (up to 256 MB), of a path its place is. The last of one name counts.

        Raises:
            InputError: a name that cannot be stored, a path where no file is, or the run has ended.
            SizeError: too many bytes.
        """
        self._require_open()
        check_name("artifact", name)
        row: dict[str, Any] = {"run_id": self.id, "name": name, "wall": time.time(), "mime": str(mime)[:100]}
        if isinstance(content, (bytes, bytearray, memoryview)):
            data = bytes(content)
            if len(data) > LARGEST_BLOB:
                raise SizeError(
                    f"artifact {name!r} has {bytes_as_text(len(data))} (limit {bytes_as_text(LARGEST_BLOB)}); "
                    "save it to a file and give its path"
                )
            row |= {"path": None, "data": data}
        else:
            path = Path(content).expanduser().absolute()
            if not path.is_file():
                raise InputError(
                    f"artifact {name!r}: there is no file {str(path)!r}; write it first, or give its bytes"
                )
            row |= {"path": str(path), "data": None}
        self._writer.put(Row(schema.artifact, row))

    def model_version(
        self,
        name: str,
        digest: str | None = None,
        step: int | None = None,
        details: Mapping[str, Any] | None = None,
        baseline: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a state of the model worth a name: a checkpoint, a pruned copy.

        Args:
            digest: of its weights, to tell whether a file is this state (at most 128 characters).
            details: anything JSON can carry.
            baseline: metric -> number or Estimate, what was measured of this state; drift on new data is told against
                it.

        Raises:
            InputError: a name or a number that cannot be stored, or the run has ended.
        """
        self._require_open()
        check_name("model version", name)
        row = {"run_id": self.id, "name": name, "step": None if step is None else int(step), "wall": time.time()}
        row |= {"digest": None if digest is None else str(digest)[:128], "details": as_json(dict(details or {}))}
        row["baseline"] = encode_baseline({check_name("metric", key): value for key, value in (baseline or {}).items()})
        self._writer.put(Row(schema.model_version, row))

    def tag(self, *names: str) -> None:
        """Give the run tags, words by which it is found and kept (``dynaxx gc`` leaves runs tagged "keep").

        Raises:
            InputError: a name that cannot be stored, or the run has ended.
        """
        self._require_open()
        for name in [check_name("tag", name) for name in names]:
            self._writer.put(Row(schema.tag, {"run_id": self.id, "name": name}))

    def flush(self) -> bool:
        """Write what waits now; True when nothing is left."""
        return self._writer.flush()

    @property
    def waiting(self) -> int:
        """Metrics and rows of this store that are not on disk yet."""
        return self._writer.waiting

    def finish(self, status: str = "finished") -> None:
        """End the run and write everything. Ending it again changes nothing; in a forked child only the child's rows
        are written.

        Args:
            status: "finished", "failed" or "interrupted".

        Raises:
            InputError: another status.
        """
        choose("status", status, ENDINGS)
        if self.status == "running" and self._pid == os.getpid():
            now = time.time()
            self._writer.put(Change(self.id, {"status": status, "ended": now, "heartbeat": now}))
            self._writer.runs.discard(self.id)
            self.store.forget(self)
            self.status = status
        self._writer.flush()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = ending(error)
        if status == "failed" and self.status == "running":
            self.alert(type(error).__name__, _plain(error)[:2000], level="error", step=max(self._step, 0))
        self.finish(status)

    def __repr__(self) -> str:
        return f"Run(id={self.id}, name={self.name!r}, project={self.project!r}, status={self.status!r})"

    def _advance(self, step: int | None) -> int:
        self._require_open()
        try:
            number = self._step + 1 if step is None else int(step)
        except (TypeError, ValueError) as error:
            raise InputError(f"step={step!r} is no integer; give the number of optimizer steps done") from error
        self._step = max(self._step, number)
        return number

    def _require_open(self) -> None:
        if self.status != "running":
            raise InputError(f"run {self.id} ({self.name!r}) has {self.status}; start another with store.run(...)")


def ending(error: BaseException | None) -> str:
    """The status of a run that ``error`` (or None) brought to its end.

    >>> ending(None), ending(ValueError()), ending(KeyboardInterrupt()), ending(SystemExit(0))
    ('finished', 'failed', 'interrupted', 'finished')
    """
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _plain(text: object) -> str:
    """Text without NUL, which PostgreSQL refuses, and without halves of surrogate pairs, which nothing can encode."""
    return str(text).replace("\0", "").encode("utf-8", "replace").decode("utf-8")
