"""Progress of long work: a line on the terminal, or a function of the user's."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pytreesaver._io.parallel import Report, metered
from pytreesaver._text import printable

Progress = bool | Callable[[int, int], object]
"""What an argument `progress` can be: False, True, or a function of (bytes done, bytes in all)."""

logger = logging.getLogger("pytreesaver")
_SHOWN_AFTER = 0.5  # seconds: what is done sooner needs no line
_LOGGED_EVERY = 10.0  # seconds
_terminal = threading.Lock()  # held by the one that has the line


def check_progress(progress: Any) -> None:
    """Raise a TypeError unless it is what an argument `progress` can be."""
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress: expected True, False or a function of (done, total), found {progress!r}")


@contextmanager
def reporting(progress: Progress, what: str, total: int) -> Iterator[None]:
    """Show how far the work inside has come, which reads or writes `total` bytes.

    With True that is one line on the terminal with rate and time left, from half a second on, which is gone when the
    work has ended; while it is there, what is printed and logged appears above it. Where there is no terminal, a line
    is logged every ten seconds. `what` begins the line: ``"saving run/ckpt-100"``.
    """
    if progress is False:
        yield
        return
    if progress is not True:
        with metered(total, progress):
            yield
        return
    line = _Line(what)
    try:
        with metered(total, line.report):
            yield
    finally:
        line.close()


class _Line:
    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._logged = time.monotonic()
        self._report: Report | None = None
        self._close: Callable[[], None] = lambda: None

    def report(self, done: int, total: int) -> None:
        """See `pytreesaver._io.metering.Report`."""
        now = time.monotonic()
        if self._report is None and now - self._started >= _SHOWN_AFTER and done < total:
            self._report = self._begin(total)
        if self._report is not None:
            self._report(done, total)

    def close(self) -> None:
        """Take the line away."""
        self._close()

    def _begin(self, total: int) -> Report:
        from rich.console import Console

        console = Console(stderr=True)
        if not (console.is_terminal or console.is_jupyter):
            return self._log
        if not _terminal.acquire(blocking=False):
            return lambda done, total: None  # there is one line, and somebody else has it
        try:
            report, close = _shown_on(console, self._what, total)
        except Exception:
            logger.debug("cannot show progress", exc_info=True)
            _terminal.release()
            return lambda done, total: None
        except BaseException:
            _terminal.release()
            raise

        def close_and_release() -> None:
            try:
                close()
            finally:
                _terminal.release()

        self._close = close_and_release
        return report

    def _log(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._logged >= _LOGGED_EVERY and done < total:
            self._logged = now
            logger.info("%s: %.0f %% of %.1f MB", self._what, 100 * done / total, total / 1e6)


def _shown_on(console: Any, what: str, total: int) -> tuple[Report, Callable[[], None]]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    label = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    columns = (label, BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    # Where only what is printed goes into a file, it has to go on doing so.
    bar = Bar(*columns, console=console, transient=True, expand=True, redirect_stdout=_is_terminal(sys.stdout))
    task = bar.add_task(printable(what), total=total)
    bar.start()
    handlers = _move_handlers()

    def close() -> None:
        for handler, stream in handlers:
            with suppress(OSError, ValueError):  # a terminal that is gone is no reason for the work to fail
                handler.setStream(stream)
        with suppress(OSError, ValueError):
            bar.stop()

    return lambda done, total: bar.update(task, completed=done), close


def _is_terminal(stream: Any) -> bool:
    with suppress(AttributeError, OSError, ValueError):
        return bool(stream.isatty())
    return False


def _move_handlers() -> list[tuple[Any, Any]]:
    """Have those who log to the terminal write where `print` does now: above the line. Gives how it was."""
    streams = {sys.__stderr__: sys.stderr, sys.__stdout__: sys.stdout}
    loggers = [
        logging.root,
        *(each for each in list(logging.root.manager.loggerDict.values()) if hasattr(each, "handlers")),
    ]
    moved = []
    for handler in {id(h): h for each in loggers for h in each.handlers}.values():
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            before = handler.stream
            if before in streams and streams[before] is not before:
                handler.setStream(streams[before])
                moved.append((handler, before))
    return moved
