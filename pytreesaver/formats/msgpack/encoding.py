"""Flax's msgpack: the headers of arrays and maps, and the values of Python. Pure functions.

https://github.com/msgpack/msgpack/blob/master/spec.md specifies msgpack, flax/serialization.py its extension types.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from pytreesaver._tree.plain import is_utf8

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
"""The key that marks an array of more than `MAX_CHUNK_NBYTES`, which is in pieces."""

MAX_CHUNK_NBYTES = 1 << 30

_encode = msgspec.msgpack.Encoder().encode


def encode_value(value: Any) -> bytes:
    """Return a number or a string of Python as Flax encodes it. An int of more than 64 bits becomes bytes.

    Example:
        >>> encode_value(7), encode_value("hi"), encode_value(1j)[:3]
        (b'\\x07', b'\\xa2hi', b'\\xc7\\x13\\x02')
    """
    if isinstance(value, complex):
        content: bytes = _encode((value.real, value.imag))
        return b"\xc7" + bytes([len(content), COMPLEX]) + content
    if type(value) is int and not -(1 << 63) <= value < 1 << 64:
        value = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if isinstance(value, str) and not is_utf8(value):
        value = value.encode("utf-8", "surrogatepass")
    encoded: bytes = _encode(value)
    return encoded


def map_header(count: int) -> bytes:
    """Return what a map of `count` keys and values begins with."""
    if count < 16:
        return bytes([0x80 | count])
    return b"\xde" + count.to_bytes(2, "big") if count < 1 << 16 else b"\xdf" + count.to_bytes(4, "big")


def bin_header(nbytes: int) -> bytes:
    """Return what `nbytes` bytes begin with. It has the same length for any number."""
    return b"\xc6" + nbytes.to_bytes(4, "big")


def array_header(shape: Sequence[int], dtype: str, nbytes: int, *, is_scalar: bool = False) -> bytes:
    """Return what an array begins with: its bytes follow. They are `nbytes`, less than 2**32."""
    described = b"\x93" + _encode(list(shape)) + _encode(dtype) + bin_header(nbytes)
    kind = SCALAR if is_scalar else ARRAY
    return b"\xc9" + (len(described) + nbytes).to_bytes(4, "big") + bytes([kind]) + described


def chunk_boundaries(shape: Sequence[int], itemsize: int) -> list[list[int]] | None:
    """Return the boundaries of a grid of cells of up to `MAX_CHUNK_NBYTES`; None if the array is not larger than that.

    Its cells, one after the other, are the array in C order, as Flax expects of the pieces of an array.

    Example:
        >>> chunk_boundaries((3, 1 << 29), 1) is None, chunk_boundaries((3, 1 << 29), 4)[0]
        (False, [0, 1, 2, 3])
    """
    if math.prod(shape) * itemsize <= MAX_CHUNK_NBYTES:
        return None
    boundaries: list[list[int]] = []
    for axis, length in enumerate(shape):
        row_nbytes = math.prod(shape[axis + 1 :]) * itemsize
        if math.prod(shape[axis:]) * itemsize <= MAX_CHUNK_NBYTES:
            boundaries.append([0, length])
        else:
            step = max(MAX_CHUNK_NBYTES // row_nbytes, 1)
            boundaries.append([*range(0, length, step), length])
    return boundaries
