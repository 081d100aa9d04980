"""The command line: explain, list, train, demo.

Torch is imported inside the commands, so that a usage error or a help text does not wait for it.
"""

from .program import app, main

__all__ = ["app", "main"]
