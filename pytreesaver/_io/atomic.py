"""Files and directories that appear, change or disappear in one step, and nothing that a crash leaves half done.

What is not finished has a hidden name, and whoever works on it holds a lock on it, which dies with its holder. So the
leftovers of those who died can be told from the work of the living, and anybody may remove them.
"""

import os
import re
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from pytreesaver._io import filesystem
from pytreesaver._io.files import write_fully

_TEMPORARY = re.compile(r"\.pytreesaver-[0-9a-f]{16}\.tmp")


def temporary_sibling(path: Path) -> Path:
    """A hidden name that nothing has yet, in the directory of `path`."""
    return path.parent / f".pytreesaver-{secrets.token_hex(8)}.tmp"


def make_parents(directory: Path, made: list[Path]) -> None:
    """Create a directory and those above it; `made` gets each one as it is created."""
    if directory.exists():
        return
    make_parents(directory.parent, made)
    with suppress(FileExistsError):  # another process may create it at the same time
        filesystem.make_directory(directory)
        made.append(directory)


def make_durable_directory(directory: Path) -> None:
    """Create a directory and those above it, so that a power cut would not lose their names."""
    made: list[Path] = []
    make_parents(directory, made)
    for new in made:
        with suppress(PermissionError):
            filesystem.sync_directory(new.absolute().parent)


def sync_names(path: Path, made: Sequence[Path] = ()) -> None:
    """Make the name of a checkpoint durable, and those of the directories that were just made for it.

    The directory that it is in may have been made a moment ago too, by the program that saves into it.
    """
    parent = path.absolute().parent
    for directory in dict.fromkeys([parent, *(d.absolute().parent for d in reversed(made)), parent.parent]):
        with suppress(PermissionError):  # a directory that may not be listed is none that this program made
            filesystem.sync_directory(directory)


def make_locked_directory(path: Path, open_files: ExitStack) -> None:
    """Create a directory that stays locked until `open_files` is closed."""
    while True:
        filesystem.make_directory(path)
        with suppress(FileNotFoundError):
            descriptor = filesystem.open_to_lock(path)
            open_files.callback(filesystem.close, descriptor)
            filesystem.lock(descriptor)
            if filesystem.is_linked(descriptor):
                return

        # Someone who tidied up had the lock in the moment between the calls.


def open_locked(path: Path, open_files: ExitStack) -> int:
    """Create a file that stays open and locked until `open_files` is closed."""
    descriptor = filesystem.open_new(path)
    open_files.callback(filesystem.close, descriptor)
    filesystem.lock(descriptor)
    # Someone who tidied up may have had the lock in the moment between the two calls.
    return descriptor if filesystem.is_linked(descriptor) else open_locked(path, open_files)


def remove_leftovers(directory: Path) -> None:
    """Delete what work that was killed has left in a directory, and nothing that a living one is at."""
    entries: list[str] = []
    with suppress(OSError):  # one may write into a directory that one may not list
        entries = filesystem.list_directory(directory)
    for entry in entries:
        if _TEMPORARY.fullmatch(entry):
            with suppress(OSError):
                descriptor = filesystem.open_to_lock(directory / entry)
                try:
                    if filesystem.try_lock(descriptor):
                        remove_tree(directory / entry)
                finally:
                    filesystem.close(descriptor)


def remove_tree(path: Path) -> None:
    """Delete a file, or a directory of files, as far as the system allows it."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            filesystem.remove_file(path)
            return
        for entry in filesystem.list_directory(path):
            filesystem.remove_file(path / entry)
        filesystem.remove_directory(path)


def remove_directory_of_files(path: Path) -> None:
    """Delete a directory of files so that at every moment it is there whole or not at all.

    Raises:
        OSError: it could not be removed; then it is still there.
    """
    hidden = temporary_sibling(path)
    filesystem.rename(path, hidden)
    try:
        # Otherwise a power cut could bring the name back after the files are gone.
        filesystem.sync_directory(path.absolute().parent)
    except OSError:
        filesystem.rename(hidden, path)
        raise
    remove_tree(hidden)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file durably so that at every moment either the old one or the new one is there, whole.

    Raises:
        OSError: it could not be written; then the old one is there, unless it is only the last step that failed,
            making the name durable.
    """
    hidden = temporary_sibling(path)
    with ExitStack() as open_files:
        try:
            descriptor = open_locked(hidden, open_files)
            write_fully(descriptor, [content], 0)
            filesystem.sync_file(descriptor)
            filesystem.rename(hidden, path)
        except BaseException:
            if os.path.lexists(hidden):
                remove_tree(hidden)
            raise
    filesystem.sync_directory(path.absolute().parent)
