"""What not every system has: direct I/O, early writeback, atomic exchanges, limits, what it says of caches."""

import ctypes
import errno
import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path


def open_file(path: Path, flags: int, mode: int = 0o777) -> int:
    """Open a file as `os.open` does. If this process has too many open files, raise its limit, and try once more.

    A checkpoint of thousands of processes has as many files, and the limit is often 1,024, where more may be had.
    """
    try:
        return os.open(path, flags, mode)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    _raise_limit_of_open_files()
    return os.open(path, flags, mode)  # also if another thread has raised the limit meanwhile


_MOST_OPEN_FILES = 65_536


def _raise_limit_of_open_files() -> None:
    with suppress(ImportError, OSError, ValueError):  # macOS has another limit too
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
        if soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def is_cached(descriptor: int, offset: int) -> bool:
    """Return whether the byte at `offset` is in the page cache, or True if the system cannot tell.

    One byte is representative of the megabytes around it, because large reads and writes are cached as a unit.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # not supported by this file system
        return True
    return True


def refuse_more_than_is_free(descriptor: int, nbytes: int) -> None:
    """Raise an OSError if a file system has less free space than many bytes.

    It would allocate what it has first, and leave none to others in the meantime.
    """
    if nbytes < _MANY_NBYTES:
        return
    status = os.fstatvfs(descriptor)
    if status.f_blocks > 0 and nbytes > status.f_bfree * status.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_MANY_NBYTES = 1 << 30


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Start writing a part of a file to the disk without waiting, so that a later sync has less to do.

    This guarantees nothing, and does nothing on systems without such a call.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(nbytes), _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None


def open_direct(descriptor: int, *, to_write: bool = False) -> int | None:
    """Reopen an open file for direct I/O, bypassing the page cache. Return None if that is not supported.

    Offsets, sizes and memory addresses must be multiples of `DIRECT_ALIGNMENT`.
    """
    if sys.platform != "linux":
        return None
    try:
        access = os.O_RDWR if to_write else os.O_RDONLY
        return os.open(f"/proc/self/fd/{descriptor}", access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


DIRECT_ALIGNMENT = 4096


def generation(directory: Path) -> int | None:
    """Return a number that later directories at this path do not have, even with the same inode; None if unknown."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        number = bytearray(8)
        fcntl.ioctl(descriptor, _FS_IOC_GETVERSION, number)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return int.from_bytes(number, sys.byteorder) or None


_FS_IOC_GETVERSION = 0x80087601


def rename_to_new(source: Path, target: Path) -> bool:
    """Rename a file or a directory atomically, unless there is something at `target`.

    Return False, and do nothing, if the system or the file system cannot do that.

    Raises:
        FileExistsError: if `target` exists.
    """
    number = _rename(source, target, _RENAME_NOREPLACE)
    if number is None or number in (*NOT_SUPPORTED, errno.EPERM):
        return False
    if number == 0:
        return True
    if number == errno.EEXIST:
        raise FileExistsError(number, os.strerror(number), str(target))
    raise OSError(number, os.strerror(number), str(target))


def exchange(source: Path, target: Path) -> None:
    """Exchange the names of two files or directories atomically.

    Raises:
        OSError: if the system or the file system cannot.
    """
    number = _rename(source, target, _RENAME_EXCHANGE)
    if number is None:
        raise OSError(errno.ENOSYS, "The system cannot exchange two directories atomically", str(target))
    if number != 0:
        raise OSError(number, f"{os.strerror(number)}; remove the old checkpoint first, or save elsewhere", str(target))


def _rename(source: Path, target: Path, flag: int) -> int | None:
    """Rename with a flag of Linux. Return the number of the error, or 0; None if the system has no such call."""
    names = os.fsencode(source), os.fsencode(target)
    if _renameat2 is not None:
        failed = _renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flag)
    elif _renamex_np is not None:
        failed = _renamex_np(*names, _OF_DARWIN[flag])
    else:
        return None
    return ctypes.get_errno() if failed else 0


_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_OF_DARWIN = {_RENAME_NOREPLACE: 4, _RENAME_EXCHANGE: 2}
_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None) if sys.platform == "linux" else None
_renamex_np = getattr(_libc, "renamex_np", None) if sys.platform == "darwin" else None


def full_sync(descriptor: int) -> None:
    """Flush a file and the cache of the disk on macOS, or as far as its file system can: network volumes cannot."""
    try:
        fcntl.fcntl(descriptor, getattr(fcntl, "F_FULLFSYNC"))  # noqa: B009 - only macOS has it
    except OSError as error:
        if error.errno not in (*NOT_SUPPORTED, errno.ENOTTY):
            raise
        os.fsync(descriptor)


NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
"""The errors with which file systems refuse a call that they do not support."""
