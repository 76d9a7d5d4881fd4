"""Tensors of strings: the lengths of the strings, a checksum of these, and the strings. Pure functions."""

from collections.abc import Sequence

from pytreesaver._io.checksums.crc32c import crc32c, masked
from pytreesaver.formats.tensorflow.table import DamagedTableError, encode_varint, varint

_CHECKSUM_NBYTES = 4


def encode_strings(strings: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the bytes of a tensor of strings, and their masked checksum.

    Example:
        >>> encode_strings([b"ab", b""])[0][:2]
        b'\\x02\\x00'
    """
    checksum = crc32c(_lengths(map(len, strings)))
    stored = masked(checksum).to_bytes(_CHECKSUM_NBYTES, "little")
    checksum = crc32c(b"".join(strings), crc32c(stored, checksum))
    return b"".join(map(encode_varint, map(len, strings))) + stored + b"".join(strings), masked(checksum)


def decode_strings(content: bytes, count: int, expected: int, *, is_big_endian: bool = False) -> list[bytes]:
    """Return the strings of a tensor.

    Args:
        content: its bytes.
        count: how many strings it has.
        expected: the masked checksum.
        is_big_endian: whether it was written on a machine of the other byte order.

    Raises:
        DamagedTableError: if it is damaged.

    Example:
        >>> content, checksum = encode_strings([b"ab", b""])
        >>> decode_strings(content, 2, checksum)
        [b'ab', b'']
    """
    if count + _CHECKSUM_NBYTES > len(content):
        raise DamagedTableError(f"{len(content)} bytes of {count} strings")
    lengths, position = [], 0
    for _ in range(count):
        length, position = varint(content, position)
        lengths.append(length)
    start = position + _CHECKSUM_NBYTES
    if start + sum(lengths) != len(content):
        raise DamagedTableError(f"{len(content)} bytes of strings with {sum(lengths)} bytes")
    checksum = crc32c(_lengths(lengths, "big" if is_big_endian else "little"))
    stored = content[position:start]
    if masked(checksum).to_bytes(_CHECKSUM_NBYTES, "big" if is_big_endian else "little") != stored:
        raise DamagedTableError("lengths of strings whose checksum does not match")
    if masked(crc32c(content[start:], crc32c(stored, checksum))) != expected:
        raise DamagedTableError("a checksum that does not match")
    strings = []
    for length in lengths:
        strings.append(content[start : start + length])
        start += length
    return strings


def scalar_length(nbytes: int) -> int | None:
    """Return the length of the string of a scalar of `nbytes` bytes, or None if there is no such string.

    Example:
        >>> scalar_length(len(encode_strings([b"x" * 300])[0]))
        300
    """
    for digits in range(1, 11):
        length = nbytes - _CHECKSUM_NBYTES - digits
        if length >= 0 and len(encode_varint(length)) == digits:
            return length
    return None


def _lengths(lengths: "Sequence[int] | map[int]", order: str = "little") -> bytes:
    return b"".join(
        length.to_bytes(4 if length < 1 << 32 else 8, "big" if order == "big" else "little") for length in lengths
    )
