"""
Exact, Hutchinson, Monte Carlo: one trace, three prices
=======================================================

An estimator is a choice of cotangents in output space. The exact one needs C - 1 reverse passes for C classes; random
signs (Hutchinson) and labels drawn from the model (Monte Carlo) need one per sample, and come with a standard error.
The observed labels (empirical) cost one pass too, and estimate something else.
"""

# %%
# A briefly trained classifier
# ----------------------------

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dynaxx

digits = load_digits()
x, y = torch.tensor(digits.data / 16.0), torch.tensor(digits.target)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(30):
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x[:1000]), y[:1000]).backward()
    optimiser.step()
data = (x[1000:1200], y[1000:1200])

# %%
# The trace
# ---------

exact = dynaxx.fisher(model, data).trace()
empirical = dynaxx.fisher(model, data, estimator="empirical").trace()
print(f"exact      {exact!r}   (9 reverse passes)")
print(f"empirical  {empirical!r}   (1 reverse pass; not an estimate of the line above)")

samples = (1, 2, 4, 8, 16, 32)
sampled = {
    estimator: [dynaxx.fisher(model, data, estimator=estimator, samples=s, seed=1).trace() for s in samples]
    for estimator in ("hutchinson", "monte_carlo")
}
for estimator, estimates in sampled.items():
    for estimate in estimates:
        print(f"{estimator:11s} {estimate!r}, {(estimate - exact) / estimate.stderr:+.1f} standard errors off")

# %%
# Error bars
# ----------
# One standard error each way. The draws of an example are keyed by its index in the data, so another batch size gives
# the same numbers.

figure, axes = plt.subplots(figsize=(7.0, 3.4), layout="constrained", facecolor="white")
axes.axhline(exact, color="black", linewidth=1, label="exact")
for shift, colour, (estimator, estimates) in zip((0.95, 1.05), ("#1f5fa8", "#c2571a"), sampled.items(), strict=True):
    axes.errorbar(
        [s * shift for s in samples],
        [float(e) for e in estimates],
        yerr=[e.stderr for e in estimates],
        fmt="o",
        markersize=4,
        capsize=3,
        color=colour,
        label=estimator.replace("_", " "),
    )
axes.set(xscale="log", xlabel="samples per example", ylabel="trace of the Fisher matrix")
axes.set_xticks(samples, [str(s) for s in samples])
axes.minorticks_off()
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()
