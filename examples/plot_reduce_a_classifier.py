"""
How few directions does a classifier need?
==========================================

The eigenvalues of a trained network's Fisher matrix spread over many decades: few directions of the weights change the
predictions, most do not. So keep the few: project the weights on the leading eigenvectors and look at the accuracy.
"""

# %%
# A classifier, with its spectra on the way
# -----------------------------------------
# Handwritten digits, 8 x 8 pixels: 1,000 to train on, 400 to choose by, 397 to judge by. ``track_spectrum`` measures at
# the chosen steps on a fixed probe of 100 training digits and leaves the training as it would be without.

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dynaxx

digits = load_digits()
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(digits.data), generator=generator)
x = torch.tensor(digits.data / 16.0)[order]
y = torch.tensor(digits.target)[order]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)).double()
initial = copy.deepcopy(model.state_dict())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

with dynaxx.track_spectrum(model, x[:100], steps=(0, 100, 800)) as track:
    for _ in range(40):
        for part in torch.randperm(1000, generator=generator).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
            track.step()

# %%
# Stiff and sloppy
# ----------------
# Each number depends on a threshold or on the rounding floor, which stands beside it. The slope's error takes the gaps
# between neighbouring eigenvalues for independent.

for row in track.rows():
    where = "data" if row["step"] is None else f"{row['spectrum']}, step {row['step']}"
    print(
        f"{where:17s} rank {row['rank']:5d}   l >= 1 % of the largest: {row['stiff']['0.01']:6.1%}"
        f"   90 % of the rank spans {row['decades']['0.9']:4.1f} decades"
        f"   slope {row['slope']:.4f} +- {row['slope_stderr']:.4f} (R^2 {row['r_squared']:.2f})"
    )

# %%
# The picture: each spectrum over its largest eigenvalue, against the share of its own rank. The data's correlation
# matrix is dashed.

figure, axes = plt.subplots(figsize=(7.0, 3.6), layout="constrained", facecolor="white")
track.figure(axes)
axes.spines[["top", "right"]].set_visible(False)

# %%
# Keeping k directions
# --------------------
# One decomposition serves every k and both centres: the origin, and the weights before training. The controls are
# subspaces of the same dimension: random ones, the k largest weights (or displacements), and the k largest diagonal
# entries of the Fisher matrix. Random subspaces are no match. The k largest displacements are: up to a tenth of the
# parameters they keep more than the eigenvectors do, at a fifth less.


def accuracy(part: slice):
    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(x[part]).argmax(1) == y[part]).double().mean())

    return score


validation, test = accuracy(slice(1000, 1400)), accuracy(slice(1400, None))
from_origin = dynaxx.reduce(model, x[:400])
about_start = from_origin.about("init", init=initial)
shares = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
ks = [round(share * from_origin.dimension) for share in shares]
curves = {
    name: reduction.curve(test, ks, controls=("random", "magnitude", "diagonal"), seeds=(0, 1, 2))
    for name, reduction in {"from the origin": from_origin, "about the start": about_start}.items()
}

figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.9), sharey=True, layout="constrained", facecolor="white")
for panel, (name, curve) in zip(panels, curves.items(), strict=True):
    curve.figure(panel, label="test accuracy" if panel is panels[0] else "")
    panel.set_title(name)
panels[1].get_legend().remove()

# %%
# The smallest model
# ------------------
# k is chosen on the validation digits and judged on the others. It is a share of the parameters and a share of the
# rank; for a network with far more parameters than data the first says little.

found = about_start.smallest(validation, tolerance=0.02)
small = about_start.apply(found.k)
print(
    f"k = {found.k}: {about_start.share_of_parameters(found.k):.0%} of {about_start.dimension} parameters, "
    f"{about_start.share_of_rank(found.k):.0%} of the rank {about_start.rank}, "
    f"{about_start.energy(found.k):.0%} of the squared displacement"
)
print(f"test accuracy {test(model):.1%} before, {test(small):.1%} after; {type(small).__name__}")
if found.dips:
    print(f"accuracy is not monotone in k: k = {found.dips} fall outside the tolerance again")
plt.show()
