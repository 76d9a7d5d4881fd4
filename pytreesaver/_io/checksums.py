"""xxh3 checksums, one for each block of a byte range, so that blocks can be checked separately and in parallel."""

from collections.abc import Iterator

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
