"""What a file of msgpack looks like, and where pytreesaver keeps its index in one.

The index is in the value of the first key of the map, which the map has once more at its place: other programs keep the
last value of a key, and see only the tree.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pytreesaver._errors import CheckpointNotFoundError, CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver.formats.foreign import kind_or_absence
from pytreesaver.formats.single_file import open_regular_file

MAGIC = b"pytreesaver index of msgpack, 1\n"
LENGTH_NBYTES = 8
_HEAD_NBYTES = 1 << 16
_MAPS = {0xDE: 3, 0xDF: 5}
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_NEVER_USED = 0xC1


class Head(NamedTuple):
    """The beginning of a file of msgpack: where the index of pytreesaver is, if it has one."""

    index_start: int | None


def read_head(descriptor: int) -> Head | None:
    """Return the beginning of a file of pytreesaver, or of what Flax writes; None for another file."""
    size = filesystem.file_size(descriptor)
    data = np.zeros(min(size, _HEAD_NBYTES), np.uint8)
    try:
        read_fully(descriptor, data, 0)
    except EndOfFileError:
        return None
    head = data.tobytes()
    found = _index_start(head)
    if found is not None:
        return Head(found)
    return Head(None) if _begins_like_a_tree(head, size) else None


def _index_start(head: bytes) -> int | None:
    """Return where the index of pytreesaver is, also if a bit before it has changed."""
    first = _first_key(head)
    if first is not None and _bit_errors(head[first[1] + 5 : first[1] + 5 + len(MAGIC)], MAGIC) <= 1:
        return first[1] + 5
    found = head.find(MAGIC)
    return found if found > 0 and _bit_errors_before(head, found) <= 1 else None


def _bit_errors(found: bytes, expected: bytes) -> int:
    if len(found) != len(expected):
        return 8 * len(expected)
    return (int.from_bytes(found, "big") ^ int.from_bytes(expected, "big")).bit_count()


def _bit_errors_before(head: bytes, start: int) -> int:
    """Return how many bits differ from those of a map, a string and the header of bytes that end at `start`."""
    fewest = 8
    for map_nbytes in (1, 3, 5):
        for string_nbytes in (1, 2, 3, 5):
            length = start - 5 - map_nbytes - string_nbytes
            if length < 0 or length >> 8 * max(string_nbytes - 1, 1):
                continue
            first = _nearest(head[0], range(0x81, 0x90) if map_nbytes == 1 else [0xDE if map_nbytes == 3 else 0xDF])
            if string_nbytes == 1:
                header = bytes([0xA0 | length]) if length < 32 else b""
            else:
                header = bytes([_STRING_KINDS[string_nbytes]]) + length.to_bytes(string_nbytes - 1, "big")
            if not header:
                continue
            found = head[map_nbytes : map_nbytes + string_nbytes]
            errors = first + _bit_errors(found, header) + _bit_errors(head[start - 5 : start - 4], b"\xc6")
            fewest = min(fewest, errors)
    return fewest


def _nearest(byte: int, expected: Iterable[int]) -> int:
    return min((byte ^ each).bit_count() for each in expected)


_STRING_KINDS = {2: 0xD9, 3: 0xDA, 5: 0xDB}


def _first_key(head: bytes) -> tuple[str, int] | None:
    """Return the first key of a map and where its value begins, or None if it is no map with a string as the key."""
    with suppress(IndexError, UnicodeDecodeError):
        position = 1 if 0x81 <= head[0] <= 0x8F else _MAPS.get(head[0], 0)
        if not position:
            return None
        kind = head[position]
        if 0xA0 <= kind <= 0xBF:
            length, position = kind & 0x1F, position + 1
        elif kind in _STRINGS:
            size = _STRINGS[kind]
            length = int.from_bytes(head[position + 1 : position + 1 + size], "big")
            position += 1 + size
        else:
            return None
        key = head[position : position + length]
        if len(key) == length and head[position + length] != _NEVER_USED:
            return key.decode(), position + length
    return None


def _begins_like_a_tree(head: bytes, size: int) -> bool:
    if head == b"\x80" and size == 1:  # an empty dict
        return True
    first = _first_key(head)
    if first is not None:
        return first[0].isprintable()
    is_array = head[:1] in (b"\xc7", b"\xc8", b"\xc9")  # a tree of a single leaf
    code = 1 + (1 << (head[0] - 0xC7)) if is_array else 0
    return is_array and head[code : code + 2] in (b"\x01\x93", b"\x03\x93")


def recognizes(path: Path) -> bool:
    """Return whether `path` is a file that begins like a tree of Flax.

    Raises:
        OSError: if the system could not look.
    """
    descriptor = open_regular_file(path)
    if descriptor is None:
        return False
    try:
        return read_head(descriptor) is not None
    finally:
        filesystem.release(descriptor)


def refuse_others(path: Path) -> None:
    """Raise a CheckpointNotFoundError if `path` is no file of msgpack."""
    if not recognizes(path):
        found = kind_or_absence(path)
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
