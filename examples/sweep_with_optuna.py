"""
Sweep with Optuna
=================

Optuna proposes learning rate and width; each trial is watched and recorded in one store; the objective is read from
what was recorded; and a signal ends trials that diverge, long before their loss would have told a pruner::

    pip install optuna
    cd examples
    python sweep_with_optuna.py
    dynaxx runs sweep.db
"""

# %%
# Optuna is not among what dynaxx installs.

try:
    import optuna
except ImportError:
    raise SystemExit("this example needs Optuna: pip install optuna") from None

import torch
from torch import nn

from dynaxx.cli.digits import digits
from dynaxx.monitor import Monitor, Probe
from dynaxx.monitor.actions import Stop
from dynaxx.monitor.signals import Divergence, NotFinite
from dynaxx.track import Store

TRIALS, EPOCHS = 8, 4
optuna.logging.set_verbosity(optuna.logging.WARNING)
parts = digits(seed=0)
images, labels = parts.validation
probe = Probe("digits validation, first 100", (images[:100], labels[:100]))

# %%
# One trial. ``Stop`` sets ``monitor.should_stop``, and the loop makes a pruned trial of it. Each epoch's look also
# reports the loss on the probe, so that Optuna's own pruner compares the trial with those before. Nobody needs to be
# warned of a bad proposal, so the signals say "info".


def one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor) -> None:
    for x, y in parts.train:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        monitor.observe(loss=loss)
        optimizer.step()
        if monitor.should_stop:
            return


def objective(trial: optuna.Trial) -> float:
    rate, width = trial.suggest_float("rate", 1e-2, 1e2, log=True), trial.suggest_int("width", 8, 32, log=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    run = store.run(f"trial {trial.number}", "sweep", dict(trial.params))
    signals = [NotFinite(actions=[Stop()], level="info"), Divergence(span=10, actions=[Stop()], level="info")]
    pruned = ""
    with run, Monitor(model, probe, preset="standard", every=20, store=run, signals=signals) as monitor:
        monitor.attach(optimizer)
        for epoch in range(EPOCHS):
            one_epoch(model, optimizer, monitor)
            if monitor.should_stop:
                pruned = "signal"
            else:
                trial.report(float(monitor.history[-1].values["dynaxx/probe_loss"]), epoch)
                pruned = "median" if trial.should_prune() else ""
            if pruned:
                run.tag("pruned", pruned)
                break
    if pruned:  # not inside, where it would end the run as failed
        raise optuna.TrialPruned(pruned)
    return float(store.metrics(run.id, "dynaxx/probe_loss").values[-1])


# %%
# The sweep.

store = Store("sweep.db")
pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1)
study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2), pruner=pruner)
study.optimize(objective, n_trials=TRIALS)

# %%
# What was found, from the store: the objective, and beside it what else is known of each trial. A trial that a signal
# ended has seen no look but the first, hence the loss of an untrained network.

for info in sorted(store.runs(), key=lambda info: info.id):
    last = store.last(info.id)
    loss, dimension = (last[f"dynaxx/{name}"].value for name in ("probe_loss", "effective_dimension"))
    print(
        f"{info.name}: rate {info.config['rate']:8.3f}   width {info.config['width']:2d}   loss {loss:6.3f}   "
        f"effective dimension {dimension:6.1f}   {' '.join(info.tags)}"
    )
print("best:", study.best_trial.number, study.best_params)
store.close()
