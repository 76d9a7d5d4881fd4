"""Handles of objects, which take the place of file descriptors."""

import errno
import itertools
import os
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from pytreesaver._io.stores.engine import call, obstore
from pytreesaver._io.stores.objects import put, version_of
from pytreesaver._io.stores.paths import FIRST_HANDLE, StorePath


class Handle(Protocol):
    """What an open object can do. Methods that it lacks are errors of the system."""

    def close(self) -> None:
        """Complete a write."""
        ...

    def release(self) -> None:
        """Give up."""
        ...


_handles: dict[int, Any] = {}
_numbers = itertools.count(FIRST_HANDLE)
_guard = threading.Lock()


def _new_guard() -> None:
    global _guard  # noqa: PLW0603
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_new_guard)


def new_handle(handle: Handle) -> int:
    """Return the number of a handle."""
    with _guard:
        number = next(_numbers)
        _handles[number] = handle
    return number


def handle_at(number: int) -> Any:
    try:
        return _handles[number]
    except KeyError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None


class ReadHandle:
    """An object that is read in ranges, all of one version."""

    def __init__(self, path: StorePath, meta: Any) -> None:
        self.path = path
        self.size: int = meta["size"]
        self._meta = meta

    def read_into(self, buffer: np.ndarray, offset: int) -> int:
        """Read a range."""
        count = min(buffer.nbytes, self.size - offset)
        if count <= 0:
            return 0
        options: dict[str, Any] = {"range": (offset, offset + count)}
        if self._meta.get("e_tag"):
            options["if_match"] = self._meta["e_tag"]
        data = call(self.path, lambda store, key: obstore().get(store, key, options=options).bytes())
        part = np.frombuffer(data, np.uint8)
        buffer[: part.nbytes] = part
        return part.nbytes

    def version(self) -> tuple[int, int, int, int]:
        """Return what tells this version from others."""
        return version_of(self.path, self._meta)

    def close(self) -> None:
        """Do nothing."""

    release = close


class WholeHandle(ReadHandle):
    """An object that was read as a whole when it was opened, in one request."""

    def __init__(self, path: StorePath, meta: Any, content: bytes) -> None:
        super().__init__(path, meta)
        self._content = np.frombuffer(content, np.uint8)

    def read_into(self, buffer: np.ndarray, offset: int) -> int:
        """Return a part of what was read."""
        part = self._content[offset : offset + buffer.nbytes]
        buffer[: part.nbytes] = part
        return part.nbytes


class BufferHandle:
    """A small object that is changed in memory, and written as a whole when it is synced or closed."""

    def __init__(self, path: StorePath, content: bytes, *, is_new: bool = False) -> None:
        self._path = path
        self._content = bytearray(content)
        self._is_changed = is_new

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self._content)

    def read_into(self, buffer: np.ndarray, offset: int) -> int:
        """Read a range."""
        part = self._content[offset : offset + buffer.nbytes]
        buffer[: len(part)] = np.frombuffer(bytes(part), np.uint8)
        return len(part)

    def write(self, buffers: Sequence[Any], offset: int) -> int:
        """Write the buffers at an offset."""
        data = b"".join(bytes(memoryview(each).cast("B")) for each in buffers)
        self._content.extend(bytes(max(offset - len(self._content), 0)))
        self._content[offset : offset + len(data)] = data
        self._is_changed = True
        return len(data)

    def truncate(self) -> None:
        """Empty the object."""
        self._content.clear()
        self._is_changed = True

    def sync(self) -> None:
        """Write the object."""
        if self._is_changed:
            put(self._path, bytes(self._content))
            self._is_changed = False

    close = sync

    def release(self) -> None:
        """Do nothing: what was not synced is lost."""


class MeasuringHandle:
    """Takes a data file without keeping it, except for its header, which is written at the start."""

    def __init__(self) -> None:
        self.header = b""

    def write(self, buffers: Sequence[Any], offset: int) -> int:
        """Keep what is written at the start."""
        if offset == 0:
            self.header = b"".join(bytes(each) for each in buffers)
        return sum(memoryview(each).nbytes for each in buffers)

    def close(self) -> None:
        """Do nothing."""

    release = close


def forget_handle(number: int) -> Any:
    """Return a handle, or None, which has no number from now on."""
    return _handles.pop(number, None)
