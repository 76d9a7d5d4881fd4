"""An open file, past the cache of the operating system."""

import errno
import threading
from collections.abc import Callable

from pytreesaver._io import filesystem


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
