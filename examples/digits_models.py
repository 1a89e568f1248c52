"""
Models and data as factories
============================

The demo's models and data as factories, for the command line or as a pattern for your own::

    cd examples
    dynaxx compress digits_models:mlp --data digits_models:data --sparsity 0.8 --tolerance 0.01
    dynaxx inspect digits_models:cnn --data digits_models:data
"""

from dynaxx.cli import digits

mlp = digits.mlp
cnn = digits.cnn


def data():
    """(train, validation, test): a loader that shuffles by its own seed, and two batches."""
    parts = digits.digits(seed=0)
    return parts.train, parts.validation, parts.test
