"""
The spectrum of a classifier, before and after training
=======================================================

The Fisher information matrix of a softmax classifier on N examples has rank at most min(p, N (C - 1)). Its non-zero
eigenvalues are those of a Gram matrix of N (C - 1) rows, so for a few hundred examples the whole spectrum is exact, and
comes with the floor below which an eigenvalue is rounding.
"""

# %%
# Data and model
# --------------
# Handwritten digits, 8 x 8 pixels: 1,000 to train on, 797 to test on. The spectrum is measured on a fixed probe of 200.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dynaxx

digits = load_digits()
order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
x = torch.tensor(digits.data / 16.0)[order]
y = torch.tensor(digits.target)[order]
probe = x[:200]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()

# %%
# Training
# --------
# The model is measured at initialisation, after each of the first five epochs, and at the end.


def epoch() -> None:
    for part in range(0, 1000, 50):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[part : part + 50]), y[part : part + 50]).backward()
        optimiser.step()


optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
spectra = {0: dynaxx.fisher(model, probe, form="gram").spectrum()}
for number in range(1, 41):
    epoch()
    if number <= 5 or number == 40:
        spectra[number] = dynaxx.fisher(model, probe, form="gram").spectrum()
with torch.no_grad():
    accuracy = float((model(x[1000:]).argmax(1) == y[1000:]).double().mean())

# %%
# What the spectrum says
# ----------------------
# The trace rises first and then falls below where it started, while the network only gets better: it is no measure of
# progress by itself. The effective dimension needs a prior; here its precision is 1 and N = 1,000.

prior = {"prior_precision": 1.0, "count": 1000}
print("epoch  trace  eff. rank  eff. dimension  posterior entropy  above 1 % of the largest")
for number, spectrum in spectra.items():
    stiff = int((spectrum.eigenvalues > 0.01 * spectrum.eigenvalues[0]).sum())
    print(
        f"{number:5d}  {spectrum.trace():5.2f}  {spectrum.effective_rank():9.1f}"
        f"  {spectrum.effective_dimension(**prior):14.0f}  {spectrum.posterior_entropy(**prior):12.0f} nats  {stiff:8d}"
    )
print(f"test accuracy {accuracy:.1%}")

# %%
# The picture
# -----------
# Dotted lines: the rounding floor of each spectrum. What lies on or below it is not an eigenvalue.

figure, axes = plt.subplots(figsize=(7.0, 3.6), layout="constrained", facecolor="white")
for number, label, colour in ((0, "at initialisation", "#8a8a8a"), (40, "after 40 epochs", "#1f5fa8")):
    spectra[number].plot(axes, label=label, marker="", linestyle="-", linewidth=1.8, color=colour)
axes.set(ylabel="eigenvalue of the Fisher matrix", ylim=(1e-14, 3))
axes.legend(frameon=False, fontsize="small")
axes.spines[["top", "right"]].set_visible(False)
plt.show()
