"""Read a file, whole or in pieces; large pieces that are not in the cache of the operating system, past it."""

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.direct import DirectFile


class EndOfFileError(Exception):
    """The file ended before everything was read."""


def read_fully(descriptor: int, buffer: np.ndarray, offset: int) -> None:
    """Fill all of uint8[n] from `offset`.

    Raises:
        EndOfFileError: the file is shorter.
    """
    done = 0
    while done < buffer.nbytes:
        count = filesystem.read_into(descriptor, buffer[done : done + filesystem.MOST_BYTES], offset + done)
        if count == 0:
            raise EndOfFileError
        done += count


def read_file(descriptor: int) -> bytes:
    """All bytes of an open file."""
    buffer = np.empty(filesystem.file_size(descriptor), np.uint8)
    read_fully(descriptor, buffer, 0)
    return buffer.tobytes()


class PastCacheReader:
    """Reads large pieces of a file: from the cache what is there, past it what is not.

    A disk gives twice as much to direct reads as to those through the cache, which copy every byte once more.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._direct = DirectFile(descriptor)

    def __enter__(self) -> "PastCacheReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._direct.close()

    def read(self, buffer: np.ndarray, offset: int) -> bool:
        """Fill `buffer` from `offset` if that is not in the cache; else read nothing, and give False.

        Raises:
            EndOfFileError: the file is shorter.
        """
        alignment = filesystem.DIRECT_ALIGNMENT
        skipped = -offset % alignment
        nbytes = (buffer.nbytes - skipped) // alignment * alignment
        if nbytes <= 0 or (buffer.ctypes.data - offset) % alignment or filesystem.is_cached(self._descriptor, offset):
            return False
        whole_pages = buffer[skipped : skipped + nbytes]
        if not self._direct.perform(lambda direct: read_fully(direct, whole_pages, offset + skipped)):
            return False
        read_fully(self._descriptor, buffer[:skipped], offset)
        read_fully(self._descriptor, buffer[skipped + nbytes :], offset + skipped + nbytes)
        return True
