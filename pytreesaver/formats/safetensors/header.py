"""Reading of a safetensors header, as specified at https://github.com/huggingface/safetensors#format."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver._text import duplicates, quoted
from pytreesaver._tree.plain import MAX_DEPTH
from pytreesaver.formats.indexed.header import LENGTH_NBYTES, MAX_HEADER_NBYTES
from pytreesaver.formats.rules import is_shape

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
}
_ITEM_NBYTES = {
    name: 1 if "8" in dtype or dtype == "bool" else int("".join(filter(str.isdigit, dtype))) // 8
    for name, dtype in _DTYPES.items()
} | {"BF16": 2}
PACKED_DTYPES = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Dtypes whose elements are not whole bytes, and their numbers of bits."""


class TensorInfo(msgspec.Struct):
    """What a header says of a tensor. The offsets count from the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]

    @property
    def dtype_name(self) -> str:
        """The name of the dtype in a checkpoint."""
        return _DTYPES[self.dtype]


class Header(NamedTuple):
    """A header: its JSON text, the metadata, the tensors by name, and the size of the data that follows."""

    text: bytes
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    data_nbytes: int

    @property
    def nbytes(self) -> int:
        """The size of the header in bytes, including the length before it."""
        return LENGTH_NBYTES + len(self.text)


def looks_like_header(head: bytes) -> bool:
    """Return whether some bytes start like a safetensors file."""
    length = int.from_bytes(head[:LENGTH_NBYTES], "little")
    return head[LENGTH_NBYTES : LENGTH_NBYTES + 1] == b"{" and 2 <= length <= MAX_HEADER_NBYTES


Version = tuple[int, int, int, int]
"""What tells a file from another one that replaced it; see `filesystem.version`."""


def read_header_text(file: Path) -> tuple[bytes, int, Version]:
    """Return the JSON text of the header of a file, the size of the data after it, and which file that is.

    Raises:
        CorruptCheckpointError: if the file is shorter than its header.
        OSError: if the file cannot be read.
    """
    descriptor = filesystem.open_existing(file)
    try:
        version = filesystem.version(descriptor)
        return *header_text_of(descriptor, file), version
    finally:
        filesystem.release(descriptor)


def header_text_of(descriptor: int, file: Path) -> tuple[bytes, int]:
    """Return the JSON text of the header of an open file, and the size of the data after it. Messages name `file`."""
    size = filesystem.file_size(descriptor)
    head = _read(descriptor, file, 0, min(_HEAD_NBYTES, size))
    start = head[:LENGTH_NBYTES]
    length = int.from_bytes(start, "little")
    if start == b"version ":
        raise CorruptCheckpointError(
            f"{file}: expected a safetensors file, found a Git LFS pointer in its place; run git lfs pull"
        )
    if len(start) < LENGTH_NBYTES or length > min(size - LENGTH_NBYTES, MAX_HEADER_NBYTES):
        raise CorruptCheckpointError(
            f"{file}: expected a header of {length} bytes, found a file of {size} bytes: the file is damaged, or "
            "truncated, for example by an interrupted download"
        )
    if not looks_like_header(head):
        raise CorruptCheckpointError(
            f"{file}: expected a header that begins with a brace, found {head[LENGTH_NBYTES : LENGTH_NBYTES + 1]!r}"
        )
    text = head[LENGTH_NBYTES : LENGTH_NBYTES + length]
    if len(text) < length:
        text += _read(descriptor, file, len(head), length - len(text))
    return text, size - LENGTH_NBYTES - length


_HEAD_NBYTES = 4 << 10
"""What is read of a file at first: headers of small trees are shorter, and need no second read."""


def _read(descriptor: int, file: Path, offset: int, nbytes: int) -> bytes:
    content = np.empty(nbytes, np.uint8)
    try:
        read_fully(descriptor, content, offset)
    except EndOfFileError as error:
        raise CorruptCheckpointError(f"{file}: a part of its header could not be read") from error
    return content.tobytes()


def decode_header(text: bytes, data_nbytes: int, file: Path) -> Header:
    """Decode the JSON text of a header, and check every rule of the specification.

    Raises:
        CorruptCheckpointError: if it breaks a rule. A truncated file is an error that names the missing tensors.
    """
    try:
        entries: dict[str, msgspec.Raw] = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
        tensors = {name: _DECODER.decode(entry) for name, entry in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{file}: expected a header of safetensors, found a damaged one ({error})"
        ) from None
    is_repeated = text.count(b'"data_offsets"') > len(tensors) or text.count(b'"__metadata__"') > 1
    if is_repeated or not text.startswith(b"{"):
        _refuse_repeated_names(text, file)
    _check(tensors, data_nbytes, file)
    return Header(text, metadata, tensors, data_nbytes)


_DECODER = msgspec.json.Decoder(TensorInfo)


def _refuse_repeated_names(text: bytes, file: Path) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        again = duplicates([name for name, _ in pairs])
        if again:
            raise CorruptCheckpointError(
                f"{file}: expected different names in the header, found {quoted(again[0])} again"
            )

    try:
        json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{file}: expected a header of safetensors, found a damaged one ({error})"
        ) from None


def _check(tensors: dict[str, TensorInfo], data_nbytes: int, file: Path) -> None:
    end = 0
    cut = []
    for name, info in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        problem = None
        begin, stop = info.data_offsets
        if info.dtype in PACKED_DTYPES:
            problem = f"expected a dtype of whole bytes, found {info.dtype}; convert it where it was made"
        elif info.dtype not in _DTYPES:
            problem = f"expected a dtype of safetensors, found {info.dtype!r}"
        elif not is_shape(info.shape, _ITEM_NBYTES[info.dtype]):
            problem = (
                "expected at most 64 axes, no negative length, and fewer than 2**63 bytes, found the shape "
                f"{str(info.shape)[:60]}"
            )
        elif stop - begin != math.prod(info.shape) * _ITEM_NBYTES[info.dtype]:
            problem = f"expected the bytes of {info.dtype_name}{info.shape}, found {stop - begin}"
        elif name.count("/") >= MAX_DEPTH:
            problem = f"expected a name of at most {MAX_DEPTH} parts"
        elif begin != end:
            problem = f"expected its bytes to start at {end}, found {begin}: bytes overlap, or belong to no tensor"
        if problem:
            raise CorruptCheckpointError(f"{file}: {quoted(name)}: {problem}", damaged=[name])
        end = stop
        if end > data_nbytes:
            cut.append(name)
    if end > data_nbytes:
        is_cut = set(cut)
        lines = "".join(f"\n  {quoted(name)}" for name in tensors if name in is_cut)
        raise CorruptCheckpointError(
            f"{file}: expected {end} bytes of data, found {data_nbytes}: the file is truncated, for example by an "
            f"interrupted download\n{file}: {len(cut)} of {len(tensors)} variables damaged:{lines}",
            damaged=cut,
        )
    if end < data_nbytes:
        raise CorruptCheckpointError(f"{file}: expected {end} bytes of data, found {data_nbytes}")
