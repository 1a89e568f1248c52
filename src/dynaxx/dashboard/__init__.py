"""The run store as live pages in the browser, read only; ``dynaxx dashboard`` serves them.

Nothing here imports torch, and the pages ask nobody but this server for anything.
"""

from dynaxx.dashboard.application import application
from dynaxx.dashboard.serve import serve

__all__ = ["application", "serve"]
