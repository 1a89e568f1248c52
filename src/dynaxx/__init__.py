"""dynaxx: information geometry for PyTorch models.

The public names, nothing else. Each is imported when it is first used, so that ``import dynaxx`` and ``dynaxx --help``
stay light.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dynaxx.version import __version__ as __version__

_PUBLIC = {
    "fisher": "dynaxx.fisher:fisher",
    "advise": "dynaxx.advice:advise",
    "bracket": "dynaxx.bounds:bracket",
    "deflated": "dynaxx.deflation:deflated",
    "fisher_trace_penalty": "dynaxx.penalty:fisher_trace_penalty",
    "predicted_error": "dynaxx.prediction:predicted_error",
    "hessian": "dynaxx.hessian:hessian",
    "load": "dynaxx.operators.storage:load",
    "Estimate": "dynaxx.estimate:Estimate",
    "Spectrum": "dynaxx.spectrum:Spectrum",
    "InputError": "dynaxx.errors:InputError",
    "SizeError": "dynaxx.errors:SizeError",
    "prune": "dynaxx.compress.prune:prune",
    "PruningResult": "dynaxx.compress.result:PruningResult",
    "compress": "dynaxx.compress.workflow:compress",
    "shrink": "dynaxx.compress.structured:shrink",
    "eigendamage": "dynaxx.compress.structured:eigendamage",
    "StructuredResult": "dynaxx.compress.structured:StructuredResult",
    "reduce": "dynaxx.reduction.reduce:reduce",
    "Reduction": "dynaxx.reduction:Reduction",
    "eigenspace": "dynaxx.eigenspace:eigenspace",
    "track_spectrum": "dynaxx.evolution:track_spectrum",
    "fisher_spectrum": "dynaxx.spectra:fisher_spectrum",
    "ntk_spectrum": "dynaxx.spectra:ntk_spectrum",
    "data_spectrum": "dynaxx.spectra:data_spectrum",
    "likelihoods": "dynaxx.likelihoods",
    "manifold": "dynaxx.manifold",
    "estimate_memory": "dynaxx.memory.estimate:estimate_memory",
    "MemoryEstimate": "dynaxx.memory.estimate:MemoryEstimate",
    "Monitor": "dynaxx.monitor.monitor:Monitor",
}

if TYPE_CHECKING:
    from dynaxx import likelihoods as likelihoods
    from dynaxx import manifold as manifold
    from dynaxx.advice import advise as advise
    from dynaxx.bounds import bracket as bracket
    from dynaxx.compress.prune import prune as prune
    from dynaxx.compress.result import PruningResult as PruningResult
    from dynaxx.compress.structured import StructuredResult as StructuredResult
    from dynaxx.compress.structured.eigendamage import eigendamage as eigendamage
    from dynaxx.compress.structured.shrink import shrink as shrink
    from dynaxx.compress.workflow import compress as compress
    from dynaxx.deflation import deflated as deflated
    from dynaxx.eigenspace import eigenspace as eigenspace
    from dynaxx.errors import InputError as InputError
    from dynaxx.errors import SizeError as SizeError
    from dynaxx.estimate import Estimate as Estimate
    from dynaxx.evolution import track_spectrum as track_spectrum
    from dynaxx.fisher import fisher as fisher
    from dynaxx.hessian import hessian as hessian
    from dynaxx.memory.estimate import MemoryEstimate as MemoryEstimate
    from dynaxx.memory.estimate import estimate_memory as estimate_memory
    from dynaxx.monitor.monitor import Monitor as Monitor
    from dynaxx.operators.storage import load as load
    from dynaxx.penalty import fisher_trace_penalty as fisher_trace_penalty
    from dynaxx.prediction import predicted_error as predicted_error
    from dynaxx.reduction import Reduction as Reduction
    from dynaxx.reduction.reduce import reduce as reduce
    from dynaxx.spectra import data_spectrum as data_spectrum
    from dynaxx.spectra import fisher_spectrum as fisher_spectrum
    from dynaxx.spectra import ntk_spectrum as ntk_spectrum
    from dynaxx.spectrum import Spectrum as Spectrum

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dynaxx' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = import_module(module)
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``dynaxx.fisher`` the function.

    Importing the submodule of that name would otherwise put itself in its place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and ":" in _PUBLIC.get(name, "")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
