"""Write many stretches of bytes to one file, a few gathering system calls for small ones, slices for large ones."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums import BLOCK_NBYTES, block_checksums, block_count, checksum
from pytreesaver._io.parallel import run_all

_SLICE_NBYTES = 8 << 20  # a multiple of BLOCK_NBYTES


class Stretches(NamedTuple):
    """Stretches of one file, in columns: `nbytes` bytes at `offsets`; `load` gives those of a stretch by its number as
    uint8[nbytes] when they are wanted."""

    offsets: Sequence[int]
    nbytes: Sequence[int]
    load: Callable[[int], np.ndarray]


def write_stretches(descriptor: int, stretches: Stretches, *, durable: bool = False) -> np.ndarray:
    """Write every stretch, and if it is going to be made durable, have the system start with that at once.

    Gives uint64[n]: the checksums of the blocks of all of them, in the given order."""
    offsets, nbytes = np.array(stretches.offsets, np.int64), np.array(stretches.nbytes, np.int64)
    blocks = -(-nbytes // BLOCK_NBYTES)
    first_blocks = np.cumsum(blocks) - blocks
    checksums = np.zeros(int(blocks.sum()), np.uint64)
    tasks: list[Callable[[], None]] = []
    for group in _groups(offsets, nbytes):
        first = first_blocks[group].tolist()
        tasks.append(partial(_write_group, descriptor, stretches, group.tolist(), checksums, first, durable))
    for i in np.flatnonzero(nbytes > _SLICE_NBYTES).tolist():
        size, offset = stretches.nbytes[i], stretches.offsets[i]
        shared = _SharedBytes(partial(stretches.load, i), block_count(size, _SLICE_NBYTES))
        for start in range(0, size, _SLICE_NBYTES):
            block = int(first_blocks[i]) + start // BLOCK_NBYTES
            tasks.append(partial(_write_slice, descriptor, shared, start, offset, checksums, block, durable))
    run_all(tasks, int(nbytes.sum()))
    return checksums


def _groups(offsets: np.ndarray, nbytes: np.ndarray) -> list[np.ndarray]:
    """The stretches of up to `_SLICE_NBYTES`, except for empty ones, in groups that one call can write."""
    small = np.flatnonzero((nbytes <= _SLICE_NBYTES) & (nbytes > 0))
    small = small[np.argsort(offsets[small], kind="stable")]
    ends = offsets[small] + nbytes[small]
    parts = np.stack([ends // _SLICE_NBYTES, np.arange(small.size) // filesystem.MOST_BUFFERS])
    apart = (offsets[small][1:] != ends[:-1]) | (np.diff(parts) > 0).any(axis=0)
    return [group for group in np.split(small, np.flatnonzero(apart) + 1) if group.size]


def _write_group(
    descriptor: int,
    stretches: Stretches,
    group: Sequence[int],
    checksums: np.ndarray,
    first_blocks: Sequence[int],
    durable: bool,
) -> None:
    buffers = [stretches.load(i) for i in group]
    for data, block in zip(buffers, first_blocks, strict=True):
        if data.nbytes <= BLOCK_NBYTES:
            checksums[block] = checksum(data)
        else:
            _put_checksums(checksums, block, data)
    offset = stretches.offsets[group[0]]
    write_fully(descriptor, buffers, offset)
    if durable:
        filesystem.start_writeback(descriptor, offset, stretches.offsets[group[-1]] + buffers[-1].nbytes - offset)


def _put_checksums(checksums: np.ndarray, first: int, data: np.ndarray) -> None:
    for i, value in enumerate(block_checksums(data), first):
        checksums[i] = value


class _SharedBytes:
    """The bytes of a large stretch, loaded when the first of its slices is written and dropped after the last."""

    def __init__(self, load: Callable[[], np.ndarray], slices: int) -> None:
        self._load = load
        self._data: np.ndarray | None = None
        self._slices = slices
        self._lock = threading.Lock()

    def take(self, start: int) -> np.ndarray:
        """The slice that begins at `start`; each is taken once."""
        with self._lock:
            data = self._load() if self._data is None else self._data
            self._slices -= 1
            self._data = data if self._slices else None
        return data[start : start + _SLICE_NBYTES]


def _write_slice(
    descriptor: int, shared: _SharedBytes, start: int, offset: int, checksums: np.ndarray, block: int, durable: bool
) -> None:
    data = shared.take(start)
    _put_checksums(checksums, block, data)
    write_fully(descriptor, [data], offset + start)
    if durable:
        filesystem.start_writeback(descriptor, offset + start, data.nbytes)


def write_fully(descriptor: int, buffers: Sequence[filesystem.Buffer], offset: int) -> None:
    """Write every byte of the buffers, however many system calls that takes."""
    written = filesystem.write(descriptor, buffers, offset)
    if written == sum(map(len, buffers)):
        return
    remaining = [memoryview(buffer).cast("B") for buffer in buffers]  # type: ignore[arg-type]
    while True:
        offset += written
        done = 0
        while done < len(remaining) and written >= remaining[done].nbytes:
            written -= remaining[done].nbytes
            done += 1
        del remaining[:done]
        if not remaining:
            return
        remaining[0] = remaining[0][written:]
        written = filesystem.write(descriptor, remaining, offset)
