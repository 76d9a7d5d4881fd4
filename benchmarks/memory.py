"""Peak memory of each contestant above the tree, measured in a separate process."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from benchmarks.peers import contestants, remove
from benchmarks.trees import TREES


def peaks(contestant: str, tree: str, scale: float, directory: Path) -> dict[str, int] | None:
    """Return the peak in bytes above the tree when saving, and above the result when restoring.

    Returns None if the operating system does not report peaks.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    path = directory / "memory"
    found = {}
    for phase in ("save", "restore"):  # each in a new process, which has not held anything large
        command = [sys.executable, "-m", "benchmarks.memory", phase, contestant, tree, str(scale), str(path)]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        found[phase] = int(finished.stdout.splitlines()[-1])
    remove(path)
    return found


def _peak(action: Callable[[], Any]) -> int:
    """Return the peak memory of the process during an action, in bytes above what it held before."""
    before = _kibibytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    result = jax.block_until_ready(action())
    peak = _kibibytes("VmHWM")
    del result
    return (peak - before) * 1024


def _kibibytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")))


def _main(phase: str, name: str, tree_name: str, scale: str, path: str) -> None:
    each = {each.name: each for durable in (True, False) for each in contestants(durable=durable)}[name]
    warm_up = Path(f"{path}-warm-up")  # modules that are loaded on first use do not count
    small = TREES["tiny"](1.0)
    each.save(small, warm_up)
    each.restore(warm_up, small)
    remove(warm_up)
    if phase == "save":
        tree = TREES[tree_name](float(scale))
        print(_peak(partial(each.save, tree, Path(path))))
    else:
        template = jax.eval_shape(partial(TREES[tree_name], float(scale)))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(template))
        print(_peak(partial(each.restore, Path(path), template)) - size)


if __name__ == "__main__":
    _main(*sys.argv[1:])
