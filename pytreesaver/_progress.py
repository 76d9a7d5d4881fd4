"""Progress reports of long operations: a progress bar on the terminal or a callback."""

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
"""Type of a `progress` argument: a bool, or a function of (bytes done, total bytes)."""

logger = logging.getLogger("pytreesaver")
_DISPLAY_DELAY = 0.5  # seconds; shorter operations show nothing
_LOG_INTERVAL = 10.0  # seconds
_terminal = threading.Lock()  # held while a progress bar is on the terminal


def check_progress(progress: Any) -> None:
    """Raise a TypeError unless `progress` is a bool or a callable."""
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress: expected True, False or a function of (done, total), found {progress!r}")


@contextmanager
def reporting(progress: Progress, what: str, total: int) -> Iterator[None]:
    """Report the progress of the block, which reads or writes `total` bytes.

    With ``progress=True``, a bar with the rate and the time left appears on the terminal after half a second and
    disappears when the block ends. Printed and logged lines appear above it. Without a terminal, a line is logged every
    ten seconds. `what` is the label, e.g. ``"saving run/ckpt-100"``.
    """
    if progress is False:
        yield
        return
    if progress is not True:
        with metered(total, progress):
            yield
        return
    display = _Display(what)
    try:
        with metered(total, display.report):
            yield
    finally:
        display.close()


class _Display:
    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._logged = time.monotonic()
        self._report: Report | None = None
        self._close: Callable[[], None] = lambda: None

    def report(self, done: int, total: int) -> None:
        """See `pytreesaver._io.parallel.Report`."""
        now = time.monotonic()
        if self._report is None and now - self._started >= _DISPLAY_DELAY and done < total:
            self._report = self._begin(total)
        if self._report is not None:
            self._report(done, total)

    def close(self) -> None:
        """Remove the bar."""
        self._close()

    def _begin(self, total: int) -> Report:
        from rich.console import Console

        console = Console(stderr=True)
        if not (console.is_terminal or console.is_jupyter):
            return self._log
        if not _terminal.acquire(blocking=False):
            return lambda done, total: None  # another operation is showing its bar
        try:
            report, close = _start_bar(console, self._what, total)
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
        if now - self._logged >= _LOG_INTERVAL and done < total:
            self._logged = now
            logger.info("%s: %.0f %% of %.1f MB", self._what, 100 * done / total, total / 1e6)


def _start_bar(console: Any, what: str, total: int) -> tuple[Report, Callable[[], None]]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    label = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    columns = (label, BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    # If stdout is redirected to a file, printed lines must still go there.
    bar = Bar(*columns, console=console, transient=True, expand=True, redirect_stdout=_is_terminal(sys.stdout))
    task = bar.add_task(printable(what), total=total)
    bar.start()
    handlers = _redirect_handlers()

    def close() -> None:
        for handler, stream in handlers:
            with suppress(OSError, ValueError):  # a closed terminal must not fail the operation
                handler.setStream(stream)
        with suppress(OSError, ValueError):
            bar.stop()

    return lambda done, total: bar.update(task, completed=done), close


def _is_terminal(stream: Any) -> bool:
    with suppress(AttributeError, OSError, ValueError):
        return bool(stream.isatty())
    return False


def _redirect_handlers() -> list[tuple[Any, Any]]:
    """Make handlers that log to the terminal write above the bar, like `print`. Return their original streams."""
    streams = {sys.__stderr__: sys.stderr, sys.__stdout__: sys.stdout}
    loggers = [
        logging.root,
        *(each for each in list(logging.root.manager.loggerDict.values()) if hasattr(each, "handlers")),
    ]
    redirected = []
    for handler in {id(h): h for each in loggers for h in each.handlers}.values():
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            original = handler.stream
            if original in streams and streams[original] is not original:
                handler.setStream(streams[original])
                redirected.append((handler, original))
    return redirected
