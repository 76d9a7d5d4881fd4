"""Thin wrappers around every system call that looks at, opens, writes, syncs, renames or deletes files.

The rest of pytreesaver uses the file system only through these functions, so that tests can substitute a simulated one
and examine every state that a crash could leave. A question about a path has three answers: yes, no, and an OSError if
the system could not look. The functions of `os.path` and `pathlib` answer no to all errors.
"""

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pytreesaver._io import linux, memory
from pytreesaver._io.stores.dispatch import or_in_store

Buffer = np.ndarray | bytes | memoryview
MAX_BUFFERS = 1024  # IOV_MAX: buffers in one vectored write
MAX_IO_NBYTES = 0x7FFFF000  # limit of a single read or write on Linux
_NOT_SUPPORTED = linux.NOT_SUPPORTED
_FAILED = (errno.EIO, errno.ESTALE)  # errors of the file system itself


@or_in_store
def open_new(path: Path) -> int:
    """Create a file that does not exist yet. Return a file descriptor for reading and writing."""
    return linux.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


@or_in_store
def open_existing(path: Path) -> int:
    """Open a regular file for reading. Raise an OSError for anything else, without blocking on a pipe."""
    descriptor = linux.open_file(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
    except BaseException:
        release(descriptor)
        raise
    return descriptor


@or_in_store
def open_to_lock(path: Path) -> int:
    """Open a file or a directory in order to lock it."""
    try:
        return linux.open_file(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except IsADirectoryError:
        return linux.open_file(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@or_in_store
def close(descriptor: int) -> None:
    """Close a file that was written. Some file systems report failed writes only here."""
    os.close(descriptor)


@or_in_store
def release(descriptor: int) -> None:
    """Close a file that was only read or locked, or whose contents no longer matter. Errors mean nothing then."""
    with suppress(OSError):
        os.close(descriptor)


@or_in_store
def reserve(descriptor: int, nbytes: int) -> None:
    """Allocate disk space for `nbytes`, so that a full disk is detected before anything is written.

    Do nothing if the file system cannot: then a full disk is detected later.
    """
    if nbytes and hasattr(os, "posix_fallocate"):
        try:
            linux.refuse_more_than_is_free(descriptor, nbytes)
            os.posix_fallocate(descriptor, 0, nbytes)
        except OSError as error:
            if error.errno not in (*_NOT_SUPPORTED, errno.ESPIPE):
                raise


@or_in_store
def write(descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Write up to `MAX_BUFFERS` buffers contiguously at `offset`. Return the number of bytes written."""
    try:
        return os.pwritev(descriptor, buffers, offset)  # type: ignore[arg-type]
    except OSError as error:
        if error.errno in (errno.ESPIPE, errno.EOPNOTSUPP):
            _explain(
                error,
                "the file system cannot write at any position of a file, as some mounted object stores cannot: save to "
                "a local disk and copy the checkpoint from there",
            )
        raise


def _explain(error: OSError, explanation: str) -> None:
    error.strerror = f"{error.strerror}; {explanation}"


@or_in_store
def read_into(descriptor: int, buffer: np.ndarray, offset: int) -> int:
    """Read into `buffer` from `offset`. Return the number of bytes read, 0 at the end of the file."""
    return os.preadv(descriptor, [buffer], offset)  # type: ignore[list-item]


@or_in_store
def file_size(descriptor: int) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(descriptor).st_size


@or_in_store
def sync_file(descriptor: int) -> None:
    """Flush the contents and the size of a file to the disk, so that they survive a power failure."""
    try:
        if sys.platform == "darwin":
            linux.full_sync(descriptor)
        else:
            os.fdatasync(descriptor)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            _explain(error, "the file system cannot make files durable: pass durable=False, or save to another one")
        raise


@or_in_store
def sync_directory(path: Path) -> None:
    """Flush the entries of a directory to the disk, so that its names survive a power failure.

    Do nothing if the file system cannot: those that refuse, as some of networks and of FUSE do, need no such call.
    """
    descriptor = linux.open_file(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        release(descriptor)


@or_in_store
def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed. Return False if the lock is not available."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@or_in_store
def lock(descriptor: int, *, shared: bool = False) -> None:
    """Wait for the lock of an open file, which many may share. Do nothing if the file system does not support locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in _FAILED:  # other errors say that there are no locks
            raise


@or_in_store
def open_or_create(path: Path) -> int:
    """Open a file for reading and writing, creating it if it does not exist."""
    return linux.open_file(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


@or_in_store
def try_lock_if_supported(descriptor: int) -> bool:
    """Like `try_lock`, but return True if the file system does not support locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _FAILED:
            raise
    return True


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""The errors which say that a path does not exist. Every other error says that the system could not look."""


def is_absence(error: OSError) -> bool:
    """Return whether an error says that a path does not exist, rather than that the system could not look."""
    return error.errno in _ABSENT


@or_in_store
def status(path: Path, *, follow_links: bool = True) -> os.stat_result | None:
    """Return the status of a path, or None if it does not exist. Raise an OSError if the system could not look."""
    try:
        return os.stat(path, follow_symlinks=follow_links)
    except OSError as error:
        if is_absence(error):
            return None
        raise


def exists(path: Path) -> bool:
    """Return whether there is something at `path`, even a broken link. Raise an OSError if unable to look."""
    return status(path, follow_links=False) is not None


def may_exist(path: Path) -> bool:
    """Return whether there is something at `path`, or the system could not look."""
    try:
        return exists(path)
    except OSError:
        return True


def is_directory(path: Path) -> bool:
    """Return whether `path` is a directory or a link to one. Raise an OSError if the system could not look."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_regular_file(path: Path) -> bool:
    """Return whether `path` is a file or a link to one. Raise an OSError if the system could not look."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_link(path: Path) -> bool:
    """Return whether `path` is a symbolic link. Raise an OSError if the system could not look."""
    found = status(path, follow_links=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


@or_in_store
def resolved(path: Path) -> Path:
    """Return the absolute path without links. Raise an OSError if the system could not look.

    Parts that do not exist are kept as they are.
    """
    existing, rest = path.absolute(), Path()
    while True:
        try:
            return Path(os.path.realpath(existing, strict=True)) / rest
        except OSError as error:
            if not is_absence(error) or existing == existing.parent:
                raise
        rest = existing.name / rest
        existing = existing.parent


@or_in_store
def identity(path: Path) -> tuple[int, int]:
    """Return the device and inode numbers, which identify a file or a directory independently of its name."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


@or_in_store
def version(descriptor: int) -> tuple[int, int, int, int]:
    """Return what tells an open file from one that replaced it or that was modified: device, inode, size and time."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@or_in_store
def fingerprint(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return (name, inode, size, mtime in ns) of a file or of each file in a directory, to detect changes."""
    paths = [path / entry for entry in list_directory(path)] if is_directory(path) else [path]
    return tuple((p.name, s.st_ino, s.st_size, s.st_mtime_ns) for p in paths for s in [os.stat(p)])


@or_in_store
def file_sizes(path: Path) -> dict[str, int]:
    """Return the size in bytes of every file in a directory and below, by its path in it.

    That of a single file is called ``""``.
    """
    if not is_directory(path):
        return {"": os.stat(path).st_size}
    sizes: dict[str, int] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_file():
                sizes[entry.name] = entry.stat().st_size
            elif entry.is_dir(follow_symlinks=False):
                sizes |= {f"{entry.name}/{name}": size for name, size in file_sizes(path / entry.name).items()}
    return sizes


class StoredFile(NamedTuple):
    """A file: its device and inode numbers, its size in bytes, and the number of its names on the whole disk."""

    identity: tuple[int, int]
    nbytes: int
    names: int


@or_in_store
def stored_files(path: Path) -> list[StoredFile]:
    """Return a file, or the files in a directory and below."""
    found = [path / name for name in file_sizes(path)] if is_directory(path) else [path]
    return [StoredFile((s.st_dev, s.st_ino), s.st_size, s.st_nlink) for s in map(os.stat, found)]


@or_in_store
def modified_ns(path: Path) -> int:
    """Return the modification time of a file in nanoseconds since the epoch."""
    return os.stat(path).st_mtime_ns


@or_in_store
def truncate(descriptor: int) -> None:
    """Truncate an open file to zero length."""
    os.ftruncate(descriptor, 0)


@or_in_store
def is_linked(descriptor: int) -> bool:
    """Return whether an open file or directory still has a name."""
    return os.fstat(descriptor).st_nlink > 0


@or_in_store
def make_directory(path: Path) -> None:
    """Create a directory that does not exist yet."""
    os.mkdir(path)


@or_in_store
def remove_directory(path: Path) -> None:
    """Delete an empty directory."""
    os.rmdir(path)


@or_in_store
def rename(source: Path, target: Path) -> None:
    """Rename a file or a directory atomically, replacing an existing file or empty directory at `target`.

    A network file system may report an error although the request succeeded: that `source` does not exist, if it
    repeats a request whose answer was lost. That is no error.
    """
    before = os.lstat(source)
    try:
        os.rename(source, target)
    except OSError as error:
        if _has_moved(source, target, (before.st_dev, before.st_ino)):
            return
        if error.errno in (errno.EPERM, errno.EXDEV, *_NOT_SUPPORTED):
            _explain(error, "the file system cannot rename: save to another one and copy the checkpoint from there")
        raise


def _has_moved(source: Path, target: Path, identity: tuple[int, int]) -> bool:
    try:
        after = status(target, follow_links=False)
        return after is not None and (after.st_dev, after.st_ino) == identity and not exists(source)
    except OSError:
        return False


@or_in_store
def link(source: Path, target: Path) -> None:
    """Give a file a second name atomically.

    Raises:
        FileExistsError: if `target` exists.
        OSError: if the file system has no hard links, or none may be made.
    """
    os.link(source, target)


@or_in_store
def remove_file(path: Path) -> None:
    """Delete a file."""
    os.unlink(path)


@or_in_store
def refuse_read_only(path: Path) -> None:
    """Raise a PermissionError if a path is in a store that cannot be written to. A file system decides by itself."""


@or_in_store
def list_directory(path: Path) -> list[str]:
    """Return the sorted names in a directory."""
    return sorted(os.listdir(path))


new_memory = memory.new_memory
map_file = or_in_store(memory.map_file)
is_cached = or_in_store(linux.is_cached)
open_direct = linux.open_direct
DIRECT_ALIGNMENT = linux.DIRECT_ALIGNMENT
generation = or_in_store(linux.generation)
rename_to_new = or_in_store(linux.rename_to_new)
exchange = or_in_store(linux.exchange)
start_writeback = or_in_store(linux.start_writeback)
