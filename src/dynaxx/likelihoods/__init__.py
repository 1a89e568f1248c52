"""Likelihoods: the metric of the output space, and nothing about models."""

from dynaxx.errors import InputError, choose
from dynaxx.likelihoods.base import Likelihood
from dynaxx.likelihoods.bernoulli import Bernoulli
from dynaxx.likelihoods.categorical import Categorical
from dynaxx.likelihoods.gaussian import Gaussian, HeteroscedasticGaussian
from dynaxx.likelihoods.poisson import Poisson

__all__ = ["Bernoulli", "Categorical", "Gaussian", "HeteroscedasticGaussian", "Likelihood", "Poisson", "resolve"]

_BY_NAME: dict[str, type[Likelihood]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "heteroscedastic_gaussian": HeteroscedasticGaussian,
    "poisson": Poisson,
}


def resolve(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood of that name with its defaults, or the object itself.

    Raises:
        InputError: the name is not known (the message lists those that are), or it is neither a name nor a Likelihood.

    >>> resolve("gaussian"), resolve(Gaussian(variance=0.5))
    (Gaussian(variance=1.0), Gaussian(variance=0.5))
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str):
        return _BY_NAME[choose("likelihood", likelihood, _BY_NAME)]()
    raise InputError(
        f"likelihood={likelihood!r} is neither a name nor a Likelihood object; give one of "
        f"{', '.join(map(repr, _BY_NAME))} or an object such as Gaussian(variance=0.5)"
    )
