"""Write many stretches of bytes to one file, a few gathering system calls for small ones, slices for large ones."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums import BLOCK_NBYTES, block_checksums, block_count
from pytreesaver._io.parallel import run_all

_SLICE_NBYTES = 8 << 20  # a multiple of BLOCK_NBYTES


class Stretch(NamedTuple):
    """`nbytes` bytes that belong at `offset` of a file; `load` gives them as uint8[nbytes] when they are wanted."""

    offset: int
    nbytes: int
    load: Callable[[], np.ndarray]


def write_stretches(descriptor: int, stretches: Sequence[Stretch], *, durable: bool = False) -> np.ndarray:
    """Write every stretch, and if it is going to be made durable, have the system start with that at once.

    Gives uint64[n]: the checksums of the blocks of all of them, in the given order."""
    first_block = np.concatenate([[0], np.cumsum([block_count(s.nbytes) for s in stretches], dtype=np.int64)])
    checksums = np.zeros(int(first_block[-1]), np.uint64)
    tasks: list[Callable[[], None]] = []
    group: list[int] = []
    group_nbytes = 0

    def end_group() -> None:
        nonlocal group, group_nbytes
        if group:
            tasks.append(
                partial(_write_group, descriptor, [stretches[i] for i in group], checksums, first_block[group], durable)
            )
        group, group_nbytes = [], 0

    for i in sorted(range(len(stretches)), key=lambda i: stretches[i].offset):
        offset, nbytes, load = stretches[i]
        if nbytes == 0:
            continue
        if nbytes > _SLICE_NBYTES:
            end_group()
            shared = _SharedBytes(load, block_count(nbytes, _SLICE_NBYTES))
            for start in range(0, nbytes, _SLICE_NBYTES):
                block = int(first_block[i]) + start // BLOCK_NBYTES
                tasks.append(partial(_write_slice, descriptor, shared, start, offset, checksums, block, durable))
            continue
        follows = bool(group) and sum(stretches[group[-1]][:2]) == offset
        if not follows or group_nbytes + nbytes > _SLICE_NBYTES or len(group) == filesystem.MOST_BUFFERS:
            end_group()
        group.append(i)
        group_nbytes += nbytes
    end_group()
    run_all(tasks, sum(s.nbytes for s in stretches))
    return checksums


def _write_group(
    descriptor: int, group: Sequence[Stretch], checksums: np.ndarray, first_block: np.ndarray, durable: bool
) -> None:
    buffers = [stretch.load() for stretch in group]
    for data, block in zip(buffers, first_block.tolist(), strict=True):
        for i, value in enumerate(block_checksums(data), block):
            checksums[i] = value
    write_fully(descriptor, buffers, group[0].offset)
    if durable:
        filesystem.start_writeback(descriptor, group[0].offset, sum(data.nbytes for data in buffers))


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
    for i, value in enumerate(block_checksums(data), block):
        checksums[i] = value
    write_fully(descriptor, [data], offset + start)
    if durable:
        filesystem.start_writeback(descriptor, offset + start, data.nbytes)


def write_fully(descriptor: int, buffers: Sequence[filesystem.Buffer], offset: int) -> None:
    """Write every byte of the buffers, however many system calls that takes."""
    remaining = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]  # type: ignore[arg-type]
    while remaining:
        written = filesystem.write(descriptor, remaining, offset)
        offset += written
        done = 0
        while done < len(remaining) and written >= remaining[done].nbytes:
            written -= remaining[done].nbytes
            done += 1
        del remaining[:done]
        if written:
            remaining[0] = remaining[0][written:]
