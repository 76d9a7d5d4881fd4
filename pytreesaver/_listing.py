"""What is in a run directory: every checkpoint with its step, size and metrics, and why retention keeps it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError
from pytreesaver._io import filesystem
from pytreesaver._managed_run import ManagedRun, is_pinned
from pytreesaver._paths import PathLike, canonical, local_path, named_os_errors
from pytreesaver._recorded_rules import SaverRule, decode_rule
from pytreesaver._records import Record, decode_record
from pytreesaver._retention import Decision, ManagerRule, RetentionPolicy, SavedCheckpoint, decide
from pytreesaver._run_directory import listed_checkpoints, modified_time, unlisted_to_adopt
from pytreesaver._values import NotPlainError, decode_value
from pytreesaver.formats import native


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint of a run directory.

    Attributes:
        path: where it is.
        step: the step that it was saved for, or None.
        time: when it was saved, in seconds since the epoch.
        nbytes: how many bytes its files have.
        metrics: as they were given to the save.
        metadata: as it was given to the save.
        keep: whether it stays at the next save, or under the policy that was asked for.
        reasons: why it stays.
        problem: what is wrong with it, None if nothing was found; its bytes were not read.
    """

    path: Path
    step: int | None
    time: float
    nbytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = True
    reasons: tuple[str, ...] = ()
    problem: str | None = None


def list_checkpoints(
    directory: PathLike, *, policy: RetentionPolicy | None = None, clock: Callable[[], float] = time.time
) -> list[ListedCheckpoint]:
    """Every checkpoint of a run directory, in the order of the saves, and what retention says of it.

    Its `Saver` or `CheckpointManager` has recorded with each checkpoint what it keeps; the newest record counts.
    Indexes and the sizes of files are looked at, arrays are not read.

    Args:
        directory: the run directory.
        policy: what to keep, in place of what was recorded: then this is what `prune` with that policy would do.
        clock: gives the time, in seconds since the epoch.

    Raises:
        CheckpointNotFoundError: there is no such directory.

    Example:
        >>> with pytreesaver.CheckpointManager("listed", max_to_keep=2) as manager:
        ...     for step in (1, 2, 3):
        ...         path = manager.save(step, {"w": np.zeros(2)}, metrics={"loss": 1 / step})
        >>> for each in list_checkpoints("listed"):
        ...     print(each.path, each.metrics, each.reasons)
        listed/ckpt-2 {'loss': 0.5} ('last 2',)
        listed/ckpt-3 {'loss': 0.3333333333333333} ('newest', 'last 2')
    """
    where = local_path(directory)
    with named_os_errors("read", where):
        try:
            entries = filesystem.list_directory(where)
        except (FileNotFoundError, NotADirectoryError):
            found = "a file" if where.exists() else "nothing"
            raise CheckpointNotFoundError(f"{where}: expected a run directory, found {found} there") from None
    found_entries = [_entry(where / name) for name in entries if not name.startswith(".")]
    there = [entry for entry in found_entries if entry is not None]
    there.sort(key=lambda entry: (entry.listed.time, entry.record.serial, entry.listed.path.name))
    now = float(clock())
    reasons = _under_policy(there, policy, now) if policy else _as_recorded(where, there, now)
    result = []
    for listed in (entry.listed for entry in there):
        why = reasons.get(listed.path.name)
        result.append(listed if why is None else replace(listed, keep=bool(why), reasons=why))
    return result


@dataclass(frozen=True)
class _Entry:
    listed: ListedCheckpoint
    record: Record

    @property
    def saved(self) -> SavedCheckpoint:
        """The checkpoint as a policy sees it."""
        listed = self.listed
        step = -1 if listed.step is None else listed.step
        return SavedCheckpoint(listed.path.name, step, listed.time, listed.metrics, is_pinned(listed.path))


def _entry(path: Path) -> _Entry | None:
    """What there is at a path; None if it is no checkpoint."""
    if not native.recognizes(path):
        return None
    nbytes = 0
    modified = 0.0
    try:
        sizes = filesystem.file_sizes(path)
        nbytes = sum(sizes.values())
        modified = modified_time(path)
        heading = native.read_heading(path)
        record = decode_record(heading.record, path)
        metadata = decode_value(heading.metadata)
    except (CheckpointError, NotPlainError, OSError) as error:
        with suppress(OSError):
            modified = modified or filesystem.modified_ns(path) / 1e9
        return _Entry(ListedCheckpoint(path, None, modified, nbytes, problem=str(error)), Record())
    wrong = [
        f"{name}: expected {size} bytes, found {sizes.get(name, 'no file')}"
        for name, size in heading.file_sizes.items()
        if sizes.get(name) != size
    ]
    saved = modified if record.time is None else record.time
    problem = "; ".join(wrong) or None
    return _Entry(ListedCheckpoint(path, record.step, saved, nbytes, record.metrics, metadata, problem=problem), record)


def _under_policy(there: Sequence[_Entry], policy: RetentionPolicy, now: float) -> dict[str, tuple[str, ...]]:
    whole = [entry.saved for entry in there if entry.listed.problem is None]
    return {decision.checkpoint.path: decision.reasons for decision in decide(policy, whole, now)}


def _as_recorded(directory: Path, there: Sequence[_Entry], now: float) -> dict[str, tuple[str, ...]]:
    """For each checkpoint why it stays, by the rules that the savers of the directory have recorded."""
    result: dict[str, tuple[str, ...]] = {}
    whole = [entry for entry in there if entry.listed.problem is None]
    for state_file in dict.fromkeys(entry.record.state_file for entry in whole):
        mine = [entry for entry in whole if entry.record.state_file == state_file]
        newest = max(mine, key=lambda entry: entry.record.serial)
        rule = decode_rule(newest.record.retention)
        if state_file is None or rule is None:
            watched = "no saver watches it" if state_file is None else "its saver has not recorded what it keeps"
            found = [Decision(entry.saved, (watched,)) for entry in mine]
        elif isinstance(rule, SaverRule):
            found = _of_saver(directory, state_file, rule, mine)
        else:
            found = _of_manager(directory, newest.record, rule, now)
        result |= {decision.checkpoint.path: decision.reasons for decision in found}
    return result


def _of_saver(directory: Path, state_file: str, rule: SaverRule, mine: Sequence[_Entry]) -> list[Decision]:
    listed = [canonical(path) for path in listed_checkpoints(directory, state_file)]
    newer = [canonical(path) for path, _ in unlisted_to_adopt(directory, state_file, listed)]
    watched = [path.name for path in dict.fromkeys([*(p for p in listed if p not in newer), *newer])]
    count = rule.max_to_keep or len(watched)
    last = set(watched[-count:])
    result = []
    for entry in mine:
        name = entry.listed.path.name
        reasons = ["newest"] if name in watched[-1:] else []
        if is_pinned(entry.listed.path):
            reasons.append("pinned")
        if name in last:
            reasons.append(f"last {count}" if rule.max_to_keep else "all")
        elif name not in watched:
            reasons.append("preserved: not watched any more")
        result.append(Decision(entry.saved, tuple(reasons)))
    return result


def _of_manager(directory: Path, newest: Record, rule: ManagerRule, now: float) -> list[Decision]:
    name = newest.name.rpartition("-")[0]
    run = ManagedRun(directory, name, False, rule, now)
    return run.explain(run.read_state(now), now)
