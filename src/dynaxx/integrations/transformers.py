"""A callback for the Trainer of the Transformers library.

``DynaxxCallback`` is made when it is first asked for, because Transformers takes seconds to import.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from dynaxx.errors import InputError
from dynaxx.integrations.companion import Companion
from dynaxx.monitor.monitor import Monitor

STATE = "dynaxx_monitor.pt"


class Hooks:
    """Watches a training with a ``dynaxx.Monitor``.

        Trainer(..., callbacks=[DynaxxCallback(Probe("first 200", batch), every=100, store="runs.db")])

    Steps are optimizer steps, so accumulated gradients need no arithmetic. The Trainer shows callbacks no loss of a
    single step: the one handed over is its mean since the last log, every ``logging_steps``, and the Trainer leaves
    NaN out of it unless ``logging_nan_inf_filter=False``. The monitor's state is saved beside each checkpoint, and
    read where the training goes on from ``output_dir``, or from ``TrainingArguments(resume_from_checkpoint=...)``. The
    Trainer tells callbacks nothing of an error, so a training that raised ends its run as "interrupted" with the
    process.

    Args:
        probe: a Probe, or a batch as the Trainer's collator makes them: a dict with ``labels``.
        module: name of the submodule to watch; default the whole model.
        options: of ``dynaxx.Monitor``: every, preset, store, sinks, signals, ... A causal language model needs
            ``loss=`` for preset="full".

    Raises:
        InputError: an unknown option or a probe that cannot be used; from ``train``, before the first step, what
            ``dynaxx.Monitor`` refuses.
    """

    def __init__(self, probe: Any, *, module: str | None = None, **options: Any) -> None:
        super().__init__()
        self._companion = Companion(probe, module, options)

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the latest training; None before the first."""
        return self._companion.monitor

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Make the monitor: model and optimizer are there, restored and on their device."""
        if state.global_step:
            self._restore(args, state)
        self._companion.start(model, [optimizer], config=args.to_sanitized_dict(), done=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Hand the mean loss since the last log over."""
        if self.monitor is not None and logs and "loss" in logs:
            self.monitor.observe(loss=float(logs["loss"]))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Hand the validation loss over."""
        if self.monitor is not None and metrics and "eval_loss" in metrics:
            self.monitor.observe(validation_loss=float(metrics["eval_loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if a signal's action asked for it."""
        if self._companion.should_stop():
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the monitor's state beside the checkpoint."""
        folder = _checkpoint(args.output_dir, state.global_step)
        if state.is_world_process_zero and folder.is_dir():
            try:
                torch.save(self._companion.state(), folder / STATE)
            except Exception as error:  # a monitor does not end trainings
                self._companion.warn(f"the monitor's state could not be saved in {folder}: {error}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand over what waits."""
        self._companion.close()

    def _restore(self, args: Any, state: Any) -> None:
        named = [args.resume_from_checkpoint] if isinstance(args.resume_from_checkpoint, (str, os.PathLike)) else []
        for folder in (*map(Path, named), _checkpoint(args.output_dir, state.global_step)):
            if (folder / STATE).is_file():
                found = torch.load(folder / STATE, map_location="cpu", weights_only=True)
                if found.get("steps") is not None:
                    self._companion.restore(found)
                    return


def _checkpoint(folder: str, step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}"


def __getattr__(name: str) -> Any:
    if name != "DynaxxCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has DynaxxCallback")
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise InputError(
            f"dynaxx.integrations.transformers needs Transformers, which cannot be used ({error}); "
            "pip install transformers accelerate"
        ) from error
    made = type(name, (Hooks, TrainerCallback), {"__doc__": Hooks.__doc__, "__module__": __name__})
    globals()[name] = made
    return made
