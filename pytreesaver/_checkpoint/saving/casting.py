"""Casting of floating-point arrays while they are written."""

from collections.abc import Sequence
from typing import Any

import jax
import msgspec
import numpy as np

from pytreesaver._errors import MismatchError
from pytreesaver._text import quoted
from pytreesaver._tree.casting import X64_DTYPES, LossyCastError, convert, floating_dtype
from pytreesaver._tree.kinds import Cells, LeafType, SourceArray, describe_dtype, is_floating, storage_dtype
from pytreesaver.formats.fetching import fetched
from pytreesaver.formats.protocol import TreeContents


def checked_cast(given: Any) -> bool | str:
    """Return the argument `cast` of `save` and `convert`: a bool, or the name of a floating dtype.

    Raises:
        TypeError: if it is neither.
    """
    return bool(given) if isinstance(given, bool | np.bool_) else floating_dtype(given)


def cast_type(leaf_type: LeafType, cast: bool | str) -> LeafType:
    """Return the type of a leaf after the cast.

    Example:
        >>> cast_type(LeafType("jax", "float32"), "bfloat16").dtype, cast_type(LeafType("float", "float64"), True).dtype
        ('bfloat16', 'float64')
    """
    if cast is True:
        dtype = X64_DTYPES.get(leaf_type.dtype, leaf_type.dtype) if leaf_type.kind == "jax" else leaf_type.dtype
    elif cast and leaf_type.kind in ("jax", "numpy", "numpy_scalar") and is_floating(leaf_type.dtype):
        dtype = str(cast)
    else:
        dtype = leaf_type.dtype
    return leaf_type if dtype == leaf_type.dtype else msgspec.structs.replace(leaf_type, dtype=dtype)


def with_cast_contents(contents: TreeContents, cast: bool | str) -> TreeContents:
    """Return contents whose arrays are cast when they are written. Raises what `with_cast_cells` does."""
    if cast is False:
        return contents
    types = [cast_type(leaf_type, cast) for leaf_type in contents.types]
    return with_cast_cells(contents._replace(types=types), contents.types)


def with_cast_cells(contents: TreeContents, before: Sequence[LeafType]) -> TreeContents:
    """Return contents whose arrays are cast to their types when they are written.

    Args:
        contents: the tree, of the types after the cast.
        before: the types of its arrays.
    """
    cells = [
        each if own == leaf_type else _cast(each, own, leaf_type)
        for each, own, leaf_type in zip(contents.cells, before, contents.types, strict=True)
    ]
    return contents._replace(cells=cells)


def _cast(cells: Cells, own: LeafType, leaf_type: LeafType) -> Cells:
    arrays = [None if array is None else CastArray(array, own, leaf_type) for array in cells.arrays]
    return Cells(arrays, cells.boundaries, cells.devices)


class CastArray(SourceArray):
    """An array that is cast when it becomes a NumPy array, which raises a LossyCastError if a number cannot be cast.

    Args:
        array: the array.
        found: its type.
        expected: the type after the cast.
    """

    __slots__ = ("_type", "found")

    def __init__(self, array: Any, found: LeafType, expected: LeafType) -> None:
        self.array = array
        self._type = expected
        self.found = found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = np.asarray(fetched(self.array) if isinstance(self.array, jax.Array) else self.array)
        output = np.empty(values.shape, storage_dtype(self._type))
        convert(values, output)
        return output


def cast_error(contents: TreeContents, where: str) -> MismatchError:
    """Return the error that names all variables that cannot be cast. Casts all of them again to find them."""
    lines, dtypes = [], {}
    for name, leaf_type, cells in zip(contents.names, contents.types, contents.cells, strict=True):
        for array in cells.arrays:
            if not isinstance(array, CastArray):
                continue
            try:
                np.asarray(array)
            except LossyCastError as loss:
                dtypes[name] = describe_dtype(leaf_type), describe_dtype(array.found)
                lines.append(f"  {quoted(name)}: expected {dtypes[name][0]}, found {dtypes[name][1]} ({loss})")
                break
    count = len(lines)
    return MismatchError(
        f"{count} variable{'s' * (count != 1)} of {where} cannot be cast without loss:\n" + "\n".join(lines),
        dtype=dtypes,
    )
