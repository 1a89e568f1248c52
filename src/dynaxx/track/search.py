"""Finding runs by words, as one types them into a search box."""

from __future__ import annotations

from typing import Any

from dynaxx.track.records import RunInfo


def matches(info: RunInfo, words: str) -> bool:
    """Whether a run has every one of ``words`` in its number, name, project, status, tags or settings.

    Case does not count. Settings read ``key=value`` with dotted keys, the rest ``field:value``, so that ``lr=0.1`` and
    ``tag:keep`` are words, too.

    >>> settings = {"sgd": {"lr": 0.1}}
    >>> info = RunInfo(7, "vision", "cnn wide", "failed", 0.0, 1.0, settings, {}, "", 0, 0.0, None, ("keep",))
    >>> [matches(info, text) for text in ("CNN fail", "sgd.lr=0.1 tag:keep", "cnn transformer", "", "run:7")]
    [True, True, False, True, True]
    """
    there = [f"run:{info.id}", f"name:{info.name}", f"project:{info.project}", f"status:{info.status}"]
    there += [f"tag:{tag}" for tag in info.tags] + [f"{key}={value}" for key, value in flat(info.config)]
    text = "\n".join(there).casefold()
    return all(word in text for word in words.casefold().split())


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings under dotted names. Values are given as text as they stand: a seed is no quantity to be rounded.

    >>> flat({"sgd": {"lr": 0.1}, "seed": 3})
    [('sgd.lr', '0.1'), ('seed', '3')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
