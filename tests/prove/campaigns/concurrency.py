"""Readers, writers, threads, forks and signals at the same time; and thousands of cycles with flat memory."""

import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import pytreesaver as pts

_ROOT = Path(__file__).parents[3]


def tree(step):
    """Return a tree that shows in every value of which step it is."""
    return {"w": np.full(2000, step), "b": np.full((3, 5), step, np.int32), "step": step}


def is_whole(found) -> bool:
    """Return whether all values of a tree are of one step."""
    return bool((found["w"] == found["step"]).all() and (found["b"] == found["step"]).all())


def use_repeatedly(role: str, path: str, seconds: float) -> None:
    """Do what a role does until the time is over, and at least once. Print how often, or the first problem."""
    end, count, chance = time.monotonic() + seconds, 0, random.Random(os.getpid())
    warnings.simplefilter("ignore")
    while (left := end - time.monotonic()) > 0 or (count == 0 and left > -60):
        try:
            count += ROLES[role](path, chance.randrange(1_000_000)) is not None
        except pts.CheckpointNotFoundError:
            if role != "read while it is deleted":
                raise
    print(count)


def _read(path: str, number: int) -> Any:
    ways = (lambda: pts.restore(path), lambda: pts.restore(path, mmap=True), lambda: pts.restore(path, tree(0)))
    return _whole(ways[number % 3]())


def _whole(found: Any) -> Any:
    if not is_whole(found):
        raise AssertionError("a mixture of two checkpoints")
    return found


def _read_newest(path: str, number: int) -> Any:
    newest = pts.latest_checkpoint(path)
    return None if newest is None else _whole(pts.restore(newest))


def _save_steps(path: str, number: int) -> int:
    with pts.CheckpointManager(path, max_to_keep=1) as manager:
        first = (manager.latest_step() or 0) + 1
        for step in range(first, first + 5):
            manager.save(step, tree(step))
    return first


ROLES: dict[str, Callable[[str, int], Any]] = {
    "overwrite": lambda path, number: pts.save(tree(number), path, overwrite=True, durable=False),
    "read": _read,
    "save steps": _save_steps,
    "read while it is deleted": _read_newest,
}


def together(roles: list[str], path: Path, seconds: float) -> Iterator[tuple[int, str]]:
    """Yield for each role, each in a process of its own, how often it was done, and a problem or nothing."""
    code = f"from {__name__} import use_repeatedly; import sys; use_repeatedly(sys.argv[1], sys.argv[2], {seconds})"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", code, role, path], cwd=_ROOT, **pipes) for role in roles]
    for role, process in zip(roles, started, strict=True):
        output, errors = process.communicate(timeout=seconds + 120)
        count = int(output) if output.strip().isdigit() else 0
        yield count, "" if process.returncode == 0 and count else f"{role}: {errors[-1500:]}"


def threads_and_signals(path: Path, seconds: float) -> tuple[int, str]:
    """Save in four threads, with a signal every millisecond. Return how often, and a problem or nothing."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    end, count = time.monotonic() + seconds, 0
    try:
        with ThreadPoolExecutor(4) as executor:
            while time.monotonic() < end:
                saves = [
                    executor.submit(pts.save, tree(count + i), path, overwrite=True, durable=False) for i in range(4)
                ]
                for save in saves:
                    save.result()
                if not is_whole(pts.restore(path)):
                    return count, "threads: a mixture of two checkpoints"
                count += 4
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return count, ""


def forks(path: Path, count: int) -> tuple[int, str]:
    """Fork while an asynchronous save runs. The child saves too. Return how often, and a problem or nothing."""
    for number in range(count):
        future = pts.save_async(tree(number), path, overwrite=True, durable=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of forks
            child = os.fork()
        if child == 0:
            pts.save(tree(number), f"{path}-child", overwrite=True, durable=False)
            os._exit(0 if is_whole(pts.restore(f"{path}-child")) else 1)
        _, status = os.waitpid(child, 0)
        future.result()
        if status or not is_whole(pts.restore(path)):
            return number, f"fork {number}: status {status}"
    return count, ""


def _resources() -> tuple[int, int, int]:
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(os.listdir("/proc/self/fd")), threading.active_count()


def cycles(directory: Path, count: int) -> tuple[int, str]:
    """Save, restore and delete. Return how often, and whether memory, descriptors or threads grew, or nothing."""

    def cycle(step: int) -> None:
        with pts.CheckpointManager(directory / "run", max_to_keep=2) as manager:
            manager.save(step, tree(step))
        pts.save_async(tree(step), directory / "model", overwrite=True, durable=False).result()
        if not (is_whole(pts.restore(directory / "model")) and is_whole(pts.restore(directory / "run", mmap=True))):
            raise AssertionError("a mixture of two checkpoints")
        pts.remove_checkpoint(directory / "model")

    for step in range(count // 10):
        cycle(step)
    before = _resources()
    for step in range(count // 10, count):
        cycle(step)
    after = _resources()
    grown = [after[0] > before[0] + (16 << 20), after[1] > before[1], after[2] > before[2]]
    return count, f"memory, descriptors, threads: {before} before, {after} after" if any(grown) else ""


def run(seconds: float = 60, count: int = 5000) -> dict[str, tuple[int, str]]:
    """Return for each kind of use how often it was done, and a problem or nothing."""
    found: dict[str, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        pts.save(tree(1), directory / "model")
        pts.save(tree(1), directory / "shared")
        groups = {
            "readers of a checkpoint that is overwritten": (["overwrite", "read", "read"], "model"),
            "two writers of one checkpoint, and a reader": (["overwrite", "overwrite", "read"], "shared"),
            "readers of a run while retention deletes": (["save steps", *["read while it is deleted"] * 2], "steps"),
        }
        for what, (roles, where) in groups.items():
            if where == "steps":
                _save_steps(str(directory / where), 0)
            outcomes = list(together(roles, directory / where, seconds))
            found[what] = sum(count for count, _ in outcomes), "; ".join(each for _, each in outcomes if each)
        found["saves in four threads, with signals"] = threads_and_signals(directory / "model", seconds / 2)
        found["forks during a save"] = forks(directory / "model", max(5, count // 50))
        found["cycles of save, restore and delete"] = cycles(directory, count)
    return found
