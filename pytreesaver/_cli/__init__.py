"""The command line, ``pytreesaver``: thin over the public functions."""

from pytreesaver._cli._run import main

__all__ = ["main"]
