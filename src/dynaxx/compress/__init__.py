"""Pruning by curvature, and the workflow around it: look, train, prune, validate."""
