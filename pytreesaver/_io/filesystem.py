"""Every call that opens, writes, syncs, renames or deletes, and nothing else.

The rest of pytreesaver reaches the disk through these functions only, so that a test can put a simulated file system
in their place and stop it at every state that a crash could leave.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

Buffer = np.ndarray | bytes | memoryview
MOST_BUFFERS = 1024  # IOV_MAX: what one gathering write takes
MOST_BYTES = 0x7FFFF000  # what one system call moves at most on Linux


def open_new(path: Path) -> int:
    """A file descriptor to write a file that does not exist yet."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def open_existing(path: Path) -> int:
    """A file descriptor to read a file; anything else than a file is refused, a pipe without waiting for its writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return descriptor


def open_to_lock(path: Path) -> int:
    """A file descriptor with which a file or a directory can be locked."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except IsADirectoryError:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def close(descriptor: int) -> None:
    """Give a file descriptor back."""
    os.close(descriptor)


def reserve(descriptor: int, nbytes: int) -> None:
    """Have the file system set `nbytes` aside, so that a full disk shows before anything is written."""
    if nbytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)


def write(descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Write up to `MOST_BUFFERS` buffers one after the other at `offset`; gives how many bytes were written."""
    return os.pwritev(descriptor, buffers, offset)  # type: ignore[arg-type]


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the operating system begin to write some bytes of a file to the disk, so that a later sync has less to do.

    It promises nothing; where there is no such call, nothing happens.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(nbytes), _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None


def read_into(descriptor: int, buffer: np.ndarray, offset: int) -> int:
    """Fill `buffer` from `offset`; gives how many bytes were read, 0 at the end of the file."""
    return os.preadv(descriptor, [buffer], offset)  # type: ignore[list-item]


def is_cached(descriptor: int, offset: int) -> bool:
    """Whether the byte at `offset` can be read without waiting for the disk; True where the system does not tell.

    It stands for the megabytes around it: what is read and written in large pieces is cached so.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # not on this file system
        return True
    return True


def open_direct(descriptor: int, *, to_write: bool = False) -> int | None:
    """Another file descriptor of an open file, past the cache of the operating system; None if it cannot be had.

    Offsets, sizes and memory addresses have to be multiples of `DIRECT_ALIGNMENT` then.
    """
    if sys.platform != "linux":
        return None
    try:
        access = os.O_RDWR if to_write else os.O_RDONLY
        return os.open(f"/proc/self/fd/{descriptor}", access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


DIRECT_ALIGNMENT = 4096


def map_file(descriptor: int, nbytes: int) -> np.ndarray:
    """The first bytes of an open file as uint8[nbytes] that is read from the file when it is first looked at.

    Writing to the array copies the page that is written to, and leaves the file as it is.
    """
    # Without this flag a system that does not overcommit would count every byte of the file as memory in use.
    flags = mmap.MAP_PRIVATE | (_MAP_NORESERVE if sys.platform == "linux" else 0)
    memory = mmap.mmap(descriptor, nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(memory, np.uint8)


_MAP_NORESERVE = 0x4000


def file_size(descriptor: int) -> int:
    """The size of an open file in bytes."""
    return os.fstat(descriptor).st_size


def sync_file(descriptor: int) -> None:
    """Return only when the contents and the size of the file would survive a power cut."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def sync_directory(path: Path) -> None:
    """Return only when the names in the directory would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock on an open file, which is let go when it is closed or its holder dies; False if another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lock(descriptor: int) -> None:
    """Wait for that lock; where the file system knows no locks, do without."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def open_or_create(path: Path) -> int:
    """A file descriptor of a file that is created if it is not there."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def try_claim(descriptor: int) -> bool:
    """Take the lock of `try_lock`; where the file system knows no locks, do without."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def identity(path: Path) -> tuple[int, int]:
    """What tells a file or directory from every other, whatever its name: device and inode number."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def fingerprint(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when anybody writes to a file, or to one in a directory: names, inodes, sizes and times in ns."""
    paths = [path / entry for entry in list_directory(path)] if path.is_dir() else [path]
    return tuple((p.name, s.st_ino, s.st_size, s.st_mtime_ns) for p in paths for s in [os.stat(p)])


def file_sizes(path: Path) -> dict[str, int]:
    """The size in bytes of every file in a directory, by name."""
    with os.scandir(path) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def modified_ns(path: Path) -> int:
    """When a file was last written to, in nanoseconds since the epoch."""
    return os.stat(path).st_mtime_ns


def truncate(descriptor: int) -> None:
    """Leave nothing in an open file."""
    os.ftruncate(descriptor, 0)


def is_linked(descriptor: int) -> bool:
    """Whether an open file or directory still has a name."""
    return os.fstat(descriptor).st_nlink > 0


def make_directory(path: Path) -> None:
    """Create one directory, which must not exist."""
    os.mkdir(path)


def remove_directory(path: Path) -> None:
    """Delete one empty directory."""
    os.rmdir(path)


def rename(source: Path, target: Path) -> None:
    """Give a file or a directory another name, in one step; a file or an empty directory of that name is replaced."""
    os.rename(source, target)


def remove_file(path: Path) -> None:
    """Delete one file."""
    os.unlink(path)


def list_directory(path: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(os.listdir(path))


def new_memory(nbytes: int) -> np.ndarray:
    """Fresh memory as uint8[nbytes], on a page boundary and in huge pages where the system has them.

    Page faults are most of the cost of reading into new memory, and JAX takes over only aligned memory uncopied.
    """
    if nbytes == 0:
        return np.empty(0, np.uint8)
    in_huge_pages = nbytes // _HUGE_PAGE_NBYTES * _HUGE_PAGE_NBYTES if hasattr(mmap, "MADV_HUGEPAGE") else 0
    # What is mapped beyond the memory, so that it can begin where a huge page does, is never touched and costs nothing.
    mapped_nbytes = nbytes + (_HUGE_PAGE_NBYTES if in_huge_pages else 0)
    if mapped_nbytes > sys.maxsize:
        raise OSError(errno.ENOMEM, f"Cannot allocate {nbytes} bytes")
    try:
        memory = mmap.mmap(-1, mapped_nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        if nbytes > _MOST_SPARE_NBYTES:
            raise
        # A process may have 65,530 mappings; those of malloc are fewer.
        spare = np.empty(nbytes + mmap.PAGESIZE, np.uint8)
        return _from_multiple_of(mmap.PAGESIZE, spare)[:nbytes]
    if not in_huge_pages:
        return np.frombuffer(memory, np.uint8)
    aligned = _from_multiple_of(_HUGE_PAGE_NBYTES, np.frombuffer(memory, np.uint8))
    with suppress(OSError):  # a kernel built without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE, mapped_nbytes - aligned.nbytes, in_huge_pages)
    return aligned[:nbytes]


def _from_multiple_of(alignment: int, memory: np.ndarray) -> np.ndarray:
    return memory[-memory.ctypes.data % alignment :]


_HUGE_PAGE_NBYTES = 2 << 20
_MOST_SPARE_NBYTES = 1 << 30
