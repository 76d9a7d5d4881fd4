"""msgpack: trees as `flax.serialization.to_bytes` and `flax.training.checkpoints` write them, in one file.

A file that pytreesaver wrote has an index, so that it restores exactly and is verified, and is read by Flax. Files of
Flax hold named arrays and no checksums.
"""

from pathlib import Path

from pytreesaver.formats.msgpack.files import recognizes
from pytreesaver.formats.msgpack.reading import NAME, read_heading
from pytreesaver.formats.msgpack.reading import open_file as open
from pytreesaver.formats.msgpack.writing import unsupported, write
from pytreesaver.formats.single_file import remove_single_file

__all__ = [
    "heading_file",
    "name",
    "open",
    "read_heading",
    "recognizes",
    "remove",
    "remove_unlisted_files",
    "unsupported",
    "write",
]

name = NAME


def remove(path: Path) -> None:
    """Delete a file. See `pytreesaver.formats.Format.remove`."""
    remove_single_file(path)


def remove_unlisted_files(path: Path) -> None:
    """Do nothing: the tree is one file. See `pytreesaver.formats.Format.remove_unlisted_files`."""


def heading_file(path: Path) -> Path:
    """Return the file itself. See `pytreesaver.formats.Format.heading_file`."""
    return path
