"""Watching a model's geometry while it trains, always on the same named examples."""

from dynaxx.monitor.drift import Baseline, Shift, drift
from dynaxx.monitor.journal import MonitorWarning
from dynaxx.monitor.monitor import Monitor
from dynaxx.monitor.snapshot import Probe, Snapshot, snapshot

__all__ = ["Baseline", "Monitor", "MonitorWarning", "Probe", "Shift", "Snapshot", "drift", "snapshot"]
