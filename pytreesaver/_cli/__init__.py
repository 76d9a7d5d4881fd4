"""The command line, ``pytreesaver``: thin over the public functions."""

from pytreesaver._cli.program import main

__all__ = ["main"]
