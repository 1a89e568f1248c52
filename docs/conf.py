"""Sphinx settings. ``make docs`` builds with -W: a warning is an error."""

import os

from dynaxx.version import __version__

os.environ.setdefault("MPLBACKEND", "Agg")

project = "dynaxx"
author = "The dynaxx developers"
copyright = "The dynaxx developers, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx_gallery.gen_gallery"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "images/make.py"]

html_theme = "furo"
html_title = f"dynaxx {release}"
pygments_style, pygments_dark_style = "friendly", "github-dark"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}


def plain_text(app, what, name, obj, options, lines):
    """Set docstrings as they stand: they are plain text with equations (|F|_F, *S), not reStructuredText."""
    if lines:
        lines[:] = ["::", "", *(f"    {line}" for line in lines), ""]


def setup(app):
    app.connect("autodoc-process-docstring", plain_text)
