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
import numpy as np

from pytreesaver._errors import CheckpointError, UnsupportedLeafError
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._tree.boxes import index_box
from pytreesaver._tree.kinds import ArrayPart, Cells, LeafType, describe, grid_cells, logical_shape, storage_dtype
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
    """The cells of a leaf, which many leaves have in common.

    Attributes:
        boundaries: as in `Cells`; None for a leaf that process 0 writes whole.
        nbytes: the size of each cell.
        groups: for each cell the number of the group of processes that hold it.
        pieces: the start and the shape of each cell.
        parents: for each cell the number of the cell of the sharding that it is in.
        origins: the start of each cell of the sharding.
        grid: the cells of the sharding; None for a leaf that process 0 writes whole.
    """

    boundaries: list[list[int]] | None
    nbytes: np.ndarray
    groups: np.ndarray
    pieces: list[tuple[tuple[int, ...], tuple[int, ...]]]
    parents: list[int]
    origins: list[tuple[int, ...]]
    grid: _Grid | None


class _Groups:
    """Numbers the groups of processes that hold a cell: comparing the groups themselves would take long."""

    def __init__(self) -> None:
        self.holders: list[tuple[int, ...]] = []
        self._numbers: dict[tuple[int, ...], int] = {}

    def number(self, who: tuple[int, ...]) -> int:
        """Return the number of a group."""
        number = self._numbers.setdefault(who, len(self.holders))
        if number == len(self.holders):
            self.holders.append(who)
        return number


def shared_contents(contents: TreeContents, leaves: Sequence[Any], rank: int, count: int) -> TreeContents:
    """Return the contents with the cells that this process writes, and the plan that all processes share.

    Args:
        contents: the contents, without cells.
        leaves: the leaves of the tree.
        rank: the number of this process.
        count: the number of processes.

    Raises:
        UnsupportedLeafError: if the shards of an array do not form a grid. No current sharding of JAX does this.
        CheckpointError: if the devices number the processes otherwise than the coordinator.
    """
    groups = _Groups()
    kinds = list(zip(contents.types, contents.shapes, strict=True))
    limit = piece_limit(sum(_nbytes(leaf_type, shape) for leaf_type, shape in kinds), count)
    known: dict[Any, _Plan] = {}
    arrays, plans = [], []
    for leaf, (leaf_type, shape) in zip(leaves, kinds, strict=True):
        array, itemsize = _global_array(leaf, leaf_type), storage_dtype(leaf_type).itemsize
        key: Any = (tuple(shape), itemsize, None if array is None else array.sharding)
        if leaf_type.kind not in ("jax", "key"):
            key = None  # those of process 0 count, and may be larger than others
        if key not in known:
            known_shape, known_size, sharding = key or ((0,), 1, None)
            known[key] = _plan_of(known_shape, known_size, sharding, limit, groups)
        arrays.append(array)
        plans.append(known[key])
    nbytes = np.concatenate([np.zeros(0, np.int64), *(plan.nbytes for plan in plans)])
    groups_of_cells = np.concatenate([np.zeros(0, np.int64), *(plan.groups for plan in plans)])
    writers = share_out(nbytes, groups_of_cells, groups.holders, count)
    _check_rank(arrays, rank)
    ends = np.cumsum([len(plan.nbytes) for plan in plans]).tolist()
    # Leaves with the same plan and writers have the same devices.
    devices: dict[Any, list[int]] = {}
    cells = []
    for leaf, array, plan, end in zip(leaves, arrays, plans, ends, strict=True):
        own = writers[end - len(plan.nbytes) : end]
        alike = (id(plan), own.tobytes())
        if alike not in devices:
            devices[alike] = _devices(plan, own)
        cells.append(_cells(leaf, array, plan, own, rank, devices[alike]))
    copies = [
        i
        for i, (array, leaf_type) in enumerate(zip(arrays, contents.types, strict=True))
        if array is None and leaf_type.kind in ("jax", "key")
    ]
    shared = SharedWriting(
        rank,
        writers.tolist(),
        copies,
        _digest(contents, plans, list(known.values()), groups, writers),
        int(nbytes[writers == rank].sum()),
        functools.partial(_descriptions, contents, plans),
    )
    return contents._replace(cells=cells, shared=shared)


def _check_rank(arrays: Sequence[Any], rank: int) -> None:
    """Raise a CheckpointError if the devices number the processes otherwise than the coordinator."""
    if any(array is not None for array in arrays) and jax.process_index() != rank:
        raise CheckpointError(
            f"this is process {rank} of jax.distributed, and process {jax.process_index()} of the devices: expected "
            "one number; pass process_id=jax.process_index() to jax.distributed.initialize"
        )


def _digest(
    contents: TreeContents, plans: Sequence[_Plan], known: Sequence[_Plan], groups: _Groups, writers: np.ndarray
) -> str:
    """Return a checksum of all that has to be the same in all processes. Values of the host may differ."""
    numbers = {id(plan): number for number, plan in enumerate(known)}
    described = {key: _described(*key) for key in set(zip(contents.types, map(tuple, contents.shapes), strict=True))}
    variables = [
        (name, described[leaf_type, tuple(shape)], numbers[id(plan)], contents.same_as.get(i))
        if leaf_type.kind in ("jax", "key")
        else (name, leaf_type.kind)
        for i, (name, leaf_type, shape, plan) in enumerate(
            zip(contents.names, contents.types, contents.shapes, plans, strict=True)
        )
    ]
    # A plan of a value of the host need not be the same: only that it is one.
    layouts = [None if plan.grid is None else (plan.boundaries, plan.groups.tolist()) for plan in known]
    text = msgspec.json.encode([variables, layouts, groups.holders])
    return f"{checksum(text + writers.tobytes()):016x}"


def _global_array(leaf: Any, leaf_type: LeafType) -> Any:
    """Return an array that is spread over several processes, or None if this process has its own.

    An array that only process 0 has looks like its own there.
    """
    if leaf_type.kind not in ("jax", "key") or leaf.is_fully_addressable:
        return None
    if all(device.process_index == 0 for device in leaf.sharding.device_set):
        return None
    return jax.random.key_data(leaf) if leaf_type.kind == "key" else leaf


def _nbytes(leaf_type: LeafType, shape: Sequence[int]) -> int:
    """Return the size of an array of JAX. What the processes may have in different sizes must not change the plan."""
    return math.prod(shape) * storage_dtype(leaf_type).itemsize if leaf_type.kind in ("jax", "key") else 0


def _plan_of(shape: tuple[int, ...], itemsize: int, sharding: Any, limit: int, groups: _Groups) -> _Plan:
    if sharding is None:
        nbytes = np.array([math.prod(shape) * itemsize], np.int64)
        return _Plan(None, nbytes, np.array([groups.number((0,))]), [], [0], [], None)
    plan = _cached_plan(sharding, shape, itemsize, limit)
    assert plan.grid is not None
    of_parent = np.array([groups.number(who) for who in plan.grid.holders])
    return plan._replace(groups=of_parent[plan.parents])


@functools.lru_cache(maxsize=1024)
def _cached_plan(sharding: Any, shape: tuple[int, ...], itemsize: int, limit: int) -> _Plan:
    """Return a plan without the numbers of groups, which belong to one save."""
    grid = _grid_of(sharding, shape)
    boundaries = split_grid(grid.boundaries, [len(who) for who in grid.holders], itemsize, limit)
    pieces = list(grid_cells(boundaries))
    sizes = np.array([math.prod(cell_shape) * itemsize for _, cell_shape in pieces], np.int64)
    origins = [start for start, _ in grid_cells(grid.boundaries)]
    return _Plan(boundaries, sizes, sizes, pieces, _parents(grid.boundaries, boundaries), origins, grid)


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
        raise UnsupportedLeafError(f"expected arrays whose shards form a grid, found the sharding {sharding}")
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


def _devices(plan: _Plan, writers: np.ndarray) -> list[int]:
    """Return the device from which each cell is written."""
    if plan.grid is None:
        return [0]
    return [plan.grid.devices[parent][writer] for parent, writer in zip(plan.parents, writers.tolist(), strict=True)]


def _cells(leaf: Any, array: Any, plan: _Plan, writers: np.ndarray, rank: int, devices: list[int]) -> Cells:
    if plan.grid is None or plan.boundaries is None:
        # Compared with the copies of the other processes.
        is_copy = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
        return Cells([_key_data(leaf) if rank == 0 or is_copy else None])
    if len(writers) == 1:  # replicated, or empty: each shard has all of its bytes
        return Cells([array.addressable_data(0) if writers[0] == rank else None], None, devices)
    own = np.flatnonzero(writers == rank).tolist()
    arrays: list[Any] = [None] * len(writers)
    if own:
        shards: dict[tuple[int, ...], Any] = {}
        for shard in array.addressable_shards:
            shards.setdefault(tuple(part.start or 0 for part in shard.index), shard.data)
        for i in own:
            origin = plan.origins[plan.parents[i]]
            arrays[i] = _part(shards[origin], *plan.pieces[i], origin)
    return Cells(arrays, plan.boundaries, devices)


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
