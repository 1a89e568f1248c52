"""Matrix-free linear algebra: algorithms that know an operator only by its products.

Anything with ``shape``, ``dtype``, ``device`` and ``op @ v`` will do, a dense symmetric tensor included. What is
sampled comes with its standard error, what did not converge says so, and where a sketch would cost as many products as
the exact answer, the exact answer is returned.
"""

from dynaxx.linalg.cg import Solution, cg
from dynaxx.linalg.dense import eigh, eigvalsh, inverse_psd, logdet_psd, symmetric, symmetric_eigenvalues, to_dense
from dynaxx.linalg.diagonal import DiagonalEstimate, hutchinson_diagonal, xdiag
from dynaxx.linalg.frobenius import frobenius
from dynaxx.linalg.lanczos import Eigenpairs, lanczos
from dynaxx.linalg.protocol import Operator
from dynaxx.linalg.quadrature import Quadrature, logdet, quadrature
from dynaxx.linalg.trace import hutch_plus_plus, hutchinson, xnystrace, xtrace
from dynaxx.linalg.tridiagonal import Tridiagonal, tridiagonal

__all__ = [
    "DiagonalEstimate",
    "Eigenpairs",
    "Operator",
    "Quadrature",
    "Solution",
    "Tridiagonal",
    "cg",
    "eigh",
    "eigvalsh",
    "frobenius",
    "hutch_plus_plus",
    "hutchinson",
    "hutchinson_diagonal",
    "inverse_psd",
    "lanczos",
    "logdet",
    "logdet_psd",
    "quadrature",
    "symmetric",
    "symmetric_eigenvalues",
    "to_dense",
    "tridiagonal",
    "xdiag",
    "xnystrace",
    "xtrace",
]
