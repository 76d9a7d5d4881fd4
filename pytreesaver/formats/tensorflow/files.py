"""The files of a TensorFlow checkpoint, named after its prefix."""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from pytreesaver._errors import CheckpointNotFoundError, CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_file, read_fully
from pytreesaver.formats.foreign import kind_or_absence
from pytreesaver.formats.places import files_beside, index_file, may_be_prefix
from pytreesaver.formats.tensorflow.table import MAGIC

_DATA = re.compile(r"\.data-([0-9]{5})-of-([0-9]{5})\Z")
_MAX_INDEX_NBYTES = 1 << 30


def data_file(path: Path, shard: int, count: int) -> Path:
    """Return the data file of a shard."""
    return path.with_name(f"{path.name}.data-{shard:05}-of-{count:05}")


def shard_count(file: Path) -> int | None:
    """Return the number of data files of the checkpoint that a data file belongs to, or None for another file.

    Example:
        >>> shard_count(Path("model-1.data-00000-of-00002")), shard_count(Path("model-1.index"))
        (2, None)
    """
    match = _DATA.search(file.name)
    return int(match[2]) if match else None


def recognizes(path: Path) -> bool:
    """Return whether `path` is the prefix of a checkpoint. Raises an OSError if the system could not look."""
    try:
        if not may_be_prefix(path) or filesystem.exists(path) or not filesystem.is_regular_file(index_file(path)):
            return False
        descriptor = filesystem.open_existing(index_file(path))
    except OSError as error:
        if filesystem.is_absence(error):
            return False
        raise
    end = np.zeros(len(MAGIC), np.uint8)
    try:
        with suppress(EndOfFileError):
            read_fully(descriptor, end, max(filesystem.file_size(descriptor) - len(MAGIC), 0))
    finally:
        filesystem.release(descriptor)
    return end.tobytes() == MAGIC or any(shard_count(file) for file in files_beside(path))


def read_index_file(path: Path) -> bytes:
    """Return the contents of the index.

    Raises:
        CheckpointNotFoundError: if there is none.
        CorruptCheckpointError: if it cannot be read as a whole.
    """
    if not recognizes(path):
        found = kind_or_absence(path)
        raise CheckpointNotFoundError(f"{path}: expected the prefix of a TensorFlow checkpoint, found {found}")
    index = index_file(path)
    descriptor = filesystem.open_existing(index)
    try:
        if filesystem.file_size(descriptor) > _MAX_INDEX_NBYTES:
            raise CorruptCheckpointError(
                f"{index}: expected an index, found a file of more than {_MAX_INDEX_NBYTES} bytes"
            )
        return read_file(descriptor)
    except EndOfFileError as error:
        raise CorruptCheckpointError(f"{index}: a part of it could not be read") from error
    finally:
        filesystem.release(descriptor)
