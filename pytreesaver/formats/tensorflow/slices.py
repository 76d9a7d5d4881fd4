"""The keys of the slices of a tensor: its name and the extents, so encoded that their order is that of the bytes.

After tensorflow/core/lib/strings/ordered_code.cc and tensorflow/core/util/saved_tensor_slice_util.cc.
"""

import re
from collections.abc import Sequence

from pytreesaver.formats.tensorflow.messages import Extent

_HEADERS = ("", "80", "c0", "e0", "f0", "f8", "fc", "fe", "ff", "ff80", "ffc0")


def slice_key(name: bytes, extents: Sequence[Extent]) -> bytes:
    """Return the key of a slice.

    Example:
        >>> slice_key(b"part", [Extent(4, 3), Extent(0, None)])
        b'\\x00part\\x00\\x01\\x01\\x02\\x84\\x83\\x80\\x7f'
    """
    extended = [(each.start, -1 if each.length is None else each.length) for each in extents]
    numbers = b"".join(_signed(start) + _signed(length) for start, length in extended)
    return _unsigned(0) + _text(name) + _unsigned(len(extents)) + numbers


def _unsigned(number: int) -> bytes:
    content = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([len(content)]) + content


def _text(text: bytes) -> bytes:
    return re.sub(b"[\0\xff]", lambda found: found[0] + bytes([found[0][0] ^ 0xFF]), text) + b"\0\1"


def _signed(number: int) -> bytes:
    magnitude = ~number if number < 0 else number
    if magnitude < 64:
        return bytes([0x80 ^ (number & 0xFF)])
    nbytes = magnitude.bit_length() // 7 + 1
    header = bytes.fromhex(_HEADERS[nbytes]).ljust(nbytes, b"\0")
    content = number.to_bytes(nbytes, "big", signed=True)
    return bytes(a ^ b for a, b in zip(content, header, strict=True))
