"""Atomic creation, replacement and removal of files and directories.

Unfinished work has a hidden temporary name, and the process that writes it holds a lock on it, which ends with the
process. So any process can tell leftovers of an interrupted save from work in progress, and can remove them.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pytreesaver._io import filesystem
from pytreesaver._io.files import write_fully
from pytreesaver._io.several_files import undo_moves
from pytreesaver._io.stores.dispatch import is_in_store

_TEMPORARY = re.compile(r"\.pytreesaver-[0-9a-f]{16}\.tmp")


def temporary_sibling(path: Path) -> Path:
    """Return an unused hidden path in the directory of `path`."""
    return path.parent / f".pytreesaver-{os.urandom(8).hex()}.tmp"


def make_directories(directory: Path, created: list[Path]) -> None:
    """Create a directory and its parents. Append each created directory to `created`."""
    if is_in_store(directory) or filesystem.status(directory) is not None:
        return
    make_directories(directory.parent, created)
    with suppress(FileExistsError):  # another process may create it concurrently
        filesystem.make_directory(directory)
        created.append(directory)


@contextmanager
def new_hidden_path(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Create the directories above a path for a ``with`` block in which it is written. If it fails, nothing is left.

    Yields:
        An unused hidden path beside it, which is removed if the block fails, and the directories that were created.
    """
    hidden = temporary_sibling(path)
    made: list[Path] = []
    try:
        make_directories(path.parent, made)
        yield hidden, made
    except BaseException:
        remove_tree(hidden)
        with suppress(OSError):
            for directory in reversed(made):
                filesystem.remove_directory(directory)
        raise


def make_durable_directory(directory: Path) -> None:
    """Create a directory and its parents durably, so that they survive a power failure."""
    created: list[Path] = []
    make_directories(directory, created)
    for new in created:
        with suppress(PermissionError):
            filesystem.sync_directory(new.absolute().parent)


def sync_parents(path: Path, created: Sequence[Path] = ()) -> None:
    """Make the name of a checkpoint durable, and the names of the directories that were just created for it.

    The parent directory is made durable too, once, since the program that saves may have just created it.
    """
    if is_in_store(path):
        return
    parent = path.absolute().parent
    above = [directory.absolute().parent for directory in reversed(created)]
    with suppress(PermissionError):  # this program cannot have created a directory that it may not read
        filesystem.sync_directory(parent)
    generation = None
    with suppress(OSError):
        generation = filesystem.generation(parent)
    if generation is not None and _durable_directories.get(parent) == generation and not above:
        return
    for directory in dict.fromkeys([*above, parent.parent]):
        with suppress(PermissionError):
            filesystem.sync_directory(directory)
    if generation is not None:
        _durable_directories[parent] = generation


_durable_directories: dict[Path, int] = {}
"""The directories whose names this process has made durable, with their generations."""


def make_locked_directory(path: Path, open_files: ExitStack) -> None:
    """Create a directory and keep it locked until `open_files` is closed."""
    if is_in_store(path):  # which has no directories, and needs no temporary ones
        return
    while True:
        with suppress(FileExistsError):  # a network file system has repeated the request; nobody else has this name
            filesystem.make_directory(path)
        with suppress(FileNotFoundError):
            descriptor = filesystem.open_to_lock(path)
            open_files.callback(filesystem.release, descriptor)
            filesystem.lock(descriptor)
            if filesystem.is_linked(descriptor):
                return

        # Another process locked and removed the directory as a leftover before the lock was taken. Try again.


@contextmanager
def new_locked_file(path: Path, locks: ExitStack) -> Iterator[tuple[int, int]]:
    """Create a file for a ``with`` block, and keep it locked until `locks` is closed.

    The file is closed at the end of the block, before anyone renames it: some file systems report failed writes only
    then. The lock has a file descriptor of its own.

    Yields:
        The descriptors of the file and of its lock.
    """
    descriptor, locked = _open_new_locked(path, locks)
    try:
        yield descriptor, locked
    except BaseException:
        filesystem.release(descriptor)
        raise
    filesystem.close(descriptor)


def _open_new_locked(path: Path, locks: ExitStack) -> tuple[int, int]:
    while True:
        descriptor = filesystem.open_new(path)
        try:
            with suppress(FileNotFoundError):
                locked = filesystem.open_to_lock(path)
                locks.callback(filesystem.release, locked)
                filesystem.lock(locked)
                if filesystem.is_linked(locked):
                    return descriptor, locked
        except BaseException:
            filesystem.release(descriptor)
            raise

        # Another process removed the file as a leftover before the lock was taken. Try again.
        filesystem.release(descriptor)


def write_pin(marker: Path) -> None:
    """Create the file that pins a checkpoint, durably."""
    descriptor = filesystem.open_or_create(marker)
    try:
        filesystem.sync_file(descriptor)
    finally:
        filesystem.release(descriptor)
    filesystem.sync_directory(marker.parent)


def remove_leftovers(directory: Path) -> None:
    """Delete leftovers of interrupted saves in a directory, but nothing that a running process holds a lock on."""
    if is_in_store(directory):
        return
    entries: list[str] = []
    with suppress(OSError):  # a directory may be writable but not readable
        entries = filesystem.list_directory(directory)
    for entry in entries:
        if entry[0] == "." and _TEMPORARY.fullmatch(entry):  # the first test is the fast one
            with suppress(OSError):
                descriptor = filesystem.open_to_lock(directory / entry)
                try:
                    # It may have been removed before the lock was taken, and created again under the same name.
                    if filesystem.try_lock(descriptor) and filesystem.is_linked(descriptor):
                        undo_moves(directory / entry)
                        remove_tree(directory / entry)
                finally:
                    filesystem.release(descriptor)


ABANDONED_SECS = 24 * 3600.0
"""The age at which objects of interrupted saves are deleted from a store, which has no locks."""


def remove_abandoned(directory: Path, now: float) -> None:
    """Delete leftovers of interrupted saves in a prefix of an object store that are a day old."""
    for entry in filesystem.list_directory(directory) if filesystem.exists(directory) else []:
        if _TEMPORARY.fullmatch(entry):
            times = [modified / 1e9 for *_, modified in filesystem.fingerprint(directory / entry)]
            if now - max(times) > ABANDONED_SECS:
                remove_tree(directory / entry)


def remove_tree(path: Path) -> None:
    """Delete a file, or a directory with all that is in it. Ignore errors."""
    with suppress(OSError):
        if filesystem.is_link(path) or not filesystem.is_directory(path):
            filesystem.remove_file(path)
            return
        for entry in filesystem.list_directory(path):
            remove_tree(path / entry)
        filesystem.remove_directory(path)


def remove_directory_atomically(path: Path) -> None:
    """Delete a directory of files atomically: it exists either complete or not at all.

    Raises:
        OSError: if it could not be removed. It is then unchanged.
    """
    if is_in_store(path):
        names = filesystem.file_sizes(path)
        for name in sorted(names, key=lambda name: (not name.endswith(".json"), name)):  # the index first
            filesystem.remove_file(path / name)
        return
    hidden = temporary_sibling(path)
    filesystem.rename(path, hidden)
    try:
        # Otherwise the name could reappear after a power failure, without the files.
        filesystem.sync_directory(path.absolute().parent)
    except OSError:
        filesystem.rename(hidden, path)
        raise
    remove_tree(hidden)


def replace_file(path: Path, content: bytes) -> None:
    """Write or replace a file atomically and durably.

    Raises:
        OSError: if the file could not be written. The old file is then unchanged, unless only the final directory sync
            failed: then the new file exists but may not survive a power failure.
    """
    if is_in_store(path):  # where an object appears whole
        descriptor = filesystem.open_new(path)
        write_fully(descriptor, [content], 0)
        filesystem.close(descriptor)
        return
    hidden = temporary_sibling(path)
    with ExitStack() as locks:
        try:
            with new_locked_file(hidden, locks) as (descriptor, _):
                write_fully(descriptor, [content], 0)
                filesystem.sync_file(descriptor)
            filesystem.rename(hidden, path)
        except BaseException:
            remove_tree(hidden)
            raise
    filesystem.sync_directory(path.absolute().parent)
