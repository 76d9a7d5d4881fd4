"""The header of an array in NumPy's format, as numpy.lib.format specifies it."""

import struct
import warnings
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pytreesaver._tree.kinds import dtype_name
from pytreesaver.formats.rules import is_shape


def stored_dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of the dtype of a stored array. NumPy writes bfloat16 as two bytes without a meaning.

    Raises:
        NotPlainError: if pytreesaver has no such dtype.
    """
    if dtype.str == "|V2":
        return "bfloat16"
    return dtype_name(dtype.newbyteorder("<") if dtype.byteorder == ">" and dtype.kind == "U" else dtype)


def read_array_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read a header. Return the shape, whether the array is in Fortran order, and the dtype.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        return _read_array_header(file)
    except _DAMAGES as error:
        raise ValueError(f"a damaged header ({error})") from None


_DAMAGES = (
    *(SyntaxError, TokenError, TypeError, KeyError, EOFError),
    *(OverflowError, RecursionError, struct.error, MemoryError),
)


def _read_array_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"unknown version {version} of the format of NumPy arrays")
    with warnings.catch_warnings():  # of dtypes and of headers that NumPy no longer writes
        warnings.simplefilter("ignore")
        shape, is_fortran, dtype = read(file)
    if not all(type(length) is int for length in shape) or not is_shape(shape, dtype.itemsize):
        raise ValueError(f"impossible shape {shape}")
    return shape, is_fortran, dtype
