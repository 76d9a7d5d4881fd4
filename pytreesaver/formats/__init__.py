"""How a checkpoint lies on disk: one protocol, one registry, and a module or a room for each format.

A new format is a module here that has what `Format` asks for, and an entry in `pytreesaver.formats.registry`.
"""

from pytreesaver.formats.protocol import CheckpointReader, Format, Heading, TreeContents

__all__ = ["CheckpointReader", "Format", "Heading", "TreeContents"]
