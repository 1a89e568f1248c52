"""Watching a model's geometry while it trains, always on the same named examples."""

from dynaxx.monitor.snapshot import Probe, Snapshot, snapshot

__all__ = ["Probe", "Snapshot", "snapshot"]
