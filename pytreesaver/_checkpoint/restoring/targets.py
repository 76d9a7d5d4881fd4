"""What each leaf of the result is to be: type, shape and sharding, and how it is made from a stored array."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from pytreesaver._errors import MismatchError
from pytreesaver._text import SINGLE_LEAF_NAME, prefixes, quoted, suggestions
from pytreesaver._tree.casting import array_of_python_number, convert, convert_python_number
from pytreesaver._tree.kinds import (
    PYTHON_KINDS,
    LeafType,
    logical_shape,
    numpy_value,
    python_value,
    storage_dtype,
)
from pytreesaver._tree.leaves import LeafError, jax_array_type, key_type, leaf_type_of
from pytreesaver._tree.structure import name_component

ShardingRule = Union[  # noqa: UP007
    jax.sharding.Sharding,
    jax.Device,
    Callable[[str, tuple[int, ...]], "jax.sharding.Sharding | jax.Device | None"],
    Mapping[Any, "ShardingRule | None"],
    Sequence["ShardingRule | None"],
]
"""What the argument `sharding` takes: where to put each leaf.

A sharding or a device for all leaves; a function of name and shape; or a tree of shardings, devices and None that is a
prefix of the result. None means the template's placement, or JAX's default.
"""

Placement = Callable[[str, tuple[int, ...]], Any]
"""The sharding of a leaf as a function of its name and shape; None for the template's, or JAX's default."""


def placement_of(given: ShardingRule | None, names: Sequence[str], empty: Callable[[], Iterable[str]]) -> Placement:
    """Return the placement that the argument `sharding` describes.

    Args:
        given: the argument.
        names: the names of all leaves.
        empty: returns the names of containers without leaves, and of None: a tree may have entries for those too.

    Raises:
        MismatchError: if a tree has no entry for a leaf, or an entry for something that does not exist.
        TypeError: if the argument has none of these forms.
    """
    if given is None or _is_placement(given):
        whole = _as_sharding(given)
        return lambda name, shape: whole
    if callable(given) and jax.tree_util.all_leaves([given]) and not isinstance(given, jax.sharding.Mesh):
        return lambda name, shape: _checked(given(name, shape), name)
    entries = jax.tree_util.tree_flatten_with_path(given, is_leaf=lambda x: x is None)[0]
    by_name = {"/".join(map(name_component, path)) or SINGLE_LEAF_NAME: _checked(leaf, path) for path, leaf in entries}
    places = {name: max((p for p in prefixes(name) if p in by_name), key=len, default=None) for name in names}
    if SINGLE_LEAF_NAME in by_name:
        places = {name: place or SINGLE_LEAF_NAME for name, place in places.items()}
    _refuse_misfits(by_name, places, empty)
    return lambda name, shape: by_name[places[name] or SINGLE_LEAF_NAME]


def _refuse_misfits(entries: dict[str, Any], places: dict[str, str | None], empty: Callable[[], Iterable[str]]) -> None:
    uncovered = [name for name, place in places.items() if place is None]
    used = set(places.values())
    idle = [name for name in entries if name not in used]
    if idle:
        allowed = set(empty())
        idle = [name for name in idle if name not in allowed]
    if not uncovered and not idle:
        return
    suggest = suggestions(sorted({prefix for name in places for prefix in prefixes(name)}))
    lines = [f"  {quoted(name)}: expected a sharding or None, found nothing" for name in uncovered]
    lines += [f"  {quoted(name)}: expected a part of the tree, found none{suggest(name)}" for name in idle]
    raise MismatchError("sharding is no prefix of the tree:\n" + "\n".join(lines))


def _is_placement(value: Any) -> bool:
    return isinstance(value, jax.sharding.Sharding | jax.Device)


def _as_sharding(value: Any) -> Any:
    return jax.sharding.SingleDeviceSharding(value) if isinstance(value, jax.Device) else value


def _checked(value: Any, where: Any) -> Any:
    if value is None or _is_placement(value):
        return _as_sharding(value)
    name = where if isinstance(where, str) else "/".join(map(name_component, where))
    is_half = isinstance(value, jax.sharding.PartitionSpec | jax.sharding.Mesh)
    hint = "; NamedSharding(mesh, spec) makes one" if is_half else ""
    raise TypeError(
        f"sharding: {quoted(name)}: expected a jax.sharding.Sharding, a device or None, found {value!r}{hint}"
    )


X64_DTYPES = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}
"""The dtypes that a JAX array can have only while ``jax_enable_x64`` is on, and what JAX would cut them down to."""


class Template(msgspec.Struct, frozen=True, gc=False):
    """What a template asks of a leaf: type, shape, and where it shall lie (None: JAX's default device, uncommitted).

    `has_value` is false for a `jax.ShapeDtypeStruct`, which has nothing to keep.
    """

    type: LeafType
    shape: tuple[int, ...]
    sharding: Any = None
    has_value: bool = True

    def with_sharding(self, sharding: Any) -> "Template":
        """The same leaf elsewhere."""
        return msgspec.structs.replace(self, sharding=sharding)


def template_of(leaf: Any) -> Template:
    """What a leaf of a template asks for: its own type and shape, or those of a `jax.ShapeDtypeStruct`.

    Raises:
        LeafError: nothing of this type can be restored.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        # What jax.eval_shape gives may be sharded over an abstract mesh, which has no devices to put an array on.
        abstract = isinstance(getattr(leaf.sharding, "mesh", None), jax.sharding.AbstractMesh)
        sharding = None if abstract else leaf.sharding
        leaf_type = jax_array_type(leaf)
        if leaf_type is None:
            impls: list[Any] = []
            jax.eval_shape(lambda keys: impls.append(jax.random.key_impl(keys)), leaf)
            leaf_type = key_type(impls[0])
        return Template(leaf_type, leaf.shape, sharding, False)
    if isinstance(leaf, jax.core.Tracer):
        raise LeafError("that is a JAX tracer: restore was called inside jit or another transformation")
    if isinstance(leaf, jax.Array):
        sharding = leaf.sharding if leaf.committed else None
        leaf_type = jax_array_type(leaf) or key_type(jax.random.key_impl(leaf))
        return Template(leaf_type, leaf.shape, sharding)
    leaf_type, stored_shape = leaf_type_of(leaf)
    return Template(leaf_type, logical_shape(leaf_type, stored_shape))


def value_fits(value: Any, target: LeafType) -> bool:
    """Whether a Python number becomes a 0-d array of the target's dtype, of the same category, with nothing lost.

    A weakly typed array of floats is how JAX itself holds a Python float, rounded: there, only overflow is a loss.

    Example:
        >>> value_fits(300, LeafType("jax", "int32")), value_fits(300, LeafType("jax", "int8"))
        (True, False)
    """
    if target.kind not in ("jax", "numpy", "numpy_scalar"):
        return False
    dtype = storage_dtype(target)
    if dtype.kind in "mM":
        return False
    if isinstance(value, bool):
        return dtype == np.bool_
    if isinstance(value, int):
        if not jnp.issubdtype(dtype, jnp.integer):
            return False
        info = jnp.iinfo(dtype)  # type: ignore[no-untyped-call]
        return int(info.min) <= value <= int(info.max)
    category = jnp.complexfloating if isinstance(value, complex) else jnp.floating
    if not jnp.issubdtype(dtype, category):
        return False
    exact = np.array(value)
    with np.errstate(all="ignore"):
        rounded = exact.astype(dtype)
    if target.weak_type:
        return all(
            np.isfinite(after) == np.isfinite(before)
            for after, before in ((rounded.real, exact.real), (rounded.imag, exact.imag))
        )
    return rounded.astype(exact.dtype).tobytes() == exact.tobytes()


def python_kind_of(dtype: np.dtype[Any]) -> str | None:
    """The kind of Python number that holds every value of a dtype exactly, or None."""
    if dtype == np.bool_:
        return "bool"
    if dtype.kind in "mM":
        return None
    for category, kind in ((jnp.integer, "int"), (jnp.floating, "float"), (jnp.complexfloating, "complex")):
        if jnp.issubdtype(dtype, category):
            return kind
    return None


def build_leaf(array: np.ndarray, stored: LeafType, target: LeafType, sharding: Any = None) -> Any:
    """The leaf of type `target` that a stored array gives. The two types must fit: see `pytreesaver._match`.

    Raises:
        LossyCastError: the dtypes differ, and the values cannot be had in the other one.
    """
    if target.kind in PYTHON_KINDS:
        value = python_value(array, stored) if stored.kind in PYTHON_KINDS else array.item()
        return value if stored.kind == target.kind else convert_python_number(value, target.kind)
    if target.kind == "key":
        keys = jax.random.wrap_key_data(jax.device_put(array), impl=target.key_impl)
        return keys if sharding is None else jax.device_put(keys, sharding)
    if stored.kind in PYTHON_KINDS:
        array = array_of_python_number(python_value(array, stored), storage_dtype(target))
    elif array.dtype != storage_dtype(target):
        converted = np.empty(array.shape, storage_dtype(target))
        convert(array, converted)
        array = converted
    if target.kind == "jax":
        return _jax_array(array, target, sharding)
    array = numpy_value(array, target)
    return array[()] if target.kind == "numpy_scalar" else array


def _jax_array(array: np.ndarray, target: LeafType, sharding: Any) -> Any:
    if target.weak_type:
        weak = _weakly_typed(array)
        return weak if sharding is None else jax.device_put(weak, sharding)
    if sharding is None:
        return jax.device_put(array)  # uncommitted, as a fresh array is: it may be used with arrays on any device
    if len(sharding.device_set) == 1:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _weakly_typed(array: np.ndarray) -> Any:
    # Weak types come from Python scalars only, so one is spread out and overwritten.
    zero = {"int": 0, "float": 0.0, "complex": 0j}.get(str(python_kind_of(array.dtype)))
    if zero is not None:
        with (
            jax.enable_x64(array.dtype.name in X64_DTYPES),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.transfer_guard_host_to_device("allow"),  # restoring asks for it as plainly as `jax.device_put` does
        ):
            weak = _overwritten(zero, array)
            if weak.dtype == array.dtype:
                return weak
    return jax.device_put(array)


_overwritten = jax.jit(lambda scalar, array: jnp.broadcast_to(scalar, array.shape).at[...].set(array))


def x64_enabled() -> bool:
    """Return whether JAX arrays can have 64-bit dtypes now."""
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
