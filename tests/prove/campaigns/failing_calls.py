"""Makes every call fail once, with every error that it may have, or move fewer bytes than it was asked to."""

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from tests.prove.campaigns.kills import empty, problem_after, references
from tests.prove.campaigns.points import every_nth
from tests.prove.faults.shim import EVERYTHING, Action, Fault, Kinds
from tests.prove.faults.worker import Outcome, Worker
from tests.prove.scenarios import EVERY, READERS

_ALLOCATES = Kinds.NAME | Kinds.WRITE | Kinds.SYNC | Kinds.CLOSE

FAULTS: Mapping[str, tuple[Action, Kinds, int]] = {
    "EIO": (Action.FAIL, EVERYTHING, errno.EIO),
    "ESTALE": (Action.FAIL, EVERYTHING, errno.ESTALE),
    "a failed sync": (Action.FAIL, Kinds.SYNC, errno.EIO),
    "ENOSPC": (Action.FAIL, _ALLOCATES, errno.ENOSPC),
    "EDQUOT": (Action.FAIL, _ALLOCATES, errno.EDQUOT),
    "EMFILE": (Action.FAIL, Kinds.OPEN, errno.EMFILE),
    "EACCES": (Action.FAIL, Kinds.OPEN | Kinds.NAME | Kinds.LOOK, errno.EACCES),
    "EROFS": (Action.FAIL, Kinds.NAME | Kinds.WRITE, errno.EROFS),
    "EINTR": (Action.FAIL, Kinds.OPEN | Kinds.READ | Kinds.WRITE | Kinds.SYNC | Kinds.LOCK, errno.EINTR),
    "fewer bytes": (Action.SHORTEN, Kinds.MOVE, 0),
}
"""The errors, and the kinds of calls that may have them."""


_SYNCS = ("fsync", "fdatasync")


def problem_of(outcome: Outcome, code: int, *, is_ours: bool) -> str:
    """Return what is wrong with the way in which a use ended that had an error in one call, or nothing.

    Where another library does the work (not `is_ours`), it may hide the cause and leave files open.
    """
    if outcome.status not in ("done", "error"):
        return f"{outcome.status}: {outcome.text}"
    is_told = code in outcome.codes or (code and os.strerror(code) in outcome.text)
    if outcome.status == "error" and is_ours and not is_told:
        return f"an error that does not tell the cause: {outcome.text}"
    is_failed_sync = outcome.call.startswith(_SYNCS) and code != errno.EINTR  # which Python answers by a second try
    if is_ours and outcome.status == "done" and is_failed_sync and not outcome.warnings:
        return "returned although a sync failed: the next one may succeed, but the data is gone"
    return f"leaks {outcome.leaks}" if outcome.leaks and is_ours else ""


def fail_every_call(
    worker: Worker, name: str, root: Path, fault: str, step: int = 1, first: int = 1
) -> Iterator[tuple[str, str]]:
    """Yield for each point the call that failed, and what was wrong afterwards, or nothing."""
    action, kinds, code = FAULTS[fault]
    only_reads = name in READERS
    listings = {} if only_reads else references(worker, name, root)
    steps = ("act",) if only_reads else ("before", "act")
    number = first
    if only_reads:  # once: what they read stays as it is
        worker.run(name, empty(root), "before")
    while True:
        if not only_reads:
            empty(root)
        outcome = worker.run(name, root, *steps, fault=Fault(action, kinds, number, code))
        if not outcome.call:
            return
        problem = problem_of(outcome, code, is_ours=not EVERY[name].is_foreign)
        if not problem and only_reads:
            checked = worker.run(name, root, "check:yes")
            problem = checked.text or ("" if checked.status == "done" else checked.status)
        elif not problem:
            is_new = outcome.status == "done" and "RetentionWarning" not in outcome.warnings
            problem = problem_after(worker, name, root, listings, is_new)
        yield outcome.call.replace(str(root), ""), problem
        number += step


def run(names: Iterable[str] = tuple(EVERY), faults: Iterable[str] = tuple(FAULTS), step: int = 1) -> dict[str, list]:
    """Return what was wrong at each point, or "", of each scenario."""
    with tempfile.TemporaryDirectory() as directory, Worker("tests.prove.scenarios:EVERY") as worker:
        root = Path(directory) / "root"
        return {
            name: [
                f"{name}, {fault} at {call}: {problem}" if problem else ""
                for fault in faults
                for call, problem in every_nth(partial(fail_every_call, worker, name, root, fault, step), step)
            ]
            for name in names
        }
