"""Run a list of independent pieces of input or output on a few threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

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
