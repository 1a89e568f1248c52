"""Runs on disk: what was measured, when, and with what. Nothing here imports torch."""

from dynaxx.track.errors import StoreError, StoreWarning
from dynaxx.track.names import check_name, clean_name
from dynaxx.track.records import Alert, ArrayRecord, Artifact, Columns, Last, ModelVersion, RunInfo
from dynaxx.track.run import Run
from dynaxx.track.store import DEFAULT_STORE, Store

__all__ = [
    "DEFAULT_STORE",
    "Alert",
    "ArrayRecord",
    "Artifact",
    "Columns",
    "Last",
    "ModelVersion",
    "Run",
    "RunInfo",
    "Store",
    "StoreError",
    "StoreWarning",
    "check_name",
    "clean_name",
]
