"""A result as a page: a :class:`Document` of blocks, which ``page`` and ``write`` make HTML and ``render`` prints.

Nothing here imports torch, and the page asks the network for nothing.
"""

from dynaxx.report.document import (
    Document,
    Eigenvalues,
    Facts,
    Image,
    Lines,
    Marker,
    Note,
    Scatter,
    Section,
    Series,
    Spectra,
    Table,
)
from dynaxx.report.page import page, write
from dynaxx.report.text import render, to_text

__all__ = [
    "Document",
    "Eigenvalues",
    "Facts",
    "Image",
    "Lines",
    "Marker",
    "Note",
    "Scatter",
    "Section",
    "Series",
    "Spectra",
    "Table",
    "page",
    "render",
    "to_text",
    "write",
]
