"""An open file, past the cache of the operating system."""

import errno
import threading
from collections.abc import Callable, Sequence

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums import checksum


class DirectFile:
    """The same file as that of a descriptor, opened past the cache when it is first used, by any thread."""

    def __init__(self, descriptor: int, *, to_write: bool = False) -> None:
        self._descriptor = descriptor
        self._to_write = to_write
        self._direct: int | None = None
        self._is_able = True
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close it; the descriptor stays open."""
        if self._direct is not None:
            filesystem.close(self._direct)

    def perform(self, action: Callable[[int], None]) -> bool:
        """Call `action` with the direct descriptor; False if this file cannot be had so, and nothing was done.

        Raises:
            What the action raises, but for the refusal of direct reads or writes.
        """
        with self._lock:
            if self._direct is None and self._is_able:
                self._direct = filesystem.open_direct(self._descriptor, to_write=self._to_write)
                self._is_able = self._direct is not None
        if self._direct is None or not self._is_able:
            return False
        try:
            action(self._direct)
        except OSError as error:  # a file system that has no such reads and writes, or not with this alignment
            if error.errno != errno.EINVAL:
                raise
            self._is_able = False
        return self._is_able


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


def write_fully(descriptor: int, buffers: Sequence[filesystem.Buffer], offset: int) -> None:
    """Write every byte of the buffers, however many system calls that takes."""
    left = sum(map(len, buffers))
    while left:
        written = filesystem.write(descriptor, buffers, offset)
        if written == 0:
            raise OSError(errno.EIO, "The system has written nothing, and does not say why")
        left -= written
        offset += written
        if left:
            buffers = _without_first(buffers, written)


def _without_first(buffers: Sequence[filesystem.Buffer], nbytes: int) -> list[memoryview]:
    views = [memoryview(buffer).cast("B") for buffer in buffers]  # type: ignore[arg-type]
    done = 0
    while nbytes >= views[done].nbytes:
        nbytes -= views[done].nbytes
        done += 1
    return [views[done][nbytes:], *views[done + 1 :]]


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
    """Writes past the cache whatever covers many whole pages, and leaves the rest to the one that writes through it.

    The bytes are copied to where a direct write takes them from.
    """

    def __init__(self, descriptor: int, through_cache: CacheWriter) -> None:
        self._descriptor = descriptor
        self._through_cache = through_cache
        self._direct = DirectFile(descriptor, to_write=True)
        self._of_thread = threading.local()

    def __enter__(self) -> "PastCacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._direct.close()

    def write(self, blocks: Sequence[np.ndarray], offset: int) -> list[int]:
        """Write all of uint8[n], one block after the other. Gives the checksum of each."""
        nbytes = sum(map(len, blocks))
        alignment = filesystem.DIRECT_ALIGNMENT
        first, end = -offset % alignment, (offset + nbytes) // alignment * alignment - offset
        if end - first < _WORTH_COPYING_NBYTES:
            return self._through_cache.write(blocks, offset)
        data, checksums = self._copied(blocks, nbytes, offset % alignment)
        if not self._direct.perform(lambda direct: write_fully(direct, [data[first:end]], offset + first)):
            return self._through_cache.write(blocks, offset)
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
