"""How many bytes were read or written so far: counted where that happens, and told to whoever wants to know."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

Report = Callable[[int, int], object]
"""Called with the number of bytes that are done and that of all."""

_meter: ContextVar["_Meter | None"] = ContextVar("pytreesaver_meter", default=None)


class _Meter:
    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._done = 0
        self._told = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            # Blocks with checksums are read whole, and a part may be read again: it is more than what was asked for.
            self._tell(min(self._done, self._total))

    def finish(self) -> None:
        with self._lock:
            self._tell(self._total)

    def _tell(self, done: int) -> None:
        if done > self._told:
            self._told = done
            with unmetered():  # what the function itself reads is no part of the work
                self._report(done, self._total)


def advance(nbytes: int) -> None:
    """Count bytes that were read or written just now."""
    meter = _meter.get()
    if meter is not None:
        meter.add(nbytes)


@contextmanager
def metered(total: int, report: Report) -> Iterator[None]:
    """Report, from now on and of all threads that work for this one, how many of `total` bytes are done.

    What is reported rises, one call at a time, up to `total`, if there is no error; of no bytes nothing is reported.
    The calls come from the threads that do the work; an error that `report` raises ends it.

    Example:
        >>> with metered(10, lambda done, total: print(f"{done} of {total}")):
        ...     advance(4)
        4 of 10
        10 of 10
    """
    meter = _Meter(total, report)
    token = _meter.set(meter)
    try:
        yield
        meter.finish()
    finally:
        _meter.reset(token)


@contextmanager
def unmetered() -> Iterator[None]:
    """What is read or written inside, and by threads that work for it, does not count."""
    token = _meter.set(None)
    try:
        yield
    finally:
        _meter.reset(token)


SLICE_NBYTES = 8 << 20
"""How many bytes one thread reads, writes or copies at a time."""

_FEW_BYTES = 4 << 20  # below this, starting threads costs more than it saves


def run_all(tasks: Sequence[Callable[[], None]], nbytes: int, *, in_background: bool = False) -> None:
    """Run every task; if one fails, start no more, wait for those under way, and raise the first error.

    In the background an eighth of the processor is taken, or the current thread alone.
    """
    cores = os.cpu_count() or 1
    workers = min(len(tasks), 4, cores // 8 if in_background else cores + 1)
    if workers < 2 or nbytes < _FEW_BYTES:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="pytreesaver-io") as executor:
        futures = []
        try:
            for task in tasks:
                try:
                    futures.append(executor.submit(copy_context().run, task))
                except RuntimeError:  # the interpreter is shutting down, and starts no more threads
                    task()
            for future in futures:
                future.result()
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise
