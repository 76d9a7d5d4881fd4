"""Numbers of one dtype made numbers of another, and a refusal where more than rounding would be lost. Pure."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from pytreesaver._boxes import box_index, split_box, whole_box
from pytreesaver._leaves import PYTHON_KINDS, LeafType, storage_dtype
from pytreesaver._values import dtype_from_name, dtype_name


class LossError(Exception):
    """Why values cannot become values of another dtype, as the end of a sentence."""


def is_castable(found: LeafType, target: LeafType) -> bool:
    """Whether both hold numbers or bools."""
    return _is_number(found) and _is_number(target)


def _is_number(leaf_type: LeafType) -> bool:
    if leaf_type.kind in PYTHON_KINDS:
        return leaf_type.kind not in ("str", "bytes")
    return leaf_type.kind != "key" and leaf_type.dtype != "float0" and _category(storage_dtype(leaf_type)) >= 0


_FLOATING = 2
_CATEGORIES = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def _category(dtype: np.dtype[Any]) -> int:
    if dtype.kind in "mMUSO":
        return -1
    return next((i for i, category in enumerate(_CATEGORIES) if jnp.issubdtype(dtype, category)), -1)


def is_floating(dtype: str) -> bool:
    """Whether numbers of the dtype of this name are floats."""
    return dtype != "float0" and _category(dtype_from_name(dtype)) == _FLOATING


def floating_dtype(given: Any) -> str:
    """The name of the floating dtype that a user gave as a dtype, a scalar type or a name.

    Raises:
        TypeError: it is none.

    Example:
        >>> floating_dtype(jnp.bfloat16), floating_dtype("float32")
        ('bfloat16', 'float32')
    """
    try:
        name = given if isinstance(given, str) else dtype_name(np.dtype(given))
        if is_floating(name):
            return name
    except (TypeError, ValueError):
        pass
    raise TypeError(f"cast: expected True, False, or a floating dtype for all floating leaves, found {given!r}")


def convert(values: np.ndarray, output: np.ndarray) -> None:
    """Fill `output` with `values` as numbers of its dtype.

    Numbers become floats by rounding to the nearest, and complex numbers in the same way, part by part. Whatever else
    the dtypes are, the values have to be the same afterwards.

    Raises:
        LossError: a finite number would become infinite or NaN, or a number would not be there at all in the other
            dtype: a fraction or 300 as int8, 2 as bool, 1+2j as float32.

    Example:
        >>> output = np.empty(2, np.int8)
        >>> convert(np.array([1.0, -128.0]), output)
        >>> output
        array([   1, -128], dtype=int8)
        >>> convert(np.array([1.0, 128.0]), output)
        Traceback (most recent call last):
        pytreesaver._convert.LossError: 128.0 is no int8 value
    """
    if values.dtype == output.dtype:
        output[...] = values
        return
    with np.errstate(all="ignore"):  # what overflows is found and refused
        for box in split_box(whole_box(values.shape), _MOST_ELEMENTS):
            _convert(values[box_index(box)], output[box_index(box)])


_MOST_ELEMENTS = 1 << 17  # so that what the checks need stays small, and in the cache


def _convert(values: np.ndarray, output: np.ndarray) -> None:
    source, target = _category(values.dtype), _category(output.dtype)
    if source == 3 and target < 3:
        _refuse(values, values.imag != 0, output.dtype)
        values = values.real
    if values.dtype.isbuiltin != 1 or values.dtype == np.float16:  # too small to compare them with all limits
        values = values.astype(np.int32 if source == 1 else np.float32)
    if target >= _FLOATING:
        output[...] = values
        _refuse_overflow(values, output)
    else:
        _refuse(values, ~_is_exact(values, output.dtype), output.dtype)
        output[...] = values


def _is_exact(values: np.ndarray, target: np.dtype[Any]) -> Any:
    """For each number whether an integer or boolean dtype has it."""
    if target == np.bool_:
        return (values == 0) | (values == 1)
    info = jnp.iinfo(target)  # type: ignore[no-untyped-call]
    low, high = int(info.min), int(info.max)
    if values.dtype.kind == "f":
        # high + 1 is a power of two, and a float; high itself may not be one.
        return (values >= float(low)) & (values < float(high + 1)) & (values == np.trunc(values))
    if values.dtype == np.bool_ or (np.iinfo(values.dtype).min >= low and np.iinfo(values.dtype).max <= high):
        return np.ones(values.shape, bool)
    return (values >= max(low, np.iinfo(values.dtype).min)) & (values <= min(high, np.iinfo(values.dtype).max))


def _refuse_overflow(values: np.ndarray, output: np.ndarray) -> None:
    is_complex = output.dtype.kind == "c"
    parts = [(values.real, output.real), (values.imag, output.imag)] if is_complex else [(values, output)]
    for before, after in parts:
        if after.dtype.itemsize > 1 and np.isfinite(after).all():
            continue
        limits = jnp.finfo(after.dtype)  # type: ignore[no-untyped-call]
        rounded = after.astype(np.float64)
        lost = ~np.isfinite(rounded) if before.dtype.kind in "biu" else np.isfinite(before) != np.isfinite(rounded)
        if before.dtype.kind == "f":
            lost |= np.isnan(before) != np.isnan(rounded)
        # The smallest floats have no infinity: what is too large becomes the largest number, or NaN.
        if after.dtype.itemsize == 1:
            lost |= np.isfinite(before) & ((before > float(limits.max)) | (before < float(limits.min)))
        _refuse(before, lost, after.dtype)


def _refuse(values: np.ndarray, lost: Any, target: np.dtype[Any]) -> None:
    if np.any(lost):
        value = values[lost].reshape(-1)[0]
        raise LossError(
            f"{value!s} is no {target.name} value" if np.isfinite(value) else f"{target.name} has no {value}"
        )


def convert_python_number(value: Any, kind: str) -> Any:
    """A Python number as a ``"bool"``, ``"int"``, ``"float"`` or ``"complex"``, under the same rule.

    Raises:
        LossError: it is none.

    Example:
        >>> convert_python_number(3.0, "int")
        3
    """
    if isinstance(value, complex) and kind != "complex" and value.imag == 0:
        value = value.real
    try:
        number = _PYTHON_NUMBERS[kind](value)
    except (OverflowError, TypeError, ValueError):
        raise LossError(f"{value} is no {kind}") from None
    if kind in ("bool", "int") and number != value:
        raise LossError(f"{value} is no {kind}")
    return number


_PYTHON_NUMBERS: dict[str, Any] = {cls.__name__: cls for cls in (bool, int, float, complex)}
