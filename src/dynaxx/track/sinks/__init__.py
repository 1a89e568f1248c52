"""Where measurements go besides the run store: each sink is one small object."""

from dynaxx.track.sinks.base import Record, Sink

__all__ = ["Record", "Sink"]
