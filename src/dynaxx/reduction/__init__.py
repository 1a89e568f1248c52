"""A use: model reduction. Weights are projected on the leading eigenvectors of the Fisher matrix."""

from dynaxx.reduction.bisection import Smallest
from dynaxx.reduction.curve import Curve, Point
from dynaxx.reduction.reduce import reduce
from dynaxx.reduction.reduction import Reduction

__all__ = ["Curve", "Point", "Reduction", "Smallest", "reduce"]
