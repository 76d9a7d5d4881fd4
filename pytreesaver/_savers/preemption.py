"""Preemption: after a SIGTERM, the next save is the last one, and then the process ends."""

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_SECS = 20.0
"""The number of seconds that the process may run after a SIGTERM without calling `save`, before it ends."""

logger = logging.getLogger("pytreesaver")


class Preemption:
    """Handles SIGTERM, until the last enabled object is released or garbage collected.

    Args:
        finish: waits for the pending save; called before the process ends.
        enabled: whether to handle the signal at all.

    Attributes:
        requested: whether the signal has arrived.

    Raises:
        ValueError: if this is not the main thread. Only the main thread can handle signals.
    """

    def __init__(self, finish: Callable[[], None], *, enabled: bool) -> None:
        self.requested = False
        self.finish = finish
        self.saves = 0
        if not enabled:
            return
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("save_on_sigterm: expected the main thread, as other threads cannot handle signals")
        _handler.install()
        _handler.live.add(self)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Postpone the end of the process until the save in the ``with`` block is over."""
        self.saves += 1
        try:
            try:
                yield
            finally:
                self.saves -= 1
        except Exception:
            if self.requested:
                logger.exception("the last save before the end of the process failed")
            raise
        finally:
            self.end_if_requested()

    def end_if_requested(self) -> None:
        """If the signal has arrived, finish pending saves and let the previous handler of the signal act."""
        if self.requested:
            _handler.end()

    def release(self) -> None:
        """Restore the previous handler of the signal, if no other object is live."""
        _handler.live.discard(self)
        if not _handler.live:
            _handler.uninstall()


class _Handler:
    def __init__(self) -> None:
        self.live: weakref.WeakSet[Preemption] = weakref.WeakSet()
        self._previous: Any = None
        self._pid = 0
        self._timer: threading.Timer | None = None
        self._ending = False
        self._handled = threading.Event()

    def install(self) -> None:
        self._pid = os.getpid()
        if not self._is_installed():
            self._previous = signal.signal(signal.SIGTERM, self)

    def uninstall(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if threading.current_thread() is threading.main_thread() and self._is_installed():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._previous is None else self._previous)

    def _is_installed(self) -> bool:
        current: object = signal.getsignal(signal.SIGTERM)
        return current is self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        live = list(self.live)
        is_repeated = all(each.requested for each in live)
        for each in live:
            each.requested = True
        if os.getpid() != self._pid:
            self.uninstall()
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._ending:  # the last save ran in another thread
            self.end()
        elif any(each.saves for each in live):
            logger.warning("SIGTERM: the process will end after the current save")
        elif is_repeated:
            self.end()
        else:
            logger.warning("SIGTERM: the process will end after the next save")
            self._timer = threading.Timer(GRACE_SECS, os.kill, (self._pid, signal.SIGTERM))
            self._timer.daemon = True
            self._timer.start()

    def end(self) -> None:
        for each in list(self.live):
            try:
                each.finish()
            except Exception:
                logger.exception("a save did not finish before the process ended")
        if threading.current_thread() is not threading.main_thread():
            self._ending = True
            self._handled.clear()
            os.kill(os.getpid(), signal.SIGTERM)  # the main thread continues in __call__
            self._handled.wait(GRACE_SECS)
            return
        self.uninstall()
        for each in list(self.live):
            each.requested = False
        self._ending = False
        os.kill(os.getpid(), signal.SIGTERM)
        self._handled.set()  # the previous handler did not end the process

    def forget(self) -> None:
        """Reset the state in a forked child, which has none of its parent's saves and timers."""
        if self.live:
            self.live.clear()
            self._ending, self._timer = False, None
            self.uninstall()


_handler = _Handler()
os.register_at_fork(after_in_child=_handler.forget)
