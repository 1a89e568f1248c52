"""The cells of the peers, each called as its own documentation says, with determinism checks and progress bars off.

What a peer cannot do is recorded with the reason. Definitions differ (asdl and nngeometry append the bias to A,
BackPACK's convolutional K-FAC is not the expand setting, step rows differ in damping), so these cells compare cost;
``answer`` is given where the numbers must agree.
"""

from peers import layers, per_example, products

__all__ = ["layers", "per_example", "products"]
