"""A store with something for every page."""

import math

import numpy as np

from dynaxx.estimate import Estimate
from dynaxx.track import Store


def fill(path):
    """Three runs: 1 healthy with everything; 2 failed, with NaN; 3 goes on from 1 and has drifted."""
    rng = np.random.default_rng(0)
    with Store(path) as store:
        with store.run("cnn wide", project="vision", config={"lr": 0.1, "seed": 1}, tags=("baseline", "keep")) as run:
            for step in range(0, 1000, 10):
                run.log(
                    {
                        "train/loss": 2.0 * math.exp(-step / 300),
                        "dynaxx/effective_rank": Estimate(20.0 + 40 * math.exp(-step / 200), 1.5, 8),
                        **{f"dynaxx/layer/block.{i}.conv/trace": 10.0 ** (i / 3 - 1 - step / 900) for i in range(12)},
                    },
                    step=step,
                )
            for step in (0, 500, 990):
                spectrum = np.concatenate([10 * np.exp(-np.arange(60) / 6 * (1 + step / 990)), np.full(10, 1e-9)])
                attributes = {"floor": 1e-6, "dimension": 1200, "count": 70}
                run.log_array("dynaxx/spectrum", spectrum, step=step, attributes=attributes)
            for number, criterion in enumerate(("magnitude", "obd")):
                x = np.array([0.5, 0.7, 0.9])
                score = 0.98 - x**8 * (number + 1) / 3
                rows = np.stack([x, score, score - 0.02, score + 0.02], axis=1)
                run.log_array(f"dynaxx/one_shot/{criterion}", rows, step=990)
            run.log({"dynaxx/sparsity": 0.9, "dynaxx/score_before": 0.98, "dynaxx/score_after": 0.97}, step=990)
            rows = [[1, 0.2], [10, 0.7], [100, 0.97]]
            run.log_array("dynaxx/reduction/leading", rows, step=990, attributes={"x": "directions", "y": "accuracy"})
            said = {"labels": ["sgd"] * 6 + ["adam"] * 6, "connected": True, "eigenvalues": [3.0, 1.0, -0.5]}
            run.log_array(
                "dynaxx/inpca", rng.normal(size=(12, 3)), step=990, attributes=said | {"explained_stress": 0.8}
            )
            run.alert("learning rate changed", level="info", step=500, rule="schedule")
            run.artifact("notes.txt", b"hello", "text/plain")
            run.model_version("v1", "abc", 990, {"epoch": 3}, {"dynaxx/effective_rank": Estimate(20.0, 1.5, 8)})
        with store.run("cnn narrow", project="vision", config={"lr": 0.9, "seed": 1}) as run:
            for step in range(0, 300, 10):
                run.log({"train/loss": math.nan if step > 200 else 1.0, "dynaxx/effective_rank": 3.0}, step=step)
            run.alert("loss is not finite", "NaN since step 210", level="error", step=210, rule="not finite")
            run.model_version("v1", step=290)
            run.finish("failed")
        with store.run("cnn wide new data", project="vision", config={"lr": 0.1, "seed": 1}, parent=1) as run:
            run.log({"dynaxx/effective_rank": Estimate(60.0, 1.5, 8)}, step=0)
