"""Campaigns in several processes, which end at once, and clean up, when they are interrupted."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

_PROCESSES = 2


def each(run: Callable[..., dict], names: Sequence[str]) -> Iterator[str]:
    """Run a campaign for each name, in several processes. Yield its problems, "" for each try that held."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, mp_context=context, initializer=end_on_signals) as executor:
        try:
            for name, problems in zip(names, executor.map(_run_one, [run] * len(names), names), strict=True):
                print(f"  {name}: {sum(not problem for problem in problems)} of {len(problems)}", flush=True)
                yield from problems
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # they unmount their disks first
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def end_on_signals() -> None:
    """Let this process end by an exception at SIGINT and SIGTERM, so that ``with`` blocks clean up."""
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGINT, _go_on)
    signal.signal(signal.SIGTERM, _go_on)
    sys.exit(128 + number)


def _go_on(number: int, frame: object) -> None:
    """Do nothing: this process ends already. (Where a signal is ignored while it arrives, Python raises an OSError.)"""


def _run_one(run: Callable[..., dict], name: str) -> list[str]:
    is_ending = signal.getsignal(signal.SIGTERM) is _go_on
    found: list[str] = [] if is_ending else run([name])[name]
    return found
