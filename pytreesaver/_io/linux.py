"""What only Linux has: direct I/O, whether a file is in the page cache, and the generation of a directory."""

import fcntl
import os
import sys
from pathlib import Path


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
