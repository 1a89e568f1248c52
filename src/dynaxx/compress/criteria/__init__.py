"""How much a weight matters. A criterion is a ranking (who goes); what the rest does about it is ``curvature/``'s.

Removing weights w_Q changes a loss at its minimum by about 1/2 dw^T H dw. With H ~ F, the Fisher matrix, that gives
``obd`` (H diagonal, the others stay) and ``obs`` (H coupled, the others make up for the loss). ``magnitude`` takes H
for a multiple of the identity. ``fisher`` and ``random`` are controls: the former ignores how large the weight is, and
fails at high sparsity. ``snip``, ``grasp`` and ``synflow`` are for models that have not been trained.
"""

from dynaxx.compress.criteria.base import Consequence, Saliency, prunable_parameters
from dynaxx.compress.criteria.ranking import CRITERIA, DATA_FREE, UNTRAINED, saliency

__all__ = ["CRITERIA", "DATA_FREE", "UNTRAINED", "Consequence", "Saliency", "prunable_parameters", "saliency"]
