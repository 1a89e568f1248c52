"""A sink of plain lines: one JSON object for each record and event."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynaxx.errors import InputError
from dynaxx.track.records import Alert, as_json
from dynaxx.track.sinks.base import Record
from dynaxx.track.sinks.series import stderr


class JsonLines:
    """Appends to a text file: ``{"kind": "record", "step", "wall", "values", "stderrs", "arrays"}`` for each record,
    ``{"kind": "event", "level", "title", "text", "step", "wall"}`` for each event.

    NaN and infinities are text ("nan", "inf"), because JSON has no numbers for them. Each line is with the operating
    system before the next is taken, so that a killed process loses none that was written.

    Args:
        path: appended to; folders are made.
        arrays: whether spectra are written too (a spectrum of 4096 is 80 kB of text).

    Raises:
        InputError: the file cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sink = JsonLines(f"{folder}/run.jsonl")
    ...     sink.write([Record(3, 0.0, {"dynaxx/trace": float("nan")})])
    ...     sink.close()
    ...     print(Path(folder, "run.jsonl").read_text(), end="")
    {"kind": "record", "step": 3, "wall": 0.0, "values": {"dynaxx/trace": "nan"}}
    """

    def __init__(self, path: str | os.PathLike[str], *, arrays: bool = True) -> None:
        self.path, self.arrays = Path(path), arrays
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and self.path.stat().st_size > 0 and not _ends_a_line(self.path)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  open as long as the sink is
        except OSError as error:
            raise InputError(f"JsonLines cannot append to {str(path)!r} ({error}); name another file") from error
        if torn:  # a process died in the middle of a line
            self._file.write(b"\n")

    def write(self, records: Sequence[Record]) -> None:
        """One line each."""
        for record in records:
            self._line("record", self._record(record))

    def event(self, event: Alert) -> None:
        """One line."""
        names = ("level", "title", "text", "step", "wall")
        self._line("event", {name: getattr(event, name) for name in names})

    def flush(self) -> None:
        """To the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _record(self, record: Record) -> dict[str, Any]:
        values = {name: float(value) for name, value in record.values.items()}
        line: dict[str, Any] = {"step": record.step, "wall": record.wall, "values": values}
        errors = {name: stderr(value) for name, value in record.values.items()}
        known = {name: error for name, error in errors.items() if error is not None}
        arrays = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in record.arrays.items()}
        return line | ({"stderrs": known} if known else {}) | ({"arrays": arrays} if arrays and self.arrays else {})

    def _line(self, kind: str, content: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind} | as_json(content), allow_nan=False).encode() + b"\n")


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
