"""Write many stretches of bytes to one file, a few gathering system calls for small ones, slices for large ones."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums import BLOCK_NBYTES, block_count
from pytreesaver._io.files import CacheWriter, PastCacheWriter
from pytreesaver._io.parallel import SLICE_NBYTES, advance, run_all

_MOST_STRETCHES = filesystem.MOST_BUFFERS - 24  # in one call; some are of several blocks, of 16 MiB in all at most


class Stretches(NamedTuple):
    """Stretches of one file, in columns: `nbytes` bytes at `offsets`; `load` gives those of a stretch by its number as
    uint8[nbytes] when they are wanted."""

    offsets: Sequence[int]
    nbytes: Sequence[int]
    load: Callable[[int], np.ndarray]


def write_stretches(
    descriptor: int, stretches: Stretches, *, durable: bool = False, in_background: bool = False
) -> np.ndarray:
    """Write every stretch, the first in the file first; if it is going to be made durable, have the system start with
    that at once.

    In the background few threads do it, past the cache of the operating system: that takes longer, and leaves most of
    the processor and of the memory's bandwidth to the rest of the program.

    Gives uint64[n]: the checksums of the blocks of all of them, in the given order."""
    offsets, nbytes = np.array(stretches.offsets, np.int64), np.array(stretches.nbytes, np.int64)
    blocks = -(-nbytes // BLOCK_NBYTES)
    first_blocks = np.cumsum(blocks) - blocks
    checksums = np.zeros(int(blocks.sum()), np.uint64)
    through_cache = CacheWriter(descriptor, durable)
    with PastCacheWriter(descriptor, through_cache) if in_background else through_cache as writer:
        tasks: dict[int, Callable[[], None]] = {}
        for group in _groups(offsets, nbytes):
            first = first_blocks[group].tolist()
            tasks[int(offsets[group[0]])] = partial(_write_group, writer, stretches, group.tolist(), checksums, first)
        for i in np.flatnonzero(nbytes > SLICE_NBYTES).tolist():
            size, offset = stretches.nbytes[i], stretches.offsets[i]
            shared = _SharedBytes(partial(stretches.load, i), block_count(size, SLICE_NBYTES))
            for start in range(0, size, SLICE_NBYTES):  # a multiple of BLOCK_NBYTES
                block = int(first_blocks[i]) + start // BLOCK_NBYTES
                tasks[offset + start] = partial(_write_slice, writer, shared, start, offset, checksums, block)
        in_order = [tasks[offset] for offset in sorted(tasks)]
        run_all(in_order, int(nbytes.sum()), in_background=in_background)
    return checksums


def _groups(offsets: np.ndarray, nbytes: np.ndarray) -> list[np.ndarray]:
    """The stretches of up to `SLICE_NBYTES`, except for empty ones, in groups that one call can write."""
    small = np.flatnonzero((nbytes <= SLICE_NBYTES) & (nbytes > 0))
    small = small[np.argsort(offsets[small], kind="stable")]
    ends = offsets[small] + nbytes[small]
    parts = np.stack([ends // SLICE_NBYTES, np.arange(small.size) // _MOST_STRETCHES])
    apart = (offsets[small][1:] != ends[:-1]) | (np.diff(parts) > 0).any(axis=0)
    return [group for group in np.split(small, np.flatnonzero(apart) + 1) if group.size]


def _write_group(
    writer: CacheWriter | PastCacheWriter,
    stretches: Stretches,
    group: Sequence[int],
    checksums: np.ndarray,
    first_blocks: Sequence[int],
) -> None:
    blocks: list[np.ndarray] = []
    numbers: list[int] = []
    for i, first in zip(group, first_blocks, strict=True):
        data = stretches.load(i)
        if data.nbytes <= BLOCK_NBYTES:
            blocks.append(data)
            numbers.append(first)
        else:
            split = _blocks(data)
            blocks += split
            numbers += range(first, first + len(split))
    checksums[numbers] = writer.write(blocks, stretches.offsets[group[0]])
    advance(sum(map(len, blocks)))


def _blocks(data: np.ndarray) -> list[np.ndarray]:
    return [data[start : start + BLOCK_NBYTES] for start in range(0, data.nbytes, BLOCK_NBYTES)]


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
        return data[start : start + SLICE_NBYTES]


def _write_slice(
    writer: CacheWriter | PastCacheWriter,
    shared: _SharedBytes,
    start: int,
    offset: int,
    checksums: np.ndarray,
    block: int,
) -> None:
    blocks = _blocks(shared.take(start))
    checksums[block : block + len(blocks)] = writer.write(blocks, offset + start)
    advance(sum(map(len, blocks)))
