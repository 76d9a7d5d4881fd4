"""The rules that stored columns of variables obey, whatever file they come from."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytreesaver._text import duplicates
from pytreesaver._tree.kinds import PYTHON_KINDS, LeafType, storage_dtype

MAX_NBYTES = 2**63
"""Sizes and offsets in bytes are less than this."""

_MAX_AXES = 64  # NumPy's limit


def problem_of_variables(
    names: Sequence[str], types: Sequence[LeafType], type_of: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> str | None:
    """Return which rule stored names, types and shapes break, or None.

    Raises:
        NotPlainError: if a dtype is unknown.
    """
    again = duplicates(names)
    if again:
        return f"different names, found {again} more than once"
    if not len(type_of) == len(shapes) == len(names):
        return f"{len(names)} types and shapes, as many as names"
    if type_of and not (min(type_of) >= 0 and max(type_of) < len(types)):
        return f"positions among {len(types)} types"
    for leaf_type in types:
        problem = _problem_of_type(leaf_type)
        if problem is not None:
            return problem
    # Trees of thousands of leaves have few distinct shapes: each is checked once.
    distinct = dict(zip(zip(type_of, shapes, strict=True), names, strict=True))
    for (position, shape), name in distinct.items():
        leaf_type = types[position]
        if not _fits_kind(leaf_type, shape):
            return f"a shape for {leaf_type.kind} of {leaf_type.dtype} in {name}, found {list(shape[:9])}"
        if not is_shape(shape, storage_dtype(leaf_type).itemsize):
            return f"at most 64 axes, no negative length, and fewer than 2**63 bytes in {name}"
    return None


def problem_of_objects(metadata: Any, record: Any, models: Any) -> str | None:
    """Return which of these is not an object, as it has to be, or None."""
    if not is_encoded_dict(metadata):
        return "an object of metadata"
    if not (record is None or isinstance(record, dict)):
        return "an object as the record"
    return None if models is None or isinstance(models, dict) else "an object of models"


def is_encoded_dict(encoded: Any) -> bool:
    """Return whether JSON data is what `encode_value` makes of a dict."""
    if not isinstance(encoded, dict):
        return False
    return len(encoded) != 1 or not next(iter(encoded)).startswith("$") or "$dict" in encoded


def _problem_of_type(leaf_type: LeafType) -> str | None:
    dtype = storage_dtype(leaf_type)
    if leaf_type.kind == "key" and not leaf_type.key_impl:
        return "the implementation of each key"
    if not leaf_type.kind.startswith("numpy"):
        is_number = dtype.kind in "biufcV" and leaf_type.dtype != "float0"
        if not is_number or leaf_type.dtype[0] == ">":
            return f"a dtype for {leaf_type.kind}, found {leaf_type.dtype!r}"
    return None


def is_shape(shape: Sequence[int], itemsize: int) -> bool:
    """Return whether NumPy can have an array of a shape, and of elements of `itemsize` bytes."""
    nbytes = max(itemsize, 1)
    if len(shape) > _MAX_AXES or (shape and min(shape) < 0):
        return False
    for length in shape:
        nbytes *= max(length, 1)  # NumPy limits empty arrays too
        if nbytes >= MAX_NBYTES:
            return False
    return True


_PYTHON_DTYPES: Mapping[str, Sequence[str]] = {
    "bool": ["bool"],
    "int": ["int64", "uint8"],
    "float": ["float64"],
    "complex": ["complex128"],
}


def _fits_kind(leaf_type: LeafType, shape: Sequence[int]) -> bool:
    if leaf_type.kind == "key":
        return leaf_type.dtype == "uint32" and len(shape) > 0
    if leaf_type.kind in PYTHON_KINDS:
        of_bytes = leaf_type.dtype == "uint8"
        return leaf_type.dtype in _PYTHON_DTYPES.get(leaf_type.kind, ["uint8"]) and len(shape) == int(of_bytes)
    return leaf_type.kind != "numpy_scalar" or len(shape) == 0
