"""Small models that trip up curvature libraries, each with a batch and a likelihood. Float64, eval mode, seeded.

``CASES`` maps a name to a ``Case``; ``load(name)`` builds it once. Batches hold 5 to 7 examples. Where an axis could be
mistaken for the batch axis it has, on purpose, the same length as the batch.
"""

from architectures import bare, convolutions, dense, likelihoods, reuse, sequences
from architectures.case import CASES, Case, N, load

NAMES = tuple(CASES)

__all__ = ["CASES", "NAMES", "Case", "N", "bare", "convolutions", "dense", "likelihoods", "load", "reuse", "sequences"]
