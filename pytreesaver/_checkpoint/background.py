"""Saves that go on in a thread of their own: one future for each, and nothing that goes wrong is lost."""

import asyncio
import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytreesaver._errors import CheckpointError, SaveTimeoutError

LONGEST_WAIT = 3600.0
"""How many seconds anything here waits for a save at most, if not told otherwise."""

_NOTE_EVERY = 60.0
logger = logging.getLogger("pytreesaver")


class ForeignSaveError(CheckpointError, RuntimeError):
    """A forked process waits for a save of its parent, of which it cannot know."""


class SaveFuture(Future[Path]):
    """A save that is under way: a `concurrent.futures.Future` of the path, which can also be awaited.

    If a save fails and nobody asks its future for the result or the exception, the error is logged when the future is
    dropped or when the program ends.

    Attributes:
        what: what is being waited for, as it stands in messages.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self._asked = False
        self._pid = os.getpid()

    def result(self, timeout: float | None = None) -> Path:
        """The path of the checkpoint, once it is complete.

        Args:
            timeout: how many seconds to wait; an hour if None. A wait of more than a minute is logged.

        Raises:
            SaveTimeoutError: it is not complete by then, and goes on.
            CheckpointError: this process is a fork of the one that saves.
            What `save` raises.
        """
        self.settle(timeout)
        self._asked = True
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the save failed with, or None, once it has ended. Waits as `result` does."""
        self.settle(timeout)
        self._asked = True
        return super().exception()

    def settle(self, timeout: float | None = None) -> None:
        """Wait as `result` does, and leave what the save failed with for others to ask."""
        started = time.monotonic()
        limit = LONGEST_WAIT if timeout is None else timeout
        while not self.done():
            if os.getpid() != self._pid:
                raise ForeignSaveError(f"{self.what} is up to process {self._pid}, of which this one is a fork")
            left = started + limit - time.monotonic()
            try:
                super().exception(max(0.0, min(left, _NOTE_EVERY)))
            except FutureTimeoutError:
                if left <= _NOTE_EVERY and not self.done():
                    raise SaveTimeoutError(
                        f"waited {limit:g} s for {self.what}, which has not finished; it goes on"
                    ) from None
                logger.warning("still waiting for %s, since %.0f s", self.what, time.monotonic() - started)

    def __await__(self) -> Generator[Any, None, Path]:
        return asyncio.wrap_future(self).__await__()

    def complain(self) -> None:
        """Log the error of a failed save, unless somebody has been told of it."""
        if not self._asked and self.done() and not self.cancelled():
            error = super().exception()
            if error is not None:
                self._asked = True
                logger.error("%s failed, and nobody asked for its result: %r", self.what, error, exc_info=error)

    def __del__(self) -> None:
        self.complain()


_under_way: set[SaveFuture] = set()
_failed: weakref.WeakSet[SaveFuture] = weakref.WeakSet()


def start_in_background(future: SaveFuture, work: Callable[[], Path]) -> None:
    """Do the work of a future in a thread. Whoever waits for it holds it already: an interrupt loses it from nobody."""
    future.set_running_or_notify_cancel()
    if not threading.main_thread().is_alive():  # the interpreter is shutting down, and waits for no more threads
        return _run(future, [work])
    _under_way.add(future)
    # A daemon, so that the end of the program waits for it with a limit, and says what for.
    held = [work]
    try:
        threading.Thread(target=_run, args=(future, held), name=f"pytreesaver: {future.what}", daemon=True).start()
    except RuntimeError:  # the system gives no more threads
        _run(future, held)
    return None


def _run(future: SaveFuture, work: list[Callable[[], Path]]) -> None:
    # The list is emptied so that the tree is let go of as soon as it is written, and not when the thread has ended.
    try:
        path = work.pop()()
    except BaseException as error:  # whatever it is, somebody else has to be told
        _failed.add(future)
        future.set_exception(error)
    else:
        future.set_result(path)
    finally:
        _under_way.discard(future)


def _finish_at_exit() -> None:
    for future in list(_under_way):
        if not future.done():
            logger.info("waiting for %s before the program ends", future.what)
        try:
            future.settle()
        except SaveTimeoutError as error:
            logger.error("%s; the program ends without it", error)
    for future in list(_failed):
        future.complain()


def _forget() -> None:
    # The threads of a parent process are not in its child.
    _under_way.clear()
    _failed.clear()


atexit.register(_finish_at_exit)
os.register_at_fork(after_in_child=_forget)


@contextmanager
def within(timeout: float | None, lock: Any, what: str) -> Iterator[float]:
    """Hold a lock that was waited for at most `timeout` seconds, an hour if None; gives how many of these are left.

    Raises:
        SaveTimeoutError: it could not be had in time; `what` says what was waited for.
    """
    limit = LONGEST_WAIT if timeout is None else timeout
    stop = time.monotonic() + limit
    if not lock.acquire(timeout=max(0.0, min(limit, threading.TIMEOUT_MAX))):
        raise SaveTimeoutError(f"waited {limit:g} s for {what}, which has not finished; it goes on")
    try:
        yield max(0.0, stop - time.monotonic())
    finally:
        lock.release()


def close_on_exit(close: Callable[[], None], error: BaseException | None) -> None:
    """Close at the end of a ``with`` block; what goes wrong is a note on the error that ended the block, if any did."""
    try:
        close()
    except Exception as problem:
        if error is None:
            raise
        logger.error("%s", problem, exc_info=problem)
        error.add_note(f"and then, in the background: {type(problem).__name__}: {problem}")


class OneAtATime:
    """Runs saves in the background, one after the other, and raises what went wrong with one before the next."""

    def __init__(self) -> None:
        self.pending: SaveFuture | None = None
        """The save that was started last, unless it has ended and `wait` was called since."""

    def start(self, what: str, work: Callable[[], Path]) -> SaveFuture:
        """Start one; `wait` has to come before it."""
        self.pending = SaveFuture(what)
        start_in_background(self.pending, work)
        return self.pending

    def raise_if_failed(self) -> None:
        """Raise what the last one failed with, if it has ended; once."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def settle(self, timeout: float | None = None) -> None:
        """Wait until none is under way; what it failed with is left for `wait` to raise.

        Raises:
            SaveTimeoutError: one is still under way.
        """
        if self.pending is not None:
            try:
                self.pending.settle(timeout)
            except ForeignSaveError:
                self.pending = None  # what the parent process saves is no business of those who only read

    def wait(self, timeout: float | None = None) -> None:
        """Wait until none is under way.

        Raises:
            SaveTimeoutError: one is still under way.
            What the last one failed with; to everybody who waits, and not again.
        """
        pending = self.pending
        if pending is not None:
            try:
                error = pending.exception(timeout)
            except ForeignSaveError:
                self.pending = None
                raise
            if self.pending is pending:
                self.pending = None
            if error is not None:
                raise error
