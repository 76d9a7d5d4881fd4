"""Atomic writing and removal of several files beside each other: a head, without which the others mean nothing.

The files are written in a hidden directory and moved out of it, the head last. For a removal, the head is moved into
such a directory first. Its file `MOVES` lists the other files. If the process ends in between, the hidden directory
still has the head, so that `undo_moves` can tell that these files are leftovers.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_file, write_fully
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._text import NotJSONError, decode_json

HEAD = "head"
MOVES = "moves"


class _Move(msgspec.Struct, array_like=True):
    """A file that is beside the hidden directory, or will be, and what tells it from another one of its name."""

    name: str
    inode: int
    nbytes: int
    modified_ns: int

    @classmethod
    def of(cls, name: str, file: Path) -> "_Move | None":
        status = filesystem.status(file, follow_links=False)
        return None if status is None else cls(name, status.st_ino, status.st_size, status.st_mtime_ns)


class _Moves(msgspec.Struct):
    """The name of the head, and the other files."""

    head: str
    others: list[_Move]


def _write_moves(hidden: Path, head: Path, files: Mapping[str, Path], durable: bool) -> _Moves:
    moves = _Moves(head.name, [move for name, file in files.items() if (move := _Move.of(name, file)) is not None])
    descriptor = filesystem.open_new(hidden / MOVES)
    try:
        write_fully(descriptor, [msgspec.json.encode(moves)], 0)
        if durable:
            filesystem.sync_file(descriptor)
    except BaseException:
        filesystem.release(descriptor)
        raise
    filesystem.close(descriptor)
    if durable:
        filesystem.sync_directory(hidden)
    return moves


def undo_moves(hidden: Path) -> None:
    """Delete the files that an interrupted `move_out` or `move_in` left beside a hidden directory, if there are any.

    Raises:
        OSError: if the system could not look.
    """
    if not filesystem.is_directory(hidden) or not filesystem.exists(hidden / HEAD):
        return
    try:
        descriptor = filesystem.open_existing(hidden / MOVES)
    except FileNotFoundError:  # the process ended before it moved anything
        return
    try:
        moves = decode_json(read_file(descriptor), _Moves)
    except (NotJSONError, EndOfFileError):  # it ended while it wrote this file
        return
    finally:
        filesystem.release(descriptor)
    if any(os.path.basename(name) != name for name in (moves.head, *(move.name for move in moves.others))):  # noqa: PTH119
        return
    # Where files cannot be renamed without replacing others, the head has two names for a moment.
    if _Move.of(HEAD, hidden / HEAD) == _Move.of(HEAD, hidden.parent / moves.head):
        return
    for move in moves.others:
        file = hidden.parent / move.name
        if _Move.of(move.name, file) == move:
            with suppress(FileNotFoundError):
                filesystem.remove_file(file)


def move_out(hidden: Path, head: Path, others: Sequence[Path], *, overwrite: bool, durable: bool) -> None:
    """Move the files of a hidden directory to its parent, where their names are, and the head last.

    Args:
        hidden: the directory. It has the files under the names that they get, except for the head.
        head: the path of the head.
        others: the paths of the other files. Nothing may exist there.
        overwrite: whether another head is replaced.
        durable: whether everything is synced, so that the head never exists without the others.

    Raises:
        CheckpointExistsError: if one of the files exists.
    """
    moves = _write_moves(hidden, head, {file.name: hidden / file.name for file in others}, durable)
    try:
        for file in others:
            rename_without_replacing(hidden / file.name, file)
        if durable:
            filesystem.sync_directory(head.parent)
        if any(_Move.of(move.name, head.with_name(move.name)) != move for move in moves.others):
            raise OSError(errno.ENOENT, "Another process removed the new files during the save", str(head))
        if overwrite:
            filesystem.rename(hidden / HEAD, head)
        else:
            rename_without_replacing(hidden / HEAD, head)
    except BaseException:
        with suppress(OSError):
            undo_moves(hidden)
        raise


def move_in(hidden: Path, head: Path, others: Sequence[Path]) -> None:
    """Move the head into a hidden directory, durably. Then delete the other files, but none of a running process.

    Raises:
        OSError: if the head could not be moved. Everything is unchanged then.
    """
    if is_in_store(head):
        for file in (head, *others):
            filesystem.remove_file(file)
        return
    with locked_files(others) as unused:
        _write_moves(hidden, head, {file.name: file for file in unused}, durable=True)
        filesystem.rename(head, hidden / HEAD)
        try:
            filesystem.sync_directory(head.parent)
        except OSError:
            filesystem.rename(hidden / HEAD, head)
            raise
        for file in unused:
            with suppress(OSError):
                filesystem.remove_file(file)


def rename_without_replacing(source: Path, target: Path) -> None:
    """Rename a file, unless there is something at `target`.

    Raises:
        CheckpointExistsError: if there is something, which has been created meanwhile.
    """
    try:
        if filesystem.rename_to_new(source, target):
            return
        filesystem.link(source, target)
    except FileExistsError as error:
        raise CheckpointExistsError(f"{target} was created by another process during the save") from error
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        filesystem.rename(source, target)
        return
    with suppress(OSError):  # the next save removes it
        filesystem.remove_file(source)


_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@contextmanager
def locked_files(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Lock those of the files for a ``with`` block that no running process has locked, and yield them."""
    with ExitStack() as locks:
        locked = []
        for file in files:
            with suppress(OSError):
                descriptor = filesystem.open_to_lock(file)
                locks.callback(filesystem.release, descriptor)
                if filesystem.try_lock(descriptor) and filesystem.is_linked(descriptor):
                    locked.append(file)
        yield locked
