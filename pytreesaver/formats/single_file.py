"""Atomic writes and removal of a checkpoint that is a single file."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import (
    new_hidden_path,
    new_locked_file,
    remove_leftovers,
    sync_parents,
)
from pytreesaver._io.several_files import rename_without_replacing


def write_single_file(
    path: Path,
    write: Callable[[int, bool], object],
    *,
    what: str,
    recognizes: Callable[[Path], bool],
    overwrite: bool,
    durable: bool,
) -> None:
    """Create or replace a file. At every moment, either the old or the new one is complete.

    Args:
        path: the file.
        write: writes the contents to a descriptor; the second argument is whether they are synced afterwards.
        what: what the file is, for messages.
        recognizes: returns whether a file may be overwritten.
        overwrite: whether to replace an existing file.
        durable: whether to sync. A replacement always is, since a power failure must not cost the old file.

    Raises:
        CheckpointExistsError: if something is there that may not be replaced.
    """
    exists = filesystem.exists(path)
    if exists and not overwrite:
        raise CheckpointExistsError(f"{path} exists already; pass overwrite=True to replace a checkpoint")
    if exists and not recognizes(path):
        raise CheckpointExistsError(f"{path}: expected {what} to overwrite, found something else; remove it first")
    durable = durable or exists
    with new_hidden_path(path) as (temporary, made):
        remove_leftovers(path.parent)
        with ExitStack() as locks:
            with new_locked_file(temporary, locks) as (descriptor, _):
                write(descriptor, durable)
                if durable:
                    filesystem.sync_file(descriptor)
            if overwrite:
                filesystem.rename(temporary, path)
            else:
                rename_without_replacing(temporary, path)
    if durable:
        sync_parents(path, made)


def open_regular_file(path: Path) -> int | None:
    """Open a file in order to recognize it. Return None if `path` is no regular file.

    Raises:
        OSError: if the system could not look.
    """
    try:
        return filesystem.open_existing(path) if filesystem.is_regular_file(path) else None
    except OSError as error:
        if filesystem.is_absence(error):
            return None
        raise


def remove(path: Path) -> None:
    """Delete a file durably. See `pytreesaver.formats.Format.remove`."""
    filesystem.remove_file(path)
    sync_parents(path)


def remove_unlisted_files(path: Path) -> None:
    """Do nothing: a checkpoint is one file. See `pytreesaver.formats.Format.remove_unlisted_files`."""


def heading_file(path: Path) -> Path:
    """Return the file itself. See `pytreesaver.formats.Format.heading_file`."""
    return path
