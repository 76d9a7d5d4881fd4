"""Read many stretches of one file into fresh, aligned memory and check them on the way."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums import block_checksums, checksum
from pytreesaver._io.parallel import run_all
from pytreesaver._io.reading import PastCacheReader, read_fully

_LARGE_NBYTES = 1 << 20  # from here on a stretch has memory of its own, so that dropping it frees it
_SLICE_NBYTES = 8 << 20
_STEP_NBYTES = 1 << 20
_GAP_NBYTES = 64 << 10  # it costs less to read this much than to make another system call


class Ranges(NamedTuple):
    """Stretches of one file, in columns: `nbytes` bytes at `offsets`, and where the checksums of their blocks begin
    among `checksums`; None where they are not checked."""

    offsets: Sequence[int]
    nbytes: Sequence[int]
    first_checksums: Sequence[int]
    checksums: Sequence[int] | None


def read_ranges(descriptor: int, ranges: Ranges, block_nbytes: int) -> tuple[list[np.ndarray], list[int]]:
    """Read every range. Gives uint8[nbytes] for each, and the positions of those whose checksums do not fit.

    A range lies in memory as it lies in the file modulo 4096. Large ranges have memory of their own.

    Raises:
        EndOfFileError: the file is shorter than a range asks for.
    """
    results: list[np.ndarray] = [_EMPTY] * len(ranges.offsets)
    damaged: set[int] = set()
    with PastCacheReader(descriptor) as past_cache:
        tasks = _tasks(descriptor, ranges, results, damaged, block_nbytes, past_cache)
        run_all(tasks, sum(ranges.nbytes))
    return results, sorted(damaged)


def _tasks(
    descriptor: int,
    ranges: Ranges,
    results: list[np.ndarray],
    damaged: set[int],
    block_nbytes: int,
    past_cache: PastCacheReader,
) -> list[Callable[[], None]]:
    tasks: list[Callable[[], None]] = []
    slice_nbytes = max(block_nbytes, _SLICE_NBYTES // block_nbytes * block_nbytes)
    nbytes = np.array(ranges.nbytes, np.int64)
    for i in np.flatnonzero(nbytes >= _LARGE_NBYTES).tolist():
        offset, size = ranges.offsets[i], ranges.nbytes[i]
        shift = offset % filesystem.DIRECT_ALIGNMENT
        results[i] = filesystem.new_memory(shift + size)[shift:]
        for start in range(0, size, slice_nbytes):
            piece = results[i][start : start + slice_nbytes]
            first = ranges.first_checksums[i] + start // block_nbytes
            expected = None if ranges.checksums is None else (ranges.checksums, first)
            tasks.append(
                partial(_read_slice, descriptor, past_cache, piece, offset + start, expected, i, damaged, block_nbytes)
            )
    for group in _groups(np.array(ranges.offsets, np.int64), nbytes):
        tasks.append(partial(_read_group, descriptor, ranges, group, results, damaged, block_nbytes))
    return tasks


_EMPTY = np.empty(0, np.uint8)


def _groups(offsets: np.ndarray, nbytes: np.ndarray) -> list[list[int]]:
    """The small ranges, except for empty ones, in groups that are near enough to be read at once."""
    small = np.flatnonzero((nbytes < _LARGE_NBYTES) & (nbytes > 0))
    small = small[np.argsort(offsets[small], kind="stable")]
    starts, ends = offsets[small], offsets[small] + nbytes[small]
    far = starts[1:] - np.maximum.accumulate(ends)[:-1] > _GAP_NBYTES
    far |= starts[1:] // _LARGE_NBYTES != starts[:-1] // _LARGE_NBYTES
    return [group.tolist() for group in np.split(small, np.flatnonzero(far) + 1) if group.size]


def _read_group(
    descriptor: int,
    ranges: Ranges,
    group: Sequence[int],
    results: list[np.ndarray],
    damaged: set[int],
    block_nbytes: int,
) -> None:
    offsets, nbytes, first_checksums, checksums = ranges
    start = offsets[group[0]]
    end = max(offsets[i] + nbytes[i] for i in group)
    shift = start % filesystem.DIRECT_ALIGNMENT
    memory = filesystem.new_memory(shift + end - start)
    read_fully(descriptor, memory[shift:], start)
    view = memoryview(memory)  # type: ignore[arg-type]
    before = start - shift
    for i in group:
        low = offsets[i] - before
        high = low + nbytes[i]
        results[i] = memory[low:high]
        if checksums is None:
            continue
        if high - low <= block_nbytes:
            intact = checksum(view[low:high]) == checksums[first_checksums[i]]
        else:
            intact = _are_intact(results[i], checksums, first_checksums[i], block_nbytes)
        if not intact:
            damaged.add(i)


def _read_slice(
    descriptor: int,
    past_cache: PastCacheReader,
    data: np.ndarray,
    offset: int,
    expected: tuple[Sequence[int], int] | None,
    i: int,
    damaged: set[int],
    block_nbytes: int,
) -> None:
    is_read = past_cache.read(data, offset)
    if expected is None:
        if not is_read:
            read_fully(descriptor, data, offset)
        return
    # Step by step, so that the checksums are computed while the bytes are still in the processor's cache.
    checksums, first = expected
    blocks = max(_STEP_NBYTES // block_nbytes, 1)
    for start in range(0, data.nbytes, blocks * block_nbytes):
        piece = data[start : start + blocks * block_nbytes]
        if not is_read:
            read_fully(descriptor, piece, offset + start)
        if not _are_intact(piece, checksums, first + start // block_nbytes, block_nbytes):
            damaged.add(i)


def _are_intact(data: np.ndarray, checksums: Sequence[int], first: int, block_nbytes: int) -> bool:
    return all(each == checksums[i] for i, each in enumerate(block_checksums(data, block_nbytes), first))
