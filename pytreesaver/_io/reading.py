"""Read many stretches of one file into fresh, aligned memory and check them on the way."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums import block_checksums
from pytreesaver._io.parallel import run_all

_LARGE_NBYTES = 1 << 20  # from here on a stretch has memory of its own, so that dropping it frees it
_SLICE_NBYTES = 8 << 20
_GAP_NBYTES = 64 << 10  # it costs less to read this much than to make another system call
_PAGE_NBYTES = 4096


class Range(NamedTuple):
    """`nbytes` bytes at `offset` of a file, with the checksums of their blocks, or None where they are not checked."""

    offset: int
    nbytes: int
    checksums: Sequence[int] | None


class EndOfFileError(Exception):
    """The file ended before everything was read."""


def read_ranges(descriptor: int, ranges: Sequence[Range], block_nbytes: int) -> tuple[list[np.ndarray], list[int]]:
    """Read every range. Gives uint8[nbytes] for each, and the positions of those whose checksums do not fit.

    A range lies in memory as it lies in the file modulo 4096. Large ranges have memory of their own.

    Raises:
        EndOfFileError: the file is shorter than a range asks for.
    """
    results: list[np.ndarray] = [_EMPTY] * len(ranges)
    damaged: set[int] = set()
    tasks: list[Callable[[], None]] = []
    group: list[int] = []
    slice_nbytes = max(block_nbytes, _SLICE_NBYTES // block_nbytes * block_nbytes)

    def end_group() -> None:
        nonlocal group
        if group:
            tasks.append(partial(_read_group, descriptor, ranges, group, results, damaged, block_nbytes))
        group = []

    for i in sorted(range(len(ranges)), key=lambda i: ranges[i].offset):
        offset, nbytes, checksums = ranges[i]
        if nbytes == 0:
            continue
        if nbytes >= _LARGE_NBYTES:
            shift = offset % _PAGE_NBYTES
            results[i] = filesystem.new_memory(shift + nbytes)[shift:]
            for start in range(0, nbytes, slice_nbytes):
                piece = results[i][start : start + slice_nbytes]
                block = start // block_nbytes
                expected = checksums[block : block + slice_nbytes // block_nbytes] if checksums is not None else None
                tasks.append(
                    partial(_read_slice, descriptor, piece, offset + start, expected, i, damaged, block_nbytes)
                )
            continue
        if group:
            end = sum(ranges[group[-1]][:2])
            if offset - end > _GAP_NBYTES or offset + nbytes - ranges[group[0]].offset > _LARGE_NBYTES:
                end_group()
        group.append(i)
    end_group()
    run_all(tasks, sum(r.nbytes for r in ranges))
    return results, sorted(damaged)


_EMPTY = np.empty(0, np.uint8)


def _read_group(
    descriptor: int,
    ranges: Sequence[Range],
    group: Sequence[int],
    results: list[np.ndarray],
    damaged: set[int],
    block_nbytes: int,
) -> None:
    start = ranges[group[0]].offset
    end = max(ranges[i].offset + ranges[i].nbytes for i in group)
    shift = start % _PAGE_NBYTES
    memory = filesystem.new_memory(shift + end - start)
    read_fully(descriptor, memory[shift:], start)
    for i in group:
        offset, nbytes, checksums = ranges[i]
        begin = shift + offset - start
        data = results[i] = memory[begin : begin + nbytes]
        if checksums is not None and list(block_checksums(data, block_nbytes)) != list(checksums):
            damaged.add(i)


def _read_slice(
    descriptor: int,
    data: np.ndarray,
    offset: int,
    expected: Sequence[int] | None,
    i: int,
    damaged: set[int],
    block_nbytes: int,
) -> None:
    read_fully(descriptor, data, offset)
    if expected is not None and list(block_checksums(data, block_nbytes)) != list(expected):
        damaged.add(i)


def read_fully(descriptor: int, buffer: np.ndarray, offset: int) -> None:
    """Fill all of uint8[n] from `offset`.

    Raises:
        EndOfFileError: the file is shorter.
    """
    done = 0
    while done < buffer.nbytes:
        count = filesystem.read_into(descriptor, buffer[done : done + filesystem.MOST_BYTES], offset + done)
        if count == 0:
            raise EndOfFileError
        done += count


def read_file(descriptor: int) -> bytes:
    """All bytes of an open file."""
    buffer = np.empty(filesystem.file_size(descriptor), np.uint8)
    read_fully(descriptor, buffer, 0)
    return buffer.tobytes()
