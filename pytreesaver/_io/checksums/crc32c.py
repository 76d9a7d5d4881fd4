"""CRC-32C checksums, as in TensorFlow's files: of whole ranges, whose parts may be read in any order.

Ross Williams' "A painless guide to CRC error detection algorithms" explains them; https://www.rfc-editor.org/rfc/rfc3720
specifies the polynomial.
"""

import functools
import threading
from collections.abc import Sequence

import numpy as np

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_MOST = 4 << 20
"""google-crc32c holds the lock of the interpreter, so it gets no more bytes than this at a time."""


def crc32c(data: np.ndarray | bytes, start: int = 0) -> int:
    """Return the checksum of `data`, bytes or a uint8[n], after data with the checksum `start`.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
        >>> crc32c(b"6789", crc32c(b"12345")) == crc32c(b"123456789")
        True
    """
    from google_crc32c import extend

    # An array is taken without a copy: https://docs.python.org/3/c-api/arg.html, "y#".
    for begin in range(0, len(data), _MOST):
        start = extend(start, data[begin : begin + _MOST])
    return start


def masked(checksum: int) -> int:
    """Return a checksum as TensorFlow stores it, since the checksum of data that contains its own is no good one.

    Example:
        >>> hex(masked(0))
        '0xa282ead8'
        >>> unmasked(masked(0xE3069283)) == 0xE3069283
        True
    """
    return (((checksum >> 15) | (checksum << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """Return the checksum that `masked` was given."""
    rotated = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def combined(first: int, second: int, nbytes: int) -> int:
    """Return the checksum of two ranges, one after the other, of which the second has `nbytes` bytes. After zlib.

    Example:
        >>> combined(crc32c(b"12345"), crc32c(b"6789"), 4) == crc32c(b"123456789")
        True
    """
    return _product(_power_of_x(8 * nbytes), first) ^ second


def _product(a: int, b: int) -> int:
    """Return the product of two polynomials, reflected, modulo that of the checksum."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(maxsize=1024)
def _power_of_x(exponent: int) -> int:
    power, square = 1 << 31, 1 << 30  # 1 and x
    while exponent:
        if exponent & 1:
            power = _product(square, power)
        square = _product(square, square)
        exponent >>= 1
    return power


class Crc32cOfRanges:
    """Checks whole ranges, whose parts are read in any order, by several threads. For one reading of each range.

    Args:
        expected: the checksum of each range.
        nbytes: the size of each range in bytes.
    """

    granularity: int | None = None
    """See `pytreesaver._io.reading.RangeChecks`."""

    def __init__(self, expected: Sequence[int], nbytes: Sequence[int]) -> None:
        self._expected = expected
        self._nbytes = nbytes
        self._runs: dict[int, dict[int, tuple[int, int]]] = {}  # {end: (begin, checksum)} of the bytes read, by range
        self._lock = threading.Lock()

    def is_intact(self, number: int, begin: int, data: np.ndarray) -> bool:
        """Return False if a range is damaged; True until its last part is known."""
        nbytes = self._nbytes[number]
        if data.nbytes == nbytes:
            return crc32c(data) == self._expected[number]
        with self._lock:  # a part that goes on where another one ends needs no combination
            start, checksum = self._runs.setdefault(number, {}).pop(begin, (begin, 0))
        checksum = crc32c(data, checksum)
        with self._lock:
            runs = self._runs[number]
            runs[begin + data.nbytes] = start, checksum
            if sum(end - start for end, (start, _) in runs.items()) < nbytes:
                return True
            del self._runs[number]
        whole = 0
        for end, (start, part) in sorted(runs.items()):
            whole = combined(whole, part, end - start)
        return whole == self._expected[number]
