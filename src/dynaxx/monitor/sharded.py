"""Models of which each process holds a part, so that one process alone cannot call them."""

from __future__ import annotations

import sys

from torch import Tensor, nn

from dynaxx.errors import InputError

REMEDY = (
    "the first rank cannot look at it alone. Train under DistributedDataParallel; or keep an unsharded copy, load the "
    "gathered weights into it (get_model_state_dict with full_state_dict=True, on all ranks), and let a Monitor of "
    "that copy measure(step)"
)


def require_whole(model: nn.Module) -> None:
    """Refuse a model in shards: a look at it would wait for ever for ranks that do not look.

    Raises:
        InputError: it, or a part, is sharded by FSDP (either kind), tensor parallelism or DeepSpeed ZeRO 3.
    """
    for name, module in model.named_modules():
        if _is(module, "torch.distributed.fsdp", "FullyShardedDataParallel", "FSDPModule"):
            raise InputError(f"{repr(name) if name else 'the model'} is sharded by FSDP: {REMEDY}")
    for name, parameter in model.named_parameters():
        if sharding := _sharding(parameter):
            raise InputError(f"parameter {name!r} is sharded ({sharding}): {REMEDY}")


def _sharding(parameter: Tensor) -> str | None:
    if _is(parameter.data, "torch.distributed.tensor", "DTensor"):
        return "a DTensor"
    if getattr(parameter, "_fsdp_flattened", False):  # the module inside FSDP, handed over without its wrapper
        return "by FSDP"
    return "by DeepSpeed ZeRO 3" if hasattr(parameter, "ds_id") else None


def _is(value: object, package: str, *names: str) -> bool:
    """isinstance, without importing what nobody has imported yet."""
    kinds = [getattr(sys.modules.get(package), name, None) for name in names]
    return isinstance(value, tuple(kind for kind in kinds if kind is not None))
