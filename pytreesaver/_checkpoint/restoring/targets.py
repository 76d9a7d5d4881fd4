"""The leaves of the result: their types, shapes and shardings, and how to build them from stored arrays."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Union

import jax
import jax.core
import jax.experimental.layout
import jax.numpy as jnp
import msgspec
import numpy as np

from pytreesaver._errors import MismatchError
from pytreesaver._text import SINGLE_LEAF_NAME, prefixes, quoted, suggestions
from pytreesaver._tree.casting import X64_DTYPES, array_of_python_number, convert, convert_python_number
from pytreesaver._tree.kinds import PYTHON_KINDS, LeafType, logical_shape, numpy_value, python_value, storage_dtype
from pytreesaver._tree.leaves import LeafError, jax_array_type, key_type, leaf_type_of
from pytreesaver._tree.structure import name_component


class Device(Protocol):
    """A `jax.Device`, for type checkers: jaxlib has no type information, so `jax.Device` would accept any argument."""

    @property
    def platform(self) -> str: ...
    @property
    def id(self) -> int: ...


ShardingRule = Union[  # noqa: UP007
    jax.sharding.Sharding,
    Device,
    Callable[[str, tuple[int, ...]], jax.sharding.Sharding | Device | None],
    Mapping[Any, "ShardingRule | None"],
    Sequence["ShardingRule | None"],
]
"""Where to put each leaf, as the argument `sharding` takes it.

A sharding or a device for all leaves; a function of name and shape; or a tree of shardings, devices and None that is a
prefix of the result. None means the template's sharding, or JAX's default.
"""

Placement = Callable[[str, tuple[int, ...]], Any]
"""A function from the name and shape of a leaf to its sharding; None means the template's, or JAX's default."""


def placement_of(given: ShardingRule | None, names: Sequence[str], empty: Callable[[], Iterable[str]]) -> Placement:
    """Return the placement that the argument `sharding` describes.

    Args:
        given: the argument.
        names: the names of all leaves.
        empty: returns the names of containers without leaves and of None, for which a tree may have entries too.

    Raises:
        MismatchError: if a tree has no entry for a leaf, or an entry for something that does not exist.
        TypeError: if the argument has none of these forms.
    """
    if given is None or _is_sharding_or_device(given):
        everywhere = _as_sharding(given)
        return lambda name, shape: everywhere
    if callable(given) and jax.tree_util.all_leaves([given]) and not isinstance(given, jax.sharding.Mesh):
        return lambda name, shape: _checked(given(name, shape), name)
    entries = jax.tree_util.tree_flatten_with_path(given, is_leaf=lambda x: x is None)[0]
    by_name = {"/".join(map(name_component, path)) or SINGLE_LEAF_NAME: _checked(leaf, path) for path, leaf in entries}
    root = SINGLE_LEAF_NAME if SINGLE_LEAF_NAME in by_name else None
    places = {name: max((p for p in prefixes(name) if p in by_name), key=len, default=root) for name in names}
    _check_prefix(by_name, places, empty)
    return lambda name, shape: by_name[places[name] or SINGLE_LEAF_NAME]


def _check_prefix(entries: dict[str, Any], places: dict[str, str | None], empty: Callable[[], Iterable[str]]) -> None:
    uncovered = [name for name, place in places.items() if place is None]
    used = set(places.values())
    unmatched = [name for name in entries if name not in used]
    if unmatched:
        allowed = set(empty())
        unmatched = [name for name in unmatched if name not in allowed]
    if not uncovered and not unmatched:
        return
    suggest = suggestions(sorted({prefix for name in places for prefix in prefixes(name)}))
    lines = [f"  {quoted(name)}: expected a sharding or None, found no entry" for name in uncovered]
    lines += [f"  {quoted(name)}: no leaf of the tree has this name or prefix{suggest(name)}" for name in unmatched]
    raise MismatchError("sharding is not a prefix of the tree:\n" + "\n".join(lines))


def _is_sharding_or_device(value: Any) -> bool:
    return isinstance(value, jax.sharding.Sharding | jax.Device)


def _as_sharding(value: Any) -> Any:
    return jax.sharding.SingleDeviceSharding(value) if isinstance(value, jax.Device) else value


def _checked(value: Any, where: Any) -> Any:
    if value is None or _is_sharding_or_device(value):
        return _as_sharding(value)
    name = where if isinstance(where, str) else "/".join(map(name_component, where))
    is_part_of_one = isinstance(value, jax.sharding.PartitionSpec | jax.sharding.Mesh)
    hint = "; NamedSharding(mesh, spec) makes one" if is_part_of_one else ""
    raise TypeError(
        f"sharding: {quoted(name)}: expected a jax.sharding.Sharding, a device or None, found {value!r}{hint}"
    )


class Template(msgspec.Struct, frozen=True, gc=False):
    """The type, shape and sharding that a template requires of a leaf.

    Attributes:
        type: the type.
        shape: the shape.
        sharding: the sharding; None means uncommitted on JAX's default device. It may be over an abstract mesh.
        layout: the layout of the elements in memory, a `jax.experimental.layout.Layout`; None means JAX's default.
        has_value: False for a `jax.ShapeDtypeStruct`, which has no value to keep.
    """

    type: LeafType
    shape: tuple[int, ...]
    sharding: Any = None
    layout: Any = None
    has_value: bool = True

    def with_sharding(self, sharding: Any) -> "Template":
        """Return the same template with another sharding."""
        return msgspec.structs.replace(self, sharding=sharding)


def template_of(leaf: Any) -> Template:
    """Return the type, shape and sharding of a leaf of a template, which may be a `jax.ShapeDtypeStruct`.

    Raises:
        LeafError: if leaves of this type cannot be restored.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        leaf_type = jax_array_type(leaf)
        if leaf_type is None:
            impls: list[Any] = []
            jax.eval_shape(lambda keys: impls.append(jax.random.key_impl(keys)), leaf)
            leaf_type = key_type(impls[0])
        layout = None if leaf_type.kind == "key" else leaf.format.layout
        return Template(leaf_type, leaf.shape, over_devices(leaf.sharding), layout, has_value=False)
    if isinstance(leaf, jax.core.Tracer):
        raise LeafError("that is a JAX tracer: restore was called inside jit or another transformation")
    if isinstance(leaf, jax.Array):
        sharding = leaf.sharding if leaf.committed else None
        leaf_type = jax_array_type(leaf)
        if leaf_type is None:
            return Template(key_type(jax.random.key_impl(leaf)), leaf.shape, sharding)
        return Template(leaf_type, leaf.shape, sharding, None if sharding is None else _unusual_layout(leaf))
    leaf_type, stored_shape = leaf_type_of(leaf)
    return Template(leaf_type, logical_shape(leaf_type, stored_shape))


def is_abstract(sharding: Any) -> bool:
    """Return whether a sharding is over an abstract mesh, which has no devices, as those of `jax.eval_shape` are."""
    return isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh)


def over_devices(sharding: Any) -> Any:
    """Return a sharding with its abstract mesh replaced by the active mesh of devices, if that has the same axes.

    Otherwise, return the sharding as it is. A sharding over an empty mesh is None.
    """
    if not is_abstract(sharding):
        return sharding
    if sharding.mesh.empty:
        return None
    active = jax.sharding.get_mesh()
    if active.empty or dict(active.shape) != dict(sharding.mesh.shape):
        return sharding
    return jax.sharding.NamedSharding(active, sharding.spec, memory_kind=sharding.memory_kind)


def _unusual_layout(array: Any) -> Any:
    """Return the layout of an array if its axes are not in the usual order, from major to minor, otherwise None."""
    if array.ndim < 2:
        return None
    layout = array.format.layout
    return None if layout.major_to_minor == tuple(range(array.ndim)) else layout


def with_layout(array: Any, layout: Any) -> Any:
    """Return a JAX array with this layout in memory."""
    return jax.device_put(array, jax.experimental.layout.Format(layout, array.sharding))


def value_fits(value: Any, target: LeafType) -> bool:
    """Return whether a Python number can become a 0-d array of the target's dtype and the same category without loss.

    JAX itself converts Python floats to weakly typed arrays, with rounding. There, only overflow counts as a loss.

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
            for after, before in ((np.real(rounded), np.real(exact)), (np.imag(rounded), np.imag(exact)))
        )
    return rounded.astype(exact.dtype).tobytes() == exact.tobytes()


def python_kind_of(dtype: np.dtype[Any]) -> str | None:
    """Return the kind of Python number that represents every value of a dtype exactly, or None."""
    if dtype == np.bool_:
        return "bool"
    if dtype.kind in "mM":
        return None
    for category, kind in ((jnp.integer, "int"), (jnp.floating, "float"), (jnp.complexfloating, "complex")):
        if jnp.issubdtype(dtype, category):
            return kind
    return None


def build_leaf(array: np.ndarray, stored: LeafType, target: LeafType, sharding: Any = None) -> Any:
    """Convert a stored array to a leaf of type `target`, to which `match_template` has matched it.

    Raises:
        LossyCastError: if the dtypes differ, and the target's cannot represent the values.
    """
    if target.kind in PYTHON_KINDS:
        value = python_value(array, stored) if stored.kind in PYTHON_KINDS else array.item()
        return value if stored.kind == target.kind else convert_python_number(value, target.kind)
    if target.kind == "key":
        if sharding is not None and not sharding.is_fully_addressable:
            return jax.random.wrap_key_data(_global_key_data(array, sharding), impl=target.key_impl)
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
        weak = _weakly_typed_array(array)
        return weak if sharding is None else jax.device_put(weak, sharding)
    if sharding is None:
        return jax.device_put(array)  # uncommitted, like a new array: it can be combined with arrays on any device
    if len(sharding.device_set) == 1:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index], dtype=array.dtype)


def _global_key_data(array: np.ndarray, sharding: Any) -> Any:
    """Return the data of keys that are spread over several processes. The data have one more axis, which is not."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        raise ValueError(f"keys of several processes need a NamedSharding, found {sharding}")
    padded = [*sharding.spec, *[None] * (array.ndim - 1 - len(sharding.spec))]
    of_data = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*padded, None))  # type: ignore[no-untyped-call]
    return jax.make_array_from_callback(array.shape, of_data, lambda index: array[index], dtype=array.dtype)


def _weakly_typed_array(array: np.ndarray) -> Any:
    # JAX makes weakly typed arrays only from Python scalars: broadcast one, and overwrite its values.
    zero = {"int": 0, "float": 0.0, "complex": 0j}.get(str(python_kind_of(array.dtype)))
    if zero is not None:
        with (
            jax.enable_x64(array.dtype.name in X64_DTYPES),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.transfer_guard_host_to_device("allow"),  # as explicit as `jax.device_put`
        ):
            weak = _broadcast_and_overwrite(zero, array)
            if weak.dtype == array.dtype:
                return weak
    return jax.device_put(array)


_broadcast_and_overwrite = jax.jit(lambda scalar, array: jnp.broadcast_to(scalar, array.shape).at[...].set(array))


def x64_enabled() -> bool:
    """Return whether JAX arrays can have 64-bit dtypes now."""
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
