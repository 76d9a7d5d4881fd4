"""Write buffers to a file: through the cache of the operating system, or past it."""

import errno
import threading
from collections.abc import Sequence

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums import checksum


def write_fully(descriptor: int, buffers: Sequence[filesystem.Buffer], offset: int) -> None:
    """Write every byte of the buffers, however many system calls that takes."""
    if not any(map(len, buffers)):
        return
    written = filesystem.write(descriptor, buffers, offset)
    if written == sum(map(len, buffers)):
        return
    remaining = [memoryview(buffer).cast("B") for buffer in buffers]  # type: ignore[arg-type]
    while True:
        offset += written
        done = 0
        while done < len(remaining) and written >= remaining[done].nbytes:
            written -= remaining[done].nbytes
            done += 1
        del remaining[:done]
        if not remaining:
            return
        remaining[0] = remaining[0][written:]
        written = filesystem.write(descriptor, remaining, offset)


class CacheWriter:
    """Writes through the cache; of what is going to be `durable` the system starts to write it to the disk at once."""

    def __init__(self, descriptor: int, durable: bool) -> None:
        self._descriptor = descriptor
        self._durable = durable

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, blocks: Sequence[np.ndarray], offset: int) -> list[int]:
        """Write all of uint8[n], one block after the other. Gives the checksum of each."""
        checksums = list(map(checksum, blocks))
        write_fully(self._descriptor, blocks, offset)
        if self._durable:
            filesystem.start_writeback(self._descriptor, offset, sum(map(len, blocks)))
        return checksums


class PastCacheWriter:
    """Writes past the cache whatever covers many whole pages, and the rest through it.

    The bytes are copied to where a direct write takes them from.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._direct = filesystem.open_direct(descriptor, to_write=True)
        self._is_able = True
        self._of_thread = threading.local()

    def __enter__(self) -> "PastCacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._direct is not None:
            filesystem.close(self._direct)

    def write(self, blocks: Sequence[np.ndarray], offset: int) -> list[int]:
        """Write all of uint8[n], one block after the other. Gives the checksum of each."""
        nbytes = sum(map(len, blocks))
        alignment = filesystem.DIRECT_ALIGNMENT
        first, end = -offset % alignment, (offset + nbytes) // alignment * alignment - offset
        if self._direct is None or not self._is_able or end - first < _WORTH_COPYING_NBYTES:
            write_fully(self._descriptor, blocks, offset)
            return list(map(checksum, blocks))
        data, checksums = self._copied(blocks, nbytes, offset % alignment)
        try:
            write_fully(self._direct, [data[first:end]], offset + first)
        except OSError as error:  # a file system that does not write so, or not with this alignment
            if error.errno != errno.EINVAL:
                raise
            self._is_able = False
            write_fully(self._descriptor, [data], offset)
        else:
            write_fully(self._descriptor, [data[:first]], offset)
            write_fully(self._descriptor, [data[end:]], offset + end)
        return checksums

    def _copied(self, blocks: Sequence[np.ndarray], nbytes: int, shift: int) -> tuple[np.ndarray, list[int]]:
        """The blocks one after the other, in memory that begins `shift` bytes after a page does; their checksums."""
        memory = getattr(self._of_thread, "memory", None)
        if memory is None or memory.nbytes < shift + nbytes:
            memory = self._of_thread.memory = filesystem.new_memory(shift + nbytes)
        data = memory[shift : shift + nbytes]
        checksums = []
        place = 0
        for block in blocks:
            copy = data[place : place + len(block)]
            copy[:] = block
            checksums.append(checksum(copy))  # while it is in the processor's cache
            place += len(block)
        return data, checksums


_WORTH_COPYING_NBYTES = 1 << 20
