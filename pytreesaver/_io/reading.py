"""Read many byte ranges of a file into new, aligned memory, and verify their checksums."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums import block_checksums, checksum
from pytreesaver._io.files import DirectReader, read_fully
from pytreesaver._io.parallel import SLICE_NBYTES, advance, run_all

ALIGNMENT = 64
"""On the CPU, JAX uses memory with this alignment in place and copies all other memory."""

_LARGE_NBYTES = 1 << 20  # from this size on, a range has memory of its own, so that it can be freed separately
_STEP_NBYTES = 1 << 20
_GAP_NBYTES = 64 << 10  # reading this much is cheaper than another system call


class ReadRanges(NamedTuple):
    """Byte ranges of a file, in columns: range i has ``nbytes[i]`` bytes at ``offsets[i]``.

    The checksums of its blocks start at ``checksums[first_checksums[i]]``; with None they are not verified.
    """

    offsets: Sequence[int]
    nbytes: Sequence[int]
    first_checksums: Sequence[int]
    checksums: Sequence[int] | None


def read_ranges(descriptor: int, ranges: ReadRanges, block_nbytes: int) -> tuple[list[np.ndarray], list[int]]:
    """Read all ranges. Return a uint8[nbytes] for each, and the indices of those with a checksum mismatch.

    Each large range has its own memory, aligned to `ALIGNMENT`. Where possible, its address and its file offset are
    equal modulo 4096, as direct I/O requires.

    Raises:
        EndOfFileError: if a range extends beyond the end of the file.
    """
    with DirectReader(descriptor) as direct:
        reading = _Reading(descriptor, direct, ranges, block_nbytes)
        run_all(reading.tasks(), sum(ranges.nbytes))
    return reading.results, sorted(reading.damaged)


_EMPTY = np.empty(0, np.uint8)


class _Reading:
    """State that the threads of one `read_ranges` share."""

    def __init__(self, descriptor: int, direct: DirectReader, ranges: ReadRanges, block_nbytes: int) -> None:
        self.results: list[np.ndarray] = [_EMPTY] * len(ranges.offsets)
        self.damaged: set[int] = set()
        self._descriptor = descriptor
        self._direct = direct
        self._ranges = ranges
        self._block_nbytes = block_nbytes

    def tasks(self) -> list[Callable[[], None]]:
        """Return a task for each slice of a large range and for each group of neighbouring small ranges."""
        ranges, block = self._ranges, self._block_nbytes
        slice_nbytes = max(block, SLICE_NBYTES // block * block)
        nbytes = np.array(ranges.nbytes, np.int64)
        tasks: list[Callable[[], None]] = []
        for i in np.flatnonzero(nbytes >= _LARGE_NBYTES).tolist():
            shift = ranges.offsets[i] % filesystem.DIRECT_ALIGNMENT
            shift = shift if shift % ALIGNMENT == 0 else 0
            self.results[i] = filesystem.new_memory(shift + ranges.nbytes[i])[shift:]
            tasks += [
                partial(self._read_slice, i, start, slice_nbytes) for start in range(0, ranges.nbytes[i], slice_nbytes)
            ]
        groups = _groups(np.array(ranges.offsets, np.int64), nbytes)
        return tasks + [partial(self._read_group, group) for group in groups]

    def _read_group(self, group: Sequence[int]) -> None:
        offsets, nbytes, first_checksums, checksums = self._ranges
        start = offsets[group[0]]
        end = max(offsets[i] + nbytes[i] for i in group)
        shift = start % filesystem.DIRECT_ALIGNMENT
        memory = filesystem.new_memory(shift + end - start)
        read_fully(self._descriptor, memory[shift:], start)
        view = memoryview(memory)  # type: ignore[arg-type]
        origin = start - shift
        for i in group:
            low = offsets[i] - origin
            high = low + nbytes[i]
            self.results[i] = memory[low:high]
            if checksums is None:
                continue
            if high - low <= self._block_nbytes:  # fast path for thousands of ranges of a single block
                intact = checksum(view[low:high]) == checksums[first_checksums[i]]
            else:
                intact = self._are_intact(self.results[i], checksums, first_checksums[i])
            if not intact:
                self.damaged.add(i)
        advance(end - start)

    def _read_slice(self, i: int, start: int, slice_nbytes: int) -> None:
        block, checksums = self._block_nbytes, self._ranges.checksums
        data = self.results[i][start : start + slice_nbytes]
        offset = self._ranges.offsets[i] + start
        is_read = self._direct.read(data, offset)
        if checksums is None:
            if not is_read:
                read_fully(self._descriptor, data, offset)
            advance(data.nbytes)
            return
        # In small steps, so that checksums are computed while the bytes are in the CPU cache.
        first = self._ranges.first_checksums[i] + start // block
        blocks = max(_STEP_NBYTES // block, 1)
        for begin in range(0, data.nbytes, blocks * block):
            piece = data[begin : begin + blocks * block]
            if not is_read:
                read_fully(self._descriptor, piece, offset + begin)
            if not self._are_intact(piece, checksums, first + begin // block):
                self.damaged.add(i)
        advance(data.nbytes)

    def _are_intact(self, data: np.ndarray, checksums: Sequence[int], first: int) -> bool:
        return all(each == checksums[i] for i, each in enumerate(block_checksums(data, self._block_nbytes), first))


def _groups(offsets: np.ndarray, nbytes: np.ndarray) -> list[list[int]]:
    """Return the small, nonempty ranges in groups that are close enough for a single read."""
    small = np.flatnonzero((nbytes < _LARGE_NBYTES) & (nbytes > 0))
    small = small[np.argsort(offsets[small], kind="stable")]
    starts, ends = offsets[small], offsets[small] + nbytes[small]
    far = starts[1:] - np.maximum.accumulate(ends)[:-1] > _GAP_NBYTES
    far |= starts[1:] // _LARGE_NBYTES != starts[:-1] // _LARGE_NBYTES
    return [group.tolist() for group in np.split(small, np.flatnonzero(far) + 1) if group.size]
