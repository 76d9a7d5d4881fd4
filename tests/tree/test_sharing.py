"""Which process writes which part: every byte once, and as many in each process."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pytreesaver._tree.kinds import grid_cells
from pytreesaver._tree.sharing import MIN_PIECE_NBYTES, piece_limit, share_out, split_grid

PROCESSES = st.integers(1, 9)


@st.composite
def cells(draw):
    processes = draw(PROCESSES)
    ranks = st.lists(st.integers(0, processes - 1), min_size=1, unique=True).map(lambda each: tuple(sorted(each)))
    holders = draw(st.lists(ranks, min_size=1, max_size=5, unique=True))
    count = draw(st.integers(0, 60))
    groups = draw(st.lists(st.integers(0, len(holders) - 1), min_size=count, max_size=count))
    sizes = draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
    return np.array(sizes, np.int64), np.array(groups, np.int64), holders, processes


@given(cells())
def test_a_holder_writes_each_cell(given_cells):
    sizes, groups, holders, processes = given_cells
    writers = share_out(sizes, groups, holders, processes)
    assert len(writers) == len(sizes)
    assert all(writer in holders[group] for writer, group in zip(writers, groups, strict=True))


@given(PROCESSES, st.lists(st.integers(0, 1000), max_size=200))
def test_what_all_hold_is_shared_out_evenly(processes, sizes):
    holders = [tuple(range(processes))]
    writers = share_out(np.array(sizes, np.int64), np.zeros(len(sizes), np.int64), holders, processes)
    load = np.bincount(writers, weights=sizes, minlength=processes)
    assert load.max() - load.min() <= 2 * max(sizes, default=0)


@given(PROCESSES, st.integers(1, 50), st.integers(1, 50))
def test_those_that_have_less_of_their_own_get_more(processes, own, shared):
    """Process 0 has bytes that nobody else has: the others write what all hold, up to its level."""
    sizes = np.array([own * 10] + [1] * shared * 10, np.int64)
    groups = np.array([0] + [1] * shared * 10, np.int64)
    writers = share_out(sizes, groups, [(0,), tuple(range(processes))], processes)
    load = np.bincount(writers, weights=sizes, minlength=processes)
    fair = max(own * 10, -(-(own * 10 + shared * 10) // processes))
    assert load.max() <= fair + 1


@st.composite
def grids(draw):
    axes = draw(st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=3), max_size=3))
    return [np.cumsum([0, *axis]).tolist() for axis in axes]


@given(grids(), st.integers(1, 8), st.sampled_from([1, 2, 4, 8]), st.integers(MIN_PIECE_NBYTES, 1 << 24))
def test_a_finer_grid_has_the_boundaries_of_the_coarse_one(boundaries, holders, itemsize, limit):
    count = len(list(grid_cells(boundaries)))
    finer = split_grid(boundaries, [holders] * count, itemsize, limit)
    assert all(set(outer) <= set(inner) for outer, inner in zip(boundaries, finer, strict=True))
    assert all(inner == sorted(set(inner)) for inner in finer)
    pieces = len(list(grid_cells(finer)))
    assert pieces <= count * holders
    if pieces > count:
        largest = max(np.prod(shape) * itemsize for _, shape in grid_cells(boundaries))
        assert largest > limit
        smallest_axis = [min(np.diff(axis)) for axis in boundaries]
        assert all(length >= 1 for length in smallest_axis)


@given(st.integers(0, 1 << 50), PROCESSES)
def test_pieces_are_at_least_a_mebibyte(nbytes, processes):
    assert piece_limit(nbytes, processes) >= MIN_PIECE_NBYTES
