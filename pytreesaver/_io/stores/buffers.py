"""Handles of bytes in memory and of file objects of Python, which are read like files."""

import errno
import io
import threading
from typing import Any

import numpy as np

from pytreesaver._io.stores.handles import new_handle


def open_buffer(content: Any) -> int:
    """Return a handle, in place of a file descriptor, of bytes in memory."""
    try:
        return new_handle(_BytesHandle(np.frombuffer(content, np.uint8)))
    except (BufferError, ValueError) as error:
        raise TypeError(f"expected contiguous bytes, found {type(content).__name__} ({error})") from None


def open_file_object(file: Any) -> int:
    """Return a handle of a binary file object, from its current position to its end. One that cannot seek is read.

    Raises:
        TypeError: if it is not a binary file.
    """
    if not _is_seekable(file):
        return open_buffer(_checked(file.read()))
    _checked(file.read(0))
    start = file.tell()
    return new_handle(_FileObjectHandle(file, start, file.seek(0, io.SEEK_END) - start))


def _is_seekable(file: Any) -> bool:
    return bool(getattr(file, "seekable", lambda: False)())


def _checked(content: Any) -> Any:
    if isinstance(content, str):
        raise TypeError('file: expected a binary file, such as one opened with mode "rb", found a text file')
    if content is None:
        raise BlockingIOError(errno.EAGAIN, "the file has nothing to read at the moment: it is non-blocking")
    return content


class _BytesHandle:
    def __init__(self, content: np.ndarray) -> None:
        self._content = content
        self.size = content.nbytes

    def read_into(self, buffer: np.ndarray, offset: int) -> int:
        part = self._content[offset : offset + buffer.nbytes]
        buffer[: part.nbytes] = part
        return part.nbytes

    def version(self) -> tuple[int, int, int, int]:
        return 0, 0, self.size, 0

    def close(self) -> None:
        """Do nothing."""

    release = close


class _FileObjectHandle:
    def __init__(self, file: Any, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._lock = threading.Lock()
        self.size = size

    def read_into(self, buffer: np.ndarray, offset: int) -> int:
        with self._lock:
            self._file.seek(self._start + offset)
            data = _checked(self._file.read(min(buffer.nbytes, max(self.size - offset, 0))))
        part = np.frombuffer(data, np.uint8)
        buffer[: part.nbytes] = part
        return part.nbytes

    def version(self) -> tuple[int, int, int, int]:
        return 0, 0, self.size, 0

    def close(self) -> None:
        """Leave the file open, at its end."""
        with self._lock:
            if not self._file.closed:
                self._file.seek(self._start + self.size)

    release = close
