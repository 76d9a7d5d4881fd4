"""Casts between dtypes that raise an error if anything but rounding would be lost. Pure functions."""

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

from pytreesaver._tree.boxes import box_index, split_box, whole_box
from pytreesaver._tree.kinds import _FLOATING, _category, dtype_name, is_floating

X64_DTYPES = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}
"""The dtypes that JAX arrays can have only while ``jax_enable_x64`` is on, and what JAX truncates them to otherwise."""


class LossyCastError(Exception):
    """A cast would lose information. The message is the reason, for use in a longer message."""


def floating_dtype(given: Any) -> str:
    """Return the name of a floating dtype, which is given as a dtype, a scalar type or a name.

    Raises:
        TypeError: if it is not a floating dtype.

    Example:
        >>> floating_dtype(jax.numpy.bfloat16), floating_dtype("float32")
        ('bfloat16', 'float32')
    """
    try:
        if given is None:  # np.dtype(None) is float64
            raise TypeError
        name = given if isinstance(given, str) else dtype_name(np.dtype(given))
        if is_floating(name):
            return name
    except (TypeError, ValueError):
        pass
    raise TypeError(
        f"cast: expected True, False, or a floating dtype, such as bfloat16, for all floating leaves, found {given!r}"
    )


def convert(values: np.ndarray, output: np.ndarray) -> None:
    """Cast `values` to the dtype of `output` and store them there.

    Casts between floating dtypes, or between complex dtypes, round to the nearest. All other casts must be exact.

    Raises:
        LossyCastError: if a finite number would become infinite or NaN, or if the target dtype cannot represent a
            number: 0.5 or 300 as int8, 2 as bool, the integer 257 as bfloat16, 1+2j as float32.

    Example:
        >>> output = np.empty(2, np.int8)
        >>> convert(np.array([1.0, -128.0]), output)
        >>> output
        array([   1, -128], dtype=int8)
        >>> convert(np.array([1.0, 128.0]), output)
        Traceback (most recent call last):
        pytreesaver._tree.casting.LossyCastError: 128.0 is not representable as int8
    """
    if values.dtype == output.dtype:
        output[...] = values
        return
    with np.errstate(all="ignore"):  # overflows are detected below
        for box in split_box(whole_box(values.shape), _MAX_ELEMENTS):
            _convert(values[box_index(box)], output[box_index(box)])


_MAX_ELEMENTS = 1 << 17  # keeps the temporary arrays of the checks small and in the CPU cache


def _convert(values: np.ndarray, output: np.ndarray) -> None:
    source, target = _category(values.dtype), _category(output.dtype)
    if source > _FLOATING >= target:
        _raise_if_any(values, np.imag(values) != 0, output.dtype)
        values = np.real(values)
    if values.dtype.isbuiltin != 1 or values.dtype == np.float16:  # too narrow to compare with all limits
        values = values.astype(np.int32 if source < _FLOATING else np.float32)
    if target < _FLOATING:
        _raise_if_any(values, ~_is_in_integer_dtype(values, output.dtype), output.dtype)
        output[...] = values
    elif source < _FLOATING:
        output[...] = values
        _raise_if_any(values, ~_is_exact(values, output), output.dtype)
    elif output.dtype.kind == "c":
        for part, into in ((np.real(values), np.real(output)), (np.imag(values), np.imag(output))):
            _round(part, into)
    else:
        _round(values, output)


def _is_in_integer_dtype(values: np.ndarray, target: np.dtype[Any]) -> Any:
    """Return for each number whether an integer or boolean dtype can represent it."""
    if target == np.bool_:
        return (values == 0) | (values == 1)
    info = ml_dtypes.iinfo(target)  # type: ignore[no-untyped-call]
    low, high = int(info.min), int(info.max)
    if values.dtype.kind == "f":
        # high + 1 is a power of two and thus exact as a float; high may not be.
        return (values >= float(low)) & (values < float(high + 1)) & (values == np.trunc(values))
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if np.iinfo(values.dtype).min >= low and np.iinfo(values.dtype).max <= high:
        return np.ones(values.shape, bool)
    return (values >= max(low, np.iinfo(values.dtype).min)) & (values <= min(high, np.iinfo(values.dtype).max))


def _is_exact(integers: np.ndarray, floats: np.ndarray) -> Any:
    """Return for each integer or bool whether the float that it was cast to is equal."""
    if integers.dtype == np.bool_:
        integers = integers.astype(np.uint8)
    exact = np.real(floats).astype(np.float64)
    info = np.iinfo(integers.dtype)
    fits = (exact >= float(info.min)) & (exact < float(int(info.max) + 1))
    return fits & (np.where(fits, exact, 0).astype(integers.dtype) == integers)


def _round(values: np.ndarray, output: np.ndarray) -> None:
    """Round floats to the nearest. Raise an error on overflow, and for NaN or infinity if the target lacks them."""
    over_float32 = values.dtype == np.float64 and output.dtype.isbuiltin != 1
    output[...] = _rounded_to_odd(values) if over_float32 else values
    if np.isfinite(output).all() and _has_nan(output.dtype):
        return
    rounded = output.astype(np.float64)
    lost = (np.isfinite(values) != np.isfinite(rounded)) | (np.isnan(values) != np.isnan(rounded))
    if not _has_nan(output.dtype):  # then overflow saturates at the largest number
        info = ml_dtypes.finfo(output.dtype)  # type: ignore[no-untyped-call]
        largest = float(info.max)
        half_step = 2.0 ** (math.frexp(largest)[1] - 2 - int(info.nmant))
        lost |= np.isfinite(values) & (np.abs(values) >= largest + half_step)
    _raise_if_any(values, lost, output.dtype)


@functools.lru_cache
def _has_nan(dtype: np.dtype[Any]) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.isnan(np.array(np.nan).astype(dtype).astype(np.float64)))


def _rounded_to_odd(values: np.ndarray) -> np.ndarray:
    """Cast float64 to float32 with rounding to odd, so that rounding the result again is correct.

    ml_dtypes casts from float64 through float32, and rounding to the nearest twice can be wrong.
    """
    rounded = values.astype(np.float32)
    back = rounded.astype(np.float64)
    bits = rounded.view(np.uint32)
    inexact = np.isfinite(values) & (back != values)
    return np.where(inexact, (bits - (np.abs(back) > np.abs(values))) | 1, bits).astype(np.uint32).view(np.float32)


def _raise_if_any(values: np.ndarray, lost: Any, target: np.dtype[Any]) -> None:
    if np.any(lost):
        value = values[lost].reshape(-1)[0]
        raise LossyCastError(f"{value!s} is not representable as {target.name}")


def convert_python_number(value: Any, kind: str) -> Any:
    """Convert a Python number to a ``"bool"``, ``"int"``, ``"float"`` or ``"complex"``. The conversion must be exact.

    Raises:
        LossyCastError: if the conversion is not exact.

    Example:
        >>> convert_python_number(3.0, "int")
        3
    """
    if isinstance(value, complex) and kind != "complex" and value.imag == 0:
        value = value.real
    try:
        number = _PYTHON_NUMBERS[kind](value)
    except (OverflowError, TypeError, ValueError):
        raise LossyCastError(f"{display_number(value)} is not representable as {kind}") from None
    is_nan = isinstance(value, float) and math.isnan(value)
    if number != value and not is_nan:
        raise LossyCastError(f"{display_number(value)} is not representable as {kind}")
    return number


_PYTHON_NUMBERS: dict[str, Any] = {cls.__name__: cls for cls in (bool, int, float, complex)}


def array_of_python_number(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """Convert a Python number to a 0-d array, by the rules of `convert`.

    Raises:
        LossyCastError: if the dtype cannot represent the number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if _category(dtype) >= _FLOATING:
            value = convert_python_number(value, "float")
        else:
            info = None if dtype == np.bool_ else ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
            if not (value in (0, 1) if info is None else int(info.min) <= value <= int(info.max)):
                raise LossyCastError(f"{display_number(value)} is not representable as {dtype.name}")
            return np.array(value, dtype)
        exact = np.array(value)
        output = np.empty((), dtype)
        convert(exact, output)
        if complex(output[()]) != value:
            raise LossyCastError(f"{display_number(int(value))} is not representable as {dtype.name}")
        return output
    output = np.empty((), dtype)
    convert(np.array(value), output)
    return output


def display_number(value: Any) -> str:
    """Return a Python number for use in a message."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return repr(value)
