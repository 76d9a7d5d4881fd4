"""Parallel execution of I/O tasks, and counting of the bytes that they process for progress reports."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

Report = Callable[[int, int], object]
"""Type of a callback, which is called with (bytes done, total bytes)."""

_meter: ContextVar["_Meter | None"] = ContextVar("pytreesaver_meter", default=None)


class _Meter:
    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._done = 0
        self._reported = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            # Reads are rounded to checksum blocks and some bytes are read twice, so the count can exceed the total.
            self._notify(min(self._done, self._total))

    def finish(self) -> None:
        with self._lock:
            self._notify(self._total)

    def _notify(self, done: int) -> None:
        if done > self._reported:
            self._reported = done
            with unmetered():  # reads by the callback itself do not count
                self._report(done, self._total)


def advance(nbytes: int) -> None:
    """Add `nbytes` to the bytes done in the current `metered` block, if there is one."""
    meter = _meter.get()
    if meter is not None:
        meter.add(nbytes)


@contextmanager
def metered(total: int, report: Report) -> Iterator[None]:
    """Call `report` as the block, including the threads that it starts with `run_all`, processes `total` bytes.

    Calls do not overlap, and the reported number increases with every call, up to `total` unless an error occurs.
    `report` is never called if `total` is 0. It may run in worker threads. An exception that it raises ends the work.

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
    """Do not count bytes processed in the block or in the threads that it starts with `run_all`."""
    token = _meter.set(None)
    try:
        yield
    finally:
        _meter.reset(token)


SLICE_NBYTES = 8 << 20
"""Number of bytes that a thread reads, writes or copies at a time."""

_MIN_PARALLEL_NBYTES = 4 << 20  # below this, threads cost more than they save


RANGE_NBYTES = 16 << 20
"""Number of bytes of an object that a thread requests at a time."""

_REQUESTS = 6  # to an object store at a time: they wait most of the time


def run_all(
    tasks: Sequence[Callable[[], None]], nbytes: int, *, in_background: bool = False, in_store: bool = False
) -> None:
    """Run all tasks in parallel. If a task fails, cancel pending tasks, wait for running ones and raise its error.

    At most four threads are used. With `in_background`, at most one thread for every eight CPU cores is used, and with
    fewer than 16 cores only the current thread. With `in_store`, the tasks are requests to an object store.
    """
    if in_store:
        workers = min(len(tasks), _REQUESTS)
    elif nbytes < _MIN_PARALLEL_NBYTES:
        workers = 1
    else:
        cores = os.cpu_count() or 1
        workers = min(len(tasks), 4, cores // 8 if in_background else cores + 1)
    if workers < 2:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="pytreesaver-io") as executor:
        futures = []
        try:
            for task in tasks:
                try:
                    futures.append(executor.submit(copy_context().run, task))
                except RuntimeError:  # the interpreter is shutting down and cannot start threads
                    task()
            for future in futures:
                future.result()
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise
