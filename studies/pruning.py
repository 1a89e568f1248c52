"""Does curvature beat magnitude? Pruning by every criterion, with and without fine-tuning, against tuned magnitude.

(a) ``mlp``: 784-40-20-10 on MNIST, as Singh & Alistarh (NeurIPS 2020) had it, trained here. (b) ``resnet20`` and
``resnet56``: pretrained on CIFAR-10, curvature and BatchNorm statistics from lossless training images, accuracy on the
1,000 lossless test images. Damping and magnitude's scope are chosen on training images that the curvature has not
seen. Parts: ``one-shot`` at 50 to 98 %; ``tuned``, every one after fine-tuning; ``loss``, what goes for a point of
accuracy; ``images``, more of them behind the curvature; ``untrained``, pruned before training.

    python studies/pruning.py --quick          under a minute; fails if a qualitative result does
    python studies/pruning.py                  everything; goes on where it stopped
    python studies/pruning.py --table          the kept results as tables; --figures also draws them
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pruning_images
import pruning_loss
import pruning_tables
import pruning_tuning
import pruning_untrained
from pruning_methods import METHODS, SPARSITIES, file_name, one, shuffling
from pruning_models import Case, Sizes, case_of, sizes_of
from runs import ROOT, Cells, Skipped, data_folder

MODELS = ("mlp", "resnet20", "resnet56")
PARTS = ("one-shot", "tuned", "loss", "images", "untrained")
QUICK_METHODS = ("magnitude", "lowest Fisher", "OBD", "OBS, recomputed")
QUICK_PLAN = pruning_tuning.Plan({0.95: (0.03, 0.1)}, (0.8, 0.95), pruning_tuning.Budget(2, 2000, 100))
# what of the networks that take longest is measured where nothing else is asked for
DEEP = [
    "magnitude",
    "magnitude, layer",
    "magnitude, ERK",
    "random",
    "lowest Fisher",
    "OBD",
    "OBS",
    "OBS, blocks of 32",
    "OBS, K-FAC",
    "OBS, K-FAC, recomputed",
    "magnitude + K-FAC update",
    "magnitude + K-FAC update, recomputed",
    "SNIP",
    "GraSP",
    "SynFlow",
]
LESS: dict[str, list[str]] = {"resnet20": DEEP, "resnet56": DEEP}


def run(
    models: Sequence[str], seeds: Sequence[int], methods: Sequence[str] | None, folder: Path, data: Path, quick: bool
) -> dict[str, Any]:
    """Every one-shot cell that is wanted; name -> result."""
    cells, found = Cells(folder), {}
    for model in models:
        sizes = sizes_of(model, quick)
        for seed in seeds:
            case = lru_cache(partial(case_of, model, sizes, data, seed))
            for name in methods or LESS.get(model, list(METHODS)):
                options = {"sizes": asdict(sizes), "seed": seed, "method": METHODS[name], "sparsities": SPARSITIES}
                compute = partial(_cell, case, one, name, sizes, seed)
                result = cells.get(f"{model}-{seed}-{file_name(name)}", options, compute)
                if result is not None:
                    found[f"{model}|{seed}|{name}"] = result
            if quick or model == "resnet56":
                continue
            options = {"sizes": asdict(sizes), "seed": seed, "sparsities": SPARSITIES}
            result = cells.get(f"{model}-{seed}-shuffled", options, partial(_cell, case, shuffling, sizes, seed))
            if result is not None:
                found[f"{model}|{seed}|OBD, shuffled"] = result
    return found


def _cell(case: Callable[[], Case], compute: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    return compute(case(), *arguments)  # the case is made when the first cell of it is not there yet


def _cases(model: str, sizes: Sizes, data: Path) -> Callable[[int], Case]:
    return lru_cache(lambda seed: case_of(model, sizes, data, seed))


def check(found: Mapping[str, Any]) -> list[str]:
    """What must hold at any size: recomputed OBS is 5 points above magnitude at 95 %, and the lowest Fisher entry is no
    criterion."""
    wrong = []
    for key in [key for key in found if key.endswith("|OBS, recomputed")]:
        model, seed, _ = key.split("|")
        if not {f"{model}|{seed}|magnitude", f"{model}|{seed}|lowest Fisher"} <= found.keys():
            continue
        at = {
            name: found[f"{model}|{seed}|{name}"]["rows"]["0.95"]["hits"] / found[key]["count"]
            for name in ("OBS, recomputed", "magnitude", "lowest Fisher")
        }
        if at["OBS, recomputed"] < at["magnitude"] + 0.05:
            wrong.append(
                f"{model}, seed {seed}: recomputed OBS {at['OBS, recomputed']:.3f}, magnitude {at['magnitude']:.3f}"
            )
        if at["lowest Fisher"] > at["OBS, recomputed"]:
            wrong.append(f"{model}, seed {seed}: the lowest Fisher entry beats recomputed OBS")
    return wrong


def check_tuned(found: Mapping[str, Any]) -> list[str]:
    """Fine-tuning helps magnitude and recomputed K-FAC; what is at chance may stay there."""
    known = {key: cell["hits"] for key, cell in found.items() if key.split("|")[2] in ("magnitude", "curvature")}
    worse = [key for key, hits in known.items() if not hits["after"] > hits["before"]]
    return [f"{key}: fine-tuning gains nothing" for key in worse]


def check_loss(found: Mapping[str, Any]) -> list[str]:
    """A tenth of the weights goes by magnitude for less than a point, and not nine tenths."""
    lost = {s: pruning_tables.lost(list(found.values()), s) for s in ("0.1", "0.9")}
    wrong = [] if lost["0.1"].value < 0.01 else [f"10 % by magnitude cost {lost['0.1'].value:.3f} of accuracy"]
    return wrong + ([] if lost["0.9"].low > 0.01 else [f"90 % by magnitude cost {lost['0.9'].value:.3f} of accuracy"])


def quick(data: Path) -> list[str]:
    """Everything at once, small; what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder, sizes = Path(name), sizes_of("mlp", True)
        cases = _cases("mlp", sizes, data)
        found = run(["mlp"], [0], QUICK_METHODS, folder, data, True)
        tuned = pruning_tuning.run(
            "mlp", [0], folder / "tuned", folder / "cache", cases, sizes, QUICK_PLAN, ("magnitude", "curvature")
        )
        loss = pruning_loss.run("mlp", [0], folder / "loss", cases, sizes, ("magnitude",), (0.1, 0.9))
    print(
        "\n".join((pruning_tables.tables(found), pruning_tables.tuned_tables(tuned), pruning_tables.loss_tables(loss)))
    )
    return check(found) + check_tuned(tuned) + check_loss(loss)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small network, a few methods, with checks")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="of the part one-shot")
    parser.add_argument(
        "--kinds", nargs="+", default=pruning_tuning.KINDS, choices=pruning_tuning.KINDS, help="of tuned"
    )
    parser.add_argument("--criteria", nargs="+", default=pruning_loss.CRITERIA, choices=list(METHODS), help="of loss")
    parser.add_argument("--data", type=Path, help="folder of public data sets; default $DYNAXX_DATA or shared/data")
    parser.add_argument("--results", type=Path, default=ROOT / "studies" / "results" / "pruning")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "dynaxx-studies")
    parser.add_argument("--table", action="store_true", help="print the kept results")
    parser.add_argument("--figures", action="store_true", help="draw the kept results")
    given = parser.parse_args(arguments)
    if given.table or given.figures:
        if given.figures:
            import pruning_figures

            pruning_figures.make(given.results, ROOT / "docs" / "studies" / "images")
        print(pruning_tables.everything(given.results))
        return 0
    try:
        data = data_folder(given.data)
    except Skipped as reason:
        print(f"skipped, {reason}")
        return 0
    if given.quick:
        wrong = quick(data)
    else:
        wrong = []
        if "one-shot" in given.parts:
            wrong += check(run(given.models, given.seeds, given.methods, given.results, data, False))
        for model in given.models:
            sizes = sizes_of(model, False)
            cases = _cases(model, sizes, data)
            if "tuned" in given.parts and (plan := pruning_tuning.PLANS.get(model)) is not None:
                tuned = pruning_tuning.run(
                    model, given.seeds, given.results / "tuned", given.cache, cases, sizes, plan, given.kinds
                )
                wrong += check_tuned(tuned)
            if "loss" in given.parts and model != "resnet56":
                pruning_loss.run(model, given.seeds, given.results / "loss", cases, sizes, given.criteria)
            if "images" in given.parts:
                pruning_images.run(model, given.seeds, given.results / "images", cases, sizes)
        if "untrained" in given.parts and "mlp" in given.models:
            pruning_untrained.run(given.seeds, given.results / "untrained", data, sizes_of("mlp", False))
        print(pruning_tables.everything(given.results))
    print("\n".join(wrong) or "every check holds")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
