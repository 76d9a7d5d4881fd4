"""Kinds, dtypes and shapes of stored leaves, and conversion between values and bytes.

Does not import JAX, so that checkpoints can be inspected without it.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import ml_dtypes
import msgspec
import numpy as np

_FLOAT0 = np.dtype([("float0", np.void, 0)])  # as jax.dtypes.float0 is


class NotPlainError(TypeError):
    """A value that cannot be encoded as plain data, or that this process cannot rebuild."""


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype in a checkpoint: its NumPy or ml_dtypes name, prefixed with ``>`` if big-endian.

    Raises:
        NotPlainError: if the dtype has Python objects or fields, or is platform-dependent (``longdouble``).

    Example:
        >>> dtype_name(np.dtype("<f4")), dtype_name(np.dtype(">i2")), dtype_name(np.dtype("U7"))
        ('float32', '>int16', 'U7')
    """
    if dtype == _FLOAT0:
        return "float0"
    if dtype.kind in "US":
        name = f"{dtype.kind}{dtype.itemsize // (4 if dtype.kind == 'U' else 1)}"
    elif (dtype.kind in "biufcmM" and dtype.char not in "gG") or hasattr(ml_dtypes, dtype.name):
        name = dtype.name
    else:
        raise NotPlainError(f"dtype {dtype} cannot be stored")
    return ">" + name if dtype.byteorder == ">" and dtype.kind != "S" else name


_DTYPE_NAME = re.compile(r">?((?!a([0-9]|\Z))[a-z][a-z0-9_]*(\[[0-9]*[a-zA-Z]+\])?|[US][0-9]{1,9})")


@functools.lru_cache(maxsize=1024)
def dtype_from_name(name: str) -> np.dtype[Any]:
    """Return the dtype with this name, the inverse of `dtype_name`.

    Raises:
        NotPlainError: if no dtype has this name.

    Example:
        >>> dtype_from_name("bfloat16"), dtype_from_name(">float32")
        (dtype(bfloat16), dtype('>f4'))
    """
    if name == "float0":
        return _FLOAT0
    try:
        if not _DTYPE_NAME.fullmatch(name):
            raise NotPlainError(f"unknown dtype {name!r}")
        plain = name.removeprefix(">")
        scalar = getattr(ml_dtypes, plain, None)
        dtype: np.dtype[Any] = np.dtype(plain if scalar is None else scalar)
        if name.startswith(">"):
            dtype = dtype.newbyteorder(">")
        if dtype_name(dtype) == name:
            return dtype
    except (TypeError, ValueError, AttributeError):
        pass
    raise NotPlainError(f"unknown dtype {name!r}")


Kind = Literal["jax", "key", "numpy", "numpy_scalar", "bool", "int", "float", "complex", "str", "bytes"]
NUMBER_KINDS = frozenset({"bool", "int", "float", "complex"})
PYTHON_KINDS = NUMBER_KINDS | {"str", "bytes"}


class LeafType(msgspec.Struct, frozen=True, omit_defaults=True):
    """The type of a leaf, without its shape and value.

    Attributes:
        kind: a ``jax.Array``, a typed PRNG ``key`` array, a NumPy array or scalar, or a Python object.
        dtype: name of the dtype of the bytes. For a key array it is ``uint32``, for an int that does not fit in 64
            bits ``uint8``.
        weak_type: whether a ``jax.Array`` is weakly typed.
        key_impl: name of the implementation of a key array.
    """

    kind: Kind
    dtype: str
    weak_type: bool = False
    key_impl: str = ""


def storage_dtype(leaf_type: LeafType) -> np.dtype[Any]:
    """Return the little-endian dtype in which a leaf is stored."""
    return dtype_from_name(leaf_type.dtype.removeprefix(">"))


def is_stored_as_bytes(leaf_type: LeafType) -> bool:
    """Return whether a leaf is a Python object of variable length, stored as bytes: a str, bytes or a large int."""
    return leaf_type.kind in PYTHON_KINDS and leaf_type.dtype == "uint8"


def logical_shape(leaf_type: LeafType, stored_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a leaf from that of its stored array. Key data has an extra axis; a str is a scalar.

    Example:
        >>> logical_shape(LeafType("key", "uint32", key_impl="threefry2x32"), (8, 2))
        (8,)
    """
    if leaf_type.kind == "key":
        return tuple(stored_shape[:-1])
    return () if leaf_type.kind in PYTHON_KINDS else tuple(stored_shape)


def describe(leaf_type: LeafType, shape: Sequence[int]) -> str:
    """Return a type and a logical shape for use in a message.

    Example:
        >>> describe(LeafType("jax", "float32"), (784, 512)), describe(LeafType("int", "int64"), ())
        ('float32[784,512]', 'int')
    """
    if leaf_type.kind in PYTHON_KINDS:
        return leaf_type.kind
    return f"{describe_dtype(leaf_type)}[{','.join(map(str, shape))}]"


def describe_dtype(leaf_type: LeafType) -> str:
    """Return the dtype of a type for use in a message."""
    if leaf_type.kind in PYTHON_KINDS:
        return leaf_type.kind
    return f"key<{leaf_type.key_impl}>" if leaf_type.kind == "key" else leaf_type.dtype


# Leaves to bytes.


class Cells:
    """The arrays that together contain the bytes of a leaf: the cells of a grid.

    Attributes:
        arrays: the cells in row-major order; None for those that other processes write.
        boundaries: for each axis, the boundaries of the cells, from 0 to the length of the axis. None for a leaf of a
            single cell, which is not sharded.
        devices: the numbers of the devices that hold the cells; None if that does not matter.
    """

    __slots__ = ("arrays", "boundaries", "devices")

    def __init__(
        self, arrays: list[Any], boundaries: list[list[int]] | None = None, devices: list[int] | None = None
    ) -> None:
        self.arrays = arrays
        self.boundaries = boundaries
        self.devices = devices


class OneCellEach(Sequence[Cells]):
    """The cells of leaves that are not sharded, made when they are needed."""

    def __init__(self, leaves: Sequence[Any]) -> None:
        self.leaves = leaves

    @overload
    def __getitem__(self, position: int) -> Cells: ...
    @overload
    def __getitem__(self, position: slice) -> list[Cells]: ...
    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [Cells([leaf]) for leaf in self.leaves[position]]
        return Cells([self.leaves[position]])

    def __iter__(self) -> Iterator[Cells]:
        return (Cells([leaf]) for leaf in self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)


class SourceArray:
    """What becomes a NumPy array when it is written, from the array `array`."""

    __slots__ = ("array",)
    array: Any


def source_of(array: Any) -> Any:
    """Return the array that is read when this one is written: itself, or that of a `SourceArray`."""
    while isinstance(array, SourceArray):
        array = array.array
    return array


class ArrayPart(SourceArray):
    """A box of an array, which becomes a NumPy array when it is written."""

    __slots__ = ("index",)

    def __init__(self, array: Any, index: tuple[slice, ...]) -> None:
        self.array = array
        self.index = index

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array)[self.index]


def grid_cells(boundaries: Sequence[Sequence[int]]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the (start, shape) of every cell of a grid, in row-major order.

    Example:
        >>> list(grid_cells([[0, 2, 4], [0, 3]]))
        [((0, 0), (2, 3)), ((2, 0), (2, 3))]
    """
    counts = [len(axis) - 1 for axis in boundaries]
    for position in np.ndindex(*counts):
        start = tuple(axis[i] for axis, i in zip(boundaries, position, strict=True))
        stop = tuple(axis[i + 1] for axis, i in zip(boundaries, position, strict=True))
        yield start, tuple(b - a for a, b in zip(start, stop, strict=True))


def big_int_nbytes(value: int) -> int:
    """Return the number of bytes of an int that is stored as bytes."""
    return value.bit_length() // 8 + 1


PYTHON_TYPES: dict[type, LeafType] = {
    bool: LeafType("bool", "bool"),
    int: LeafType("int", "int64"),
    float: LeafType("float", "float64"),
    complex: LeafType("complex", "complex128"),
    str: LeafType("str", "uint8"),
    bytes: LeafType("bytes", "uint8"),
}
_BIG_INT = LeafType("int", "uint8")


def python_leaf_type(leaf: Any) -> tuple[LeafType, tuple[int, ...]]:
    """Return the type of a leaf of one of `PYTHON_TYPES`, and the shape of its stored array.

    Example:
        >>> python_leaf_type("hi")
        (LeafType(kind='str', dtype='uint8', weak_type=False, key_impl=''), (2,))
    """
    leaf_type = PYTHON_TYPES[type(leaf)]
    if type(leaf) is int and not -(2**63) <= leaf < 2**63:
        return _BIG_INT, (big_int_nbytes(leaf),)
    if type(leaf) is str:
        return leaf_type, (len(leaf.encode("utf-8", "surrogatepass")),)
    return leaf_type, (len(leaf),) if type(leaf) is bytes else ()


_BYTE = np.dtype(np.uint8)


def cell_bytes(cell: Any, leaf_type: LeafType) -> np.ndarray:
    """Return the little-endian, C-ordered bytes of a cell as a uint8[n], without a copy if possible."""
    if leaf_type.kind in ("jax", "numpy"):
        array = np.asarray(cell)
        if array.flags.c_contiguous and array.dtype.isnative and array.itemsize:
            return array.ravel().view(_BYTE)
    match leaf_type.kind:
        case "str":
            array = np.frombuffer(cell.encode("utf-8", "surrogatepass"), np.uint8)
        case "bytes":
            array = np.frombuffer(cell, np.uint8)
        case "int" if leaf_type.dtype == "uint8":
            array = np.frombuffer(cell.to_bytes(big_int_nbytes(cell), "little", signed=True), np.uint8)
        case "bool" | "int" | "float" | "complex":
            array = np.array(cell, storage_dtype(leaf_type))
        case _:
            array = np.asarray(cell)
    if array.dtype.byteorder == ">":
        array = array.byteswap()
    if array.dtype.itemsize == 0:
        return np.empty(0, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


# Bytes to values.


def stored_array(data: np.ndarray, leaf_type: LeafType, stored_shape: Sequence[int]) -> np.ndarray:
    """View a uint8[n] as the stored array of a variable, without a copy."""
    dtype = storage_dtype(leaf_type)
    if dtype.itemsize == 0:
        return np.ndarray(tuple(stored_shape), dtype)  # np.zeros would turn U0 into U1
    return data.view(dtype).reshape(tuple(stored_shape))


def joined_bytes(cells: Cells, leaf_type: LeafType, shape: tuple[int, ...]) -> np.ndarray:
    """Return the stored bytes of a leaf as a uint8[n]: of a sharded one, those of all cells together."""
    if cells.boundaries is None:
        return cell_bytes(cells.arrays[0], leaf_type)
    whole = np.empty(shape, storage_dtype(leaf_type))
    for (start, cell_shape), array in zip(grid_cells(cells.boundaries), cells.arrays, strict=True):
        whole[tuple(slice(a, a + n) for a, n in zip(start, cell_shape, strict=True))] = np.asarray(array)
    return whole.reshape(-1).view(np.uint8)


def python_value(array: np.ndarray, leaf_type: LeafType) -> Any:
    """Convert a stored array to its Python object."""
    match leaf_type.kind:
        case "str":
            return array.tobytes().decode("utf-8", "surrogatepass")
        case "bytes":
            return array.tobytes()
        case "int" if leaf_type.dtype == "uint8":
            return int.from_bytes(array.tobytes(), "little", signed=True)
    return array.item()


def numpy_value(array: np.ndarray, leaf_type: LeafType) -> np.ndarray:
    """Convert a stored array to a NumPy array of its values. A str, bytes or large int becomes a 0-d object array.

    `array` may be byte-swapped in place.
    """
    if is_stored_as_bytes(leaf_type):
        value = np.empty((), object)
        value[()] = python_value(array, leaf_type)
        return value
    if leaf_type.dtype.startswith(">"):
        array = array.byteswap(inplace=array.flags.writeable).view(dtype_from_name(leaf_type.dtype))
    return array if array.flags.aligned else array.copy()


def is_castable(found: LeafType, target: LeafType) -> bool:
    """Return whether leaves of both types are numbers or bools."""
    return is_number(found) and is_number(target)


@functools.lru_cache(maxsize=1024)
def is_number(leaf_type: LeafType) -> bool:
    """Return whether leaves of this type are numbers or bools."""
    if leaf_type.kind in PYTHON_KINDS:
        return leaf_type.kind not in ("str", "bytes")
    return leaf_type.kind != "key" and leaf_type.dtype != "float0" and _category(storage_dtype(leaf_type)) >= 0


_FLOATING = 2
_CATEGORIES = (("bool",), ("int", "uint"), ("float", "bfloat"), ("complex",))


@functools.lru_cache(maxsize=1024)
def _category(dtype: np.dtype[Any]) -> int:
    return next((i for i, beginnings in enumerate(_CATEGORIES) if dtype.name.startswith(beginnings)), -1)


def is_floating(dtype: str) -> bool:
    """Return whether the dtype with this name is a real floating dtype."""
    return dtype != "float0" and _category(dtype_from_name(dtype)) == _FLOATING
