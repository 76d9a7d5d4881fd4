"""xxh3 checksums of stretches of bytes, one for each block, so that blocks can be checked apart and in parallel."""

from collections.abc import Iterator

import numpy as np
import xxhash

BLOCK_NBYTES = 1 << 20
"""How many bytes one checksum covers at most; blocks are counted from the start of a stretch."""


def checksum(data: np.ndarray | bytes | memoryview) -> int:
    """The 64-bit xxh3 of some bytes.

    Example:
        >>> hex(checksum(b""))
        '0x2d06800538d394c2'
    """
    return xxhash.xxh3_64_intdigest(data)  # type: ignore[arg-type]  # an ndarray is a buffer


def block_count(nbytes: int, block_nbytes: int = BLOCK_NBYTES) -> int:
    """How many checksums a stretch of `nbytes` has.

    Example:
        >>> block_count(0), block_count(1), block_count(BLOCK_NBYTES + 1)
        (0, 1, 2)
    """
    return -(-nbytes // block_nbytes)


def block_checksums(data: np.ndarray, block_nbytes: int = BLOCK_NBYTES) -> Iterator[int]:
    """The checksums of the blocks of uint8[n], in order."""
    if 0 < data.nbytes <= block_nbytes:
        yield checksum(data)
        return
    view = memoryview(data)  # type: ignore[arg-type]
    for start in range(0, data.nbytes, block_nbytes):
        yield checksum(view[start : start + block_nbytes])
