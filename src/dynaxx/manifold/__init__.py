"""The model manifold: where a model's predictions are, how far two models are apart, and a map of many of them.

    embed        a model's predictions as a point: square roots of probabilities, or means in units of sigma
    distances    between models, between checkpoints, between the data points of one model
    geodesic     the shortest path between two sets of predictions; progress says how far along it a model is
    inpca        an isometric map of many models, and of new ones into the same map
    pac_bayes    an estimate of a bound of the generalisation error, from a spectrum

Source: Quinn et al., PNAS 116:13762 (2019); Mao et al., PNAS 121 (2024), arXiv 2305.01604; Yang et al., ICML 2022.
"""

from dynaxx.manifold.embedding import coordinates, embed
from dynaxx.manifold.figures import plot_distances, plot_map, record, scatter
from dynaxx.manifold.generalisation import PacBayes, pac_bayes
from dynaxx.manifold.geodesics import geodesic, ignorance, progress, truth
from dynaxx.manifold.pairwise import between_examples, distances
from dynaxx.manifold.scaling import Embedding, inpca
from dynaxx.manifold.topology import knn_overlap, persistence, persistence_distance, procrustes, rank_correlation

__all__ = [
    "Embedding",
    "PacBayes",
    "between_examples",
    "coordinates",
    "distances",
    "embed",
    "geodesic",
    "ignorance",
    "inpca",
    "knn_overlap",
    "pac_bayes",
    "persistence",
    "persistence_distance",
    "plot_distances",
    "plot_map",
    "procrustes",
    "progress",
    "rank_correlation",
    "record",
    "scatter",
    "truth",
]
