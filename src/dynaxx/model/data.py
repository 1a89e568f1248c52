"""Batches as users have them, read one way: what goes in, what is known about the labels, which positions count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dynaxx.errors import InputError

IGNORE_INDEX = -100  # torch's and HuggingFace's mark for a position without a label


@dataclass(frozen=True)
class Batch:
    """One batch: ``model(*args, **kwargs)``, its targets, and where it stands in the data.

    Args:
        args, kwargs: what the model is called with.
        targets: labels, or None.
        attention: attention mask (N, T), or None; positions with 0 are padding.
        weights: weights of examples (N,) or positions (N, P), or None; a weight multiplies the log likelihood.
        raw: the batch as the user gave it, for ``predict(model, batch)``.
        index: number of the batch in its pass.
        start: examples before it in the pass.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Tensor | None
    attention: Tensor | None
    raw: Any
    index: int = 0
    start: int = 0
    weights: Tensor | None = None

    @property
    def count(self) -> int:
        """Examples in the batch: the length of its first tensor."""
        return len(next(tensors((self.args, self.kwargs, self.raw))))

    def part(self, start: int, stop: int) -> Batch:
        """Examples start to stop - 1 as a batch of their own."""
        count = self.count

        def cut(value: Any) -> Any:
            return value[start:stop] if isinstance(value, Tensor) and value.dim() and len(value) == count else value

        fields = ("args", "kwargs", "targets", "attention", "raw", "weights")
        return replace(self, start=self.start + start, **{f: map_tensors(cut, getattr(self, f)) for f in fields})

    def fingerprint(self) -> tuple[Any, ...]:
        """A few sums that tell this batch from another or from a reordered one."""
        out: list[Any] = []
        for tensor in tensors((self.args, self.kwargs)):
            values = tensor.detach().flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None]
            out += [tuple(tensor.shape), *(float(v.double().sum()) for v in (values[:1], values[-1:], values))]
        return tuple(out)


def map_tensors(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply ``function`` to the leaves of nested tuples, lists and mappings."""
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return function(value)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among the leaves."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def read_batch(batch: Any, device: torch.device, index: int = 0, start: int = 0) -> Batch:
    """Read x, (x,), (x, y), (x, y, weights) or a dict in the HuggingFace style; move its tensors to ``device``.

    Raises:
        InputError: the batch holds no tensor, or its form is not one of these.
    """
    raw = map_tensors(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
    first = next(tensors(raw), None)
    if isinstance(raw, (tuple, list, Mapping)) and not raw:
        raise InputError(f"batch {index} is an empty {type(batch).__name__}; give x, (x, y) or a dict of tensors")
    if first is None:
        raise InputError(
            f"batch {index} is {type(batch).__name__} without any tensor in it; give tensors: x, (x, y) or a dict of "
            f"tensors"
        )
    if first.dim() == 0:
        raise InputError(f"batch {index} starts with a scalar tensor; its first axis must run over examples")
    if isinstance(raw, Mapping):
        kwargs = {key: value for key, value in raw.items() if key not in ("labels", "label", "sample_weight")}
        targets = raw.get("labels", raw.get("label"))
        weights = _weights(raw.get("sample_weight"), index)
        return Batch((), kwargs, targets, raw.get("attention_mask"), raw, index, start, weights)
    if isinstance(raw, Tensor):
        return Batch((raw,), {}, None, None, raw, index, start)
    if len(raw) > 3:
        raise InputError(
            f"batch {index} is a {type(batch).__name__} of {len(raw)} items; "
            f"expected x, (x, y), (x, y, weights) or a dict. "
            f"For another form pass predict=lambda model, batch: ... and give (inputs, targets)"
        )
    x, targets = (raw[0], raw[1] if len(raw) > 1 else None)
    args, kwargs = (
        ((), dict(x)) if isinstance(x, Mapping) else (tuple(x), {}) if isinstance(x, (tuple, list)) else ((x,), {})
    )
    attention = x.get("attention_mask") if isinstance(x, Mapping) else None
    return Batch(
        args, kwargs, targets, attention, raw, index, start, _weights(raw[2], index) if len(raw) == 3 else None
    )


def _weights(weights: Any, index: int) -> Tensor | None:
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise InputError(f"batch {index}: its weights must be a tensor of finite numbers that are not negative")
    return weights


class Data:
    """The user's data, as passes over numbered batches.

    A tensor, a tuple or a dict is one batch; a DataLoader, a list or any other iterable yields batches.

    Raises:
        InputError: data is empty, cannot be read again though a second pass is needed, or changes between passes.
    """

    def __init__(self, data: Any, device: torch.device, passes: str = "one") -> None:
        self.device = device
        self.single = isinstance(data, (Tensor, tuple, Mapping)) or (
            hasattr(data, "data") and hasattr(data, "keys") and hasattr(data, "to")  # transformers.BatchEncoding
        )
        self._source: Iterable[Any] = [data] if self.single else data
        if not self.single and not hasattr(data, "__iter__"):
            raise InputError(
                f"data is a {type(data).__name__}; expected a batch (tensor, tuple, dict) or an iterable of batches"
            )
        self._prints: list[tuple[Any, ...]] = []
        self._watch = False  # fingerprints cost a sum over the inputs; one-pass forms need none
        self.count: int | None = None
        if passes == "several":
            self.require_repeatable()

    def require_repeatable(self) -> None:
        """Refuse sources whose second pass would differ from the first, as far as that shows beforehand."""
        source = self._source
        self._watch = not self.single
        if isinstance(source, Iterator):
            raise InputError(
                f"data is a {type(source).__name__}, which can be read once, and this needs several passes; give a "
                f"list or a DataLoader, "
                f"or ask for a form that needs one pass (diagonal, dense, block, kfac)"
            )
        if isinstance(getattr(source, "sampler", None), torch.utils.data.RandomSampler):
            raise InputError(
                "the DataLoader shuffles, so its passes differ, and this needs several passes over the same examples; "
                "use DataLoader(..., shuffle=False)"
            )

    def __iter__(self) -> Iterator[Batch]:
        """One pass. The first pass is remembered by fingerprints, later ones are held against it."""
        start = index = 0
        first_pass = self.count is None
        prints: list[tuple[Any, ...]] = []
        for index, item in enumerate(self._source):
            batch = read_batch(item, self.device, index, start)
            if batch.count == 0:
                continue
            if self._watch:
                prints.append(batch.fingerprint())
                if self._prints and (len(self._prints) < len(prints) or self._prints[len(prints) - 1] != prints[-1]):
                    raise InputError(
                        f"batch {index} differs from the same batch of the first pass; data must repeat exactly: "
                        f"no shuffling, no random augmentation"
                    )
            yield batch
            start += batch.count
        if start == 0:
            raise InputError("data is empty: it yielded no examples")
        if not first_pass and start != self.count:
            raise InputError(
                f"this pass over data had {start} examples, the first had {self.count}; data must repeat exactly"
            )
        self._prints, self.count = prints, start
