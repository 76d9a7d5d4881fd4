"""msgpack: trees as `flax.serialization.to_bytes` and `flax.training.checkpoints` write them, in one file.

A file that pytreesaver wrote has an index, so that it restores exactly and is verified, and is read by Flax. Files of
Flax hold named arrays and no checksums.
"""

from pytreesaver.formats.msgpack.files import recognizes
from pytreesaver.formats.msgpack.reading import NAME, read_heading
from pytreesaver.formats.msgpack.reading import open_file as open
from pytreesaver.formats.msgpack.writing import unsupported, write
from pytreesaver.formats.single_file import heading_file, remove, remove_unlisted_files

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
