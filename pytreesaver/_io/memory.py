"""New memory for the bytes of arrays, and pauses of the garbage collection."""

import errno
import gc
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np


def new_memory(nbytes: int) -> np.ndarray:
    """Return new memory as a uint8[nbytes], page-aligned and in huge pages where the system supports them.

    Huge pages reduce page faults, which dominate the cost of reading into new memory. JAX can use only aligned memory
    without a copy.
    """
    if nbytes == 0:
        return np.empty(0, np.uint8)
    in_huge_pages = nbytes // _HUGE_PAGE_NBYTES * _HUGE_PAGE_NBYTES if hasattr(mmap, "MADV_HUGEPAGE") else 0
    # The extra mapping, which allows alignment to a huge page, is never touched and costs no memory.
    mapped_nbytes = nbytes + (_HUGE_PAGE_NBYTES if in_huge_pages else 0)
    if mapped_nbytes > sys.maxsize:
        raise OSError(errno.ENOMEM, f"Cannot allocate {nbytes} bytes")
    try:
        memory = mmap.mmap(-1, mapped_nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        if nbytes > _MAX_FALLBACK_NBYTES:
            raise
        # The process may have reached its limit of 65,530 mappings. malloc uses fewer.
        unaligned = np.empty(nbytes + mmap.PAGESIZE, np.uint8)
        return _align(mmap.PAGESIZE, unaligned)[:nbytes]
    if not in_huge_pages:
        return np.frombuffer(memory, np.uint8)
    aligned = _align(_HUGE_PAGE_NBYTES, np.frombuffer(memory, np.uint8))
    with suppress(OSError):  # a kernel built without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE, mapped_nbytes - aligned.nbytes, in_huge_pages)
    return aligned[:nbytes]


def _align(alignment: int, memory: np.ndarray) -> np.ndarray:
    return memory[-memory.ctypes.data % alignment :]


_HUGE_PAGE_NBYTES = 2 << 20
_MAX_FALLBACK_NBYTES = 1 << 30


def map_file(descriptor: int, nbytes: int) -> np.ndarray:
    """Return the first bytes of an open file as a memory-mapped uint8[nbytes].

    The mapping is copy-on-write: writing to the array does not change the file.
    """
    # Without this flag, a system that does not overcommit counts the entire mapping as used memory.
    flags = mmap.MAP_PRIVATE | (_MAP_NORESERVE if sys.platform == "linux" else 0)
    memory = mmap.mmap(descriptor, nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(memory, np.uint8)


_MAP_NORESERVE = 0x4000


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the garbage collection of Python for a ``with`` block, or a function, that makes many objects quickly.

    Otherwise it would look through all objects of the program again and again, which takes longer than the work. The
    block must be short, since garbage of other threads is kept too.
    """
    pause = object()
    try:
        _pauses.begin(pause)
        yield
    finally:
        _pauses.end(pause)


class _Pauses:
    """The pauses at the moment, with the time when each began."""

    _LONGEST_SECS = 60.0  # an interrupt at the wrong moment may have kept an older one from ending

    def __init__(self) -> None:
        self._guard = threading.RLock()  # a signal handler may begin a pause too
        self._began: dict[object, float] = {}
        self._was_enabled = False

    def begin(self, pause: object) -> None:
        with self._guard:
            now = time.monotonic()
            for old in [each for each, began in self._began.items() if now - began > self._LONGEST_SECS]:
                self.end(old)
            if not self._began:
                self._was_enabled = gc.isenabled()
            self._began[pause] = now
            gc.disable()

    def end(self, pause: object) -> None:
        with self._guard:
            if self._began.pop(pause, None) is not None and not self._began and self._was_enabled:
                gc.enable()

    def end_all(self) -> None:
        """End all pauses, after a fork: the threads that made them are not there."""
        if self._began and self._was_enabled:
            gc.enable()
        self.__init__()  # type: ignore[misc]


_pauses = _Pauses()
os.register_at_fork(after_in_child=_pauses.end_all)
