"""The files of a native checkpoint: their names, whether a path is one, and its index."""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from pytreesaver._errors import CheckpointNotFoundError, CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_file, read_fully
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver.formats.foreign import foreign_kind
from pytreesaver.formats.indexed.header import is_header
from pytreesaver.formats.indexed.index import Index, decode_heading, decode_index, is_index
from pytreesaver.formats.places import index_file, names_in
from pytreesaver.formats.protocol import PINNED_NAME, Heading

INDEX_NAME = "index.json"
_MAX_INDEX_NBYTES = 4 << 30

REPLACEABLE_FILES = re.compile(r"data-\d{5}-of-\d{5}(-[0-9a-f]{16})?\.safetensors|\.index-[0-9a-f]{16}\.tmp")
OWN_FILES = re.compile(rf"{re.escape(INDEX_NAME)}|{PINNED_NAME}|{REPLACEABLE_FILES.pattern}")


def recognizes(path: Path) -> bool:
    """Return whether `path` contains an index or a data file of this format, intact or damaged.

    Raises:
        OSError: if the system could not look.
    """
    if is_index(_head(path / INDEX_NAME)):
        return True
    if is_in_store(path) and not filesystem.exists(path / INDEX_NAME):
        return False  # there, data without an index is a save in progress, or an interrupted one
    try:
        entries = filesystem.list_directory(path)
    except OSError as error:
        if filesystem.is_absence(error):
            return False
        raise
    return any(is_header(_head(path / entry)) for entry in entries if REPLACEABLE_FILES.fullmatch(entry))


def _head(file: Path) -> bytes:
    """Return the first bytes of a regular file, or none if there is no such file."""
    try:
        if not filesystem.is_regular_file(file):
            return b""
        descriptor = filesystem.open_existing(file)
    except OSError as error:
        if filesystem.is_absence(error):
            return b""
        raise
    try:
        head = np.zeros(min(128, filesystem.file_size(descriptor)), np.uint8)
        read_fully(descriptor, head, 0)
    except EndOfFileError:
        return b""
    finally:
        filesystem.release(descriptor)
    return head.tobytes()


def read_index(path: Path) -> Index:
    """Read the index of the checkpoint at `path`. Raises what `open` raises."""
    return decode_index(_index_bytes(path), str(path / INDEX_NAME))


def read_heading(path: Path) -> Heading:
    """Read the heading of the checkpoint at `path`. Raises what `open` raises."""
    return decode_heading(_index_bytes(path), str(path / INDEX_NAME))


def _index_bytes(path: Path) -> bytes:
    try:
        descriptor = filesystem.open_existing(path / INDEX_NAME)
    except OSError as error:
        if not filesystem.is_absence(error):
            raise
        raise CheckpointNotFoundError(_why_not_found(path)) from None
    size = 0
    try:
        size = filesystem.file_size(descriptor)
        if size > _MAX_INDEX_NBYTES:
            raise CorruptCheckpointError(f"{path / INDEX_NAME}: expected an index, found a file of {size} bytes")
        return read_file(descriptor)
    except EndOfFileError as error:
        raise CorruptCheckpointError(f"{path / INDEX_NAME}: expected {size} bytes, found fewer") from error
    finally:
        filesystem.release(descriptor)


def _why_not_found(path: Path) -> str:
    entries = filesystem.list_directory(path) if is_in_store(path) and filesystem.is_directory(path) else []
    if any(map(REPLACEABLE_FILES.fullmatch, entries)):
        return f"{path}: expected a checkpoint, found data without {INDEX_NAME}: a save in progress, or interrupted"
    kind = foreign_kind(path)
    if kind:
        return f"{path}: expected a checkpoint of pytreesaver, found what looks like {kind}"
    if filesystem.status(path) is None:
        parent = path.absolute().parent
        if not is_in_store(path) and filesystem.status(parent) is None:
            return f"{path}: expected a checkpoint, found nothing: {path.parent} does not exist either"
        names = _checkpoints_in(parent)
        where = "the current directory" if str(path.parent) == "." else path.parent
        hint = f"; {where} contains checkpoints, the newest last: {names}" if names else ""
        return f"{path}: expected a checkpoint, found nothing{hint}"
    if not filesystem.is_directory(path):
        inside = f"; it is a file of the checkpoint {path.parent}" if path.name == INDEX_NAME else ""
        return f"{path}: expected a checkpoint, found a file of another kind{inside}"
    if not is_in_store(path) and not filesystem.list_directory(path):
        return f"{path}: expected a checkpoint, found an empty directory"
    names = _checkpoints_in(path)
    hint = f"; it contains checkpoints, the newest last: {names}" if names else ""
    return (
        f"{path}: expected a checkpoint, found a directory without {INDEX_NAME}, "
        f"the file that a complete checkpoint has{hint}"
    )


def _checkpoints_in(directory: Path) -> str:
    """Return the names of the newest checkpoints in a directory, as a hint for messages."""
    times = {}
    with suppress(OSError):
        for name in names_in(filesystem.list_directory(directory)):
            for index in (directory / name / INDEX_NAME, index_file(directory / name)):
                found = filesystem.status(index)
                if found is not None:
                    times[name] = found.st_mtime
    newest = sorted(times, key=times.__getitem__)[-5:]
    return ", ".join(["..."] * (len(times) > len(newest)) + newest)
