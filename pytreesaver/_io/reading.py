"""Read many byte ranges of a file into new, aligned memory, and verify their checksums."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES
from pytreesaver._io.files import DirectReader, read_fully
from pytreesaver._io.parallel import RANGE_NBYTES, SLICE_NBYTES, advance, run_all
from pytreesaver._io.stores.dispatch import is_in_store

ALIGNMENT = 64
"""On the CPU, JAX uses memory with this alignment in place and copies all other memory."""

_LARGE_NBYTES = 1 << 20  # from this size on, a range has memory of its own, so that it can be freed separately
_STEP_NBYTES = 1 << 20
_GAP_NBYTES = 64 << 10  # reading this much is cheaper than another system call


class RangeChecks(Protocol):
    """Compares what is read with checksums."""

    granularity: int | None
    """Parts of a range can be checked from each multiple of this on. None: only a range as a whole."""

    def is_intact(self, number: int, begin: int, data: np.ndarray) -> bool:
        """Return whether a part of a range is intact. Thread-safe.

        Args:
            number: the number of the range.
            begin: where in the range the part begins.
            data: its bytes, a uint8[n]. Without a granularity, each byte of a range has to be in one part; the result
                for the last one is that of the range.
        """
        ...


class ReadRanges(NamedTuple):
    """Byte ranges of a file, in columns: range i has ``nbytes[i]`` bytes at ``offsets[i]``.

    `checks` knows it as ``numbers[i]``, of which it is the part from ``begins[i]`` on, or from 0. Without `checks`,
    nothing is verified.
    """

    offsets: Sequence[int]
    nbytes: Sequence[int]
    numbers: Sequence[int]
    checks: RangeChecks | None
    begins: Sequence[int] | None = None


def read_ranges(descriptor: int, ranges: ReadRanges) -> tuple[list[np.ndarray], list[int]]:
    """Read all ranges. Return a uint8[nbytes] for each, and the indices of those with a checksum mismatch.

    Each large range has its own memory, aligned to `ALIGNMENT`. Where possible, its address and its file offset are
    equal modulo 4096, as direct I/O requires.

    Raises:
        EndOfFileError: if a range extends beyond the end of the file.
    """
    with DirectReader(descriptor) as direct:
        reading = _Reading(descriptor, direct, ranges)
        run_all(reading.tasks(), sum(ranges.nbytes), in_store=is_in_store(descriptor))
    return reading.results, sorted(reading.damaged)


_EMPTY = np.empty(0, np.uint8)


class _Reading:
    """State that the threads of one `read_ranges` share."""

    def __init__(self, descriptor: int, direct: DirectReader, ranges: ReadRanges) -> None:
        self.results: list[np.ndarray] = [_EMPTY] * len(ranges.offsets)
        self.damaged: set[int] = set()
        self._descriptor = descriptor
        self._direct = direct
        self._ranges = ranges
        self._block_nbytes = (ranges.checks.granularity if ranges.checks else None) or BLOCK_NBYTES

    def tasks(self) -> list[Callable[[], None]]:
        """Return a task for each slice of a large range and for each group of neighbouring small ranges."""
        ranges, block = self._ranges, self._block_nbytes
        most = RANGE_NBYTES if is_in_store(self._descriptor) else SLICE_NBYTES
        slice_nbytes = max(block, most // block * block)
        tasks: list[Callable[[], None]] = []
        for i in [i for i, count in enumerate(ranges.nbytes) if count >= _LARGE_NBYTES]:
            shift = ranges.offsets[i] % filesystem.DIRECT_ALIGNMENT
            shift = shift if shift % ALIGNMENT == 0 else 0
            self.results[i] = filesystem.new_memory(shift + ranges.nbytes[i])[shift:]
            tasks += [
                partial(self._read_slice, i, start, slice_nbytes) for start in range(0, ranges.nbytes[i], slice_nbytes)
            ]
        return tasks + [partial(self._read_group, group) for group in _groups(ranges.offsets, ranges.nbytes)]

    def _read_group(self, group: Sequence[int]) -> None:
        offsets, nbytes, numbers, checks, begins = self._ranges
        start = offsets[group[0]]
        end = max(offsets[i] + nbytes[i] for i in group)
        shift = start % filesystem.DIRECT_ALIGNMENT
        memory = filesystem.new_memory(shift + end - start)
        read_fully(self._descriptor, memory[shift:], start)
        origin = start - shift
        for i in group:
            low = offsets[i] - origin
            data = self.results[i] = memory[low : low + nbytes[i]]
            if checks is not None and not checks.is_intact(numbers[i], begins[i] if begins else 0, data):
                self.damaged.add(i)
        advance(end - start)

    def _read_slice(self, i: int, start: int, slice_nbytes: int) -> None:
        block, checks = self._block_nbytes, self._ranges.checks
        data = self.results[i][start : start + slice_nbytes]
        offset = self._ranges.offsets[i] + start
        is_read = self._direct.read(data, offset)
        if checks is None:
            if not is_read:
                read_fully(self._descriptor, data, offset)
            advance(data.nbytes)
            return
        # In small steps, so that checksums are computed while the bytes are in the CPU cache.
        number, begins = self._ranges.numbers[i], self._ranges.begins
        start += begins[i] if begins else 0
        step = max(_STEP_NBYTES // block, 1) * block
        for begin in range(0, data.nbytes, step):
            piece = data[begin : begin + step]
            if not is_read:
                read_fully(self._descriptor, piece, offset + begin)
            if not checks.is_intact(number, start + begin, piece):
                self.damaged.add(i)
        advance(data.nbytes)


def _groups(offsets: Sequence[int], nbytes: Sequence[int]) -> list[list[int]]:
    """Return the small, nonempty ranges in groups that are close enough for a single read."""
    groups: list[list[int]] = []
    end, megabyte = 0, -1
    small = [i for i, count in enumerate(nbytes) if 0 < count < _LARGE_NBYTES]
    for i in sorted(small, key=offsets.__getitem__):
        start = offsets[i]
        if start - end > _GAP_NBYTES or start // _LARGE_NBYTES != megabyte:
            groups.append([])
        groups[-1].append(i)
        end, megabyte = max(end, start + nbytes[i]), start // _LARGE_NBYTES
    return groups
