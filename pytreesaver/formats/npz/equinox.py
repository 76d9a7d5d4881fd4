"""Files of `equinox.tree_serialise_leaves`: arrays in NumPy's format, one after the other, without names.

They are only read. With a template, the arrays are those of its leaves that Equinox saves, in their order. The first
line may be JSON, as Equinox's documentation suggests for hyperparameters: it becomes the metadata.
"""

import json
import math
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pytreesaver._errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedLeafError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, RawFile, read_fully
from pytreesaver._tree.kinds import LeafType, NotPlainError, storage_dtype, stored_array
from pytreesaver._tree.plain import encode_value
from pytreesaver.formats.foreign import kind_or_absence, record_of_file
from pytreesaver.formats.indexed.index import DataFile
from pytreesaver.formats.indexed.mixed import MixedVariable, mixed_reader
from pytreesaver.formats.npz.header import read_array_header, stored_dtype_name
from pytreesaver.formats.protocol import CheckpointReader, Heading, TreeContents, open_unchanged
from pytreesaver.formats.single_file import heading_file, open_regular_file, remove, remove_unlisted_files

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

name = "equinox"
_MAGIC = b"\x93NUMPY"
_ENDING = ".eqx"
_MAX_LINE_NBYTES = 1 << 20
_ONLY_READ = "files of Equinox are only read, since they hold no names; save it in another format"


def unsupported(contents: TreeContents) -> Mapping[str, str]:
    """Return all variables: files of Equinox are only read. See `pytreesaver.formats.Format.unsupported`."""
    return dict.fromkeys(contents.names or ["."], _ONLY_READ)


def write(path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False) -> None:
    """Raise an UnsupportedLeafError. See `pytreesaver.formats.Format.write`."""
    raise UnsupportedLeafError(f"{path}: {_ONLY_READ}")


def recognizes(path: Path) -> bool:
    """Return whether `path` is a file of arrays. One array alone is a file of Equinox if its name ends in ``.eqx``.

    Raises:
        OSError: if the system could not look.
    """
    descriptor = open_regular_file(path)
    if descriptor is None:
        return False
    with BufferedReader(RawFile(descriptor)) as file:
        first = file.read(len(_MAGIC))
        if first != _MAGIC and not first.startswith(b"{"):
            return False
        file.seek(0)
        try:
            start = len(_first_line(file))
            file.seek(start)
            if file.read(len(_MAGIC)) != _MAGIC:
                return False
            if start or path.name.endswith(_ENDING):
                return True
            file.seek(start)
            shape, _, dtype = read_array_header(file)
            file.seek(math.prod(shape) * dtype.itemsize, 1)
            return file.read(len(_MAGIC)) == _MAGIC
        except ValueError:
            return path.name.endswith(_ENDING)


def _first_line(file: BinaryIO) -> bytes:
    """Return the JSON before the arrays, with the end of its line, or nothing."""
    line = file.readline(_MAX_LINE_NBYTES)
    return line if line.startswith(b"{") and line.endswith(b"\n") else b""


def read_heading(path: Path) -> Heading:
    """Return the heading of a file. See `pytreesaver.formats.Format.read_heading`."""
    reader = open(path)
    reader.close()
    return Heading(reader.record, reader.metadata, filesystem.file_sizes(path))


def open(path: Path) -> CheckpointReader:
    """Open a file. See `pytreesaver.formats.Format.open`."""
    if not recognizes(path):
        found = kind_or_absence(path)
        raise CheckpointNotFoundError(f"{path}: expected a file of Equinox, found {found}")
    return open_unchanged(lambda: filesystem.fingerprint(path), lambda: _open_file(path))


def _open_file(path: Path) -> CheckpointReader:
    descriptor = filesystem.open_existing(path)
    file: Any = BufferedReader(RawFile(descriptor))
    try:
        size = filesystem.file_size(descriptor)
        line = _first_line(file)
        file.seek(len(line))
        variables: list[MixedVariable] = []
        while file.tell() < size:
            variables.append(_variable(path, file, len(variables), size))
        reader: Any = mixed_reader(
            path,
            [DataFile(path.name, size, 0, "")],
            variables,
            structure=list(range(len(variables))),
            metadata=_metadata_of(path, line),
            close=file.close,
            record=record_of_file(path),
            format_name=name,
            format_version=1,
        )
    except BaseException:
        file.close()
        raise
    reader.is_positional = True
    return reader  # type: ignore[no-any-return]


def _metadata_of(path: Path, line: bytes) -> Any:
    try:
        decoded = json.loads(line) if line else {}  # it knows NaN, which programs of Python write
        return encode_value(decoded if isinstance(decoded, dict) else {}, classes=False)
    except (ValueError, RecursionError, NotPlainError) as error:
        raise CorruptCheckpointError(f"{path}: expected JSON in the first line ({error})") from None


def _variable(path: Path, file: BinaryIO, position: int, size: int) -> MixedVariable:
    """Return the array that the file is at, and move to the end of it."""
    where = f"{path}: array {position}"
    try:
        shape, is_fortran, dtype = read_array_header(file)
        if dtype.hasobject:
            raise CorruptCheckpointError(
                f"{where}: an array of Python objects, which is a pickle, which could run any code; convert it where "
                "it was made"
            )
        leaf_type = LeafType("numpy", stored_dtype_name(dtype))
    except CorruptCheckpointError:
        raise
    except (ValueError, TypeError, SyntaxError, EOFError, OverflowError, NotPlainError) as error:
        raise CorruptCheckpointError(f"{where}: expected an array of NumPy, found {error}") from None
    offset, nbytes = file.tell(), math.prod(shape) * dtype.itemsize
    if offset + nbytes > size:
        raise CorruptCheckpointError(
            f"{where}: expected {nbytes} bytes, found {size - offset}", damaged=[str(position)]
        )
    file.seek(offset + nbytes)
    if not is_fortran and dtype.byteorder != ">":
        return MixedVariable(str(position), leaf_type, shape, [(0, offset)])
    descriptor = file.fileno()
    return MixedVariable(
        str(position), leaf_type, shape, load=lambda: _load(where, descriptor, offset, leaf_type, shape, is_fortran)
    )


def _load(
    where: str, descriptor: int, offset: int, leaf_type: LeafType, shape: tuple[int, ...], is_fortran: bool
) -> np.ndarray:
    dtype = storage_dtype(leaf_type)
    memory = filesystem.new_memory(math.prod(shape) * dtype.itemsize)
    try:
        read_fully(descriptor, memory, offset)
    except EndOfFileError:
        raise CorruptCheckpointError(f"{where}: the file ends before it") from None
    if not dtype.itemsize:
        return stored_array(memory, leaf_type, shape)
    array = memory.view(dtype)
    if leaf_type.dtype.startswith(">"):
        array = array.byteswap(inplace=True)
    if is_fortran:
        array = np.ascontiguousarray(array.reshape(shape[::-1]).T)
    return stored_array(array.reshape(-1).view(np.uint8), leaf_type, shape)
