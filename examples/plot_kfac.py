"""
K-FAC and EKFAC against the exact block
=======================================

K-FAC replaces a layer's block of the Fisher matrix by a Kronecker product of two small matrices; EKFAC keeps their
eigenbasis and measures the second moments in it. How near they come is a number, and for a small network the exact
block is there to compare with.
"""

# %%
# One sweep, four forms
# ---------------------
# A tuple of forms shares the passes over the data.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dynaxx

digits = load_digits()
x, y = torch.tensor(digits.data / 16.0), torch.tensor(digits.target)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 10)).double()
optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x[:1000]), y[:1000]).backward()
    optimiser.step()

forms = ("block", "diagonal", "kfac", "ekfac")
operators = dict(zip(forms, dynaxx.fisher(model, x[1000:1400], form=forms), strict=True))
print(operators["kfac"].coverage())

# %%
# Distance from the exact block, layer by layer
# ---------------------------------------------
# Relative Frobenius error. EKFAC is the best diagonal in K-FAC's eigenbasis, so it can never be farther away.

dense = {form: operator.to_dense() for form, operator in operators.items()}
layers = {"first": ("0.weight", "0.bias"), "second": ("2.weight", "2.bias"), "third": ("4.weight", "4.bias")}
places = operators["block"].layout.slices
errors: dict[str, list[float]] = {form: [] for form in forms[1:]}
for layer, names in layers.items():
    rows = torch.cat([torch.arange(places[name].start, places[name].stop) for name in names])
    block = dense["block"][rows[:, None], rows]
    for form, values in errors.items():
        values.append(float((dense[form][rows[:, None], rows] - block).norm() / block.norm()))
    print(f"{layer:6s} " + "  ".join(f"{form} {values[-1]:.3f}" for form, values in errors.items()))

# %%
# The trace of a block is another matter: EKFAC's is exact by construction, K-FAC's is a product of two means.

for form in forms:
    print(f"trace, {form:8s} {operators[form].trace():.4f}")

# %%
# Errors and spectra
# ------------------

figure, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.4), layout="constrained", facecolor="white")
colours = {"block": "black", "diagonal": "#8a8a8a", "kfac": "#c2571a", "ekfac": "#1f5fa8"}
for number, (form, values) in enumerate(errors.items()):
    left.bar([i + (number - 1) * 0.27 for i in range(len(layers))], values, 0.25, color=colours[form], label=form)
left.set_xticks(range(len(layers)), list(layers))
left.set(xlabel="layer", ylabel="relative Frobenius error", ylim=(0, 1.2))
left.legend(frameon=False, ncols=3, loc="upper center")
for form in ("block", "kfac", "ekfac"):
    values = operators[form].eigenvalues(200)
    right.semilogy(range(1, 201), values, color=colours[form], label="exact blocks" if form == "block" else form)
right.set(xlabel="index", ylabel="eigenvalue")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
