"""
A map of training runs
======================

A checkpoint is a point of the model manifold: what it predicts on a fixed set of examples. InPCA draws a map of many
such points from the distances between them alone, whatever the networks behind them are: here two architectures from
three initialisations each, in one picture with ignorance (every class equally likely) and truth (certain labels).
"""

# %%
# Data and models
# ---------------
# Handwritten digits: 1,000 to train on; predictions are compared on 300 others.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from dynaxx import manifold

digits = load_digits()
order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
x = torch.tensor(digits.data / 16.0)[order]
y = torch.tensor(digits.target)[order]
probe, labels = x[1000:1300], y[1000:1300]


def build(name: str) -> nn.Module:
    if name == "linear":
        return nn.Linear(64, 10).double()
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()


# %%
# Training
# --------
# Each run is looked at nine times, more often early on. ``embed`` gives square roots of probabilities, and their
# squares are what ``distances`` takes.

CHECKPOINTS = (0, 2, 5, 10, 20, 40, 100, 200, 400)
points, runs = [], []
for name in ("linear", "two layers"):
    for seed in range(3):
        torch.manual_seed(seed)
        model = build(name)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(CHECKPOINTS[-1] + 1):
            if step in CHECKPOINTS:
                points.append(manifold.embed(model, probe) ** 2)
                runs.append(name)
            part = slice(50 * step % 1000, 50 * step % 1000 + 50)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()

# %%
# The map
# -------
# Two coordinates of 54 checkpoints. The explained stress says how much of the distances they carry; a coordinate with a
# negative eigenvalue would count negatively, and its sign says so.

P = torch.stack(points)
D = manifold.distances(P, kind="intensive")
made = manifold.inpca(D, k=3)
print(made)
for k in (1, 2, 3):
    print(f"{k} coordinates explain {made.explained_stress(k):.1%} of the stress")

# %%
# Ignorance and truth are no checkpoints. They are put into the map afterwards, by their distances to it, as any later
# checkpoint would be.

ends = torch.stack([manifold.ignorance(300, 10), manifold.truth(labels, 10)])
placed = made.project(manifold.distances(ends, P, kind="intensive"))

figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained", facecolor="white")
for start, name in zip(range(0, len(P), len(CHECKPOINTS)), runs[:: len(CHECKPOINTS)], strict=True):
    run = made.coordinates[start : start + len(CHECKPOINTS)]
    colour = "#1f5fa8" if name == "linear" else "#c8501e"
    axes.plot(run[:, 0], run[:, 1], ".-", color=colour, linewidth=1, label=name if start % 27 == 0 else None)
for (a, b, _), word in zip(placed.tolist(), ("ignorance", "truth"), strict=True):
    axes.plot(a, b, "k*", markersize=10)
    axes.annotate(word, (a, b), textcoords="offset points", xytext=(0, -16), ha="center")
axes.set(xlabel="coordinate 1", ylabel="coordinate 2")
axes.set_aspect("equal", adjustable="datalim")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# How far along
# -------------
# Progress is where on the shortest path from ignorance to truth a checkpoint comes closest to it. The distance left
# over is how far off that path it runs: an angle, root mean square over the examples. Both architectures leave the
# path early and stay some 0.3 off it, where the whole path is 1.25 long.

progress = manifold.progress(P, end=labels)
path = manifold.geodesic(ends[0], ends[1], progress)
off = torch.stack([manifold.distances(P[i : i + 1], path[i : i + 1], kind="geodesic")[0, 0] for i in range(len(P))])
print("step        " + "".join(f"{step:7d}" for step in CHECKPOINTS))
for start, name in ((0, "linear"), (27, "two layers")):
    print(f"{name:12s}" + "".join(f"{value:7.2f}" for value in progress[start : start + 9].tolist()))
    print(f"{'  off path':12s}" + "".join(f"{value:7.2f}" for value in off[start : start + 9].tolist()))
