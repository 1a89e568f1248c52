"""
Watch a training
================

A small digit classifier with a monitor beside it. The monitor looks at fixed, named examples every 40 steps, records
into an SQLite file, and leaves the training bit for bit as it is without::

    cd examples
    python monitor_a_training.py
    dynaxx show monitored.db
"""

# %%
# Everything up to the training is as it would be anyway.

import torch
from torch import nn

from dynaxx.cli.digits import digits, mlp
from dynaxx.monitor import Baseline, Monitor, Probe, drift
from dynaxx.monitor.actions import Stop
from dynaxx.monitor.signals import Divergence, LossShift, NotFinite

torch.manual_seed(0)
parts, model = digits(seed=0), mlp()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

# %%
# A probe is a protocol: a name, examples, a seed. Its digest is stored with the run, so that only numbers that were
# measured alike are compared. Its labels make the monitor follow a validation loss as well.

images, labels = parts.validation
probe = Probe("digits validation, first 100", (images[:100], labels[:100]))

# %%
# One line attaches the monitor. Alarms do nothing unless an action is named.

monitor = Monitor(
    model,
    probe,
    preset="standard",
    every=40,
    store="monitored.db",
    signals=[NotFinite(actions=[Stop()]), Divergence(actions=[Stop()]), LossShift()],
)
with monitor:
    monitor.attach(optimizer)
    for _ in range(10):
        for x, y in parts.train:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            monitor.observe(loss=loss)
            optimizer.step()
        if monitor.should_stop:
            break

# %%
# What it saw. The effective dimension counts the directions that the data determine better than the prior does, with a
# standard error over the probe's examples.

for record in monitor.history:
    v = record.values
    print(
        f"step {record.step:4d}   loss on the probe {v['dynaxx/probe_loss']:.3f}   "
        f"effective dimension {v['dynaxx/effective_dimension']:6.1f} +- {v['dynaxx/effective_dimension'].stderr:.1f}   "
        f"posterior entropy {v['dynaxx/posterior_entropy']:7.1f} nats"
    )
print("events:", monitor.events)

# %%
# Later, with the model deployed: do new examples look to it like those it was accepted with? Images of half the
# contrast do not: their largest shift is far beyond the four standard errors that count as significant.

last = monitor.history[-1]
baseline = Baseline(dict(last.values), probe.count, "standard", last.step)
arrivals = [Probe("today", parts.test[0][:100]), Probe("today, faded", parts.test[0][:100] / 2)]
found = {arrived.name: drift(model, arrived, baseline) for arrived in arrivals}
for name, shifts in found.items():
    print(f"{name}: largest shift {shifts[0].name}, {shifts[0].z:+.1f} standard errors")
