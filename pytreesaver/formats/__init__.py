"""Checkpoint formats: one protocol, one registry, and one module or package for each format.

A new format is a module here that implements `Format`, and an entry in `pytreesaver.formats.registry`.
"""

from pytreesaver.formats.protocol import CheckpointReader, Format, Heading, TreeContents

__all__ = ["CheckpointReader", "Format", "Heading", "TreeContents"]
