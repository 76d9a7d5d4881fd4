"""Timing utilities: interleaved rounds, warm memory, warm or cold caches, medians with their range."""

import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Times(NamedTuple):
    """The median, lowest and highest result of several rounds, in seconds or another unit."""

    median: float
    lowest: float
    highest: float


def seconds(action: Callable[[], Any]) -> float:
    """Return the duration of an action. Its result is released after the clock has stopped."""
    begin = time.perf_counter()
    result = action()
    end = time.perf_counter()
    del result
    return end - begin


def touch_memory(nbytes: int) -> None:
    """Allocate and release as much memory as an action will need.

    On a virtual machine, the first access to memory that the host has reclaimed is many times slower than later ones.
    """
    memory = np.empty(nbytes, np.uint8)
    memory[:: os.sysconf("SC_PAGE_SIZE")] = 1
    del memory


def take_turns(
    actions: Mapping[str, Callable[[], float]], rounds: int, before: Callable[[], None] = lambda: None
) -> dict[str, Times]:
    """Run every action once per round, so that a slow period affects all of them. An action returns seconds."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            gc.collect()
            before()
            taken[name].append(action())
    return {name: spread(each) for name, each in taken.items()}


def drop_from_cache(paths: Iterable[Path]) -> bool:
    """Evict files from the page cache, so that the next read comes from disk. Return False if that is not permitted.

    Mapped files stay in the cache: release every array that maps them first.
    """
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def spread(values: Iterable[float]) -> Times:
    """Return the median, lowest and highest value."""
    ordered = sorted(values)
    return Times(statistics.median(ordered), ordered[0], ordered[-1])


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """Create a temporary directory that is deleted when the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="pytreesaver-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def import_seconds(module: str, after: str) -> float:
    """Return how long a new process takes to import `module` after it has imported `after`."""
    program = f"import time, {after}; begin = time.perf_counter(); import {module}; print(time.perf_counter() - begin)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
