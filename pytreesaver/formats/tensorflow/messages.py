"""The protocol buffers of TensorFlow's checkpoints. Pure functions.

https://protobuf.dev/programming-guides/encoding specifies the encoding; tensorflow/core/protobuf has the messages:
tensor_bundle.proto and trackable_object_graph.proto.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from pytreesaver.formats.tensorflow.table import DamagedTableError, encode_varint, varint

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the numbers and values of the fields of a message: ints, or bytes.

    Raises:
        DamagedTableError: if it is damaged.

    Example:
        >>> list(fields(b"\\x08\\x01\\x12\\x02hi"))
        [(1, 1), (2, b'hi')]
    """
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = varint(message, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise DamagedTableError(f"a field of the unknown kind {kind}")
        content = message[position : position + length]
        position += length
        if len(content) < length:
            raise DamagedTableError("a field beyond the end of its message")
        yield tag >> 3, content if kind == _BYTES else int.from_bytes(content, "little")


class Header(NamedTuple):
    """``BundleHeaderProto``: the number of data files, and the byte order."""

    num_shards: int
    is_big_endian: bool


_PRODUCER = 1


def decode_header(message: bytes) -> Header:
    """Decode a header. Raises a DamagedTableError if it is damaged, or of a version that is not known."""
    num_shards, endianness, version = 0, 0, b""
    for number, value in fields(message):
        match number:
            case 1:
                num_shards = _int(value)
            case 2:
                endianness = _int(value)
            case 3:
                version = _bytes(value)
    needed = [(number, value) for number, value in fields(version) if number in (2, 3)]
    is_refused = [
        _int(value) > _PRODUCER if number == 2 else value in (_PRODUCER, bytes([_PRODUCER])) for number, value in needed
    ]
    if any(is_refused):
        raise DamagedTableError(f"a version of the format that this version of pytreesaver does not know: {needed}")
    if num_shards < 1 or endianness not in (0, 1):
        raise DamagedTableError(f"a header with {num_shards} data files and the byte order {endianness}")
    return Header(num_shards, endianness == 1)


def encode_header(num_shards: int) -> bytes:
    """Return the header of a checkpoint with `num_shards` data files."""
    return b"\x08" + encode_varint(num_shards) + b"\x1a\x02\x08" + encode_varint(_PRODUCER)


class Extent(NamedTuple):
    """The part of an axis in a slice: `length` of None is the whole axis."""

    start: int
    length: int | None


class Entry(NamedTuple):
    """``BundleEntryProto``: a tensor, or with `slices` one that is in entries of its own for each slice.

    `dtype` is the number of TensorFlow's enumeration, `checksum` the masked CRC-32C.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    checksum: int
    slices: tuple[tuple[Extent, ...], ...] = ()


def decode_entry(message: bytes) -> Entry:
    """Decode an entry. Raises a DamagedTableError if it is damaged."""
    return _decode_usual_entry(message) or _decode_any_entry(message)


def _decode_usual_entry(message: bytes) -> Entry | None:
    """Decode an entry without slices whose fields are in order, as nearly all are. Return None for others."""
    nbytes = len(message)
    if nbytes < 4 or message[0] != 0x08 or message[1] > 0x7F or message[2] != 0x12 or message[3] > 0x7F:
        return None
    position = 4 + message[3]
    shape = message[4:position]
    numbers = []
    for tag in (0x18, 0x20, 0x28):
        number = 0
        if position + 1 < nbytes and message[position] == tag:
            number, position = message[position + 1], position + 2
            if number > 0x7F:  # it has more than one byte
                number, position = varint(message, position - 1)
        numbers.append(number)
    checksum = message[position + 1 :]
    if (position < nbytes and (message[position] != 0x35 or len(checksum) != 4)) or position > nbytes:
        return None
    shard, offset, size = numbers
    if (shard | offset | size) >> 63:  # a negative number
        return None
    return Entry(message[1], _decode_shape(shape), shard, offset, size, int.from_bytes(checksum, "little"))


def _decode_any_entry(message: bytes) -> Entry:
    dtype = shard = offset = nbytes = checksum = 0
    shape: tuple[int, ...] = ()
    slices: list[tuple[Extent, ...]] = []
    for number, value in fields(message):
        match number:
            case 1:
                dtype = _int(value)
            case 2:
                shape = _decode_shape(_bytes(value))
            case 3:
                shard = _int(value)
            case 4:
                offset = _int(value)
            case 5:
                nbytes = _int(value)
            case 6:
                checksum = _int(value)
            case 7:
                slices.append(
                    tuple(_decode_extent(_bytes(extent)) for key, extent in fields(_bytes(value)) if key == 1)
                )
    return Entry(dtype, shape, shard, offset, nbytes, checksum, tuple(slices))


@functools.lru_cache(maxsize=4096)
def _decode_shape(message: bytes) -> tuple[int, ...]:
    shape = []
    for number, value in fields(message):
        if number == 2:
            shape.append(next((_int(size) for key, size in fields(_bytes(value)) if key == 1), 0))
        elif number == 3 and value:
            raise DamagedTableError("a shape of unknown rank")
    return tuple(shape)


def _decode_extent(message: bytes) -> Extent:
    start, length = 0, None
    for number, value in fields(message):
        if number == 1:
            start = _int(value)
        elif number == 2:
            length = _int(value)
    return Extent(start, length)


def encode_entry(entry: Entry) -> bytes:
    """Return the message of an entry. Zeros are left out, as in TensorFlow."""
    dims = b"".join(_field(2, _number(1, size)) for size in entry.shape)
    message = _number(1, entry.dtype) + _field(2, dims)
    for slices in entry.slices:
        message += _field(7, b"".join(_field(1, _encode_extent(extent)) for extent in slices))
    if entry.slices:
        return message
    message += _number(3, entry.shard) + _number(4, entry.offset) + _number(5, entry.nbytes)
    return message + (b"\x35" + entry.checksum.to_bytes(4, "little") if entry.checksum else b"")


def _encode_extent(extent: Extent) -> bytes:
    if extent.length is None:
        return b""
    return _number(1, extent.start) + b"\x10" + encode_varint(extent.length)


def _number(number: int, value: int) -> bytes:
    return encode_varint(number << 3 | _VARINT) + encode_varint(value) if value else b""


def _field(number: int, content: bytes) -> bytes:
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(content)) + content


class GraphVariable(NamedTuple):
    """A value in ``TrackableObjectGraph``: its key in the checkpoint, and what TensorFlow 1 would have called it."""

    key: str
    full_name: str


def decode_object_graph(message: bytes) -> list[GraphVariable]:
    """Return the variables of an object graph. Raises a DamagedTableError if it is damaged."""
    found = []
    for number, node in fields(message):
        if number != 1:
            continue
        for attribute, value in fields(_bytes(node)):
            if attribute == 2:
                texts = {key: _bytes(text) for key, text in fields(_bytes(value)) if key in (2, 3)}
                key, full_name = (texts.get(i, b"").decode("utf-8", "replace") for i in (3, 2))
                found.append(GraphVariable(key, full_name))
    return found


def _int(value: Any) -> int:
    """Return a number, negative if it is one of 64 bits with a sign."""
    if type(value) is not int:
        raise DamagedTableError("bytes in place of a number")
    return value - (1 << 64) if value >> 63 else value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise DamagedTableError("a number in place of bytes")
    return value


# The dtypes: their numbers in files, and what pytreesaver calls them. After types.proto.

STRING = 7
VARIANT_NAMES = {20: "resource", 21: "variant"}
"""Dtypes of values that only TensorFlow can use."""

_NAMES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
}
_NUMBERS = {name: number for number, name in _NAMES.items()}
# Quantized integers are integers. What they mean is not in the file.
_QUANTIZED = {11: "int8", 12: "uint8", 13: "int32", 15: "int16", 16: "uint16"}


def name_of_dtype(number: int) -> str | None:
    """Return the name of a dtype of numbers, or None for another dtype.

    Example:
        >>> name_of_dtype(14), name_of_dtype(21)
        ('bfloat16', None)
    """
    return _NAMES.get(number) or _QUANTIZED.get(number)


def number_of_dtype(name: str) -> int | None:
    """Return the number of a dtype, or None if TensorFlow has no such dtype."""
    return _NUMBERS.get(name)
