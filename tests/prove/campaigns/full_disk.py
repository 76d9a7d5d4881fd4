"""Fills a real disk: each scenario runs on file systems of every size that is too small for it."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.prove.campaigns.failing_calls import problem_of
from tests.prove.campaigns.kills import TABLE, empty, problem_after, references
from tests.prove.faults.worker import Worker
from tests.prove.scenarios import SCENARIOS

_PAGE = 4096
_LARGE = 200 << 20


def mount(root: Path, nbytes: int, *options: str) -> None:
    """Mount a tmpfs of a size, or change the size of one that is mounted."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join((*options, f"size={nbytes}")), "tmpfs", root]
    subprocess.run(command, check=True, capture_output=True)


def why_not() -> str:
    """Return why no disk can be filled here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    with tempfile.TemporaryDirectory() as directory:
        try:
            mount(Path(directory), _PAGE)
            subprocess.run(["umount", directory], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"a tmpfs cannot be mounted here ({error})"
    return ""


def fill(worker: Worker, name: str, root: Path, step: int = 1) -> Iterator[str]:
    """Yield for each size of the disk, from one page on, what was wrong afterwards, or nothing."""
    listings = references(worker, name, root)
    size = _PAGE
    while size < _LARGE:
        empty(root)
        mount(root, _LARGE)
        try:
            made = worker.run(name, root, "before")
            assert made.status == "done", made.text
            used = int(subprocess.run(["du", "-s", "-B1", root], check=True, capture_output=True).stdout.split()[0])
            mount(root, used + size, "remount")
            outcome = worker.run(name, root, "act")
            mount(root, _LARGE, "remount")
            problem = problem_of(outcome, errno.ENOSPC, is_ours=not SCENARIOS[name].is_foreign)
            is_new = outcome.status == "done" and "RetentionWarning" not in outcome.warnings
            problem = problem or problem_after(worker, name, root, listings, is_new)
        finally:
            subprocess.run(["umount", "--lazy", root], check=True)
        yield f"{name}, {size} bytes free: {problem}" if problem else ""
        if outcome.status == "done":
            return
        size += step * _PAGE if size < 64 * _PAGE else size // 4 // _PAGE * _PAGE


def run(names: Iterable[str] = tuple(SCENARIOS), step: int = 1) -> dict[str, list[str]]:
    """Return the problems, one or "" for each size, of each scenario."""
    with tempfile.TemporaryDirectory() as directory, Worker(TABLE) as worker:
        return {name: list(fill(worker, name, Path(directory) / "root", step)) for name in names}
