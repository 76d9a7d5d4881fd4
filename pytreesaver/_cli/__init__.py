"""The command-line interface ``pytreesaver``, a thin layer over the public functions."""

from pytreesaver._cli.program import main

__all__ = ["main"]
