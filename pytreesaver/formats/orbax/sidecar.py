"""What pytreesaver adds to an Orbax checkpoint that it writes: a file that Orbax ignores, ``pytreesaver.json``.

It holds what Orbax does not: the exact structure and types, the metadata and the record, and a checksum of each array.
"""

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytreesaver._errors import CheckpointError, CorruptCheckpointError, UnsupportedVersionError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums import checksum
from pytreesaver._text import duplicates
from pytreesaver._tree.kinds import LeafType, NotPlainError, storage_dtype
from pytreesaver.formats.orbax.layout import other_files, read_bytes

SIDECAR = "pytreesaver.json"
VERSION = 1
MARKER: dict[str, Any] = {"pytreesaver": f"structure, types and checksums are in {SIDECAR}"}
"""The metadata in Orbax's own file, so that a missing description is noticed."""


class Sidecar(msgspec.Struct):
    """The columns of the file, with one entry for each variable.

    Attributes:
        names: the names of the variables.
        types: the distinct types.
        type_of: the positions of the types of the variables.
        shapes: the shapes of the stored arrays.
        keys: the keys of the arrays in the store of Orbax.
        checksums: the xxh3 of the bytes of each array, in hexadecimal digits.
        files: the size and the xxh3 of each other file of the checkpoint.
        structure, metadata, record: as in `pytreesaver.formats.TreeContents`.
        same_as: as in `pytreesaver.formats.TreeContents`, with the positions as text.
    """

    names: list[str]
    types: list[LeafType]
    type_of: list[int]
    shapes: list[tuple[int, ...]]
    keys: list[str]
    checksums: list[str]
    structure: Any
    metadata: Any
    files: dict[str, tuple[int, str]]
    record: Any = None
    same_as: dict[str, int] = {}
    version: int = VERSION


def encode_sidecar(sidecar: Sidecar) -> bytes:
    """Return the file as JSON. The last line is the checksum of the others."""
    body = msgspec.json.encode(sidecar).removesuffix(b"}") + b",\n"
    return body + b'"checksum":"%016x"}\n' % checksum(body)


_TAIL = re.compile(rb'"checksum":"([0-9a-f]{16})"\}\n\Z')


def read_sidecar(directory: Path) -> Sidecar:
    """Read the file in the directory of an Orbax checkpoint.

    Raises:
        CorruptCheckpointError: if it is damaged or inconsistent.
        UnsupportedVersionError: if it is of a newer version.
    """
    file = directory / SIDECAR
    content = read_bytes(file)
    tail = _TAIL.search(content)
    if tail is None or int(tail[1], 16) != checksum(content[: tail.start()]):
        raise CorruptCheckpointError(f"{file}: its checksum does not match: it is damaged or was edited")
    try:
        sidecar = msgspec.json.decode(content, type=Sidecar)
        if sidecar.version > VERSION:
            raise UnsupportedVersionError(f"{file}: has version {sidecar.version}; upgrade pytreesaver to read it")
        problem = _problem(sidecar)
    except (msgspec.MsgspecError, NotPlainError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file}: expected the description of a tree ({error})") from None
    if problem:
        raise CorruptCheckpointError(f"{file}: {problem}")
    return sidecar


def files_of_others(directory: Path) -> list[str]:
    """Return the files in an Orbax checkpoint that neither Orbax nor pytreesaver wrote, by their paths in it."""
    listed: set[str] | None = None
    if filesystem.exists(directory / SIDECAR):
        with suppress(CheckpointError):  # if it is damaged, the names tell
            listed = {SIDECAR, *read_sidecar(directory).files}
    return other_files(directory, listed)


def checksums_of_files(directory: Path, names: Collection[str]) -> dict[str, tuple[int, str]]:
    """Return the size in bytes and the xxh3 of each of the named files in a directory that exists."""
    found = {}
    for name in names:
        try:
            content = _content_of(directory / name)
        except OSError as error:
            if not filesystem.is_absence(error):
                raise
        else:
            found[name] = content.nbytes, f"{checksum(content):016x}"
    return found


def _content_of(file: Path) -> np.ndarray:
    descriptor = filesystem.open_existing(file)
    try:
        size = filesystem.file_size(descriptor)
        return filesystem.map_file(descriptor, size) if size else np.zeros(0, np.uint8)
    finally:
        filesystem.release(descriptor)


_POSITION = re.compile(r"[0-9]{1,18}")


def _problem(sidecar: Sidecar) -> str | None:
    count = len(sidecar.names)
    columns: Sequence[Sequence[Any]] = (sidecar.type_of, sidecar.shapes, sidecar.keys, sidecar.checksums)
    if any(len(column) != count for column in columns):
        return "expected columns of the same length"
    if duplicates(sidecar.names):
        return "expected different names"
    if any(not 0 <= each < len(sidecar.types) for each in sidecar.type_of):
        return "expected positions of types"
    for leaf_type in sidecar.types:
        storage_dtype(leaf_type)
    for key, earlier in sidecar.same_as.items():
        if not _POSITION.fullmatch(key) or not 0 <= earlier < int(key) < count:
            return "expected positions of variables in same_as"
    return None
