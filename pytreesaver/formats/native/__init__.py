"""The native format: a directory of safetensors files and an index. docs/format.md is its specification."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pytreesaver._errors import CheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import remove_directory_atomically
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver.formats.indexed.directory import remove_unlisted
from pytreesaver.formats.indexed.index import FORMAT_NAME, VERSION
from pytreesaver.formats.indexed.parts import FileLimits
from pytreesaver.formats.indexed.remote import remove_abandoned, remove_from_store
from pytreesaver.formats.native.base import NativeReader, known_checkpoint
from pytreesaver.formats.native.files import (
    INDEX_NAME,
    OWN_FILES,
    REPLACEABLE_FILES,
    read_heading,
    read_index,
    recognizes,
)
from pytreesaver.formats.native.incremental import with_unchanged
from pytreesaver.formats.native.known import KnownCheckpoint, recall
from pytreesaver.formats.native.sharing_files import may_share
from pytreesaver.formats.native.writing import LAYOUT, write, write_into
from pytreesaver.formats.protocol import SYSTEM_FILES, TreeContents, refuse_other_files

__all__ = [
    "heading_file",
    "name",
    "open",
    "read_heading",
    "recognizes",
    "remove",
    "remove_unlisted_files",
    "unchanged_since",
    "unsupported",
    "write",
    "write_into",
    "writes_to_stores",
]

name = "native"
writes_to_stores = True


def unsupported(contents: TreeContents) -> Mapping[str, str]:
    """Return nothing: the format holds every tree. See `pytreesaver.formats.Format.unsupported`."""
    return {}


def remove_unlisted_files(path: Path) -> None:
    """Delete leftovers of interrupted overwrites. See `pytreesaver.formats.Format.remove_unlisted_files`."""
    with suppress(OSError, CheckpointError):
        if is_in_store(path):
            remove_abandoned(path, LAYOUT, time.time())
        # A completed save leaves one data file: then the index need not be read.
        elif sum(REPLACEABLE_FILES.fullmatch(entry) is not None for entry in filesystem.list_directory(path)) > 1:
            remove_unlisted(path, [], LAYOUT)


def remove(path: Path) -> None:
    """Delete a checkpoint. See `pytreesaver.formats.Format.remove`."""
    if is_in_store(path):
        names = filesystem.list_directory(path)
        refuse_other_files(path, [each for each in names if not OWN_FILES.fullmatch(each)])
        return remove_from_store(path, LAYOUT)
    if filesystem.is_link(path):
        return filesystem.remove_file(path)
    names = filesystem.list_directory(path)
    refuse_other_files(
        path, [each for each in names if not (OWN_FILES.fullmatch(each) or SYSTEM_FILES.fullmatch(each))]
    )
    return remove_directory_atomically(path)


def heading_file(path: Path) -> Path:
    """Return the index. See `pytreesaver.formats.Format.heading_file`."""
    return path / INDEX_NAME


def unchanged_since(
    contents: TreeContents,
    base: Path,
    target: Path,
    *,
    shard_nbytes: int | None,
    sharded: bool,
    is_known: bool,
) -> tuple[TreeContents, KnownCheckpoint | None]:
    """Return the contents with what is unchanged since an earlier checkpoint, and what is known of that.

    Args:
        contents: the tree.
        base: the absolute path of the earlier checkpoint.
        target: the path of the new one.
        shard_nbytes: as in `write`.
        sharded: as in `write`.
        is_known: whether `base` counts only if this process has saved or restored it.
    """
    known = recall(base) if is_known else known_checkpoint(base)
    if known is None or not may_share(known, target.absolute()):
        return contents, None
    return with_unchanged(contents, known, FileLimits(shard_nbytes, sharded)), known


def open(path: Path) -> NativeReader:
    """Open a checkpoint directory. See `pytreesaver.formats.Format.open`."""
    while True:
        index = read_index(path)
        files = [path / file.name for file in index.files]
        reader = NativeReader(path, index, files, format_name=FORMAT_NAME, format_version=VERSION)
        try:
            # It may have been overwritten after its index was read and before its data was opened.
            if not reader.lacks_files or read_index(path).files == index.files:
                return reader
        except BaseException:
            reader.close()
            raise
        reader.close()
