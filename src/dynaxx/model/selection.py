"""Which parameters are looked at.

None, names, a predicate or a list of tensors are answered with canonical names in the model's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from torch import Tensor, nn

from dynaxx.errors import InputError
from dynaxx.layout import Layout

Selector = None | Callable[[str, Tensor], bool] | Iterable[str] | Iterable[Tensor]


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DistributedDataParallel and DataParallel wrappers.

    Hooks set after a compiled model has run never fire, so probing goes through the eager module.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


def select(model: nn.Module, params: Selector = None) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter for what ``params`` asks for, in the order of ``model.named_parameters()``.

    A tied parameter has one canonical name (its first) and answers to all of them.

    Raises:
        InputError: a name or tensor is unknown or given twice, or nothing is selected.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    named = dict(model.named_parameters())
    canonical = {id(tensor): name for name, tensor in named.items()}
    if params is None:
        chosen = {name for name, tensor in named.items() if tensor.requires_grad}
        if not chosen:
            raise InputError("no parameter of this model requires grad; name the ones you want with params=[...]")
    elif callable(params):
        chosen = {name for name, tensor in named.items() if params(name, tensor)}
    else:
        aliases = {name: canonical[id(tensor)] for name, tensor in model.named_parameters(remove_duplicate=False)}
        chosen = set()
        for item in [params] if isinstance(params, (str, Tensor)) else params:
            if isinstance(item, str):
                if item not in aliases:
                    near = [name for name in aliases if item.split(".")[-1] in name][:5] or list(aliases)[:5]
                    raise InputError(
                        f"params names {item!r}, which this model does not have; it has for instance {near}"
                    )
                name = aliases[item]
            elif isinstance(item, Tensor) and id(item) in canonical:
                name = canonical[id(item)]
            else:
                raise InputError(f"params holds a {type(item).__name__} that is not a parameter of this model")
            if name in chosen:
                raise InputError(
                    f"params holds {item if isinstance(item, str) else name!r} twice (tied names count as one: "
                    f"{name!r})"
                )
            chosen.add(name)
    if not chosen:
        raise InputError("params selects no parameter of this model")
    return {name: tensor for name, tensor in named.items() if name in chosen}


def layout_of(parameters: dict[str, nn.Parameter]) -> Layout:
    """The layout of the selected parameters.

    Raises:
        InputError: they lie on several devices or have several dtypes that do not mix.
    """
    devices, dtypes = {p.device for p in parameters.values()}, {p.dtype for p in parameters.values()}
    if len(devices) > 1:
        raise InputError(
            f"the selected parameters lie on several devices ({sorted(map(str, devices))}); select those of one"
        )
    if not all(dtype.is_floating_point for dtype in dtypes):
        raise InputError(
            f"the selected parameters have dtypes {sorted(map(str, dtypes))}; all must be real floating point"
        )
    dtype = next(iter(dtypes)) if len(dtypes) == 1 else max(dtypes, key=lambda d: d.itemsize)
    return Layout({name: tuple(p.shape) for name, p in parameters.items()}, dtype, next(iter(devices)))
