"""How the times are taken: in turns, in warm memory, from warm or cold caches, as medians with their spread."""

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
    """What several rounds gave, in seconds or another unit: the median, the lowest and the highest."""

    median: float
    lowest: float
    highest: float


def seconds(action: Callable[[], Any]) -> float:
    """How long an action takes. What it gives is dropped after the clock has stopped."""
    begin = time.perf_counter()
    result = action()
    end = time.perf_counter()
    del result
    return end - begin


def touch_memory(nbytes: int) -> None:
    """Have the operating system hand out as much memory as an action will need, and give it back to it.

    On a virtual machine the first touch of memory that the host has taken back is many times slower than the rest.
    """
    memory = np.empty(nbytes, np.uint8)
    memory[:: os.sysconf("SC_PAGE_SIZE")] = 1
    del memory


def take_turns(
    actions: Mapping[str, Callable[[], float]], rounds: int, before: Callable[[], None] = lambda: None
) -> dict[str, Times]:
    """Each action once in every round, so that a slow minute of the machine is everybody's. An action gives seconds."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            gc.collect()
            before()
            taken[name].append(action())
    return {name: spread(each) for name, each in taken.items()}


def drop_from_cache(paths: Iterable[Path]) -> bool:
    """Have the next read of some files come from the disk. False if the system does not let us.

    Files that are mapped stay in the cache: let go of every array on them first.
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
    """Their median, the lowest and the highest."""
    ordered = sorted(values)
    return Times(statistics.median(ordered), ordered[0], ordered[-1])


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """A directory for what is saved, deleted in the end."""
    directory = Path(tempfile.mkdtemp(prefix="pytreesaver-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def import_seconds(module: str, after: str) -> float:
    """How much longer a new process takes to import `module` when it has imported `after`."""
    program = f"import time, {after}; begin = time.perf_counter(); import {module}; print(time.perf_counter() - begin)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
