"""Cuts the power of a disk at every call that changes it, and right after each use has returned."""

import shutil
from collections.abc import Iterable, Iterator
from functools import partial

from tests.prove.campaigns.kills import TABLE, empty, problem_after, references
from tests.prove.campaigns.points import every_nth
from tests.prove.faults.disk import Disk
from tests.prove.faults.shim import CHANGES, Action, Fault
from tests.prove.faults.worker import Worker
from tests.prove.scenarios import SCENARIOS

NEVER = (Action.KILL, CHANGES, 1 << 40)
"""A fault at a call that is never reached."""


def cut_at_every_call(worker: Worker, name: str, disk: Disk, step: int = 1, first: int = 1) -> Iterator[str]:
    """Yield for each point what was wrong when the power was back, or nothing."""
    disk.format()
    listings = references(worker, name, disk.root / "reference")
    number = first
    while True:
        root = empty(disk.root / f"point-{number}")  # another one each time: what was deleted could come back
        fault = Fault(disk.action, CHANGES, number)
        steps = ("before", "sync", "act")
        outcome = worker.run(name, root, *steps, fault=fault, disk=None if disk.is_copied else disk.root)
        if outcome.status == "done":
            return
        if outcome.status != "killed":
            raise RuntimeError(f"{name}: {outcome.status} without a fault: {outcome.text}")
        disk.come_back()
        problem = problem_after(worker, name, root, listings, False)
        yield f"{name}, {disk.kind}, power cut at call {number}: {problem}" if problem else ""
        shutil.rmtree(root)
        number += step


def cut_after_returning(worker: Worker, name: str, disk: Disk, times: int) -> Iterator[str]:
    """Yield for each time what was lost of a use that had returned, or nothing."""
    disk.format()
    listings = references(worker, name, disk.root / "reference")
    for number in range(times):
        root = empty(disk.root / f"time-{number}")
        steps = ("sync", "before", "act", "die" if disk.is_copied else f"cut_power:{disk.root}")
        outcome = worker.run(name, root, *steps, fault=Fault(*NEVER))
        disk.come_back()
        is_durable = SCENARIOS[name].is_durable
        problem = outcome.text if outcome.status != "killed" else ""
        problem = problem or problem_after(worker, name, root, listings, is_durable)
        yield f"{name}, {disk.kind}, power cut after it returned, time {number}: {problem}" if problem else ""
        shutil.rmtree(root)


def run(kind: str, names: Iterable[str] = tuple(SCENARIOS), step: int = 1, times: int = 100) -> dict[str, list[str]]:
    """Return the problems, one or "" for each point and time, of each scenario."""
    with Disk(kind) as disk, Worker(TABLE) as worker:
        return {
            name: [
                *every_nth(partial(cut_at_every_call, worker, name, disk, step), step),
                *cut_after_returning(worker, name, disk, times),
            ]
            for name in names
        }
