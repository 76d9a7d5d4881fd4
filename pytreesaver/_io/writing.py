"""Write many byte ranges of a file: small ones in vectored writes, large ones in slices."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES, block_count
from pytreesaver._io.files import BufferedWriter, DirectWriter
from pytreesaver._io.parallel import SLICE_NBYTES, advance, run_all

# Ranges of several blocks need further buffers, but a group has at most 16 MiB.
_MAX_RANGES_PER_WRITE = filesystem.MAX_BUFFERS - 24


MAX_JOINED_NBYTES = 16 << 10
"""Ranges of at most this size may be written in one piece with others. A copy of a larger one takes longer than a view.
"""

_MIN_WRITEBACK_NBYTES = 1 << 20  # less is written by the sync in one request


class WriteRanges(NamedTuple):
    """Byte ranges of a file, in columns: range i has ``nbytes[i]`` bytes at ``offsets[i]``.

    ``load(i)`` returns its bytes as a uint8[nbytes]. ``joined([i, j])``, if there is one, returns the bytes of several
    small ranges in one piece, which takes less time.
    """

    offsets: Sequence[int]
    nbytes: Sequence[int]
    load: Callable[[int], np.ndarray]
    joined: Callable[[Sequence[int]], bytes] | None = None


def write_ranges(
    descriptor: int, ranges: WriteRanges, *, durable: bool = False, in_background: bool = False
) -> np.ndarray:
    """Write all ranges in file order. If `durable`, writeback to the disk starts at once; the caller syncs the file.

    With `in_background`, few threads write, with direct I/O. That takes longer but leaves most of the CPU and of the
    memory bandwidth to the rest of the program.

    Returns:
        The checksums of the blocks of all ranges, in the order of `ranges`, as a uint64[n].
    """
    nbytes = ranges.nbytes
    first_blocks = list(accumulate((block_count(size, BLOCK_NBYTES) for size in nbytes), initial=0))
    checksums = np.zeros(first_blocks[-1], np.uint64)
    buffered = BufferedWriter(descriptor, durable and sum(nbytes) >= _MIN_WRITEBACK_NBYTES)
    with DirectWriter(descriptor, buffered) if in_background else buffered as writer:
        tasks: dict[int, Callable[[], None]] = {}
        for group in _groups(ranges.offsets, nbytes):
            first = [first_blocks[i] for i in group]
            tasks[ranges.offsets[group[0]]] = partial(_write_group, writer, ranges, group, checksums, first)
        for i in [i for i, size in enumerate(nbytes) if size > SLICE_NBYTES]:
            size, offset = nbytes[i], ranges.offsets[i]
            shared = _SharedBytes(partial(ranges.load, i), block_count(size, SLICE_NBYTES))
            for start in range(0, size, SLICE_NBYTES):  # a multiple of BLOCK_NBYTES
                block = first_blocks[i] + start // BLOCK_NBYTES
                tasks[offset + start] = partial(_write_slice, writer, shared, start, offset, checksums, block)
        in_file_order = [tasks[offset] for offset in sorted(tasks)]
        run_all(in_file_order, sum(nbytes), in_background=in_background)
    return checksums


def _groups(offsets: Sequence[int], nbytes: Sequence[int]) -> list[list[int]]:
    """Return the nonempty ranges of up to `SLICE_NBYTES` in contiguous groups that one call can write."""
    groups: list[list[int]] = []
    end = -1
    small = [i for i, size in enumerate(nbytes) if 0 < size <= SLICE_NBYTES]
    for i in sorted(small, key=offsets.__getitem__):
        new_end = offsets[i] + nbytes[i]
        is_next = offsets[i] == end and new_end // SLICE_NBYTES == end // SLICE_NBYTES
        if not is_next or len(groups[-1]) == _MAX_RANGES_PER_WRITE:
            groups.append([])
        groups[-1].append(i)
        end = new_end
    return groups


def _write_group(
    writer: BufferedWriter | DirectWriter,
    ranges: WriteRanges,
    group: Sequence[int],
    checksums: np.ndarray,
    first_blocks: Sequence[int],
) -> None:
    blocks, pieces = _loaded(ranges, group)
    numbers = list(first_blocks)
    if max(map(len, blocks)) > BLOCK_NBYTES:
        ranges_of_blocks = list(zip(blocks, first_blocks, strict=True))
        blocks = [block for data, _ in ranges_of_blocks for block in _blocks(data)]
        numbers = [
            n for data, first in ranges_of_blocks for n in range(first, first + block_count(len(data), BLOCK_NBYTES))
        ]
    checksums[numbers] = writer.write(blocks, ranges.offsets[group[0]], pieces)
    advance(sum(map(len, pieces)))


def _loaded(ranges: WriteRanges, group: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """Return the bytes of each range, and the same bytes in fewer pieces. Small ranges are joined, which is faster."""
    if ranges.joined is None:
        loaded = list(map(ranges.load, group))
        return loaded, loaded
    blocks: list[Any] = []
    pieces: list[Any] = []
    sizes = [ranges.nbytes[i] for i in group]
    is_small = [size <= MAX_JOINED_NBYTES for size in sizes]
    begin = 0
    while begin < len(group):
        end = begin + 1
        while end < len(group) and is_small[begin] and is_small[end]:
            end += 1
        if end - begin > 1:
            whole = ranges.joined(group[begin:end])
            view, ends = memoryview(whole), list(accumulate(sizes[begin:end]))
            pieces.append(whole)
            blocks += [view[stop - size : stop] for stop, size in zip(ends, sizes[begin:end], strict=True)]
        else:
            pieces.append(ranges.load(group[begin]))
            blocks.append(pieces[-1])
        begin = end
    return blocks, pieces


def _blocks(data: np.ndarray) -> list[np.ndarray]:
    return [data[start : start + BLOCK_NBYTES] for start in range(0, data.nbytes, BLOCK_NBYTES)]


class _SharedBytes:
    """The bytes of a large range, loaded for the first of its slices and released after the last."""

    def __init__(self, load: Callable[[], np.ndarray], slices: int) -> None:
        self._load = load
        self._data: np.ndarray | None = None
        self._slices = slices
        self._lock = threading.Lock()

    def take(self, start: int) -> np.ndarray:
        """Return the slice at `start`. Each slice is taken once."""
        with self._lock:
            data = self._load() if self._data is None else self._data
            self._slices -= 1
            self._data = data if self._slices else None
        return data[start : start + SLICE_NBYTES]


def _write_slice(
    writer: BufferedWriter | DirectWriter,
    shared: _SharedBytes,
    start: int,
    offset: int,
    checksums: np.ndarray,
    block: int,
) -> None:
    blocks = _blocks(shared.take(start))
    checksums[block : block + len(blocks)] = writer.write(blocks, offset + start)
    advance(sum(map(len, blocks)))
