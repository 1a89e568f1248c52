"""A document with every block, and one whose every word is hostile."""

import numpy as np

from dynaxx.estimate import Estimate
from dynaxx.report import Document, Facts, Image, Lines, Marker, Note, Section, Series, Spectra, Table

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="30"><path style="stroke:#f00" d="M0 9H90"/></svg>'


def demo() -> Document:
    x = np.arange(0, 1000, 10.0)
    trace = 40 * np.exp(-x / 300) + 3
    trace[40:50] = np.nan
    eigenvalues = np.concatenate([np.exp(-np.arange(100) / 9.0), np.full(50, 1e-8), np.zeros(3)])
    return Document(
        "Fisher spectrum",
        "a small network",
        [
            Section(
                "Summary",
                "First paragraph.\n\nSecond paragraph.",
                [
                    Facts([("trace", Estimate(41.32, 0.21, 64), "64 probes"), ("form", "dense")]),
                    *(Note(f"A note that is {level}.", level) for level in ("info", "good", "warning", "bad")),
                ],
            ),
            Section(
                "Training",
                blocks=[
                    Lines(
                        "Trace",
                        [Series("trace", x, trace, 0.8 * trace, 1.2 * trace)],
                        y_label="nats",
                        markers=[Marker(700, "pruned")],
                    ),
                    Lines(
                        "Loss",
                        [Series("a", x, np.exp(-x / 99)), Series("b", x[::3], np.exp(-x[::3] / 200))],
                        log_y=True,
                    ),
                ],
            ),
            Section("Spectrum", blocks=[Spectra("Eigenvalues", [("F", eigenvalues, 1e-5)])]),
            Section(
                "Layers",
                blocks=[
                    Table(("layer", "trace"), [("fc1", 1.5), ("fc2", None)], "By layer", [0]),
                    Image("Drawing", SVG),
                ],
            ),
        ],
        {"dynaxx": "0", "seed": 0},
    )


def hostile(word: str) -> Document:
    series = Series(word, [0, 1, 2], [1.0, 2.0, 3.0])
    return Document(
        word,
        word,
        [
            Section(
                word,
                word,
                [
                    Facts([(word, word, word)]),
                    Table((word,), [(word,)], word),
                    Lines(word, [series, series], word, word, markers=[Marker(1, word)], note=word),
                    Spectra(word, [(word, [1.0, 0.5], 0.7)], word, word),
                    Note(word, "bad"),
                    Image(word, SVG, word),
                ],
            )
        ]
        * 4,
        {word: word},
    )
