"""The companion of a training: it looks, compares, warns and remembers, and never gets in the way."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import likelihoods
from dynaxx.errors import InputError, choose
from dynaxx.likelihoods import Likelihood
from dynaxx.model.network import Network
from dynaxx.model.selection import unwrap
from dynaxx.monitor import stability
from dynaxx.monitor.journal import Journal
from dynaxx.monitor.look import Look, moved, not_finite, since_start
from dynaxx.monitor.losses import Losses
from dynaxx.monitor.precision import unrounded
from dynaxx.monitor.presets import PRESETS
from dynaxx.monitor.schedule import SHARE, schedule
from dynaxx.monitor.sharded import require_whole
from dynaxx.monitor.signals import Observation, Signal, default_signals
from dynaxx.monitor.signals.base import recall, remembered
from dynaxx.monitor.snapshot import Probe, evaluating
from dynaxx.monitor.stability import Steps
from dynaxx.monitor.subject import Subject
from dynaxx.track.names import clean_name
from dynaxx.track.records import Alert
from dynaxx.track.run import Run, ending
from dynaxx.track.sinks.base import Record, Sink

SMOOTHING = 0.3  # weight of the newest look in the moving average
MOST_PAUSE = 64  # looks that are left out after failures in a row


class Monitor:
    """Measures a training's geometry on fixed examples, warns, and records; the training is bit for bit the same.

    Three ways in, which may be mixed: ``monitor.attach(optimizer)`` counts the optimizer's real steps by its hooks
    and looks when it is time; ``with monitor.step(loss=loss): ...`` around backward and step does that without hooks,
    and hands over the loss; ``monitor.measure(step)`` looks now. Nothing here raises into the loop: what fails becomes
    a ``MonitorWarning`` and an event. Only what is wrong with the arguments raises, before training starts.

    Args:
        model: the module being trained, whole on every rank; wrappers of torch.compile and DistributedDataParallel are
            looked through. In a process group the first rank measures and the others only count.
        probe: a ``Probe``, or a batch (then named "probe").
        likelihood: what outputs mean, for a probe that is a batch; default "categorical".
        every: optimizer steps between looks, or "adaptive": as often as ``budget`` allows while things move.
        preset: "economy" (trace, layers, diagonal: one sampled sweep), "standard" (the exact spectrum on the probe),
            "full" (also Hessian, K-FAC, logit NTK, sharpness), or a callable Subject -> Look.
        store: where to record: a path or URL, a ``Store``, or a ``Run`` that is open; None for memory alone.
        sinks: further places, see ``dynaxx.track.sinks``.
        signals: rules that fire; default ``default_signals()``: not finite, divergence.
        budget: for every="adaptive", the share of training time that looks may take.
        params, prior_precision, count, loss, memory: see ``Subject``.
        name, project, config: of the run that is started in ``store``.

    Raises:
        InputError: an argument cannot be used, such as a model in shards (FSDP).
        StoreError: the store cannot be opened.

    Cost: per step a counter and, where a loss is given, a reference to it. Per look as the preset says; ``history``
        keeps every record, arrays included (32 kB for a spectrum of 4096).

    >>> model, x, y = nn.Linear(4, 3), torch.randn(32, 4), torch.arange(32) % 3
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Monitor(model, (x, y), every=10) as monitor:
    ...     _ = monitor.attach(optimizer)
    ...     for _ in range(20):
    ...         loss = nn.functional.cross_entropy(model(x), y)
    ...         with monitor.step(loss=loss):
    ...             optimizer.zero_grad()
    ...             loss.backward()
    ...             optimizer.step()
    >>> [record.step for record in monitor.history], monitor.events
    ([0, 10, 20], [])
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        likelihood: str | Likelihood | None = None,
        every: int | str = 100,
        preset: str | Callable[[Subject], Look] = "economy",
        store: Any = None,
        sinks: Iterable[Sink] = (),
        signals: Sequence[Signal] | None = None,
        budget: float = SHARE,
        params: Any = None,
        prior_precision: float = 1.0,
        count: int | None = None,
        loss: Callable[..., Tensor] | None = None,
        memory: float | None = None,
        name: str | None = None,
        project: str = "default",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        if not prior_precision > 0 or (count is not None and not count > 0):
            raise InputError(f"prior_precision={prior_precision!r}, count={count!r}; both must be positive")
        if isinstance(probe, Probe) and likelihood is not None:
            raise InputError("likelihood= is for a probe given as a batch; this Probe carries its own")
        self.model = unwrap(model)
        self.probe = probe if isinstance(probe, Probe) else Probe("probe", probe, likelihood or "categorical")
        self.preset = preset if callable(preset) else choose("preset", preset, PRESETS)
        require_whole(self.model)
        self._measure = preset if callable(preset) else PRESETS[preset]
        self._schedule = schedule(every, budget)
        self._subject = Subject(
            self.model, self.probe, params, prior_precision, count, loss, memory, self._preconditioner
        )
        with evaluating(self.model):
            Network(self.model, likelihoods.resolve(self.probe.likelihood), params)  # says what is wrong with params
        self.signals = list(default_signals() if signals is None else signals)
        self.active = _rank() == 0
        self.optimizers: list[torch.optim.Optimizer] = []
        self.losses = Losses()
        self.should_stop = False
        self._steps = Steps()
        self._handles: list[Any] = []
        self._start: Look | None = None
        self._previous: Look | None = None
        self._smoothed: Look | None = None
        self._begun = False
        self._failures = self._pause = 0
        self._began, self._spent = time.perf_counter(), 0.0
        self._closed = False
        self._journal = Journal(sinks if self.active else ())
        if self.active and store is not None:
            self._journal.keep(store, name, project, dict(config or {}), self._subject.protocol(preset, every))

    # ways in

    def attach(self, optimizer: torch.optim.Optimizer) -> Monitor:
        """Count this optimizer's steps and look when it is time; looks at once if nothing was looked at yet.

        Of several optimizers the first counts; limits and learning rates are read from all.

        Raises:
            InputError: it has no step hooks.
        """
        inner = getattr(optimizer, "optimizer", None)
        optimizer = inner if isinstance(inner, torch.optim.Optimizer) else optimizer
        if not hasattr(optimizer, "register_step_post_hook"):
            raise InputError(
                f"optimizer is a {type(optimizer).__name__} without step hooks; use 'with monitor.step(): ...' instead"
            )
        self.optimizers.append(optimizer)
        if len(self.optimizers) == 1:
            self._handles.append(optimizer.register_step_post_hook(self._hook))
        self._begin()
        return self

    @contextlib.contextmanager
    def step(self, loss: Any = None, **values: Any) -> Iterator[None]:
        """Around one optimizer step. Counts it, unless an attached optimizer does, and looks when it is time.

        Args:
            loss: of this step; a tensor is not waited for.
            values: as for ``observe``.
        """
        self._begin()
        self.observe(loss=loss, **values)
        try:
            yield
        except Exception as error:
            self._journal.event("error", "training raised", f"{type(error).__name__}: {error}", self._steps.calls)
            raise
        if not self.optimizers:
            self._safely("counting a step", lambda: self._stepped(None))

    def observe(self, loss: Any = None, **values: Any) -> None:
        """Hand over numbers of the training: the loss of the step that comes next, and any others by name.

        Others, such as ``validation_loss=0.3``, are recorded at this step, and signals see them.
        """
        self._safely("observing", lambda: self._observe(loss, values))

    def measure(self, step: int | None = None) -> Record | None:
        """Look now; the record, or None if that failed, or on ranks other than the first.

        Args:
            step: what to call it; default the number of steps counted.
        """
        found = self._safely("looking", lambda: self._look(self._steps.done if step is None else int(step)))
        return found if isinstance(found, Record) else None

    # what is known

    @property
    def history(self) -> list[Record]:
        """Every look, and every number handed over, in order."""
        return self._journal.history

    @property
    def events(self) -> list[Alert]:
        """Alarms and faults, in order."""
        return self._journal.events

    @property
    def run(self) -> Run | None:
        """The run in the store, if there is one."""
        return self._journal.run

    @property
    def steps(self) -> int:
        """Optimizer steps counted."""
        return self._steps.done

    @property
    def share(self) -> float:
        """Of the time since the monitor was made, how much its looks took."""
        return self._spent / max(time.perf_counter() - self._began, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on needs: the count, what signals remember, and the looks that later ones are
        compared with. Numbers, text and tensors, so that ``torch.load(weights_only=True)`` reads it.
        """
        self._safely("reading losses", lambda: self._told(self.losses.read()))
        looks = {"start": self._start, "previous": self._previous, "smoothed": self._smoothed}
        return {
            "steps": self._steps.done,
            "probe": self.probe.digest,
            "looks": {name: look.state_dict() for name, look in looks.items() if look is not None},
            "losses": self.losses.state_dict(),
            "signals": remembered(self.signals),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another monitor stopped. Signals that it did not have begin anew.

        Raises:
            InputError: that one had another probe.
        """
        if state["probe"] != self.probe.digest:
            raise InputError(
                f"this state was made with another probe than {self.probe.name!r}: numbers would not compare. Give the "
                "same examples, name and seed, or start anew"
            )
        looks = {k: Look.of_influences(v["values"], v["influences"]) for k, v in state["looks"].items()}
        self._start, self._previous, self._smoothed = (looks.get(k) for k in ("start", "previous", "smoothed"))
        self._steps = Steps(int(state["steps"]))
        self._begun = self._start is not None
        self.losses.load_state_dict(state.get("losses", {}))
        recall(self.signals, state.get("signals", []))

    def close(self, status: str = "finished") -> None:
        """Read what waits, hand it to store and sinks, remove the hooks. Closing again changes nothing."""
        if self._closed:
            return
        self._safely("reading losses", lambda: self._told(self.losses.read()))
        self._closed = True
        for handle in self._handles:
            handle.remove()
        self._journal.close(status)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(ending(error))

    def __repr__(self) -> str:
        preset = self.preset if isinstance(self.preset, str) else "a preset of your own"
        return f"Monitor({self.probe.name!r}, {preset}, {self._steps.calls} steps, {len(self.history)} looks)"

    # counting and looking

    def _begin(self) -> None:
        """The look before the first step; one that fails is not tried again here."""
        if not self._begun:
            self.measure()

    def _hook(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._safely("counting a step", lambda: self._stepped(optimizer))

    def _stepped(self, optimizer: Any) -> None:
        self._steps.add(optimizer)
        if not self.active or self._closed or not self._schedule.due(self._steps.calls):
            return
        if self._pause > 0:
            self._pause -= 1
            return
        self.measure()

    def _observe(self, loss: Any, values: Mapping[str, Any]) -> None:
        if not self.active or self._closed:
            return
        if loss is not None:
            self._told(self.losses.add(self._steps.calls + 1, loss, self._rate()))
        if values:
            named = {clean_name(name): float(value) for name, value in values.items()}
            self._journal.record(Record(self._steps.calls, time.time(), named))
            self._signal(Observation(self._steps.calls, values=named, learning_rate=self._rate()))

    def _told(self, losses: list[tuple[int, float, Any]]) -> None:
        for step, loss, rate in losses:
            self._signal(Observation(step, loss=loss, learning_rate=rate))

    def _look(self, step: int) -> Record | None:
        self._begun = True
        if not self.active or self._closed:
            return None
        began = time.perf_counter()
        self._told(self.losses.read())
        broken = not_finite(list(self.model.parameters()))
        try:
            with unrounded(self.model, self.probe):
                look = Look({"dynaxx/parameters_not_finite": float(broken)}) if broken else self._measure(self._subject)
        except Exception:
            self._failures += 1
            self._pause = min(2**self._failures - 2, MOST_PAUSE)
            raise
        self._failures = 0
        if not broken and self._start is None:
            self._start = look
        seconds = time.perf_counter() - began
        self._spent += seconds
        record = Record(step, time.time(), self._numbers(look, seconds), look.arrays)
        self._journal.record(record)
        self._signal(self._observation(step, look, record.values))
        self._schedule.looked(step, seconds, moved(look, self._previous))
        if not broken:
            self._previous = look
            self._smoothed = look if self._smoothed is None else self._smoothed.blended(look, SMOOTHING)
        return record

    def _numbers(self, look: Look, seconds: float) -> dict[str, float]:
        values: dict[str, float] = dict(look.values)
        if self._start is not None:
            values |= since_start(look, self._start)
        mean, rate, limit = self.losses.mean(), self._rate(), self._limit()
        if mean is not None:
            values["dynaxx/train_loss"] = mean
        if rate is not None:
            values["dynaxx/learning_rate"] = rate
        if limit is not None and math.isfinite(limit):
            values["dynaxx/stability_limit"] = limit
        values["dynaxx/look_seconds"] = seconds
        return values

    def _observation(self, step: int, look: Look, values: Mapping[str, float]) -> Observation:
        adaptive = any(map(stability.is_adaptive, self.optimizers))
        return Observation(
            step, None, values, look, self._previous, self._smoothed, self._start, self._rate(), self._limit(), adaptive
        )

    def _rate(self) -> float | None:
        rates = [float(group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups]
        return max(rates, default=None)

    def _limit(self) -> float | None:
        return min(map(stability.least_limit, self.optimizers), default=None)

    def _preconditioner(self) -> dict[str, Tensor] | None:
        found = [stability.preconditioner(optimizer, self.model) for optimizer in self.optimizers]
        return next((each for each in found if each is not None), None)

    # telling

    def _signal(self, seen: Observation) -> None:
        for signal in self.signals:
            alarm = self._safely(f"signal {signal.name!r}", partial(signal.observe, seen))
            if alarm is None:
                continue
            self._journal.event(alarm.level, alarm.signal, alarm.text, alarm.step)
            for action in signal.actions:
                label = getattr(action, "__name__", type(action).__name__)
                self._safely(f"action {label}", partial(action, self, alarm))

    def _safely(self, what: str, work: Callable[[], Any]) -> Any:
        return self._journal.safely(what, work, self._steps.calls)


def _rank() -> int:
    """This process's rank; 0 without a process group."""
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
