"""Accuracy against measured latency: channels and eigendirections out of a pretrained ResNet-20.

Scores and BatchNorm statistics come from lossless CIFAR-10 training images, accuracy from the 1,000 lossless test
images, before and after one epoch of fine-tuning on the 4,000 lossless training images. Latency is one thread's, 32
images at a time, the dense model and the smaller one taking turns. Magnitude is tried ranked globally, by
layer, and per operation saved, as the Fisher score is.

    python studies/structured.py --quick          about a minute; fails if a qualitative result does
    python studies/structured.py                  everything; goes on where it stopped
    python studies/structured.py --table          the kept results as a table
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy
import torch
from pruning_models import ResNet, hits
from runs import ROOT, Cells, data_folder, proportion, read, require_hash
from safetensors.torch import load_file
from torch import Tensor, nn

from dynaxx.compress.structured import StructuredResult, eigendamage, shrink
from dynaxx.compress.structured.shrink import facts, first_batch
from dynaxx.compress.training import fit
from dynaxx.model.calibrate import calibrate

WEIGHTS = "1dd4392e77e9ad0834f1577438e5d8cdab56b32fe8a9a3928dcbe06405199532"
IMAGES = "ebd865e0e9bef401b7b5523a35f80e436500ca6c22c81c536dcc7ee2f7925afa"
METHODS: dict[str, dict[str, Any]] = {
    "Fisher": {"criterion": "fisher"},
    "Fisher per operation": {"criterion": "fisher", "per_flop": True},
    "Fisher, observed labels": {"criterion": "fisher", "estimator": "empirical"},
    "magnitude": {"criterion": "magnitude"},
    "magnitude per operation": {"criterion": "magnitude", "per_flop": True},
    "magnitude, layer": {"criterion": "magnitude", "scope": "layer"},
    "slimming": {"criterion": "slimming"},
    "random": {"criterion": "random"},
    "EigenDamage": {"curvature": "kfac"},
    "EigenDamage, EKFAC": {"curvature": "ekfac"},
    "EigenDamage, 4 rounds": {"curvature": "kfac", "rounds": 4, "between": False},
    "EigenDamage, 4 rounds, trained between": {"curvature": "kfac", "rounds": 4, "between": True},
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Args:
        scored: training images behind the scores and BatchNorm. turned: the same for EKFAC's second sweep.
        epochs: of fine-tuning. repeats: forward passes of each model that latency is the median of.
    """

    scored: int = 512
    turned: int = 128
    epochs: int = 1
    lr: float = 0.01
    train: int = 4000
    test: int = 1000
    repeats: int = 15


FULL, QUICK = Sizes(), Sizes(scored=128, epochs=0, test=500, repeats=3)
REDUCTIONS = (0.2, 0.4)


@dataclass(frozen=True)
class Case:
    """The dense model, images to train on and images to judge by."""

    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """The first training images, 128 at a time."""
        x, y = (part[:count] for part in self.train)
        return list(zip(x.split(128), y.split(128), strict=True))


def load(data: Path, sizes: Sizes) -> Case:
    """ResNet-20 and its images.

    Raises:
        Skipped: a file is not there.
    """
    weights = require_hash(data / "models" / "pytorch_resnet_cifar10" / "resnet20.safetensors", WEIGHTS)
    images = require_hash(data / "cifar10" / "cifar10_lossless_4k_train_1k_test.npz", IMAGES)
    model = ResNet(3)
    model.load_state_dict(load_file(weights), strict=False)  # the counts of batches are not in the file
    with numpy.load(images, allow_pickle=False) as held:
        parts = [
            (_standardised(held[f"x_{name}"][:count]), torch.as_tensor(held[f"y_{name}"][:count]).long())
            for name, count in (("train", sizes.train), ("test", sizes.test))
        ]
    return Case(model.eval(), *parts)


def _standardised(images: Any) -> Tensor:
    x = torch.as_tensor(images).float().permute(0, 3, 1, 2) / 255
    mean, spread = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((x - mean) / spread).contiguous()


def one(load_case: Any, method: str, reduction: float, sizes: Sizes) -> dict[str, Any]:
    """One method at one reduction: what it saves, and accuracy before and after fine-tuning."""
    case = load_case()
    options = METHODS[method]
    batches = case.batches(sizes.train)
    if "rounds" in options:
        model, about = in_rounds(case, reduction, sizes, **options)
        batches = batches[options["rounds"] - 1 :: options["rounds"]] if options["between"] else batches
    elif "curvature" in options:
        images = sizes.turned if options["curvature"] == "ekfac" else sizes.scored
        result = eigendamage(case.model, case.batches(images), reduction=reduction, repeats=sizes.repeats, **options)
        if images != sizes.scored:
            calibrate(result.model, case.batches(sizes.scored))
        model, about = result.model, _facts(result)
    else:
        result = shrink(case.model, case.batches(sizes.scored), reduction=reduction, repeats=sizes.repeats, **options)
        model, about = result.model, _facts(result)
    found = {"dense": hits(case.model, case.test), "before": hits(model, case.test), **about}
    if sizes.epochs:
        fit(model, batches, epochs=sizes.epochs, lr=sizes.lr)
        found["after"] = hits(model.eval(), case.test)
    return found | {"count": len(case.test[1])}


def in_rounds(
    case: Case, reduction: float, sizes: Sizes, curvature: str, rounds: int, between: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """EigenDamage in steps that each leave the same share of the operations. ``between``: the images of the
    fine-tuning are dealt out to the rounds, and trained on after each of them but the last.
    """
    scored, batches = case.batches(sizes.scored), case.batches(sizes.train)
    model, left, predicted = case.model, 1.0, 0.0  # left: share of the dense model's operations
    for j in range(1, rounds + 1):
        step = 1 - (1 - reduction) ** (j / rounds) / left
        result = eigendamage(model, scored, reduction=step, curvature=curvature, repeats=0)
        counted, model = result.report["flops"], result.model
        left, predicted = left * counted["small"] / counted["dense"], predicted + (result.predicted_loss_increase or 0)
        if between and j < rounds and sizes.epochs:
            fit(model, batches[j - 1 :: rounds], epochs=sizes.epochs, lr=sizes.lr)
    found = facts(case.model, model, first_batch(model, scored), None, sizes.repeats)
    return model, found | {"predicted": predicted}


def _facts(result: StructuredResult) -> dict[str, Any]:
    found = {name: result.report[name] for name in ("parameters", "flops", "bytes", "latency")}
    return found | {"predicted": result.predicted_loss_increase}


def run(methods: Sequence[str], reductions: Sequence[float], folder: Path, data: Path, sizes: Sizes) -> dict[str, Any]:
    """Every cell that is wanted; "method|reduction" -> result."""
    cells, found = Cells(folder), {}
    case = lru_cache(partial(load, data, sizes))
    for reduction in reductions:
        for method in methods:
            options = {"sizes": asdict(sizes), "method": METHODS[method], "reduction": reduction}
            name = f"resnet20-{reduction:g}-{method.lower().replace(', ', '_').replace(' ', '_')}"
            result = cells.get(name, options, partial(one, case, method, reduction, sizes))
            if result is not None:
                found[f"{method}|{reduction:g}"] = result
    return found


def table(found: Mapping[str, Any]) -> str:
    """Accuracy in percent with Wilson's 95 % interval, beside shares of the dense model's operations and latency."""
    lines = [
        "| method | operations | parameters | latency | one shot | fine-tuned |",
        "|---|---|---|---|---|---|",
    ]
    for key, cell in sorted(found.items(), key=lambda item: (float(item[0].split("|")[1]), -item[1].get("after", 0))):
        shares = [f"{cell[name]['small'] / cell[name]['dense']:.0%}" for name in ("flops", "parameters")]
        small, dense = cell["latency"]["small"], cell["latency"]["dense"]
        shares.append(f"{small['median'] / dense['median']:.0%}")
        scores = [_percent(cell[name], cell["count"]) if name in cell else "" for name in ("before", "after")]
        if METHODS[key.split("|")[0]].get("between"):
            scores[0] = ""  # has been trained by then
        lines.append(f"| {key.split('|')[0]} | " + " | ".join([*shares, *scores]) + " |")
    return "\n".join(lines)


def _percent(right: int, count: int) -> str:
    share = proportion(right, count)
    return f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def check(found: Mapping[str, Any]) -> list[str]:
    """Qualitative results that fail: reductions are met, and the metric chooses better than chance."""
    said = []
    for key, cell in found.items():
        if cell["flops"]["small"] > (1 - float(key.split("|")[1])) * cell["flops"]["dense"]:
            said.append(f"{key}: {cell['flops']['small'] / cell['flops']['dense']:.1%} of the operations are left")
        method, reduction = key.split("|")
        random = found.get(f"random|{reduction}")
        if method == "Fisher" and random is not None and cell["before"] <= random["before"]:
            said.append(f"{key}: {cell['before']} right answers, {random['before']} by chance")
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description="accuracy against latency of structured pruning")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true", help="show the kept results, compute nothing")
    parser.add_argument("--data", type=Path, help="folder of cifar10 and models; else DYNAXX_DATA or shared/data")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--reductions", nargs="+", type=float, default=list(REDUCTIONS))
    parser.add_argument("--results", type=Path, default=ROOT / "studies" / "results" / "structured")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.table:
        kept = read(given.results)
        names = {f"resnet20-{r:g}-{m.lower().replace(', ', '_').replace(' ', '_')}": f"{m}|{r:g}"
                 for m in METHODS for r in REDUCTIONS}  # fmt: skip
        print(table({names[name]: cell for name, cell in kept.items() if name in names}))
        return 0
    if given.quick:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            found = run(("Fisher", "random"), (0.2,), Path(folder), data_folder(given.data), QUICK)
    else:
        found = run(given.methods, given.reductions, given.results, data_folder(given.data), FULL)
    if found:
        print(table(found))
    failed = check(found)
    print("\n".join(failed) if failed else "every check holds")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
