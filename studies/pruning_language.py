"""Does looking again pay on a transformer? MiniLM, fine-tuned on SST-2, pruned without further training.

The linear weights of the encoder (10.6 million) lose 50 to 90 %; embeddings and head stay as they are. Curvature comes
from training sentences, damping and magnitude's scope are chosen on held-out ones by the divergence from the dense
model, accuracy is that on all 1,821 test sentences. A method looks at the model once for all sparsities, or takes 60 %
with that look and looks again on the way to 70, 80 and 90 %. After Kurtic et al. (2022); see
docs/studies/pruning_language.md.

    python studies/pruning_language.py            all cells; an interrupted run goes on where it stopped
    python studies/pruning_language.py --quick    a transformer of 20,000 weights and made-up sentences, with checks
    python studies/pruning_language.py --figures  the kept results as tables
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pruning_language_tables
import runs
import torch
from classifiers import CLASSES, Batch, Classifier, Texts, build, fine_tune, load
from pruning_language_tables import METHODS, SPARSITIES, START, Method, file_name, first_look
from pruning_models import packed
from runs import ROOT, Cells, Skipped, data_folder
from torch import Tensor, nn

from dynaxx import tensorfile
from dynaxx.compress.criteria import Saliency, prunable_parameters
from dynaxx.compress.criteria.ranking import damped, mean_eigenvalue
from dynaxx.compress.divergence import divergence, outputs
from dynaxx.compress.recipe import Recipe
from dynaxx.compress.result import PruningResult

RESULTS = ROOT / "studies" / "results" / "pruning_language"
FORMAT = "dynaxx-study-language/1"
TASK = "sst2"


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Args:
        length: tokens of a sentence, longer ones are cut.
        train, steps, batch: fine-tuning: sentences, steps, sentences a step.
        curvature, held: sentences behind a curvature (fine-tuned on), and those choices are made on (not).
        grid: dampings, times the mean eigenvalue; tried at the first look of each sparsity.
        seeds: they choose the sentences of curvature and of choices, and the labels drawn. The dense model is one.
    """

    length: int = 40
    train: int = 5900
    steps: int = 250
    batch: int = 16
    curvature: int = 128
    held: int = 128
    grid: tuple[float, ...] = (0.1, 1.0, 10.0)
    seeds: tuple[int, ...] = (0, 1)


QUICK = Sizes(length=8, train=8000, steps=500, batch=64, curvature=200, held=200, grid=(0.1, 1.0), seeds=(0,))
QUICK_SPARSITIES = (START, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Case:
    """A dense model in which only what may move requires grad, and its sentences in batches."""

    model: nn.Module
    curvature: list[Batch]
    held: list[Batch]
    test: list[Batch]


@dataclass(frozen=True)
class Found:
    """A pruned model, how it was made, and where."""

    sparsity: float
    result: PruningResult
    model: nn.Module
    factor: float


# ---------------------------------------------------------------------------------------------------------------------
# Models and sentences


def by_length(texts: Texts, size: int = 32) -> list[Batch]:
    """Batches of sentences of about one length, without the padding that nobody needs."""
    found = []
    for part in texts.mask.sum(1).argsort(stable=True).split(size):
        inputs, labels = texts.take(part).batch(0, size)
        longest = int(inputs["attention_mask"].sum(1).max())
        found.append(({name: value[:, :longest] for name, value in inputs.items()}, labels))
    return found


def case_of(model: Classifier, train: Texts, test: Texts, sizes: Sizes, seed: int) -> Case:
    """The sentences a seed chooses: behind the curvature, of those trained on; for choices, of the others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layer." in name)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randperm(sizes.train, generator=generator)[: sizes.curvature]
    unseen = sizes.train + torch.randperm(len(train) - sizes.train, generator=generator)[: sizes.held]
    return Case(model, by_length(train.take(seen)), by_length(train.take(unseen)), by_length(test))


def pretrained_case(sizes: Sizes, data: Path, cache: Path, seed: int) -> Case:
    """MiniLM; its fine-tuned weights are kept in the cache folder."""
    train, test = (load(data, TASK, split, 10**9, sizes.length, 0) for split in ("train", "test"))
    path = cache / f"pruning-language-{sizes.length}-{sizes.train}-{sizes.steps}-{sizes.batch}.safetensors"
    model = build(CLASSES[TASK], 0)
    if path.is_file():
        model.load_state_dict(tensorfile.read(path, FORMAT, "fine-tuned model")[0])
    else:
        seen = train.take(torch.arange(sizes.train))
        fine_tune(model, seen, steps=sizes.steps, batch=sizes.batch, seed=0)
        tensorfile.write(path, model.state_dict(), {"format": FORMAT})
    return case_of(model, train, test, sizes, seed)


WORDS = 40
NOT = WORDS + 1


def made_up(count: int, length: int, seed: int) -> Texts:
    """Sentences of words that are good or bad by degrees; half of them begin with a "not" that turns them round."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS + 1, (count, length), generator=generator)
    turned = torch.rand(count, generator=generator) < 0.5
    ids[turned, 0] = NOT
    worth = torch.cat([torch.zeros(1), torch.linspace(-1, 1, WORDS), torch.zeros(1)])[ids].sum(1)
    return Texts(ids, torch.ones_like(ids), ((worth > 0) != turned).long())


def tiny_case(sizes: Sizes, seed: int) -> Case:
    """A transformer of two layers that has learnt the made-up sentences.

    Raises:
        Skipped: transformers is not installed.
    """
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise Skipped("this needs transformers: pip install transformers") from error
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS + 2, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=sizes.length, attn_implementation="eager", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = Classifier(BertModel(config, add_pooling_layer=False), 32, 2)
    model.dropout.p = 0.0
    train, test = made_up(sizes.train + 1000, sizes.length, 1), made_up(1000, sizes.length, 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=sizes.steps)
    for _ in range(sizes.steps):
        inputs, labels = train.take(torch.randint(sizes.train, (sizes.batch,))).batch(0, sizes.batch)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(**inputs), labels).backward()
        optimiser.step()
        rates.step()
    model.eval()
    return case_of(model, train, test, sizes, seed)


# ---------------------------------------------------------------------------------------------------------------------
# One method


def schedule(low: float, high: float, looks: int) -> list[float]:
    """Where to stop on the way from one sparsity to the next: the same share of what is left goes each time."""
    return [1 - (1 - low) * ((1 - high) / (1 - low)) ** (j / looks) for j in range(1, looks)] + [high]


def pruned(
    case: Case, method: Method, sizes: Sizes, seed: int, sparsities: Sequence[float], work: nn.Module
) -> Iterator[Found]:
    """The model at each sparsity, from ``work``: the dense one, or where a method looks again that of the sparsity
    before."""
    recipe, dense = Recipe(seed=seed, **method.options), outputs(case.model, case.held)
    if not method.looks:
        candidates = dampings(recipe, work, recipe.saliency(work, case.curvature), method.grid or sizes.grid)
        for sparsity in sparsities:
            yield closest(case, recipe, work, candidates, sparsity, None, dense)
        return
    live = {name: p.detach() != 0 for name, p in prunable_parameters(work).items()}
    low = gone(live)
    for high in sparsities:
        grid = method.grid or sizes.grid
        for target in schedule(low, high, method.looks):
            # draws differ from look to look, also when a cell goes on from another
            found = recipe.saliency(work, case.curvature, live, round(1000 * target))
            step = closest(case, recipe, work, dampings(recipe, work, found, grid), target, live, dense)
            work, live, grid = step.model, step.result.masks, (step.factor,)
        low = high
        yield step


def gone(live: dict[str, Tensor]) -> float:
    """Share of the weights that is not there."""
    return 1 - sum(int(mask.sum()) for mask in live.values()) / sum(mask.numel() for mask in live.values())


def dampings(recipe: Recipe, model: nn.Module, found: Saliency, grid: Sequence[float]) -> list[tuple[float, Saliency]]:
    """(factor, the saliency with that much damping)."""
    if not recipe.coupled:
        return [(0.0, found)]
    unit, prunable = mean_eigenvalue(found), prunable_parameters(model)
    return [(factor, damped(found, factor * unit, prunable)) for factor in grid]


def closest(
    case: Case, recipe: Recipe, model: nn.Module, candidates: Sequence[tuple[float, Saliency]], sparsity: float,
    live: dict[str, Tensor] | None, dense: Any,
) -> Found:  # fmt: skip
    """The damping whose model stays closest to the dense one on the held-out sentences; one candidate is not asked."""
    best, least = None, math.inf
    for factor, candidate in candidates:
        result = recipe.decide(candidate, sparsity, live)
        under = result.apply(copy.deepcopy(model))
        far = float(divergence(dense, outputs(under, case.held)).mean()) if len(candidates) > 1 else 0.0
        if far < least:
            best, least = Found(sparsity, result, under, factor), far
    assert best is not None
    return best


def answers(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Which are right, (N,) booleans."""
    with torch.no_grad():
        return torch.cat([model(**inputs).argmax(1) == labels for inputs, labels in batches])


def measured(
    case: Case, name: str, sizes: Sizes, seed: int, sparsities: Sequence[float], before: float, key: str, cache: Path
) -> dict[str, Any]:
    """One cell: rows by sparsity. Models that another cell begins with are left in the cache."""
    method, rows, start = METHODS[name], dict[str, Any](), case.model
    if method.looks:
        path = cache / f"{f'{seed}-{file_name(first_look(name))}' if before == START else key}-{before:g}.safetensors"
        if not path.is_file():
            raise Skipped(f"{path.name} is not in the cache; run the method it is of again in an empty --results")
        start = copy.deepcopy(case.model)
        start.load_state_dict(tensorfile.read(path, FORMAT, "pruned model")[0])
    dense = outputs(case.model, case.held)
    for found in pruned(case, method, sizes, seed, sparsities, start):
        right = answers(found.model, case.test)
        rows[f"{found.sparsity:g}"] = {
            "hits": int(right.sum()), "right": packed(right), "damping": found.factor,
            "held_out_divergence": float(divergence(dense, outputs(found.model, case.held)).mean()),
            "predicted": found.result.predicted_loss_increase, "kept": found.result.kept,
            "layers": [[row["name"], row["kept"], row["total"]] for row in found.result.report["layers"]],
        }  # fmt: skip
        print(f"  {name} {found.sparsity:g}: {int(right.sum())}, damping {found.factor:g}", flush=True)
        if method.looks or found.sparsity == START:
            path = cache / f"{key}-{found.sparsity:g}.safetensors"
            tensorfile.write(path, found.model.state_dict(), {"format": FORMAT})
    return {"count": len(right), "rows": rows}


def whole(case: Case) -> dict[str, Any]:
    """The dense model's answers."""
    right = answers(case.model, case.test)
    return {"count": len(right), "rows": {"0": {"hits": int(right.sum()), "right": packed(right)}}}


# ---------------------------------------------------------------------------------------------------------------------
# The study


def run(
    names: Sequence[str], sizes: Sizes, cells: Cells, cache: Path, case: Callable[[int], Case],
    sparsities: Sequence[float] = SPARSITIES,
) -> int:  # fmt: skip
    """Every cell, first those of the first seed; returns how many are there."""
    about = {"sizes": asdict(sizes) | {"seeds": None}, "sparsities": sparsities}
    count = int(cells.get("dense", about, lambda: whole(case(0))) is not None)
    for seed in sizes.seeds:
        for name in names:
            method = METHODS[name]
            if seed and method.options["criterion"] == "magnitude":
                continue  # nothing is drawn
            key = f"{seed}-{file_name(name)}"
            recipe = {name: value for name, value in asdict(method).items() if value is not None}
            options = about | {"seed": seed, "method": recipe}
            if not method.looks:
                compute = partial(_cell, case, name, sizes, seed, sparsities, 0.0, key, cache)
                count += cells.get(key, options, compute) is not None
                continue
            for before, after in pairwise(s for s in sparsities if s >= START):
                compute = partial(_cell, case, name, sizes, seed, [after], before, key, cache)
                count += cells.get(f"{key}-{after:g}", options, compute) is not None
    return count


def _cell(case: Callable[[int], Case], name: str, sizes: Sizes, seed: int, *arguments: Any) -> dict[str, Any]:
    return measured(case(seed), name, sizes, seed, *arguments)  # made when the first cell that needs it is not there


def check(results: Path, sparsity: float = SPARSITIES[-1]) -> list[str]:
    """What must hold at any size: at the end looking again beats one look, and that magnitude, surely."""
    found, wrong = pruning_language_tables.kept(results), []
    for again, once in pairwise(["OBS, blocks, 16 looks", "OBS, blocks", "magnitude"]):
        if {again, once} <= found.keys():
            change = pruning_language_tables.paired(found[once], found[again], f"{sparsity:g}")
            if change is not None and change.low <= 0:
                gain = f"{change.value:.3f} [{change.low:.3f}, {change.high:.3f}]"
                wrong.append(f"at {100 * sparsity:g} % {again} gains {gain} on {once}")
    return wrong


def compute(options: argparse.Namespace) -> tuple[int, list[str]]:
    """Compute what is not kept yet; returns the number of cells and what does not hold."""
    sizes = QUICK if options.quick else Sizes()
    make = partial(tiny_case, sizes) if options.quick else partial(_pretrained, sizes, options)
    sparsities = QUICK_SPARSITIES if options.quick else SPARSITIES
    cells = Cells(options.results, options.until)
    count = run(options.parts, sizes, cells, options.cache, lru_cache(2)(make), sparsities)
    return count, check(options.results, sparsities[-1])


def _pretrained(sizes: Sizes, options: argparse.Namespace, seed: int) -> Case:
    return pretrained_case(sizes, data_folder(options.data), options.cache, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; returns the exit status."""
    quick = ("magnitude", "OBS, blocks", "OBS, blocks, 16 looks")
    about: dict[str, Any] = {"about": __doc__, "parts": tuple(METHODS), "quick_parts": quick, "results": RESULTS}
    return runs.main(arguments, **about, compute=compute, show=pruning_language_tables.tables)


if __name__ == "__main__":
    sys.exit(main())
