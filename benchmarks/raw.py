"""A raw read/write loop over the same bytes: the reference for all contestants."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_SLICE = 8 << 20
_THREADS = 2
_WRITE_BEHIND = 2  # SYNC_FILE_RANGE_WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None)


def write(path: str, arrays: Sequence[np.ndarray], *, durable: bool) -> None:
    """Write arrays consecutively: preallocated, in slices on two threads, with many small arrays per call."""
    total = sum(array.nbytes for array in arrays)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    if hasattr(os, "posix_fallocate") and total:
        os.posix_fallocate(descriptor, 0, total)
    tasks: list[tuple[list[np.ndarray], int]] = []
    group: list[np.ndarray] = []
    offset = group_at = 0
    for array in arrays:
        data = array.reshape(-1).view(np.uint8)
        for start in range(0, data.nbytes, _SLICE):
            piece = data[start : start + _SLICE]
            if group and (len(group) == 1024 or sum(each.nbytes for each in group) + piece.nbytes > _SLICE):
                tasks.append((group, group_at))
                group = []
            if not group:
                group_at = offset
            group.append(piece)
            offset += piece.nbytes
    if group:
        tasks.append((group, group_at))

    def run(task: tuple[list[np.ndarray], int]) -> None:
        pieces, at = task
        nbytes = os.pwritev(descriptor, pieces, at)  # type: ignore[arg-type]
        if durable and _sync_file_range is not None:
            _sync_file_range(descriptor, ctypes.c_int64(at), ctypes.c_int64(nbytes), _WRITE_BEHIND)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(run, tasks))
    if durable:
        os.fdatasync(descriptor)
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    os.close(descriptor)


def read(path: str, *, direct: bool = False) -> np.ndarray:
    """Read a file into new huge pages, in slices on two threads, or with direct I/O on four."""
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    size = os.fstat(descriptor).st_size
    # Direct reads must request full pages, including the last one.
    memory = mmap.mmap(-1, size + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(memory, np.uint8)[: -(-size // mmap.PAGESIZE) * mmap.PAGESIZE]
    with ThreadPoolExecutor(2 * _THREADS if direct else _THREADS) as pool:
        slices = [(descriptor, [data[at : at + _SLICE]], at) for at in range(0, size, _SLICE)]
        list(pool.map(lambda each: os.preadv(*each), slices))
    os.close(descriptor)
    return data[:size]
