"""Decoding of a tree in msgpack without its arrays, whose bytes are skipped. The file is read, not mapped: another
program may truncate it meanwhile."""

import math
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver._tree.kinds import NotPlainError, dtype_from_name
from pytreesaver._tree.plain import MAX_DEPTH
from pytreesaver.formats.msgpack.encoding import ARRAY, COMPLEX, SCALAR
from pytreesaver.formats.rules import is_shape

_WINDOW_NBYTES = 1 << 16
_NUMPY_STRINGS = re.compile(r"(bytes|str)([0-9]{1,9})")


class DamagedMessageError(ValueError):
    """The file is no tree in msgpack; the message says why."""


class StoredArray(NamedTuple):
    """An array in the file. `problem` says what is wrong with it."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    is_scalar: bool
    problem: str = ""


def decode_tree(descriptor: int) -> Any:
    """Return the tree in an open file: dicts and lists of values of Python, and of `StoredArray`.

    Raises:
        DamagedMessageError: if it is damaged.
    """
    decoder = _Decoder(descriptor)
    tree = decoder.value(0)
    if decoder.position < decoder.size:
        raise DamagedMessageError(f"{decoder.size - decoder.position} bytes after its end")
    return tree


class _Decoder:
    def __init__(self, descriptor: int) -> None:
        self.size = filesystem.file_size(descriptor)
        self.position = 0
        self._descriptor = descriptor
        self._window = b""
        self._start = 0  # of the window

    def _take(self, nbytes: int) -> bytes:
        """Return the next bytes, of which there are few, or those of a string."""
        begin = self.position - self._start
        if not 0 <= begin <= begin + nbytes <= len(self._window):
            self._fill(nbytes)
            begin = 0
        self.position += nbytes
        return self._window[begin : begin + nbytes]

    def _fill(self, nbytes: int) -> None:
        if nbytes > self.size - self.position:
            raise DamagedMessageError("the end of the file in a value")
        data = np.empty(min(max(nbytes, _WINDOW_NBYTES), self.size - self.position), np.uint8)
        try:
            read_fully(self._descriptor, data, self.position)
        except EndOfFileError:
            raise DamagedMessageError("a file that became shorter") from None
        self._window, self._start = data.tobytes(), self.position

    def _number(self, nbytes: int) -> int:
        return int.from_bytes(self._take(nbytes), "big")

    def value(self, depth: int) -> Any:
        """Return the next value."""
        if depth > MAX_DEPTH:
            raise DamagedMessageError(f"more than {MAX_DEPTH} levels")
        kind = self._take(1)[0]
        if kind <= 0x7F:
            return kind
        if kind >= 0xE0:
            return kind - 0x100
        if kind <= 0x8F:
            return self._map(kind & 0xF, depth)
        if kind <= 0x9F:
            return self._list(kind & 0xF, depth)
        if kind <= 0xBF:
            return self._text(kind & 0x1F)
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            code = _NUMBERS[kind]
            return struct.unpack(code, self._take(struct.calcsize(code)))[0]
        if 0xC4 <= kind <= 0xC6:
            return self._take(self._number(1 << (kind - 0xC4)))
        if 0xC7 <= kind <= 0xC9:
            return self._extension(self._number(1 << (kind - 0xC7)), depth)
        if 0xD4 <= kind <= 0xD8:
            return self._extension(1 << (kind - 0xD4), depth)
        if 0xD9 <= kind <= 0xDB:
            return self._text(self._number(1 << (kind - 0xD9)))
        if kind in (0xDC, 0xDD):
            return self._list(self._number(2 if kind == 0xDC else 4), depth)
        if kind in (0xDE, 0xDF):
            return self._map(self._number(2 if kind == 0xDE else 4), depth)
        raise DamagedMessageError(f"a value of the unknown kind {kind:#x}")

    def _text(self, nbytes: int) -> str:
        try:
            return self._take(nbytes).decode()
        except UnicodeDecodeError as error:
            raise DamagedMessageError(f"a string that is not UTF-8 ({error})") from None

    def _check_count(self, count: int) -> None:
        if count > self.size - self.position:
            raise DamagedMessageError(f"a container of {count} values in fewer bytes")

    def _list(self, count: int, depth: int) -> list[Any]:
        self._check_count(count)
        return [self.value(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> dict[Any, Any]:
        self._check_count(count)
        result: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if type(key) not in (str, int, bool, float, type(None)):
                raise DamagedMessageError(f"a key of the type {type(key).__name__}")
            result[key] = self.value(depth + 1)
        return result

    def _extension(self, nbytes: int, depth: int) -> Any:
        code = self._number(1)
        end = self.position + nbytes
        if end > self.size:
            raise DamagedMessageError("the end of the file in a value")
        if code not in (ARRAY, COMPLEX, SCALAR):
            raise DamagedMessageError(f"the unknown extension type {code}")
        result = self._complex(depth) if code == COMPLEX else self._array(end, code == SCALAR, depth)
        if self.position != end:
            raise DamagedMessageError("an extension of another length")
        return result

    def _complex(self, depth: int) -> complex:
        parts = self.value(depth + 1)
        if not isinstance(parts, list) or len(parts) != 2 or not all(type(part) in (int, float) for part in parts):
            raise DamagedMessageError("a complex number that is no pair of numbers")
        return complex(*parts)

    def _array(self, end: int, is_scalar: bool, depth: int) -> StoredArray:
        if self._take(1) != b"\x93":
            raise DamagedMessageError("an array without a shape, a dtype and bytes")
        shape, dtype = self.value(depth + 1), self._dtype()
        kind = self._take(1)[0]
        if not 0xC4 <= kind <= 0xC6 or not isinstance(shape, list) or not all(type(each) is int for each in shape):
            raise DamagedMessageError("an array without a shape, a dtype and bytes")
        nbytes = self._number(1 << (kind - 0xC4))
        offset = self.position
        if offset + nbytes != end:
            raise DamagedMessageError("an array of another length")
        self.position = end
        return _checked(dtype, tuple(shape), offset, nbytes, is_scalar)

    def _dtype(self) -> str:
        """Return the name of a dtype, a msgpack str or, in files of old versions, bytes."""
        kind = self._take(1)[0]
        if 0xA0 <= kind <= 0xBF:
            return self._text(kind & 0x1F)
        if kind in (0xC4, 0xD9):
            return self._text(self._number(1))
        raise DamagedMessageError("an array without the name of a dtype")


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}


def _checked(dtype: str, shape: tuple[int, ...], offset: int, nbytes: int, is_scalar: bool) -> StoredArray:
    match = _NUMPY_STRINGS.fullmatch(dtype)
    if match:  # NumPy's names of its strings count bits
        dtype = f"S{int(match[2]) // 8}" if match[1] == "bytes" else f"U{int(match[2]) // 32}"
    try:
        itemsize = dtype_from_name(dtype).itemsize
    except NotPlainError as error:
        return StoredArray(dtype, shape, offset, nbytes, is_scalar, str(error))
    problem = ""
    if not is_shape(shape, itemsize) or math.prod(shape) * itemsize != nbytes:
        problem = f"an array of {dtype}{list(shape[:9])} in {nbytes} bytes"
    return StoredArray(dtype, shape, offset, nbytes, is_scalar, problem)
