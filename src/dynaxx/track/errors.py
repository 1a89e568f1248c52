"""What the run store raises, and what it only warns of."""

from dynaxx.errors import InputError


class StoreError(InputError):
    """The store cannot be opened, or holds nothing under the name or number asked for."""


class StoreWarning(UserWarning):
    """Rows could not be written and wait in memory, or were given up. Training goes on."""
