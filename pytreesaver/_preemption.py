"""A last save when the system asks the process to end: SIGTERM is noted, and obeyed when the work is safe."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

GRACE_SECS = 20.0
"""How long after a SIGTERM the program may go on without a save before it is ended without a last one."""

logger = logging.getLogger("pytreesaver")


class Preemption:
    """Takes over SIGTERM, until `give_back`.

    Attributes:
        requested: whether the signal has come.

    Args:
        finish: called to wait for the save that is under way, if the program makes no save of its own in time, or if
            the signal comes again.

    Raises:
        ValueError: this is not the main thread, which alone may handle signals.
    """

    def __init__(self, finish: Callable[[], None]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("save_on_sigterm: expected to be in the main thread, which alone may handle signals")
        self.requested = False
        self._finish = finish
        self._pid = os.getpid()
        self._timer: threading.Timer | None = None
        self._before: Any = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid or self.requested:
            self.end()
            return
        self.requested = True
        logger.warning("SIGTERM: the next save is the last one, and then the process ends")
        self._timer = threading.Timer(GRACE_SECS, os.kill, (self._pid, signal.SIGTERM))
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Finish the save that is under way, and let the signal do what it would have done without this object."""
        try:
            if os.getpid() == self._pid:
                self._finish()
        except Exception:
            logger.exception("the last save failed")
        finally:
            self.give_back()
            os.kill(os.getpid(), signal.SIGTERM)

    def give_back(self) -> None:
        """Give the signal back to whoever had it before."""
        if self._timer is not None:
            self._timer.cancel()
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may; the signal that `end` sends is handled there
        self.requested = False
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)
