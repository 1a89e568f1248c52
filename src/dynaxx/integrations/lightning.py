"""A callback for Lightning's Trainer, of whichever package was imported: ``lightning.pytorch``, ``pytorch_lightning``.

``DynaxxCallback`` is made when it is first asked for, because Lightning takes seconds to import.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from dynaxx.errors import InputError
from dynaxx.integrations.companion import Companion
from dynaxx.monitor.monitor import Monitor
from dynaxx.monitor.presets import PRESETS
from dynaxx.track.names import layer_of
from dynaxx.track.run import ending
from dynaxx.track.sinks.series import numbers

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class Hooks:
    """Watches a fit with a ``dynaxx.Monitor``.

        Trainer(callbacks=[DynaxxCallback(Probe("first 200", (x, y)), every=100, store="runs.db")])

    Steps are optimizer steps, so accumulated gradients need no arithmetic. The loss is that of the optimizer step: the
    mean over its accumulated batches, unscaled under mixed precision. The monitor's state is in Lightning's
    checkpoints, so a fit with ``ckpt_path`` goes on with count and comparisons. A module that ``torch.compile``
    wrapped is looked at uncompiled; of one that compiles a part of itself, name that part with ``module``.

    Args:
        probe: a Probe, or a batch; the LightningModule is called with it as in its ``forward``.
        module: name of the submodule to watch, such as "net"; default the whole LightningModule.
        validation_loss: name under which the module logs its validation loss; signals then see it.
        log: whether numbers go to the trainer's loggers too, those of single layers excepted.
        options: of ``dynaxx.Monitor``: every, preset, store, sinks, signals, ...

    Raises:
        InputError: an unknown option or a probe that cannot be used; from ``fit``, before the first step, what
            ``dynaxx.Monitor`` refuses.
    """

    def __init__(
        self,
        probe: Any,
        *,
        module: str | None = None,
        validation_loss: str = "val_loss",
        log: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self._companion = Companion(probe, module, options)
        self.validation_loss, self.log = validation_loss, log
        self._losses: list[Tensor] = []
        self._logged = 0

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the latest fit; None before the first."""
        return self._companion.monitor

    @property
    def state_key(self) -> str:
        """Under which the state stands in a checkpoint: one callback for each probe and module."""
        return f"DynaxxCallback({self._companion.probe.name!r}, {self._companion.module!r})"

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return self._companion.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint; used when the fit starts."""
        self._companion.restore(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the monitor: model and optimizers are there, restored and on their device."""
        steps = trainer.global_step // max(len(trainer.optimizers), 1)
        self._losses, self._logged = [], 0
        self._companion.start(
            pl_module,
            trainer.optimizers,
            config=dict(pl_module.hparams),
            done=steps,
            preset=_eager(pl_module, self._companion.options.get("preset", "economy")),
        )
        self._log(trainer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Keep the loss until its step."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Hand the step's loss over: Lightning has divided each batch's by their number."""
        losses, monitor = self._losses, self.monitor
        self._losses = []
        if not losses or monitor is None or not monitor.active or optimizer is not monitor.optimizers[0]:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        monitor.observe(loss=sum(losses[1:], losses[0]) / scale)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Pass new records to the loggers; stop if a signal's action asked for it."""
        self._log(trainer)
        if self._companion.should_stop():
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Hand the validation loss over."""
        value = trainer.callback_metrics.get(self.validation_loss)
        if value is not None and self.monitor is not None and not trainer.sanity_checking:
            self.monitor.observe(validation_loss=value)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Hand over what waits."""
        self._log(trainer)
        self._companion.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run as failed or interrupted."""
        self._companion.close(ending(exception))

    def _log(self, trainer: Any) -> None:
        if self.monitor is None or not self.log:
            return
        new, self._logged = self.monitor.history[self._logged :], len(self.monitor.history)
        for record in new:
            values = {name: value for name, value in numbers(record).items() if not layer_of(name)}
            for logger in trainer.loggers:
                try:
                    logger.log_metrics(values, step=record.step)
                except Exception as error:  # a monitor does not end trainings
                    self._companion.warn(f"{type(logger).__name__} did not take the monitor's numbers: {error}")


def _eager(module: Any, preset: str | Callable[..., Any]) -> Callable[..., Any] | None:
    """The preset with the module's own ``forward``, if Lightning has put a compiled one in its place."""
    context = getattr(module, "_compiler_ctx", None)
    if context is None or (isinstance(preset, str) and preset not in PRESETS):  # the monitor refuses the latter
        return None
    measure = PRESETS[preset] if isinstance(preset, str) else preset

    def uncompiled(subject: Any) -> Any:
        with _forward(module, context["original_forward"]):
            return measure(subject)

    uncompiled.__name__ = preset if isinstance(preset, str) else getattr(preset, "__name__", "own")
    return uncompiled


@contextlib.contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    compiled = module.forward
    try:
        module.forward = forward
        yield
    finally:
        module.forward = compiled


def _bases() -> tuple[type, ...]:
    """Callback of each Lightning package that is imported, else of the first that is installed."""
    loaded = [name for name in PACKAGES if sys.modules.get(name) is not None]
    for name in loaded or PACKAGES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
            loaded = loaded or [name]
    if not loaded:
        raise InputError("dynaxx.integrations.lightning needs Lightning, which is not installed; pip install lightning")
    return tuple(sys.modules[name].Callback for name in loaded)


def __getattr__(name: str) -> Any:
    if name != "DynaxxCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has DynaxxCallback")
    made = type(name, (Hooks, *_bases()), {"__doc__": Hooks.__doc__, "__module__": __name__})
    globals()[name] = made
    return made
