"""Numbers of one dtype made numbers of another, and a refusal where more than rounding would be lost. Pure."""

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

from pytreesaver._tree.boxes import box_index, split_box, whole_box
from pytreesaver._tree.kinds import (
    _FLOATING,
    _category,
    dtype_name,
    is_floating,
)


class LossError(Exception):
    """Why values cannot become values of another dtype, as the end of a sentence."""


def floating_dtype(given: Any) -> str:
    """The name of the floating dtype that a user gave as a dtype, a scalar type or a name.

    Raises:
        TypeError: it is none.

    Example:
        >>> floating_dtype(jax.numpy.bfloat16), floating_dtype("float32")
        ('bfloat16', 'float32')
    """
    try:
        if given is None:  # NumPy takes it for float64
            raise TypeError
        name = given if isinstance(given, str) else dtype_name(np.dtype(given))
        if is_floating(name):
            return name
    except (TypeError, ValueError):
        pass
    raise TypeError(f"cast: expected True, False, or a floating dtype for all floating leaves, found {given!r}")


def convert(values: np.ndarray, output: np.ndarray) -> None:
    """Fill `output` with `values` as numbers of its dtype.

    Floats become floats by rounding to the nearest, and complex numbers in the same way, part by part. Whatever else
    the dtypes are, the numbers have to be the same afterwards.

    Raises:
        LossError: a finite number would become infinite or NaN, or a number would not be there at all in the other
            dtype: a fraction or 300 as int8, 2 as bool, 257 as bfloat16 if it was an integer, 1+2j as float32.

    Example:
        >>> output = np.empty(2, np.int8)
        >>> convert(np.array([1.0, -128.0]), output)
        >>> output
        array([   1, -128], dtype=int8)
        >>> convert(np.array([1.0, 128.0]), output)
        Traceback (most recent call last):
        pytreesaver._tree.casting.LossError: 128.0 is no int8 value
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
    if source > _FLOATING >= target:
        _refuse(values, values.imag != 0, output.dtype)
        values = values.real
    if values.dtype.isbuiltin != 1 or values.dtype == np.float16:  # too small to compare them with all limits
        values = values.astype(np.int32 if source < _FLOATING else np.float32)
    if target < _FLOATING:
        _refuse(values, ~_is_whole_number_of(values, output.dtype), output.dtype)
        output[...] = values
    elif source < _FLOATING:
        output[...] = values
        _refuse(values, ~_is_same(values, output), output.dtype)
    elif output.dtype.kind == "c":
        for part, into in ((values.real, output.real), (values.imag, output.imag)):
            _round(part, into)
    else:
        _round(values, output)


def _is_whole_number_of(values: np.ndarray, target: np.dtype[Any]) -> Any:
    """For each number whether an integer or boolean dtype has it."""
    if target == np.bool_:
        return (values == 0) | (values == 1)
    info = ml_dtypes.iinfo(target)  # type: ignore[no-untyped-call]
    low, high = int(info.min), int(info.max)
    if values.dtype.kind == "f":
        # high + 1 is a power of two, and a float; high itself may not be one.
        return (values >= float(low)) & (values < float(high + 1)) & (values == np.trunc(values))
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if np.iinfo(values.dtype).min >= low and np.iinfo(values.dtype).max <= high:
        return np.ones(values.shape, bool)
    return (values >= max(low, np.iinfo(values.dtype).min)) & (values <= min(high, np.iinfo(values.dtype).max))


def _is_same(integers: np.ndarray, floats: np.ndarray) -> Any:
    """For each integer or bool whether the float that was made of it is the same number."""
    if integers.dtype == np.bool_:
        integers = integers.astype(np.uint8)
    exact = floats.real.astype(np.float64)
    info = np.iinfo(integers.dtype)
    fits = (exact >= float(info.min)) & (exact < float(int(info.max) + 1))
    return fits & (np.where(fits, exact, 0).astype(integers.dtype) == integers)


def _round(values: np.ndarray, output: np.ndarray) -> None:
    """Fill floats with floats, rounded to the nearest; refuse an overflow, and NaN or infinity where there is none."""
    over_float32 = values.dtype == np.float64 and output.dtype.isbuiltin != 1
    output[...] = _rounded_to_odd(values) if over_float32 else values
    if np.isfinite(output).all() and _has_nan(output.dtype):
        return
    rounded = output.astype(np.float64)
    lost = (np.isfinite(values) != np.isfinite(rounded)) | (np.isnan(values) != np.isnan(rounded))
    if not _has_nan(output.dtype):  # then what is too large becomes the largest number
        info = ml_dtypes.finfo(output.dtype)  # type: ignore[no-untyped-call]
        largest = float(info.max)
        half_step = 2.0 ** (math.frexp(largest)[1] - 2 - int(info.nmant))
        lost |= np.isfinite(values) & (np.abs(values) >= largest + half_step)
    _refuse(values, lost, output.dtype)


@functools.lru_cache
def _has_nan(dtype: np.dtype[Any]) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.isnan(np.array(np.nan).astype(dtype).astype(np.float64)))


def _rounded_to_odd(values: np.ndarray) -> np.ndarray:
    """float64 as float32 in such a way that rounding that again rounds the numbers as they were.

    ml_dtypes knows no other way from float64 than over float32, and to round twice to the nearest can go wrong.
    """
    rounded = values.astype(np.float32)
    back = rounded.astype(np.float64)
    bits = rounded.view(np.uint32)
    inexact = np.isfinite(values) & (back != values)
    return np.where(inexact, (bits - (np.abs(back) > np.abs(values))) | 1, bits).astype(np.uint32).view(np.float32)


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
        raise LossError(f"{shown_number(value)} is no {kind}") from None
    is_nan = isinstance(value, float) and math.isnan(value)
    if number != value and not is_nan:
        raise LossError(f"{shown_number(value)} is no {kind}")
    return number


_PYTHON_NUMBERS: dict[str, Any] = {cls.__name__: cls for cls in (bool, int, float, complex)}


def array_of_python_number(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """A Python number as a 0-d array, under the same rule.

    Raises:
        LossError: the dtype has no such number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if _category(dtype) >= _FLOATING:
            value = convert_python_number(value, "float")
        else:
            info = None if dtype == np.bool_ else ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
            if not (value in (0, 1) if info is None else int(info.min) <= value <= int(info.max)):
                raise LossError(f"{shown_number(value)} is no {dtype.name} value")
            return np.array(value, dtype)
        exact = np.array(value)
        output = np.empty((), dtype)
        convert(exact, output)
        if complex(output[()]) != value:
            raise LossError(f"{shown_number(int(value))} is no {dtype.name} value")
        return output
    output = np.empty((), dtype)
    convert(np.array(value), output)
    return output


def shown_number(value: Any) -> str:
    """A Python number as it stands in messages."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return repr(value)
