"""What a spectrum means: entropy, effective rank and dimension, sloppiness.

With eigenvalues l_1 >= l_2 >= ... of a Fisher matrix, their sum T, q_i = l_i / T, N examples and a prior precision d:

    spectral entropy      -sum q ln q                        nats; the shape alone, blind to scale
    effective rank        exp of it                          Roy & Vetterli, EUSIPCO 2007
    participation ratio   T^2 / sum l^2
    effective dimension   sum N l / (N l + d)                directions the data determine; MacKay 1992
    posterior entropy     -1/2 sum ln(1 + N l / d)           nats, 0 = prior, lower = more information

A Fisher matrix is singular for every network of interest, so ln det F is not among them. Eigenvalues at or below
``floor`` are rounding and count as zeros. A verb that cannot be answered, because the spectrum is indefinite or holds
the top only, says so.
"""

from dynaxx.spectrum.eigenvalues import Spectrum
from dynaxx.spectrum.jackknife import jackknife
from dynaxx.spectrum.sampled import SampledSpectrum
from dynaxx.spectrum.sloppiness import Gap, Slope, Sloppiness

__all__ = ["Gap", "SampledSpectrum", "Slope", "Sloppiness", "Spectrum", "jackknife"]
