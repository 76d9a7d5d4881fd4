"""xxh3 checksums, one for each block of a byte range, so that blocks can be checked separately and in parallel."""

import binascii
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

BLOCK_NBYTES = 1 << 20
"""Maximum number of bytes that one checksum covers. Blocks start at the beginning of a range."""


def checksum(data: np.ndarray | bytes | memoryview) -> int:
    """Return the 64-bit xxh3 checksum of `data`.

    Example:
        >>> hex(checksum(b""))
        '0x2d06800538d394c2'
    """
    return xxhash.xxh3_64_intdigest(data)  # type: ignore[arg-type]  # an ndarray is a buffer


class ChecksumOfParts:
    """The checksum of an array of which the parts are read one after the other.

    Example:
        >>> parts = ChecksumOfParts()
        >>> parts.update(np.zeros((2, 3))), parts.update(np.ones(1))
        (None, None)
        >>> parts.result == checksum(np.array([0, 0, 0, 0, 0, 0, 1.0]))
        True
    """

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_64()

    def update(self, values: np.ndarray) -> None:
        """Add the bytes of a part, in C order."""
        self._hasher.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))  # type: ignore[arg-type]

    @property
    def result(self) -> int:
        """The checksum of all parts so far."""
        return self._hasher.intdigest()


def block_count(nbytes: int, block_nbytes: int = BLOCK_NBYTES) -> int:
    """Return the number of checksums of a range of `nbytes` bytes.

    Example:
        >>> block_count(0), block_count(1), block_count(BLOCK_NBYTES + 1)
        (0, 1, 2)
    """
    return -(-nbytes // block_nbytes)


def block_checksums(data: np.ndarray, block_nbytes: int = BLOCK_NBYTES) -> Iterator[int]:
    """Yield the checksums of the blocks of `data`, a uint8[n], in order."""
    if 0 < data.nbytes <= block_nbytes:
        yield checksum(data)
        return
    view = memoryview(data)  # type: ignore[arg-type]
    for start in range(0, data.nbytes, block_nbytes):
        yield checksum(view[start : start + block_nbytes])


def encode_checksums(checksums: np.ndarray) -> str:
    """Return uint64[n] as 16 hexadecimal digits each."""
    return checksums.astype(">u8").tobytes().hex()


def decode_checksums(text: str) -> list[int]:
    """Return the numbers that `encode_checksums` wrote."""
    numbers: list[int] = np.frombuffer(binascii.unhexlify(text), ">u8").tolist()
    return numbers


class BlockChecksums:
    """Checks byte ranges by the checksums of their blocks.

    Args:
        expected: the checksums of the blocks of all ranges. A range is called by the number of its first one.
        block_nbytes: the number of bytes that each covers.
    """

    def __init__(self, expected: Sequence[int], block_nbytes: int = BLOCK_NBYTES) -> None:
        self._expected = expected
        self.granularity: int | None = block_nbytes

    def is_intact(self, number: int, begin: int, data: np.ndarray) -> bool:
        """Return whether some blocks of a range match. See `pytreesaver._io.reading.RangeChecks`."""
        block = self.granularity or BLOCK_NBYTES
        first = number + begin // block
        if 0 < data.nbytes <= block:
            return checksum(data) == self._expected[first]
        return all(each == self._expected[i] for i, each in enumerate(block_checksums(data, block), first))
