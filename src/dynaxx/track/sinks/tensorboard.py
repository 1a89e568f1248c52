"""A sink for TensorBoard's event files, written without torch and without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dynaxx.errors import InputError
from dynaxx.track.records import Alert
from dynaxx.track.sinks.base import Record
from dynaxx.track.sinks.series import histograms, numbers, require


class TensorBoard:
    """Numbers as scalars, spectra as histograms of log10 of the positive eigenvalues, events as text.

    Args:
        folder: of this run's event files; TensorBoard is pointed at its parent to compare runs.

    Raises:
        InputError: tensorboard is not installed, or the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        writers = require("TensorBoard()", "tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._proto = require("TensorBoard()", "tensorboard.compat.proto.event_pb2", "tensorboard")
        self._summary = require("TensorBoard()", "tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._tensor = require("TensorBoard()", "tensorboard.compat.proto.tensor_pb2", "tensorboard")
        self._types = require("TensorBoard()", "tensorboard.compat.proto.types_pb2", "tensorboard")
        self.folder = os.fspath(folder)
        try:
            self._writer = writers.EventFileWriter(self.folder)
        except OSError as error:
            raise InputError(f"TensorBoard cannot write to {self.folder!r} ({error}); name another folder") from error

    def write(self, records: Sequence[Record]) -> None:
        """Scalars and histograms at the record's step."""
        summary = self._summary
        for record in records:
            values = [summary.Summary.Value(tag=n, simple_value=v) for n, v in numbers(record).items()]
            for name, (points, counts, edges) in histograms(record.arrays).items():
                histogram = summary.HistogramProto(
                    min=points.min(),
                    max=points.max(),
                    num=len(points),
                    sum=points.sum(),
                    sum_squares=points @ points,
                    bucket_limit=edges[1:].tolist(),
                    bucket=counts.tolist(),
                )
                values.append(summary.Summary.Value(tag=name, histo=histogram))
            self._add(record.step, record.wall, values)

    def event(self, event: Alert) -> None:
        """Markdown under the text tab."""
        summary = self._summary
        text = f"**{event.level}: {event.title}**\n\n{event.text}"
        tensor = self._tensor.TensorProto(dtype=self._types.DT_STRING, string_val=[text.encode()])
        tensor.tensor_shape.dim.add(size=1)
        metadata = summary.SummaryMetadata(plugin_data=summary.SummaryMetadata.PluginData(plugin_name="text"))
        value = summary.Summary.Value(tag="dynaxx/events", metadata=metadata, tensor=tensor)
        self._add(event.step or 0, event.wall, [value])

    def flush(self) -> None:
        """To the file."""
        self._writer.flush()

    def close(self) -> None:
        """To the file, and close it."""
        self._writer.close()

    def _add(self, step: int, wall: float, values: list[object]) -> None:
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._proto.Event(step=step, wall_time=wall, summary=summary))
