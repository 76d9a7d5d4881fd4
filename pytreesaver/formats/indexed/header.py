"""The safetensors header, as specified at https://github.com/huggingface/safetensors#format."""

import struct
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

# The dtypes that the NumPy and flax readers of safetensors support: they refuse a file with any other dtype. Arrays of
# other dtypes are stored as bytes, with their actual dtype in the index.
_TAGS = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "int64": "I64",
    "uint64": "U64",
    "float64": "F64",
    "complex64": "C64",
}


_FLOAT8_TAGS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"}
LENGTH_NBYTES = 8
"""The size of the length of a header, before it."""

MAX_HEADER_NBYTES = 100_000_000
"""The limit of the safetensors library."""


class Tensor(NamedTuple):
    """A tensor of a header. `offset` counts from the end of the header."""

    name: str
    dtype: np.dtype[Any]
    shape: Sequence[int]
    offset: int
    nbytes: int


def encode_header(entries: bytes, metadata: Mapping[str, str], alignment: int) -> bytes:
    """Return the length and the JSON header, padded with spaces to a multiple of `alignment` bytes.

    Args:
        entries: the tensors, from `encode_entries`.
        metadata: the metadata.
        alignment: the alignment of the data that follows.
    """
    header = b'{"__metadata__":' + msgspec.json.encode(dict(metadata)) + entries + b"}"
    header += b" " * (-(8 + len(header)) % alignment)
    return struct.pack("<Q", len(header)) + header


def encode_entries(tensors: Sequence[Tensor], *, with_float8: bool = False) -> bytes:
    """Return the entries of tensors in a header, each after a comma. Without `with_float8`, 8-bit floats are bytes."""
    taken = {"__metadata__"}
    entries = [""]
    kinds: dict[Any, str] = {}  # the start of the entries of tensors with the same dtype and shape
    for name, dtype, shape, offset, nbytes in tensors:
        kind = kinds.get((dtype, *shape))
        if kind is None:
            tag, suffix = _tag_and_suffix(dtype, with_float8)
            kind = f'{{"dtype":"{tag}","shape":[{",".join(map(str, [*shape, *suffix]))}],"data_offsets":['
            kinds[(dtype, *shape)] = kind
        if name in taken:
            name = _unique_name(name, taken)
        taken.add(name)
        entries.append(f"{_encode(name).decode()}:{kind}{offset},{offset + nbytes}]}}")
    return ",".join(entries).encode()


_encode = msgspec.json.Encoder().encode


def is_header(data: bytes) -> bool:
    """Return whether some bytes start like a data file of the native format."""
    return data[8:].startswith(b'{"__metadata__":{"format":"pytreesaver"')


def _tag_and_suffix(dtype: np.dtype[Any], with_float8: bool) -> tuple[str, list[int]]:
    """Return the safetensors dtype for arrays of `dtype`, and the additional axes if it stores them as bytes."""
    tag = _TAGS.get(dtype.name) or (_FLOAT8_TAGS.get(dtype.name) if with_float8 else None)
    if tag is not None or dtype.itemsize == 1:
        return tag or "U8", []
    return "U8", [dtype.itemsize]


def _unique_name(name: str, taken: Container[str]) -> str:
    # "__metadata__" is reserved by safetensors, and the name of a chunk may equal that of another variable.
    while name in taken:
        name += "'"
    return name
