"""Reading of npz archives."""

import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, UnsupportedLeafError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.files import EndOfFileError, RawFile, map_or_read, read_fully
from pytreesaver._text import quoted
from pytreesaver._tree.kinds import LeafType, NotPlainError, storage_dtype, stored_array
from pytreesaver._tree.restructure import structure_of_names
from pytreesaver.formats.description import Description, decode_description
from pytreesaver.formats.foreign import kind_or_absence
from pytreesaver.formats.npz.header import read_array_header, stored_dtype_name
from pytreesaver.formats.single_file import open_regular_file

ENTRY = ".npy"
_COMMENT = re.compile(rb"pytreesaver description=([0-9]{19})\+([0-9]{19}) xxh3=([0-9a-f]{16})\Z")
_COMMENT_NBYTES = len(b"pytreesaver description=+ xxh3=") + 2 * 19 + 16
_DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    KeyError,
    struct.error,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    MemoryError,
)
"""What `zipfile` and `numpy.lib.format` raise for damaged archives."""


def recognizes(path: Path) -> bool:
    """Return whether `path` is a zip archive whose first entry is an array of NumPy."""
    descriptor = open_regular_file(path)
    if descriptor is None:
        return False
    try:
        return _looks_like_archive(descriptor)
    finally:
        filesystem.release(descriptor)


def _looks_like_archive(descriptor: int) -> bool:
    size = filesystem.file_size(descriptor)
    head = np.zeros(min(size, 512), np.uint8)
    with suppress(EndOfFileError):
        read_fully(descriptor, head, 0)
    start = head.tobytes()
    if not start.startswith(b"PK\x03\x04"):
        return False
    length = int.from_bytes(start[26:28], "little")
    entry = start[30 : 30 + length]
    return entry.endswith(b".npy") or (len(entry) < length and b"\x93NUMPY" not in start[:30])


class Archive(NamedTuple):
    """An open archive: its file, its entries by name, and the description if pytreesaver wrote it."""

    file: BinaryIO
    entries: Mapping[str, zipfile.ZipInfo]
    archive: zipfile.ZipFile
    description: Description | None


def open_archive(path: Path) -> Archive:
    """Open an archive and read its directory. Raises what `pytreesaver.formats.Format.open` raises."""
    if not recognizes(path):
        found = kind_or_absence(path)
        raise CheckpointNotFoundError(f"{path}: expected an npz archive, found {found}")
    file = BufferedReader(RawFile(filesystem.open_existing(path)))
    try:
        archive = zipfile.ZipFile(file)
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise CorruptCheckpointError(f"{path}: expected different names of arrays, found one twice")
        return Archive(file, entries, archive, _description_of(path, archive, file))
    except _DAMAGES as error:
        file.close()
        if isinstance(error, CheckpointError):
            raise
        raise CorruptCheckpointError(f"{path}: expected an npz archive, found a damaged one ({error})") from None
    except BaseException:
        file.close()
        raise


def _description_of(path: Path, archive: zipfile.ZipFile, file: BinaryIO) -> Description | None:
    match = _COMMENT.fullmatch(archive.comment)
    if match is None and len(archive.comment) != _COMMENT_NBYTES and b"pytreesaver" not in archive.comment:
        return None
    file.seek(0, os.SEEK_END)
    size = file.tell()
    if match is None or int(match[1]) + int(match[2]) > size:
        raise CorruptCheckpointError(f"{path}: expected the place of the description of the tree, found a damaged one")
    file.seek(size - _COMMENT_NBYTES)
    if file.read() != archive.comment:
        raise CorruptCheckpointError(f"{path}: expected the end of the archive, found other bytes after it")
    file.seek(int(match[1]))
    return decode_description(file.read(int(match[2])), str(path))


def described_entries(path: Path, opened: Archive) -> Description:
    """Return a description without checksums of an archive of another program.

    The leaves are NumPy arrays. Arrays of Python objects, which are pickles and are not read, are listed as bytes.
    """
    names: list[str] = []
    types: dict[LeafType, int] = {}
    type_of, shapes, keys = [], [], []
    for key, info in opened.entries.items():
        if not key.endswith(ENTRY):
            raise CorruptCheckpointError(f"{path}: expected arrays ({ENTRY}), found the entry {quoted(key)}")
        variable = key.removesuffix(ENTRY)
        try:
            with opened.archive.open(info) as entry:
                shape, _, dtype = read_array_header(entry)
            _check_size(info, 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize)
            if dtype.hasobject:
                leaf_type, shape = _PICKLED, (info.file_size,)
            else:
                leaf_type = LeafType("numpy", stored_dtype_name(dtype))
        except NotPlainError as error:
            raise CorruptCheckpointError(f"{path}: {quoted(variable)}: {error}") from None
        except _DAMAGES as error:
            if isinstance(error, CheckpointError):
                raise
            raise CorruptCheckpointError(
                f"{path}: {quoted(variable)}: expected an array of NumPy, found a damaged one ({error})",
                damaged=[variable],
            ) from None
        names.append(variable)
        type_of.append(types.setdefault(leaf_type, len(types)))
        shapes.append(shape)
        keys.append(key)
    return Description(
        names=names,
        types=list(types),
        type_of=type_of,
        shapes=shapes,
        keys=keys,
        checksums=[""] * len(names),
        structure=structure_of_names(names),
        metadata={},
    )


def _check_size(info: zipfile.ZipInfo, nbytes: int) -> None:
    """Raise a ValueError if an entry is smaller than its array of `nbytes` bytes, or too small to decompress to it."""
    is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if nbytes > info.file_size or (is_deflated and info.file_size > (info.compress_size + 1) * _MOST_DEFLATED):
        raise ValueError(f"expected an array of {nbytes} bytes, found an entry of {info.compress_size} bytes")


_MOST_DEFLATED = 1100  # deflate makes at most 1,032 bytes of one

PICKLED = "an array of Python objects, which is a pickle, which could run any code; convert it where it was made"
_PICKLED = LeafType("bytes", "uint8")


def pickled_names(description: Description) -> list[str]:
    """Return the variables of an archive of another program that are arrays of Python objects."""
    columns = zip(description.names, description.type_of, strict=True)
    return [name for name, i in columns if description.types[i] == _PICKLED]


def load_array(path: Path, opened: Archive, key: str, leaf_type: LeafType, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of the archive. Zip's own checksum is compared too."""
    dtype = storage_dtype(leaf_type)
    variable = quoted(key.removesuffix(ENTRY))
    try:
        info = opened.entries[key]
        with opened.archive.open(info) as entry:
            found, is_fortran, stored = read_array_header(entry)
            if leaf_type == _PICKLED and stored.hasobject:
                raise UnsupportedLeafError(f"{path}: {variable}: {PICKLED}; leave it out with only=")
            nbytes = int(np.prod(found, dtype=np.int64)) * stored.itemsize
            if found != shape or nbytes > info.file_size or stored.itemsize != dtype.itemsize:
                raise ValueError(f"expected {dtype}{list(shape)}, found {stored}{list(found)}")
            memory = filesystem.new_memory(nbytes)
            _read_into(entry, memory)
            if entry.read(1):
                raise ValueError("bytes after the end of the array")
    except _DAMAGES as error:
        raise CorruptCheckpointError(f"{path}: {variable}: expected an array of NumPy ({error})") from None
    if leaf_type.dtype.startswith(">") or stored.byteorder == ">":
        memory = memory.view(stored).astype(stored.newbyteorder("<")).view(np.uint8)
    if is_fortran and dtype.itemsize:
        memory = np.ascontiguousarray(memory.view(dtype).reshape(shape[::-1]).T).reshape(-1).view(np.uint8)
    return stored_array(memory, leaf_type, shape)


def _read_into(entry: Any, memory: np.ndarray) -> None:
    view = memoryview(memory)  # type: ignore[arg-type]
    done = 0
    while done < memory.nbytes:
        content = entry.read(min(memory.nbytes - done, 8 << 20))
        if not content:
            raise EOFError("the array ends early")
        view[done : done + len(content)] = content
        done += len(content)


def check_file(path: Path, opened: Archive) -> None:
    """Compare the checksum of the whole file."""
    if opened.description is None:
        return
    descriptor = opened.file.fileno()
    size = filesystem.file_size(descriptor)
    match = _COMMENT.fullmatch(opened.archive.comment)
    whole = map_or_read(descriptor, size)
    if match is None or int(match[3], 16) != checksum(whole[: size - 16]):
        raise CorruptCheckpointError(f"{path}: the checksum of the file does not match: it is damaged")
