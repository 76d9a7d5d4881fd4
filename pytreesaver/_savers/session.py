"""What `Saver` and `CheckpointManager` share: the claim on a run directory, and one save at a time."""

import threading
from collections.abc import Callable
from pathlib import Path

from pytreesaver._checkpoint.background import OneAtATime, within
from pytreesaver._run.lock import RunLock, claim


class WriterSession:
    """One saver's hold on a run directory, and its saves, one at a time, until it is closed.

    Args:
        owner: what kind of saver it is, as it stands in messages.

    Attributes:
        queue: the save that is under way in the background.
        turn: a lock that whoever saves holds.
        lock: the claim on the run directory, if there is one.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.queue = OneAtATime()
        self.turn = threading.RLock()
        self.lock: RunLock | None = None
        self._closed = False

    def claim(self, directory: Path) -> RunLock:
        """See `claim`; the lock is kept."""
        self.lock = claim(directory, self.lock)
        return self.lock

    def check_open(self) -> None:
        """Raise a ValueError if it was closed."""
        if self._closed:
            raise ValueError(f"this {self._owner} was closed; make a new one")

    def perform(self, what: str, work: Callable[[], Path], *, block: bool) -> None:
        """Do the work of a save now, or in the background."""
        if block:
            work()
        else:
            self.queue.start(what, work)

    def close(self, timeout: float | None, *, before: Callable[[], None] = lambda: None) -> None:
        """Wait for the save that is under way, and let go of the run directory; if it is still under way, stay open.

        Args:
            timeout: how many seconds to wait at most; an hour if None.
            before: called when nothing is under way any more.

        Raises:
            SaveTimeoutError: a save is still under way.
            What the save failed with.
        """
        with within(timeout, self.turn, f"another thread's save with this {self._owner}") as left:
            try:
                self.queue.wait(left)
            finally:
                if self.queue.pending is None:
                    before()
                    self._closed = True
                    if self.lock is not None:
                        self.lock.release()
                        self.lock = None
