"""Makes the picture of the README from the gallery example that explains it: python docs/images/make.py."""

import runpy
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
# without these the file changes with every run: the salt names the clip paths, the date goes into the metadata
mpl.rcParams["svg.hashsalt"] = "dynaxx"

here = Path(__file__).resolve().parent
example = runpy.run_path(str(here.parents[1] / "examples" / "plot_spectrum.py"))
example["figure"].savefig(here / "spectrum.svg", metadata={"Date": None})
