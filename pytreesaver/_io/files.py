"""Complete reads and writes of open files, buffered or with direct I/O, which bypasses the page cache."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from io import RawIOBase
from typing import Any

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.stores.dispatch import is_in_store


class DirectFile:
    """An open file, reopened for direct I/O at the first use. Safe to use from several threads."""

    def __init__(self, descriptor: int, *, to_write: bool = False) -> None:
        self._descriptor = descriptor
        self._to_write = to_write
        self._direct: int | None = None
        self._is_supported = True
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the direct descriptor. The original descriptor stays open."""
        if self._direct is not None:
            (filesystem.close if self._to_write else filesystem.release)(self._direct)

    def perform(self, action: Callable[[int], None]) -> bool:
        """Call `action` with the direct descriptor. Return False if the file does not support direct I/O.

        Raises:
            Whatever the action raises, except for EINVAL, which means that direct I/O is not supported.
        """
        with self._lock:
            if self._direct is None and self._is_supported:
                self._direct = filesystem.open_direct(self._descriptor, to_write=self._to_write)
                self._is_supported = self._direct is not None
        if self._direct is None or not self._is_supported:
            return False
        try:
            action(self._direct)
        except OSError as error:  # the file system does not support direct I/O, or not with this alignment
            if error.errno != errno.EINVAL:
                raise
            self._is_supported = False
        return self._is_supported


class EndOfFileError(Exception):
    """The file ended before all bytes were read."""


def read_fully(descriptor: int, buffer: np.ndarray, offset: int) -> None:
    """Fill `buffer`, a uint8[n], with the bytes at `offset`.

    Raises:
        EndOfFileError: if the file is too short.
    """
    done = 0
    while done < buffer.nbytes:
        count = filesystem.read_into(descriptor, buffer[done : done + filesystem.MAX_IO_NBYTES], offset + done)
        if count == 0:
            raise EndOfFileError
        done += count


def read_file(descriptor: int) -> bytes:
    """Return the contents of an open file."""
    buffer = np.empty(filesystem.file_size(descriptor), np.uint8)
    read_fully(descriptor, buffer, 0)
    return buffer.tobytes()


def map_or_read(descriptor: int, nbytes: int) -> np.ndarray:
    """Return the first bytes of an open file as a uint8[nbytes]: mapped, or, from an object store, read."""
    if not is_in_store(descriptor):
        return filesystem.map_file(descriptor, nbytes)
    whole = filesystem.new_memory(nbytes)
    for begin in range(0, nbytes, _REQUEST_NBYTES):
        read_fully(descriptor, whole[begin : begin + _REQUEST_NBYTES], begin)
    return whole


_REQUEST_NBYTES = 64 << 20


class DirectReader:
    """Reads large parts of a file that are not in the page cache, with direct I/O.

    Direct reads are about twice as fast as buffered reads, which copy every byte once more.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._direct = DirectFile(descriptor)

    def __enter__(self) -> "DirectReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._direct.close()

    def read(self, buffer: np.ndarray, offset: int) -> bool:
        """Fill `buffer` from `offset` and return True, or return False if a buffered read is needed.

        An object of a store is always read. A buffered read is needed if the bytes are cached, the buffer is not
        aligned like the file or holds no complete page, or direct I/O is not supported.

        Raises:
            EndOfFileError: if the file is too short.
        """
        if is_in_store(self._descriptor):
            read_fully(self._descriptor, buffer, offset)  # in a single request
            return True
        alignment = filesystem.DIRECT_ALIGNMENT
        start = -offset % alignment
        nbytes = (buffer.nbytes - start) // alignment * alignment
        if nbytes <= 0 or (buffer.ctypes.data - offset) % alignment or filesystem.is_cached(self._descriptor, offset):
            return False
        whole_pages = buffer[start : start + nbytes]
        if not self._direct.perform(lambda direct: read_fully(direct, whole_pages, offset + start)):
            return False
        read_fully(self._descriptor, buffer[:start], offset)
        read_fully(self._descriptor, buffer[start + nbytes :], offset + start + nbytes)
        return True


def write_fully(descriptor: int, buffers: Sequence[filesystem.Buffer], offset: int) -> None:
    """Write all bytes of the buffers at `offset`, with as many system calls as needed."""
    left = sum(map(len, buffers))
    while left:
        written = filesystem.write(descriptor, buffers, offset)
        if written == 0:
            raise OSError(errno.EIO, "The system wrote no bytes and reported no error")
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


class BufferedWriter:
    """Writes through the page cache. If `durable`, writeback to the disk starts at once."""

    def __init__(self, descriptor: int, durable: bool) -> None:
        self._descriptor = descriptor
        self._durable = durable

    def __enter__(self) -> "BufferedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(
        self, blocks: Sequence[filesystem.Buffer], offset: int, pieces: Sequence[filesystem.Buffer] | None = None
    ) -> list[int]:
        """Write the blocks contiguously at `offset`. Return the checksum of each.

        Args:
            blocks: bytes, each a uint8[n] or a view of bytes.
            offset: where.
            pieces: the same bytes in fewer pieces, if there are some.
        """
        checksums = list(map(checksum, blocks))
        write_fully(self._descriptor, pieces or blocks, offset)
        if self._durable:
            filesystem.start_writeback(self._descriptor, offset, sum(map(len, blocks)))
        return checksums


class DirectWriter:
    """Writes large parts of a file with direct I/O and everything else through the page cache.

    The bytes are copied to aligned memory first, as direct I/O requires.
    """

    def __init__(self, descriptor: int, buffered: BufferedWriter) -> None:
        self._descriptor = descriptor
        self._buffered = buffered
        self._direct = DirectFile(descriptor, to_write=True)
        self._thread_local = threading.local()

    def __enter__(self) -> "DirectWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._direct.close()

    def write(
        self, blocks: Sequence[filesystem.Buffer], offset: int, pieces: Sequence[filesystem.Buffer] | None = None
    ) -> list[int]:
        """Do what `BufferedWriter.write` does."""
        nbytes = sum(map(len, blocks))
        alignment = filesystem.DIRECT_ALIGNMENT
        first, end = -offset % alignment, (offset + nbytes) // alignment * alignment - offset
        if end - first < _MIN_DIRECT_NBYTES:
            return self._buffered.write(blocks, offset, pieces)
        data, checksums = self._copied(blocks, pieces, nbytes, offset % alignment)
        if not self._direct.perform(lambda direct: write_fully(direct, [data[first:end]], offset + first)):
            return self._buffered.write(blocks, offset, pieces)
        write_fully(self._descriptor, [data[:first]], offset)
        write_fully(self._descriptor, [data[end:]], offset + end)
        return checksums

    def _copied(
        self, blocks: Sequence[filesystem.Buffer], pieces: Sequence[filesystem.Buffer] | None, nbytes: int, shift: int
    ) -> tuple[np.ndarray, list[int]]:
        """Copy the blocks to memory that starts `shift` bytes after a page boundary. Return it and their checksums."""
        memory = getattr(self._thread_local, "memory", None)
        if memory is None or memory.nbytes < shift + nbytes:
            memory = self._thread_local.memory = filesystem.new_memory(shift + nbytes)
        data = memory[shift : shift + nbytes]
        checksums = []
        start = 0
        for piece in pieces or blocks:
            copy = data[start : start + len(piece)]
            copy[:] = np.frombuffer(piece, np.uint8)
            if not pieces:
                checksums.append(checksum(copy))  # while it is in the CPU cache
            start += len(piece)
        return data, list(map(checksum, blocks)) if pieces else checksums


_MIN_DIRECT_NBYTES = 1 << 20


class RawFile(RawIOBase):
    """A file that is released, without a warning, when it is closed or garbage collected."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        try:  # here, since zipfile takes an error of `seek` for a damaged archive
            self._nbytes = filesystem.file_size(descriptor)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._nbytes}[whence]
        if self._position < 0:
            raise ValueError("a position before the start of the file")
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = filesystem.read_into(self._descriptor, np.frombuffer(buffer, np.uint8), self._position)
        self._position += count
        return count

    def close(self) -> None:
        if not self.closed:
            filesystem.release(self._descriptor)
        super().close()
