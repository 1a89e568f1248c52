"""The pruning studies' kept results as tables; nothing is computed here but means and intervals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pruning_images import REFERENCE
from pruning_methods import METHODS, SPARSITIES, file_name
from pruning_models import unpacked
from pruning_tuning import KINDS, SCOPES, Way, chosen
from pruning_untrained import NAMES
from runs import proportion, read
from torch import Tensor

from dynaxx.compress.intervals import Change, mean_change

POINT = 1.0  # the loss of accuracy that is allowed, in percent


def kept(folder: Path) -> dict[str, Any]:
    """One-shot cells of a folder: "model|seed|method" -> result."""
    names = {file_name(name): name for name in METHODS} | {"shuffled": "OBD, shuffled"}
    parts = {key: key.split("-", 2) for key in read(folder)}
    order = list(names)
    found = {
        f"{parts[key][0]}|{parts[key][1]}|{names[parts[key][2]]}": value
        for key, value in sorted(read(folder).items(), key=lambda item: order.index(parts[item[0]][2]))
    }
    return dict(sorted(found.items(), key=lambda item: item[0].split("|")[0]))


def kept_tuned(folder: Path) -> dict[str, Any]:
    """Fine-tuned cells: "model|seed|kind|sparsity" -> result of what was chosen with seed 0."""
    every: dict[tuple[str, str, str], dict[str, dict[Way, Any]]] = {}
    for key, value in read(folder).items():
        model, seed, word, sparsity, rate = key.split("-")
        kind = "magnitude" if word in SCOPES else word
        every.setdefault((model, kind, sparsity), {}).setdefault(seed, {})[word, float(rate)] = value
    found = {}
    for (model, kind, sparsity), seeds in every.items():
        best = chosen(seeds["0"])
        for seed, cells in seeds.items():
            if best in cells:
                found[f"{model}|{seed}|{kind}|{sparsity}"] = cells[best] | {"rate": best[1]}
    return found


def _models(found: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.split("|")[0] for key in found))


def tables(found: Mapping[str, Any], sparsities: Sequence[float] = SPARSITIES) -> str:
    """Mean test accuracy in percent, and Wilson's 95 % interval at that many images, by method and sparsity."""
    lines = []
    for model in _models(found):
        mine = {key: value for key, value in found.items() if key.startswith(model + "|")}
        dense = [100 * value["dense"] / value["count"] for value in mine.values()]
        seeds = sorted({key.split("|")[1] for key in mine})
        lines += ["", f"{model}: dense {statistics.mean(dense):.1f}, {len(seeds)} seeds", ""]
        lines += _head(["method", *(f"{100 * s:g} %" for s in sparsities)])
        for name in dict.fromkeys(key.split("|")[2] for key in mine):
            values = [value for key, value in mine.items() if key.split("|")[2] == name]
            cells = [
                _share([value["rows"][f"{s:g}"]["hits"] for value in values], values[0]["count"]) for s in sparsities
            ]
            lines.append(f"| {name} ({len(values)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tuned_tables(found: Mapping[str, Any]) -> str:
    """Fine-tuned accuracy in percent, and what it is above magnitude's on the same images, in points."""
    lines = []
    for model in _models(found):
        mine = {tuple(key.split("|")[1:]): value for key, value in found.items() if key.startswith(model + "|")}
        lines += ["", f"{model}: fine-tuned", ""]
        lines += _head(["", "start", "rate", "before", "after", "above magnitude, seed by seed", "mean"])
        for sparsity in sorted({key[2] for key in mine}, key=float):
            for kind in KINDS:
                seeds = sorted(seed for seed, word, s in mine if (word, s) == (kind, sparsity))
                cells = [mine[seed, kind, sparsity] for seed in seeds]
                if not cells:
                    continue
                methods = "; ".join(dict.fromkeys(cell["method"] for cell in cells))
                shares = [
                    _share([cell["hits"][when] for cell in cells], cells[0]["count"]) for when in ("before", "after")
                ]
                pairs = [
                    (_right(mine[seed, SCOPES[0], sparsity]), _right(mine[seed, kind, sparsity]))
                    for seed in seeds
                    if kind != SCOPES[0] and (seed, SCOPES[0], sparsity) in mine
                ]
                by_seed = ", ".join(f"{100 * float((b - a).mean()):+.1f}" for a, b in pairs)
                mean = _points(_change(pairs)) if pairs else ""
                lines.append(
                    f"| {100 * float(sparsity):g} % | {methods} ({len(cells)}) | {cells[0]['rate']:g} | "
                    + " | ".join([*shares, by_seed, mean]) + " |"
                )  # fmt: skip
    return "\n".join(lines)


def loss_tables(found: Mapping[str, Any], tuned: Mapping[str, Any] | None = None) -> str:
    """Loss of accuracy against dense in points, on the same images; and up to where it stays under one point."""
    lines = []
    for model in _models(found):
        mine = {tuple(key.split("|")[1:]): value for key, value in found.items() if key.startswith(model + "|")}
        grid = sorted(next(iter(mine.values()))["rows"], key=float)
        lines += ["", f"{model}: points of accuracy lost", ""]
        lines += _head(
            ["criterion", *(f"{100 * float(s):g} %" for s in grid), "under a point", "surely", "above, surely"]
        )
        for name in dict.fromkeys(key[1] for key in mine):
            values = [value for key, value in mine.items() if key[1] == name]
            changes = {float(s): lost(values, s) for s in grid}
            cells = [_points(change) for change in changes.values()]
            lines.append(f"| {name} ({len(values)}) | " + " | ".join([*cells, *_within(changes)]) + " |")
    return "\n".join(lines)


def lost(values: Sequence[Mapping[str, Any]], sparsity: str) -> Change:
    """Accuracy lost against dense, mean over the seeds, in shares; the interval is over test images."""
    return _change([
        (_bits(value["rows"][sparsity]["right"], value["count"]), _bits(value["right"], value["count"]))
        for value in values
    ])  # fmt: skip


def _within(changes: Mapping[float, Change]) -> tuple[str, str, str]:
    """The largest sparsity up to which the loss is under one point, and surely so; the first where it surely is not."""
    limit, grid = POINT / 100, sorted(changes)

    def up_to(good: Any) -> str:
        reached = 0.0
        for sparsity in grid:
            if not good(changes[sparsity]):
                break
            reached = sparsity
        return f"{100 * reached:g} %" if reached else "none"

    above = next((f"{100 * s:g} %" for s in grid if changes[s].low > limit), "none")
    return up_to(lambda c: c.value < limit), up_to(lambda c: c.high < limit), above


def _change(pairs: Sequence[tuple[Tensor, Tensor]]) -> Change:
    """Mean over the seeds per image, then over images: seeds share their test images and are no further samples."""
    before, after = (torch.stack([pair[i] for pair in pairs]).mean(0) for i in (0, 1))
    return mean_change(before, after)


def _bits(text: str, count: int) -> Tensor:
    return unpacked(text, count).double()


def _right(cell: Mapping[str, Any]) -> Tensor:
    return _bits(cell["after"], cell["count"])


def _share(hits: Sequence[int], count: int) -> str:
    hit = statistics.mean(hits)
    share = proportion(round(hit), count)
    return f"{100 * hit / count:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _points(change: Change) -> str:
    value, low, high = (round(100 * x, 1) + 0.0 for x in change[:3])  # no minus before a zero
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _head(columns: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]


def untrained_tables(found: Mapping[str, Any]) -> str:
    """Test accuracy in percent after training, with Wilson's interval; and above the same masks shuffled, in points."""
    if not found:
        return ""
    by_name = {name: [v for key, v in found.items() if key.split("|")[1] == name] for name in NAMES}
    by_name = {name: values for name, values in by_name.items() if values}
    sparsities = sorted(next(iter(found.values()))["rows"], key=float)
    head = _head(["method", *(f"{100 * float(s):g} %" for s in sparsities)])
    dense = statistics.mean(100 * value["dense"] / value["count"] for value in found.values())
    lines = ["", f"mlp: pruned before training, dense {dense:.1f}", "", *head]
    for name, values in by_name.items():
        cells = [_share([value["rows"][s]["hits"] for value in values], values[0]["count"]) for s in sparsities]
        lines.append(f"| {name} ({len(values)}) | " + " | ".join(cells) + " |")
    lines += ["", "mlp: above its shuffled masks, in points", "", *head]
    for name, values in by_name.items():
        if others := by_name.get(f"{name}, shuffled"):
            cells = [
                _points(_change([(_of(b, s), _of(a, s)) for a, b in zip(values, others, strict=True)]))
                for s in sparsities
            ]
            lines.append(f"| {name} ({len(values)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of(value: Mapping[str, Any], sparsity: str) -> Tensor:
    return _bits(value["rows"][sparsity]["right"], value["count"])


def kept_untrained(folder: Path) -> dict[str, Any]:
    """Cells of networks pruned before training: "seed|name" -> result."""
    names = {file_name(name): name for name in NAMES}
    cells = {tuple(key.split("-", 1)): value for key, value in read(folder).items()}
    return {f"{seed}|{names[word]}": value for (seed, word), value in cells.items()}


def kept_images(folder: Path) -> dict[str, Any]:
    """Cells by the number of images behind the curvature: "model|seed|method|images" -> result."""
    names = {file_name(name): name for name in METHODS}
    cells = {tuple(key.split("-", 3)): value for key, value in read(folder).items()}
    found = {f"{model}|{seed}|{names[word]}|{count}": cell for (model, seed, count, word), cell in cells.items()}
    order = list(METHODS)

    def at(key: str) -> tuple[str, int, int]:
        model, _, name, count = key.split("|")
        return model, order.index(name), int(count)

    return {key: found[key] for key in sorted(found, key=at)}


def images_tables(found: Mapping[str, Any]) -> str:
    """Test accuracy in percent, with Wilson's interval, and what it is above magnitude's, in points, by the number of
    images behind the curvature."""
    lines = []
    for model in _models(found):
        mine = {tuple(key.split("|")[1:]): value for key, value in found.items() if key.startswith(model + "|")}
        sparsities = sorted(next(iter(mine.values()))["rows"], key=float)
        reference = {seed: value for (seed, name, _), value in mine.items() if name == REFERENCE}
        head = _head(["method", "images", *(f"{100 * float(s):g} %" for s in sparsities)])
        shares, above = ["", f"{model}: by images behind the curvature", "", *head], ["", "above magnitude", "", *head]
        for name, count in dict.fromkeys(key[1:] for key in mine):
            cells = {seed: value for (seed, own, number), value in mine.items() if (own, number) == (name, count)}
            row = f"| {name} ({len(cells)}) | {count if int(count) else ''} | "
            hits = [[value["rows"][s]["hits"] for value in cells.values()] for s in sparsities]
            number = next(iter(cells.values()))["count"]
            shares.append(row + " | ".join(_share(each, number) for each in hits) + " |")
            if name != REFERENCE:
                pairs = [
                    [(_of(reference[seed], s), _of(value, s)) for seed, value in cells.items()] for s in sparsities
                ]
                above.append(row + " | ".join(_points(_change(each)) for each in pairs) + " |")
        lines += [*shares, *above]
    return "\n".join(lines)


def everything(results: Path) -> str:
    """Every table of the kept results."""
    return "\n".join((
        tables(kept(results)), tuned_tables(kept_tuned(results / "tuned")), loss_tables(kept(results / "loss")),
        images_tables(kept_images(results / "images")), untrained_tables(kept_untrained(results / "untrained")),
    ))  # fmt: skip
