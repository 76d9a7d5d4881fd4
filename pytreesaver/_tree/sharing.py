"""Which process writes which part of a tree: every byte once, and as many bytes in each process. Pure functions.

Every process computes the same plan from the shardings, which say who holds what, without a message.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

MIN_PIECE_NBYTES = 1 << 20
"""Pieces of a replicated array are not smaller than this."""

_PIECES_PER_PROCESS = 8


def piece_limit(total_nbytes: int, processes: int) -> int:
    """Return the size from which a replicated cell is split, for a tree of this size in bytes.

    A process then writes at most about an eighth more than the others.

    Example:
        >>> piece_limit(1 << 30, 4) >> 20, piece_limit(1000, 4) >> 20
        (32, 1)
    """
    return max(MIN_PIECE_NBYTES, total_nbytes // (processes * _PIECES_PER_PROCESS))


def split_grid(
    boundaries: Sequence[Sequence[int]], holders: Sequence[int], itemsize: int, limit: int
) -> list[list[int]]:
    """Return the boundaries of a finer grid, so that the processes that hold replicas of a cell can share it.

    Args:
        boundaries: for each axis, the boundaries of the cells.
        holders: for each cell, how many processes hold it.
        itemsize: the size of an element in bytes.
        limit: cells of at most this many bytes are not split.

    Example:
        >>> split_grid([[0, 8], [0, 1 << 20]], [4], 4, 1 << 20)
        [[0, 2, 4, 6, 8], [0, 1048576]]
    """
    longest = [max(b - a for a, b in itertools.pairwise(axis)) for axis in boundaries]
    nbytes = math.prod(longest) * itemsize
    pieces = min(min(holders, default=1), -(-nbytes // limit), max(nbytes // MIN_PIECE_NBYTES, 1))
    if pieces < 2:
        return [list(axis) for axis in boundaries]
    shortest = [min(b - a for a, b in itertools.pairwise(axis)) for axis in boundaries]
    # Pieces of the first axis are contiguous in memory.
    split = next((i for i, length in enumerate(shortest) if length >= pieces), int(np.argmax(shortest)))
    pieces = min(pieces, shortest[split])
    finer = [list(axis) for axis in boundaries]
    axis = boundaries[split]
    finer[split] = [a + (b - a) * k // pieces for a, b in itertools.pairwise(axis) for k in range(pieces)]
    finer[split].append(axis[-1])
    return finer


def share_out(nbytes: np.ndarray, groups: np.ndarray, holders: Sequence[tuple[int, ...]], processes: int) -> np.ndarray:
    """Return which process writes each cell: one that holds it, so that all write about as many bytes.

    Args:
        nbytes: the size of each cell.
        groups: for each cell the number of the group of processes that hold it.
        holders: the processes of each group, in ascending order.
        processes: the number of processes.

    Example:
        >>> holders = [(0,), (0, 1, 2), (0, 1), (2,)]
        >>> share_out(np.array([10, 10, 5, 5, 10]), np.array([0, 1, 2, 1, 3]), holders, 3)
        array([0, 1, 1, 2, 2])
    """
    load = np.zeros(processes, np.int64)
    writers = np.zeros(len(nbytes), np.int64)
    by_group = np.argsort(groups, kind="stable")
    cells_of = np.split(by_group, np.cumsum(np.bincount(groups, minlength=len(holders)))[:-1]) if holders else []
    for number in sorted(range(len(holders)), key=lambda number: (len(holders[number]), holders[number])):
        cells, ranks = cells_of[number], np.array(holders[number])
        writers[cells] = ranks[_fill(load[ranks], nbytes[cells])]
        np.add.at(load, writers[cells], nbytes[cells])
    return writers


def _fill(load: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the position of the process for each size, so that the least loaded ones are filled up to one level."""
    if len(load) == 1:
        return np.zeros(len(sizes), np.int64)
    total = int(sizes.sum())
    order = np.argsort(load, kind="stable")
    lowest = load[order]
    # The level at which all of `total` fits above the k lowest loads.
    filled = np.cumsum(lowest)
    counts = np.arange(1, len(load) + 1)
    levels = (total + filled) / counts
    fits = np.append(levels[:-1] <= lowest[1:], True)
    level = levels[int(np.argmax(fits))]
    quotas = np.maximum(level - lowest, 0)
    ends = np.cumsum(quotas)
    middles = np.cumsum(sizes) - sizes / 2
    chosen = np.minimum(np.searchsorted(ends, middles, side="left"), len(load) - 1)
    result: np.ndarray = order[chosen]
    return result
