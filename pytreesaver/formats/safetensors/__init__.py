"""safetensors: one self-contained file, or a directory of several with the index of Hugging Face.

A file that pytreesaver wrote has an index in its metadata, so that it restores exactly and is verified. Files of other
programs hold named arrays and no checksums. https://github.com/huggingface/safetensors#format specifies the files.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import remove_directory_atomically
from pytreesaver.formats import single_file
from pytreesaver.formats.foreign import kind_or_absence
from pytreesaver.formats.indexed.directory import remove_unlisted
from pytreesaver.formats.indexed.reader import IndexedReader
from pytreesaver.formats.protocol import Heading, TreeContents, refuse_other_files
from pytreesaver.formats.safetensors import opening
from pytreesaver.formats.safetensors.files import INDEX_NAME, data_files, other_files, recognizes
from pytreesaver.formats.safetensors.opening import open_stream
from pytreesaver.formats.safetensors.writing import LAYOUT, is_index_of_ours, write, write_stream

__all__ = [
    "heading_file",
    "name",
    "open",
    "open_stream",
    "read_heading",
    "recognizes",
    "remove",
    "remove_unlisted_files",
    "unsupported",
    "write",
    "write_stream",
]

name = opening.NAME


def unsupported(contents: TreeContents) -> Mapping[str, str]:
    """Return nothing: the format holds every tree. See `pytreesaver.formats.Format.unsupported`."""
    return {}


def remove_unlisted_files(path: Path) -> None:
    """Delete leftovers of interrupted overwrites. See `pytreesaver.formats.Format.remove_unlisted_files`."""
    with suppress(OSError, CheckpointError):
        if INDEX_NAME in filesystem.list_directory(path) and is_index_of_ours(path):
            remove_unlisted(path, [], LAYOUT)


def remove(path: Path) -> None:
    """Delete a checkpoint. See `pytreesaver.formats.Format.remove`."""
    if filesystem.is_link(path) or not filesystem.is_directory(path):
        return single_file.remove(path)
    refuse_other_files(path, other_files(path))
    return remove_directory_atomically(path)


def heading_file(path: Path) -> Path:
    """Return the file, or the index of a directory. See `pytreesaver.formats.Format.heading_file`."""
    if not filesystem.is_directory(path):
        return path
    found = data_files(path, filesystem.list_directory(path))
    if found is None:
        return path / INDEX_NAME
    return found if isinstance(found, Path) else path / found[-1]


def read_heading(path: Path) -> Heading:
    """Return the heading of a checkpoint. See `pytreesaver.formats.Format.read_heading`."""
    _refuse_others(path)
    return opening.read_heading(path, is_file=not filesystem.is_directory(path))


def open(path: Path) -> IndexedReader:
    """Open a file or a directory. See `pytreesaver.formats.Format.open`."""
    if not filesystem.is_regular_file(path):
        _refuse_others(path)
        return opening.open_directory(path)
    try:
        return opening.open_file(path)
    except CorruptCheckpointError:
        _refuse_others(path)
        raise


def _refuse_others(path: Path) -> None:
    """Raise a CheckpointNotFoundError if a path is no checkpoint of this format, not even a damaged one."""
    if not recognizes(path):
        raise CheckpointNotFoundError(f"{path}: expected safetensors, found {kind_or_absence(path)}")
