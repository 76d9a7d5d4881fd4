"""Preemption: after a signal such as SIGTERM, the next save is the last one, and then the process ends."""

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_SECS = 20.0
"""The number of seconds that the process may run after a SIGTERM without calling `save`, before it ends."""

logger = logging.getLogger("pytreesaver")


def checked_signals(save_on_signal: Any, save_on_sigterm: Any) -> tuple[int, ...]:
    """Return the signals after which a manager saves for the last time.

    Args:
        save_on_signal: a signal or several, or None.
        save_on_sigterm: whether SIGTERM is one of them.

    Raises:
        TypeError, ValueError: if an argument is not a signal that a process can handle.

    Example:
        >>> [name_of(each) for each in checked_signals(signal.SIGUSR1, True)]
        ['SIGUSR1', 'SIGTERM']
    """
    if not isinstance(save_on_sigterm, bool):
        hint = "; pass save_on_signal for another signal" if isinstance(save_on_sigterm, int) else ""
        raise TypeError(f"save_on_sigterm: expected True or False, found {save_on_sigterm!r}{hint}")
    is_one = save_on_signal is None or isinstance(save_on_signal, int)
    if not is_one and (isinstance(save_on_signal, str) or not isinstance(save_on_signal, Iterable)):
        raise TypeError(f"save_on_signal: expected one or more signals like signal.SIGUSR1, found {save_on_signal!r}")
    given: list[Any] = [] if save_on_signal is None else [save_on_signal]
    if not isinstance(save_on_signal, int) and save_on_signal is not None:
        given = list(save_on_signal)
    found = []
    for each in [*given, *([signal.SIGTERM] if save_on_sigterm else [])]:
        if isinstance(each, bool) or not isinstance(each, int):
            raise TypeError(f"save_on_signal: expected a signal such as signal.SIGUSR1, found {each!r}")
        if each not in signal.valid_signals() or each in (signal.SIGKILL, signal.SIGSTOP):
            raise ValueError(f"save_on_signal: expected a signal that a process can handle, found {each!r}")
        found.append(int(each))
    return tuple(dict.fromkeys(found))


def name_of(number: int) -> str:
    """Return the name of a signal. Real-time signals have numbers only.

    Example:
        >>> name_of(signal.SIGTERM), name_of(signal.SIGRTMIN + 3)
        ('SIGTERM', 'signal 37')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {int(number)}"


class Preemption:
    """Handles signals, until the last object for a signal is released or garbage collected.

    Args:
        finish: waits for the pending save; called before the process ends.
        signals: the signals to handle; none for no effect.

    Attributes:
        requested: whether one of the signals has arrived.
        finished: whether the last save after it is over.
        used: whether there was a save before.
        ended: how many times the previous handler of a signal has let the program go on. In all processes of a program,
            this is the same number, so that they tell a signal from an earlier one.
        is_undecided: whether process 0 of the program has not heard of the signal yet, so that the next save is the
            last one.

    Raises:
        ValueError: if this is not the main thread. Only the main thread can handle signals.
    """

    def __init__(self, finish: Callable[[], None], signals: tuple[int, ...] = ()) -> None:
        self.requested = False
        self.finished = False
        self.used = False
        self.ended = 0
        self.is_undecided = False
        self.finish = finish
        self.signals = signals
        self.saves = 0
        if not signals:
            return
        if threading.current_thread() is not threading.main_thread():
            raise ValueError(
                f"{', '.join(map(name_of, signals))}: expected the main thread, as other threads cannot "
                "handle signals; create the manager there, or leave out save_on_signal and save_on_sigterm"
            )
        _handler.install(signals)
        _handler.live.add(self)

    @property
    def arrived(self) -> int:
        """The signal that has arrived, or 0."""
        return _handler.arrived if self.requested else 0

    def arrive_here_too(self, number: int) -> None:
        """Act as if a signal had arrived, because it has arrived in another process of the program."""
        if number in self.signals and not self.requested:
            _handler(number, None)

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

    def end_if_requested(self, *, closing: bool = False) -> None:
        """If the signal has arrived, finish pending saves and let the previous handler of the signal act.

        The process does not end before every manager that has saved anything had its last save, unless one of them is
        asked for another.
        """
        if not self.requested:
            return
        if self.is_undecided and not closing:
            self.is_undecided = False
            _handler.start_timer()
            return
        others = [each for each in _handler.live if each is not self and each.requested and each.used]
        if all(each.finished for each in others) or (self.finished and not closing):
            _handler.end()
        else:
            self.finished = True
            _handler.start_timer()
            logger.warning("the process will end after the last saves of the other managers")

    def release(self) -> None:
        """Restore the previous handlers of the signals that no other live object handles."""
        _handler.live.discard(self)
        _handler.uninstall_unused()


class _Handler:
    def __init__(self) -> None:
        self.live: weakref.WeakSet[Preemption] = weakref.WeakSet()
        self._previous: dict[int, Any] = {}
        self._pid = 0
        self.arrived: int = signal.SIGTERM
        self._timer: threading.Timer | None = None
        self._ending = False
        self._handled = threading.Event()

    def install(self, signals: Iterable[int]) -> None:
        self._pid = os.getpid()
        for each in signals:
            if not self._is_installed(each):
                self._previous[each] = signal.signal(each, self)

    def uninstall_unused(self) -> None:
        used = {each for live in self.live for each in live.signals}
        self.uninstall([each for each in self._previous if each not in used])

    def uninstall(self, signals: Iterable[int]) -> None:
        """Restore the previous handlers of these signals."""
        for each in list(signals):
            if each == signal.SIGTERM and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if threading.current_thread() is threading.main_thread() and self._is_installed(each):
                previous = self._previous.pop(each, None)
                signal.signal(each, signal.SIG_DFL if previous is None else previous)

    def _is_installed(self, number: int) -> bool:
        current: object = signal.getsignal(number)
        return current is self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        arrived = number
        live = [each for each in self.live if arrived in each.signals]
        is_repeated = all(each.requested for each in live)
        for each in live:
            each.requested = True
        if os.getpid() != self._pid:
            self.uninstall(self._previous)
            os.kill(os.getpid(), arrived)
            return
        if self._ending:  # the last save ran in another thread
            self.end()
            return
        self.arrived = arrived
        if any(each.saves for each in live):
            logger.warning("%s: the process will end after the current save", name_of(arrived))
        elif is_repeated:
            self.end()
        else:
            logger.warning("%s: the process will end after the next save", name_of(arrived))
            self.start_timer()

    def start_timer(self) -> None:
        """After a SIGTERM, let the process end in `GRACE_SECS` even if nothing is saved until then."""
        if self.arrived == signal.SIGTERM and self._timer is None:
            self._timer = threading.Timer(GRACE_SECS, os.kill, (self._pid, self.arrived))
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
            os.kill(os.getpid(), self.arrived)  # the main thread continues in __call__
            self._handled.wait(GRACE_SECS)
            return
        arrived = self.arrived
        self.uninstall([arrived])
        for each in list(self.live):
            each.ended += each.requested
            each.requested = each.finished = False
        self._ending = False
        os.kill(os.getpid(), arrived)
        self._handled.set()  # the previous handler did not end the process

    def forget(self) -> None:
        """Reset the state in a forked child, which has none of its parent's saves and timers."""
        if self.live:
            self.live.clear()
            self._ending, self._timer = False, None
            self.uninstall(self._previous)


_handler = _Handler()
os.register_at_fork(after_in_child=_handler.forget)
