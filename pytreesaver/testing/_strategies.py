"""Hypothesis strategies for trees and everything that they may contain, including edge cases."""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import pytreesaver

_NUMPY_NAMES = (
    "bool",
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)

_NARROW_BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}

_JAX_NAMES = (
    *_NUMPY_NAMES,
    *_NARROW_BITS,
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "bfloat16"),
)

_X64_NAMES = ("int64", "uint64", "float64", "complex128")


class Pair(collections.namedtuple("Pair", ["first", "second"])):
    """A namedtuple, like those in optimizer states."""

    __slots__ = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A dataclass registered with JAX, with static fields."""

    kernel: Any
    bias: Any
    activation: str = dataclasses.field(default="relu", metadata={"static": True})
    axes: tuple[int, ...] = dataclasses.field(default=(0, 1), metadata={"static": True})


@jax.tree_util.register_pytree_with_keys_class
class Box:
    """A class registered with JAX as a pytree node, with auxiliary data."""

    def __init__(self, content: Any, label: str) -> None:
        self.content = content
        self.label = label

    def tree_flatten_with_keys(self) -> Any:
        """Return the content with its key, and the label as auxiliary data."""
        return ((jax.tree_util.GetAttrKey("content"), self.content),), self.label

    @classmethod
    def tree_unflatten(cls, label: str, children: Any) -> "Box":
        """Return a `Box` with the given label and content."""
        return cls(children[0], label)

    def __repr__(self) -> str:
        return f"Box({self.content!r}, {self.label!r})"


@st.composite
def dtypes(draw: st.DrawFn, *, x64: bool | None = None) -> np.dtype[Any]:
    """Generate dtypes of JAX arrays, with 64-bit ones if `x64`; None follows ``jax_enable_x64``."""
    wide = jax.config.jax_enable_x64 if x64 is None else x64  # type: ignore[attr-defined]
    return draw(st.sampled_from([_dtype(name) for name in _JAX_NAMES if wide or name not in _X64_NAMES]))


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """Generate small shapes, including 0-d and zero-size ones."""
    return hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def _bits(draw: st.DrawFn, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Generate arrays with any bit patterns, including NaN payloads, subnormals and -0.0."""
    nbytes = math.prod(shape) * dtype.itemsize
    data: np.ndarray = np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), np.uint8)
    if dtype == np.bool_:
        data = data & 1
    if dtype.name in _NARROW_BITS:
        data = data & (2 ** _NARROW_BITS[dtype.name] - 1)
    return data.copy().view(dtype).reshape(shape)


@st.composite
def jax_arrays(draw: st.DrawFn, dtype: Any = None, shape: Any = None) -> jax.Array:
    """Generate JAX arrays of any dtype, shape and bits on the default device. Some 0-d ones are weakly typed."""
    if dtype is None and shape is None and draw(st.integers(0, 9)) == 0:
        return jnp.asarray(draw(st.sampled_from([0, 7, 0.5, -0.0, 1.5 + 2j])))
    chosen = draw(dtypes()) if dtype is None else np.dtype(dtype)
    array: jax.Array = jax.device_put(draw(_bits(chosen, draw(shapes()) if shape is None else shape)))
    return array


@st.composite
def sharded_arrays(draw: st.DrawFn) -> jax.Array:
    """Generate JAX arrays on all devices, sharded over 0, 1 or 2 axes of a mesh and replicated over the rest."""
    count = len(jax.devices())
    rows = draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(rows, count // rows), ("x", "y"))
    sizes = {"x": rows, "y": count // rows}
    spec = draw(st.sampled_from([(), ("x",), ("y",), (None, "x"), ("x", "y"), ("y", "x"), (("x", "y"),)]))
    shape = [
        draw(st.integers(0, 2))
        * int(np.prod([sizes[name] for name in ([part] if isinstance(part, str) else part or [])]))
        for part in (*spec, *([None] * (2 - len(spec))))
    ]
    values = draw(_bits(draw(dtypes()), tuple(shape)))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))  # type: ignore[no-untyped-call]
    array: jax.Array = jax.device_put(values, sharding)
    return array


@st.composite
def shardings(draw: st.DrawFn, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """Generate shardings for arrays of this shape: over 1, 2, 4, 8 or 16 devices, with any order of the mesh axes."""
    count = draw(st.sampled_from([n for n in (1, 2, 4, 8, 16) if n <= len(jax.devices())]))
    rows = draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
    devices = np.array(draw(st.permutations(jax.devices()))[:count])
    mesh = jax.sharding.Mesh(devices.reshape(rows, count // rows), ("x", "y"))
    free = {"x": rows, "y": count // rows}
    parts: list[Any] = []
    for length in shape:
        fitting = [name for name, size in free.items() if length % size == 0]
        chosen = draw(
            st.sampled_from([None, *fitting, *([("x", "y")] if len(free) == 2 and length % count == 0 else [])])
        )
        for name in chosen or ():
            del free[name]
        parts.append(chosen)
    spec = jax.sharding.PartitionSpec(*parts)  # type: ignore[no-untyped-call]
    return jax.sharding.NamedSharding(mesh, spec)


@st.composite
def selections(draw: st.DrawFn, names: Sequence[str]) -> Any:
    """Generate selections, in every form that `only` accepts, that select at least one of these names.

    Example:
        >>> from hypothesis import given
        >>> path = pytreesaver.save({"encoder": {"w": 1, "b": 2}, "step": 3}, "small")
        >>> @given(selections(["encoder/w", "encoder/b", "step"]))
        ... def test_selection_is_not_empty(selection):
        ...     assert jax.tree.leaves(pytreesaver.restore(path, only=selection))
        >>> test_selection_is_not_empty()
    """
    name = draw(st.sampled_from(list(names)))
    some = set(draw(st.lists(st.sampled_from(list(names)), max_size=4))) | {name}
    exact = re.compile(f"\\A{re.escape(name)}\\Z")
    forms = [
        "**",
        exact,
        re.compile(re.escape(name[: len(name) // 2])),
        some.__contains__,
        [exact, some.__contains__],
        {other: other in some for other in names},
        pytreesaver.regex(exact) | pytreesaver.glob("nothing"),
        pytreesaver.regex(exact) & pytreesaver.glob("**"),
        ~pytreesaver.regex("nothing") & pytreesaver.glob("**"),
    ]
    return draw(st.sampled_from(forms if set("*?") & set(name) else [*forms, name, pytreesaver.glob(name)]))


@st.composite
def renamings(draw: st.DrawFn, names: Sequence[str]) -> tuple[dict[str, str], Any]:
    """Generate unique new names for these names, and a value for `rename` that maps them back.

    The first result is {new name: old name}. The second is an equivalent dict, function or list of regular expressions.
    """
    prefix = draw(st.sampled_from(["", "new/", "a/b/"]))
    order = draw(st.permutations(list(names)))
    back = {
        f"{prefix}{i}.{name.replace('/', '-')}" if i % 2 else f"{prefix}{i}/x": name for i, name in enumerate(order)
    }
    patterns = [(f"\\A{re.escape(new)}\\Z", old.replace("\\", "\\\\")) for new, old in back.items()]
    plain = not any(name.endswith("/") for name in names)
    return back, draw(st.sampled_from([*([back] if plain else []), back.__getitem__, patterns]))


@st.composite
def prng_keys(draw: st.DrawFn) -> jax.Array:
    """Generate typed PRNG keys and key arrays of the implementations threefry2x32, rbg and unsafe_rbg."""
    impl = draw(st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]))
    words = 2 if impl == "threefry2x32" else 4
    data = draw(_bits(np.dtype(np.uint32), (*draw(st.sampled_from([(), (2,), (0,)])), words)))
    keys: jax.Array = jax.random.wrap_key_data(jax.device_put(data), impl=impl)
    return keys


@st.composite
def numpy_arrays(draw: st.DrawFn) -> np.ndarray:
    """Generate NumPy arrays in any memory order, with any storable dtype, including big-endian, dates and strings."""
    dtype = draw(
        st.sampled_from([_dtype(name) for name in (*_JAX_NAMES, *_X64_NAMES)])
        | st.sampled_from([_dtype(name).newbyteorder(">") for name in _NUMPY_NAMES])
        | st.sampled_from(["M8[ns]", "m8[D]", "U3", ">U2", "S4"]).map(np.dtype)
    )
    shape = draw(shapes())
    array = draw(hnp.arrays(dtype, shape)) if dtype.kind == "U" else draw(_bits(dtype, shape))
    if draw(st.booleans()):
        array = np.asfortranarray(array)
    return array[::2] if array.ndim and draw(st.booleans()) else array


def numpy_scalars() -> st.SearchStrategy[Any]:
    """Generate NumPy scalars of numeric dtypes, including those of ml_dtypes, and of dates."""
    numbers = st.sampled_from([_dtype(name) for name in _JAX_NAMES] + [np.dtype("M8[s]"), np.dtype("m8[us]")])
    return numbers.flatmap(lambda dtype: _bits(dtype, ())).map(lambda array: array[()])


def python_values() -> st.SearchStrategy[Any]:
    """Generate Python bools, ints of any size, floats, complex numbers, str and bytes."""
    return st.one_of(
        st.booleans(),
        st.integers(),
        st.integers(-(2**200), 2**200),
        st.floats(),
        st.complex_numbers(),
        st.text(st.characters(), max_size=8),
        st.binary(max_size=8),
    )


def leaves() -> st.SearchStrategy[Any]:
    """Generate all kinds of leaves, each on a single device."""
    return st.one_of(jax_arrays(), numpy_arrays(), numpy_scalars(), prng_keys(), python_values())


_AWKWARD = [
    *("", "/", ".", "..", "a/b", "/a", "a/", "~", "\n", " ", "\0", "é", "🙂"),
    *("$tuple", "$", "__metadata__", "[0:4]"),
]


def dict_keys() -> st.SearchStrategy[Any]:
    """Generate dict keys: str, including awkward ones, int, bool or float."""
    return st.one_of(_string_keys(), st.integers(-3, 1000), st.booleans(), st.floats(allow_nan=False))


def _string_keys() -> st.SearchStrategy[str]:
    return st.sampled_from(["a", "b", "kernel", "0", "1"]) | st.sampled_from(_AWKWARD) | st.text(max_size=4)


def pytrees(leaf: st.SearchStrategy[Any] | None = None, *, max_leaves: int = 12) -> st.SearchStrategy[Any]:
    """Generate trees of all kinds of containers, with uniquely named leaves drawn from `leaf` or `leaves`.

    Example:
        >>> from hypothesis import given
        >>> @given(pytrees(python_values()))
        ... def test_flattening(tree):
        ...     assert jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(tree)) is not None or tree is None
        >>> test_flattening()
    """
    return st.recursive(leaves() if leaf is None else leaf, _containers, max_leaves=max_leaves).filter(
        _has_unique_names
    )


def _containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    key_strategies = st.sampled_from(
        [_string_keys(), st.integers(-3, 1000), st.booleans(), st.floats(allow_nan=False), st.none()]
    )
    dicts = key_strategies.flatmap(lambda keys: st.dictionaries(keys, children, max_size=4))
    factories = st.sampled_from([None, int, list, dict])
    return st.one_of(
        dicts,
        st.dictionaries(dict_keys() | st.none(), children, max_size=4).map(collections.OrderedDict),
        st.builds(collections.defaultdict, factories, dicts),
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.none(),
        st.builds(Pair, children, children),
        st.builds(Layer, children, children, st.sampled_from(["relu", "é"]), st.sampled_from([(), (0, 1)])),
        st.builds(Box, children, st.text(max_size=3)),
    )


def _has_unique_names(tree: Any) -> bool:
    from pytreesaver._tree.structure import flatten_tree

    names = flatten_tree(tree).names
    return len(set(names)) == len(names)
