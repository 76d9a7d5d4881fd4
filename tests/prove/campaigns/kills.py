"""Kills the process at every call that changes the disk, then reads what is there, and uses the library again."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from tests.prove.campaigns.points import every_nth
from tests.prove.faults.shim import CHANGES, Action, Fault
from tests.prove.faults.worker import Worker
from tests.prove.scenarios import SCENARIOS
from tests.prove.scenarios.scenario import debris

TABLE = "tests.prove.scenarios:SCENARIOS"


def empty(directory: Path) -> Path:
    """Return a directory, without what was in it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def references(worker: Worker, name: str, root: Path) -> dict[str, Counter[str]]:
    """Return the names that there are after a scenario without faults, and after one whose use did not begin."""
    outcome = worker.run(name, empty(root), "before", "act")
    assert outcome.status == "done", outcome.text
    checked = worker.run(name, root, "check:yes", "again", "listing")
    assert checked.status == "done", checked.text
    unfinished = worker.run(name, empty(root), "before", "again", "listing")
    assert unfinished.status == "done", unfinished.text
    return {"finished": checked.value, "unfinished": unfinished.value}


def problem_after(worker: Worker, name: str, root: Path, listings: dict[str, Counter[str]], finished: bool) -> str:
    """Return what is wrong with the state of the disk, or nothing."""
    state = "yes" if finished else "no"
    checked = worker.run(name, root, f"check:{state}", "again", "found_again", "listing")
    if checked.status != "done":
        return checked.text or checked.status
    left = debris(checked.value, listings)
    return f"leftovers: {left}" if left else ""


def kill_at_every_call(worker: Worker, name: str, root: Path, step: int = 1, first: int = 1) -> Iterator[str]:
    """Yield for each point what was wrong after the kill, or nothing.

    Args:
        worker: the worker.
        name: the scenario.
        root: an empty directory.
        step: try each `step`-th call.
        first: the first call to try.
    """
    listings = references(worker, name, root)
    number = first
    while True:
        outcome = worker.run(name, empty(root), "before", "act", fault=Fault(Action.KILL, CHANGES, number))
        if outcome.status == "done":
            return
        if outcome.status != "killed":
            raise RuntimeError(f"{name}: {outcome.status} without a fault: {outcome.text}")
        problem = problem_after(worker, name, root, listings, False)
        yield f"{name}, killed at call {number}: {problem}" if problem else ""
        number += step


def run(names: Iterable[str] = tuple(SCENARIOS), step: int = 1) -> dict[str, list[str]]:
    """Return the problems, one or "" for each point, of each scenario."""
    with tempfile.TemporaryDirectory() as directory, Worker(TABLE) as worker:
        root = Path(directory) / "root"
        return {name: list(every_nth(partial(kill_at_every_call, worker, name, root, step), step)) for name in names}
