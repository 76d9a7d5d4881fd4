"""How the processes of a program share the writing of a tree, from the shardings of its arrays."""

import bisect
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec

from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._tree.boxes import index_box
from pytreesaver._tree.kinds import ArrayPart, Cells, LeafType, describe, grid_cells, logical_shape, storage_dtype
from pytreesaver._tree.leaves import LeafError
from pytreesaver._tree.sharing import piece_limit, share_out, split_grid
from pytreesaver.formats.fetching import is_on_cpu
from pytreesaver.formats.protocol import SharedWriting, TreeContents


class _Grid(NamedTuple):
    """The shards of an array over all processes.

    Attributes:
        boundaries: as in `Cells`.
        holders: for each cell, the processes that hold it.
        devices: for each cell and process that holds it, the number of its first device with it.
    """

    boundaries: list[list[int]]
    holders: list[tuple[int, ...]]
    devices: list[dict[int, int]]


class _Plan(NamedTuple):
    """The cells of a leaf: their boundaries, and for each its size and the processes that hold it.

    `grid` is that of the sharding, which may be coarser; None for a leaf that process 0 writes whole.
    """

    boundaries: list[list[int]] | None
    nbytes: list[int]
    holders: list[tuple[int, ...]]
    grid: _Grid | None


def shared_contents(contents: TreeContents, leaves: Sequence[Any], rank: int, count: int) -> TreeContents:
    """Return the contents with the cells that this process writes, and the plan that all processes share.

    Args:
        contents: the contents, without cells.
        leaves: the leaves of the tree.
        rank: the number of this process.
        count: the number of processes.

    Raises:
        LeafError: if the shards of an array do not form a grid. No current sharding of JAX does this.
    """
    arrays = [_global_array(leaf, leaf_type) for leaf, leaf_type in zip(leaves, contents.types, strict=True)]
    limit = piece_limit(contents.nbytes, count)
    columns = zip(arrays, contents.types, contents.shapes, strict=True)
    plans = [_plan_of(array, leaf_type, shape, limit) for array, leaf_type, shape in columns]
    sizes = [size for plan in plans for size in plan.nbytes]
    writers = share_out(sizes, [who for plan in plans for who in plan.holders], count)
    nbytes = sum(size for size, writer in zip(sizes, writers, strict=True) if writer == rank)
    cells, begin = [], 0
    for leaf, array, plan in zip(leaves, arrays, plans, strict=True):
        end = begin + len(plan.nbytes)
        cells.append(_cells(leaf, array, plan, writers[begin:end], rank))
        begin = end
    copies = [
        i
        for i, (array, leaf_type) in enumerate(zip(arrays, contents.types, strict=True))
        if array is None and leaf_type.kind in ("jax", "key")
    ]
    text = msgspec.json.encode(
        [
            (name, _described(leaf_type, shape), plan.boundaries, plan.holders, contents.same_as.get(i))
            if leaf_type.kind in ("jax", "key")
            else (name, leaf_type.kind)
            for i, (name, leaf_type, shape, plan) in enumerate(
                zip(contents.names, contents.types, contents.shapes, plans, strict=True)
            )
        ]
    )
    describe = functools.partial(_descriptions, contents, plans)
    shared = SharedWriting(rank, writers, copies, f"{checksum(text):016x}", nbytes, describe)
    return contents._replace(cells=cells, shared=shared)


def _global_array(leaf: Any, leaf_type: LeafType) -> Any:
    """Return an array that is spread over several processes, or None if this process has its own."""
    if leaf_type.kind not in ("jax", "key") or leaf.is_fully_addressable:
        return None
    return jax.random.key_data(leaf) if leaf_type.kind == "key" else leaf


def _plan_of(array: Any, leaf_type: LeafType, shape: tuple[int, ...], limit: int) -> _Plan:
    itemsize = storage_dtype(leaf_type).itemsize
    if array is None:
        return _Plan(None, [math.prod(shape) * itemsize], [(0,)], None)
    return _global_plan(array.sharding, tuple(array.shape), itemsize, limit)


@functools.lru_cache(maxsize=4096)
def _global_plan(sharding: Any, shape: tuple[int, ...], itemsize: int, limit: int) -> _Plan:
    grid = _grid_of(sharding, shape)
    boundaries = split_grid(grid.boundaries, [len(who) for who in grid.holders], itemsize, limit)
    nbytes = [math.prod(cell_shape) * itemsize for _, cell_shape in grid_cells(boundaries)]
    holders = [grid.holders[i] for i in _parents(grid.boundaries, boundaries)]
    return _Plan(boundaries, nbytes, holders, grid)


def _grid_of(sharding: Any, shape: tuple[int, ...]) -> _Grid:
    by_box: dict[Any, dict[int, int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        devices = by_box.setdefault(index_box(index, shape), {})
        devices[device.process_index] = min(device.id, devices.get(device.process_index, device.id))
    if math.prod(shape) == 0:  # all boxes of an empty array are alike
        devices = {rank: device for each in by_box.values() for rank, device in each.items()}
        return _Grid([[0, length] for length in shape], [tuple(sorted(devices))], [devices])
    starts = {tuple(low for low, _ in box): devices for box, devices in by_box.items()}
    boundaries = [[*sorted({start[axis] for start in starts}), length] for axis, length in enumerate(shape)]
    cells = [start for start, _ in grid_cells(boundaries)]
    if any(start not in starts for start in cells) or len(starts) != len(by_box):
        raise LeafError(f"whose shards do not form a grid ({sharding})")
    found = [starts[start] for start in cells]
    return _Grid(boundaries, [tuple(sorted(devices)) for devices in found], found)


def _parents(coarse: Sequence[Sequence[int]], fine: Sequence[Sequence[int]]) -> list[int]:
    """Return for each cell of a finer grid the number of the cell that it is in."""
    positions = []
    for outer, inner in zip(coarse, fine, strict=True):
        last = len(outer) - 2
        positions.append([min(bisect.bisect_right(outer, start) - 1, last) for start in inner[:-1]])
    strides = [math.prod(len(axis) - 1 for axis in coarse[i + 1 :]) for i in range(len(coarse))]
    return [
        sum(position * stride for position, stride in zip(each, strides, strict=True))
        for each in itertools.product(*positions)
    ]


def _cells(leaf: Any, array: Any, plan: _Plan, writers: Sequence[int], rank: int) -> Cells:
    if plan.grid is None:
        is_copy = isinstance(leaf, jax.Array)  # compared with the copies of the other processes
        return Cells([_key_data(leaf) if rank == 0 or is_copy else None])
    assert plan.boundaries is not None
    grid = plan.grid
    parents = _parents(grid.boundaries, plan.boundaries)
    devices = [grid.devices[parent][writer] for parent, writer in zip(parents, writers, strict=True)]
    arrays: list[Any] = [None] * len(writers)
    if rank in writers:
        shards: dict[tuple[int, ...], Any] = {}
        for shard in array.addressable_shards:
            shards.setdefault(tuple(part.start or 0 for part in shard.index), shard.data)
        origins = [start for start, _ in grid_cells(grid.boundaries)]
        if array.size == 0:  # any of its shards has all of its bytes
            shards = {origins[0]: next(iter(shards.values()))}
        for i, (start, shape) in enumerate(grid_cells(plan.boundaries)):
            if writers[i] == rank:
                arrays[i] = _part(shards[origins[parents[i]]], start, shape, origins[parents[i]])
    is_whole = len(writers) == 1
    return Cells(arrays, None if is_whole else plan.boundaries, devices)


def _part(shard: Any, start: Sequence[int], shape: Sequence[int], origin: Sequence[int]) -> Any:
    """Return the box of a shard that begins at `start` in the array, in which the shard begins at `origin`."""
    if tuple(shard.shape) == tuple(shape):
        return shard
    index = tuple(slice(a - zero, a - zero + n) for a, n, zero in zip(start, shape, origin, strict=True))
    return ArrayPart(shard, index) if is_on_cpu(shard) else shard[index]


def _key_data(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _described(leaf_type: LeafType, shape: Sequence[int]) -> str:
    return describe(leaf_type, logical_shape(leaf_type, shape))


def _descriptions(contents: TreeContents, plans: Sequence[_Plan]) -> Mapping[str, str]:
    """Return what the digest stands for, a line for each variable."""
    lines = {}
    for i, (name, leaf_type, shape, plan) in enumerate(
        zip(contents.names, contents.types, contents.shapes, plans, strict=True)
    ):
        if leaf_type.kind not in ("jax", "key"):
            lines[name] = f"a value of Python ({leaf_type.kind})" if leaf_type.kind in _HOST else "an array of NumPy"
            continue
        where = "of this process alone" if plan.grid is None else f"sharded at {plan.grid.boundaries}"
        same = f", the same array as {contents.names[contents.same_as[i]]}" if i in contents.same_as else ""
        lines[name] = f"{_described(leaf_type, shape)} {where}{same}"
    return lines


_HOST = ("bool", "int", "float", "complex", "str", "bytes")
