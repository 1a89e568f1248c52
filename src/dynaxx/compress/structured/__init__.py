"""Structured pruning: channels, heads and eigendirections taken out of a model, which is smaller and faster after."""

from dynaxx.compress.structured.bottleneck import Bottleneck
from dynaxx.compress.structured.eigendamage import eigendamage
from dynaxx.compress.structured.result import StructuredResult
from dynaxx.compress.structured.shrink import shrink

__all__ = ["Bottleneck", "StructuredResult", "eigendamage", "shrink"]
