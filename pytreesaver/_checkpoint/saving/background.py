"""Asynchronous saves: each runs in its own thread and has a future, which reports its error."""

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

DEFAULT_TIMEOUT = 3600.0
"""The timeout of all waits here, in seconds, if the caller passes none."""

_LOG_INTERVAL = 60.0
logger = logging.getLogger("pytreesaver")


class ForeignSaveError(CheckpointError, RuntimeError):
    """A forked process waits for a save of its parent, and cannot learn when it ends."""


class SaveFuture(Future[Path]):
    """A pending save: a `concurrent.futures.Future` of the path, which can also be awaited.

    If a save fails and neither the result nor the exception of its future is retrieved, the error is logged when the
    future is garbage-collected or when the program exits.

    Attributes:
        what: the description of the save in messages.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self._retrieved = False
        self._pid = os.getpid()

    def result(self, timeout: float | None = None) -> Path:
        """Wait for the save, and return the path of the checkpoint.

        Args:
            timeout: in seconds; an hour if None. Every minute of waiting is logged.

        Raises:
            SaveTimeoutError: if the save has not finished in time. It continues.
            CheckpointError: if this process is a fork of the one that saves.
            What `save` raises.
        """
        self.settle(timeout)
        self._retrieved = True
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as `result` does, and return the error of the save, or None if it succeeded."""
        self.settle(timeout)
        self._retrieved = True
        return super().exception()

    def settle(self, timeout: float | None = None) -> None:
        """Wait as `result` does, but do not raise the error of the save or mark it as retrieved."""
        started = time.monotonic()
        limit = DEFAULT_TIMEOUT if timeout is None else timeout
        while not self.done():
            if os.getpid() != self._pid:
                raise ForeignSaveError(f"{self.what} runs in process {self._pid}, of which this process is a fork")
            left = started + limit - time.monotonic()
            try:
                super().exception(max(0.0, min(left, _LOG_INTERVAL)))
            except FutureTimeoutError:
                if left <= _LOG_INTERVAL and not self.done():
                    raise SaveTimeoutError(
                        f"waited {limit:g} s for {self.what}, which has not finished; it continues"
                    ) from None
                logger.warning("still waiting for %s after %.0f s", self.what, time.monotonic() - started)

    def __await__(self) -> Generator[Any, None, Path]:
        return asyncio.wrap_future(self).__await__()

    def complain(self) -> None:
        """Log the error of a failed save, unless it was retrieved or logged before."""
        if not self._retrieved and self.done() and not self.cancelled():
            error = super().exception()
            if error is not None:
                self._retrieved = True
                logger.error("%s failed, and its result was never retrieved: %r", self.what, error, exc_info=error)

    def __del__(self) -> None:
        self.complain()


_running: set[SaveFuture] = set()
_failed: weakref.WeakSet[SaveFuture] = weakref.WeakSet()


def start_in_background(future: SaveFuture, work: Callable[[], Path]) -> None:
    """Do the work of a future in a thread.

    The caller creates the future, so that an interrupt during this call cannot lose it.
    """
    future.set_running_or_notify_cancel()
    if not threading.main_thread().is_alive():  # the interpreter is shutting down, and would not wait for a thread
        return _run(future, [work])
    _running.add(future)
    # A daemon thread, for which `_finish_at_exit` waits, with a timeout and a log message, instead of the interpreter.
    held = [work]
    caller_goes_on = threading.Event()
    arguments = future, held, caller_goes_on
    try:
        threading.Thread(target=_run_later, args=arguments, name=f"pytreesaver: {future.what}", daemon=True).start()
    except RuntimeError:  # the system has no threads left
        _run(future, held)
    caller_goes_on.set()
    return None


def _run_later(future: SaveFuture, work: list[Callable[[], Path]], caller_goes_on: threading.Event) -> None:
    # Otherwise the new thread would keep the interpreter for its first 5 ms, while the caller waits.
    caller_goes_on.wait(1.0)
    _run(future, work)


def _run(future: SaveFuture, work: list[Callable[[], Path]]) -> None:
    # Emptying the list releases the tree as soon as it is written, before the thread ends.
    try:
        path = work.pop()()
    except BaseException as error:  # of any kind: the thread that waits raises it
        _failed.add(future)
        future.set_exception(error)
    else:
        future.set_result(path)
    finally:
        _running.discard(future)


def _finish_at_exit() -> None:
    for future in list(_running):
        if not future.done():
            logger.info("waiting for %s before the program exits", future.what)
        try:
            future.settle()
        except SaveTimeoutError:
            logger.error("waited %g s for %s; the program exits before it finishes", DEFAULT_TIMEOUT, future.what)
    for future in list(_failed):
        future.complain()


def _clear_after_fork() -> None:
    # A child process does not have the threads of its parent.
    _running.clear()
    _failed.clear()


atexit.register(_finish_at_exit)
os.register_at_fork(after_in_child=_clear_after_fork)


@contextmanager
def lock_within(timeout: float | None, lock: Any, what: str) -> Iterator[float]:
    """Hold a lock, and yield the seconds that are left of the timeout.

    Args:
        timeout: in seconds; an hour if None.
        lock: the lock to acquire.
        what: the description, in messages, of the work that holds the lock.

    Raises:
        SaveTimeoutError: if the lock was not released in time.
    """
    limit = DEFAULT_TIMEOUT if timeout is None else timeout
    stop = time.monotonic() + limit
    if not lock.acquire(timeout=max(0.0, min(limit, threading.TIMEOUT_MAX))):
        raise SaveTimeoutError(f"waited {limit:g} s for {what}, which has not finished; it continues")
    try:
        yield max(0.0, stop - time.monotonic())
    finally:
        lock.release()


def close_on_exit(close: Callable[[], None], error: BaseException | None) -> None:
    """Close at the end of a ``with`` block. If the block raised, an error while closing becomes a note on its error."""
    try:
        close()
    except Exception as problem:
        if error is None:
            raise
        logger.error("%s", problem, exc_info=problem)
        error.add_note(f"closing failed too: {type(problem).__name__}: {problem}")


class SaveQueue:
    """Runs asynchronous saves one at a time, and raises the error of one before the next starts."""

    def __init__(self) -> None:
        self.pending: SaveFuture | None = None
        """The last save, until `wait` has seen it end."""

    def start(self, what: str, work: Callable[[], Path]) -> SaveFuture:
        """Start a save. Call `wait` first."""
        self.pending = SaveFuture(what)
        start_in_background(self.pending, work)
        return self.pending

    def raise_if_failed(self) -> None:
        """Raise the error of the last save, once, if it has ended."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def settle(self, timeout: float | None = None) -> None:
        """Wait for the pending save, and leave its error for `wait` to raise.

        Raises:
            SaveTimeoutError: if the save has not finished in time.
        """
        if self.pending is not None:
            try:
                self.pending.settle(timeout)
            except ForeignSaveError:
                self.pending = None  # a read does not depend on a save of the parent process

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the pending save.

        Raises:
            SaveTimeoutError: if the save has not finished in time.
            The error of the save, in every thread that waits for it. Later calls do not raise it again.
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
