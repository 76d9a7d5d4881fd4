"""What a file of msgpack looks like, and where pytreesaver keeps its index in one.

The index is in the value of the first key of the map, which the map has once more at its place: other programs keep the
last value of a key, and see only the tree.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pytreesaver._errors import CheckpointNotFoundError, CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver.formats.foreign import foreign_kind

MAGIC = b"pytreesaver index of msgpack, 1\n"
LENGTH_NBYTES = 8
_HEAD_NBYTES = 1 << 16
_MAPS = {0xDE: 3, 0xDF: 5}
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_NEVER_USED = 0xC1
_START_OF_INDEX = b'{"format":"pytreesaver"'


class Head(NamedTuple):
    """The beginning of a file of msgpack: where the index of pytreesaver is, if it has one."""

    index_start: int | None


def read_head(descriptor: int) -> Head | None:
    """Return the beginning of a file of pytreesaver, or of a map whose first key is a string; None for another file."""
    data = np.zeros(min(filesystem.file_size(descriptor), _HEAD_NBYTES), np.uint8)
    try:
        read_fully(descriptor, data, 0)
    except EndOfFileError:
        return None
    head = data.tobytes()
    found = head.find(MAGIC)
    if found < 0 and (index := head.find(_START_OF_INDEX)) >= 0:  # a bit before it may have changed
        found = index - LENGTH_NBYTES - len(MAGIC)
    if found >= 0:
        return Head(found)
    return Head(None) if _begins_like_a_tree(head) else None


def _begins_like_a_tree(head: bytes) -> bool:
    with suppress(IndexError, UnicodeDecodeError):
        position = 1 if 0x81 <= head[0] <= 0x8F else _MAPS.get(head[0], 0)
        if not position:
            return False
        kind = head[position]
        if 0xA0 <= kind <= 0xBF:
            length, position = kind & 0x1F, position + 1
        elif kind in _STRINGS:
            size = _STRINGS[kind]
            length = int.from_bytes(head[position + 1 : position + 1 + size], "big")
            position += 1 + size
        else:
            return False
        key = head[position : position + length]
        return len(key) == length and key.decode().isprintable() and head[position + length] != _NEVER_USED
    return False


def recognizes(path: Path) -> bool:
    """Return whether `path` is a file that begins like a tree of Flax.

    Raises:
        OSError: if the system could not look.
    """
    try:
        if not filesystem.is_regular_file(path):
            return False
        descriptor = filesystem.open_existing(path)
    except OSError as error:
        if filesystem.is_absence(error):
            return False
        raise
    try:
        return read_head(descriptor) is not None
    finally:
        filesystem.release(descriptor)


def refuse_others(path: Path) -> None:
    """Raise a CheckpointNotFoundError if `path` is no file of msgpack."""
    if not recognizes(path):
        found = foreign_kind(path) or ("something else" if filesystem.exists(path) else "nothing")
        raise CheckpointNotFoundError(f"{path}: expected a tree in msgpack, found {found}")


def read_index(path: Path) -> tuple[bytes, int] | None:
    """Return the text of the index of pytreesaver in a file, and where it ends; None if there is none.

    Raises:
        CorruptCheckpointError: if the index is incomplete.
    """
    descriptor = filesystem.open_existing(path)
    try:
        head = read_head(descriptor)
        if head is None or head.index_start is None:
            return None
        magic = np.zeros(len(MAGIC), np.uint8)
        length = np.zeros(LENGTH_NBYTES, np.uint8)
        start = head.index_start + len(MAGIC) + LENGTH_NBYTES
        with suppress(EndOfFileError):
            read_fully(descriptor, magic, head.index_start)
            if magic.tobytes() != MAGIC:
                raise CorruptCheckpointError(f"{path}: expected the index of pytreesaver, found a damaged one")
            read_fully(descriptor, length, start - LENGTH_NBYTES)
            nbytes = int.from_bytes(length.tobytes(), "little")
            if start + nbytes <= filesystem.file_size(descriptor):
                text = np.empty(nbytes, np.uint8)
                read_fully(descriptor, text, start)
                return text.tobytes(), start + nbytes
        raise CorruptCheckpointError(f"{path}: expected an index, found the end of the file")
    finally:
        filesystem.release(descriptor)
