"""Types of the leaves of a tree in memory, and the arrays that contain their bytes."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from pytreesaver._tree.kinds import (
    PYTHON_TYPES,
    Cells,
    Kind,
    LeafType,
    NotPlainError,
    dtype_name,
    grid_cells,
    python_leaf_type,
)


class LeafError(Exception):
    """A leaf cannot be stored or used in a template. The message is the reason, for use in a longer message."""


def leaf_type_of(leaf: Any, *, is_shared: bool = False) -> tuple[LeafType, tuple[int, ...]]:
    """Return the type of a leaf and the shape of its stored array.

    Args:
        leaf: the leaf.
        is_shared: whether other processes write the parts of an array that this process does not have.

    Raises:
        LeafError: if the leaf cannot be stored.

    Example:
        >>> leaf_type_of(np.zeros((2, 3), np.float16))
        (LeafType(kind='numpy', dtype='float16', weak_type=False, key_impl=''), (2, 3))
    """
    kind = type(leaf)
    if kind in PYTHON_TYPES:
        return python_leaf_type(leaf)
    if isinstance(leaf, jax.Array):
        return _jax_type(leaf, is_shared)
    if kind is np.ndarray or isinstance(leaf, np.memmap):
        return _numpy_type("numpy", leaf.dtype), leaf.shape
    if isinstance(leaf, np.generic):
        return _numpy_scalar_type(leaf), ()
    raise LeafError(f"of type {kind.__module__}.{kind.__qualname__}{_advice(leaf)}")


class LeafColumns(NamedTuple):
    """Many leaves in columns.

    Attributes:
        types: as from `leaf_type_of`.
        shapes: as from `leaf_type_of`.
        cells: as from `cells_of`; None for a leaf of which `cells_of` has to be called.
        problems: {position: reason} of the leaves that cannot be stored. They are not in the columns.
    """

    types: list[LeafType]
    shapes: list[tuple[int, ...]]
    cells: Sequence[Cells | None]
    problems: dict[int, str]


def leaf_columns(leaves: Sequence[Any], *, is_shared: bool = False) -> LeafColumns:
    """Return the types and shapes of many leaves. Most are arrays of JAX on one device, which takes little time.

    Args:
        leaves: the leaves.
        is_shared: as in `leaf_type_of`.
    """
    cells: list[Cells | None] = []
    columns = LeafColumns([], [], cells, {})
    add_type, add_shape, add_cells = columns.types.append, columns.shapes.append, cells.append
    # Arrays that are alike share their abstract value and sharding, whose identities are faster to compare.
    known: dict[tuple[int, int], tuple[LeafType, tuple[int, ...]]] = {}
    array_class: Any = None
    leaf: Any
    for i, leaf in enumerate(leaves):
        if type(leaf) is array_class and not leaf.is_deleted():
            alike = known.get((id(leaf.aval), id(leaf.sharding)))
            if alike is not None:
                add_type(alike[0])
                add_shape(alike[1])
                add_cells(Cells([leaf]))
                continue
        try:
            leaf_type, shape = leaf_type_of(leaf, is_shared=is_shared)
        except LeafError as problem:
            columns.problems[i] = str(problem)
            continue
        add_type(leaf_type)
        add_shape(shape)
        is_on_one = leaf_type.kind == "jax" and len(leaf.sharding.device_set) == 1
        add_cells(Cells([leaf]) if is_on_one else None)
        if is_on_one:
            array_class = type(leaf)
            known[id(leaf.aval), id(leaf.sharding)] = leaf_type, shape
    return columns


def _jax_type(leaf: jax.Array, is_shared: bool) -> tuple[LeafType, tuple[int, ...]]:
    if isinstance(leaf, jax.core.Tracer):
        raise LeafError(
            "that is a JAX tracer: save was called inside jit, grad, vmap or another transformation, where arrays "
            "have no values yet; call it outside, or through jax.experimental.io_callback"
        )
    if leaf.is_deleted():
        raise LeafError(
            "that is a deleted jax.Array: it was donated to a jitted function or deleted before it could be saved; "
            "save the function's result, or save before the call that donates it"
        )
    if not (is_shared or leaf.is_fully_replicated or leaf.is_fully_addressable):
        raise LeafError(
            'that is a jax.Array sharded over several processes; let all of them save it, with processes="all"'
        )
    leaf_type = jax_array_type(leaf)
    if leaf_type is None:
        leaf_type = key_type(jax.random.key_impl(leaf))
        return leaf_type, (*leaf.shape, *key_data_shape(leaf_type.key_impl))
    return leaf_type, leaf.shape


def jax_array_type(leaf: Any) -> LeafType | None:
    """Return the type of a `jax.Array` or `jax.ShapeDtypeStruct`, or None if it is a PRNG key array."""
    return _jax_array_type(leaf.dtype, getattr(leaf, "weak_type", False))


@functools.lru_cache(maxsize=1024)
def _jax_array_type(dtype: Any, weak_type: Any) -> LeafType | None:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return None
    return LeafType("jax", _checked_dtype_name(dtype), weak_type=bool(weak_type))


@functools.lru_cache(maxsize=1024)
def _numpy_type(kind: Kind, dtype: np.dtype[Any]) -> LeafType:
    return LeafType(kind, _checked_dtype_name(dtype))


def _checked_dtype_name(dtype: Any) -> str:
    try:
        return dtype_name(dtype)
    except NotPlainError:
        raise LeafError(f"of dtype {dtype}; numbers, bools, dates and fixed-width strings can be stored") from None


def _numpy_scalar_type(leaf: np.generic) -> LeafType:
    leaf_type = _numpy_type("numpy_scalar", leaf.dtype)
    array: Any = np.asarray(leaf)
    if type(array[()]) is not type(leaf):
        raise LeafError(f"of type {type(leaf).__module__}.{type(leaf).__qualname__}, a subclass of a NumPy scalar")
    if isinstance(leaf, np.str_ | np.bytes_) and array[()] != leaf:
        raise LeafError("that is a NumPy string ending in NUL, which NumPy drops; use a str or bytes")
    return leaf_type


@functools.lru_cache
def key_type(impl: Any) -> LeafType:
    """Return the type of a PRNG key array from the result of `jax.random.key_impl`."""
    if isinstance(impl, str):
        return LeafType("key", "uint32", key_impl=impl)
    raise LeafError(f"that is a PRNG key array whose implementation has no registered name ({impl})")


@functools.lru_cache
def key_data_shape(key_impl: str) -> tuple[int, ...]:
    """Return the shape of the data of one PRNG key of an implementation."""
    make_data = lambda: jax.random.key_data(jax.random.key(0, impl=key_impl))  # noqa: E731
    return tuple(jax.eval_shape(make_data).shape)


def _advice(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray):
        return "; convert it to a plain np.ndarray"
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "; it has a shape but no values; save the arrays themselves"
    if callable(leaf):
        return "; remove functions from the tree first, for example with equinox.filter(tree, equinox.is_array)"
    if isinstance(leaf, bool | int | float | complex | str | bytes):
        return f"; convert it to a plain {next(t.__name__ for t in PYTHON_TYPES if isinstance(leaf, t))}"
    if type(leaf).__module__.startswith("equinox"):
        return "; equinox.filter(model, equinox.is_array) leaves it out"
    if type(leaf).__name__ == "Ref" and type(leaf).__module__.startswith("jax"):
        return "; save its value, ref[...]"
    return (
        "; convert it to an array, register its class with JAX as a pytree node, or remove it from the tree; "
        "metadata= takes the settings of a model as a dict"
    )


def cells_of(leaf: Any, leaf_type: LeafType) -> Cells:
    """Return the arrays that contain the bytes of a leaf: one for each distinct shard of a `jax.Array`, else one."""
    if leaf_type.kind == "key":
        leaf = jax.random.key_data(leaf)
    elif leaf_type.kind != "jax":
        return Cells([leaf])
    if leaf.is_fully_replicated or leaf.size == 0:
        return Cells([leaf])
    shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    starts = [tuple(s.start or 0 for s in shard.index) for shard in shards]
    boundaries = [[*sorted({start[axis] for start in starts}), length] for axis, length in enumerate(leaf.shape)]
    by_start = dict(zip(starts, shards, strict=True))
    try:
        cells = [by_start[start] for start, _ in grid_cells(boundaries)]
        return Cells([shard.data for shard in cells], boundaries, [shard.device.id for shard in cells])
    except KeyError:
        return Cells([leaf])  # the shards do not form a grid; no current JAX sharding does this
