"""What is in a run directory: every checkpoint with its step, size and metrics, and why retention keeps it."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, canonical, local_path, wrap_os_errors
from pytreesaver._run.directory import is_pinned, modified_time, unlisted_to_adopt
from pytreesaver._run.managed_run import ManagedRun
from pytreesaver._run.policies.recording import decode_rule
from pytreesaver._run.policies.retention import Decision, RetentionPolicy, SavedCheckpoint, decide
from pytreesaver._run.policies.rules import ManagerRule, SaverRule
from pytreesaver._run.record import Record, decode_record
from pytreesaver._run.state_file import listed_checkpoints, watches_nothing
from pytreesaver._tree.kinds import NotPlainError
from pytreesaver._tree.plain import decode_value
from pytreesaver.formats.registry import format_to_read, is_checkpoint


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

    They come by their times, and those of one saver in the order in which it saved them, whatever the clock said.

    Its `Saver` or `CheckpointManager` has recorded with each checkpoint what it keeps; the newest record counts.
    Indexes and the sizes of files are looked at, arrays are not read.

    Args:
        directory: the run directory.
        policy: what to keep, in place of what was recorded: then this is what `prune` with that policy would do.
        clock: gives the time, in seconds since the epoch.

    Raises:
        CheckpointNotFoundError: there is no such directory, or it is a checkpoint itself.

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
    with wrap_os_errors("read", where):
        try:
            entries = filesystem.list_directory(where)
        except (FileNotFoundError, NotADirectoryError):
            found = "a file" if where.exists() else "nothing"
            raise CheckpointNotFoundError(f"{where}: expected a run directory, found {found} there") from None
    if is_checkpoint(where):
        raise CheckpointNotFoundError(f"{where}: expected a run directory, found a checkpoint there")
    found_entries = [_entry(where / name) for name in entries if not name.startswith(".")]
    there = [entry for entry in found_entries if entry is not None]
    watched = {saver: _watched(where, saver) for saver in dict.fromkeys(entry.saver for entry in there) if saver}
    there = _in_order(there, watched)
    now = float(clock())
    reasons = _under_policy(there, policy, now) if policy else _as_recorded(where, there, watched, now)
    result = []
    for listed in (entry.listed for entry in there):
        why = reasons.get(listed.path.name, ("no saver watches it",)) if listed.problem is None else ()
        result.append(replace(listed, keep=bool(why) or listed.problem is not None, reasons=why))
    return result


@dataclass(frozen=True)
class _Entry:
    """A checkpoint, what was recorded with it, and the time that it has among the others."""

    listed: ListedCheckpoint
    record: Record
    order: float = 0.0
    is_newest: bool = False  # of those of its saver

    @property
    def saver(self) -> str | None:
        """The state file of the saver whose it is; None if it has none, or was copied here."""
        return self.record.state_file if self.record.name == self.listed.path.name else None

    @property
    def saved(self) -> SavedCheckpoint:
        """The checkpoint as a policy sees it."""
        listed = self.listed
        step = -1 if listed.step is None else listed.step
        return SavedCheckpoint(listed.path.name, step, self.order, listed.metrics, is_pinned(listed.path))


def _entry(path: Path) -> _Entry | None:
    """What there is at a path; None if it is no checkpoint."""
    if not is_checkpoint(path):
        return None
    nbytes = 0
    modified = 0.0
    try:
        sizes = filesystem.file_sizes(path)
        nbytes = sum(sizes.values())
        modified = modified_time(path)
        heading = format_to_read(path).read_heading(path)
        record = decode_record(heading.record, path)
        metadata = decode_value(heading.metadata)
    except (CheckpointError, NotPlainError, OSError) as error:
        if not os.path.lexists(path):
            return None  # a saver has deleted it in this moment
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


def _in_order(entries: Sequence[_Entry], watched: Mapping[str, Sequence[Path]]) -> list[_Entry]:
    """The checkpoints in the order of the saves, with times that rise among those of one saver."""
    result = [replace(entry, order=entry.listed.time) for entry in entries if entry.saver is None]
    for saver, paths in watched.items():
        newest = paths[-1] if paths else None
        mine = [entry for entry in entries if entry.saver == saver]
        mine.sort(key=lambda entry: (canonical(entry.listed.path) == newest, entry.record.serial, entry.listed.time))
        last = -math.inf
        whole = [entry for entry in mine if entry.listed.problem is None]
        for entry in mine:
            last = max(entry.listed.time, math.nextafter(last, math.inf))
            result.append(replace(entry, order=last, is_newest=entry in whole[-1:]))
    return sorted(result, key=lambda entry: (entry.order, entry.record.serial, entry.listed.path.name))


def _under_policy(there: Sequence[_Entry], policy: RetentionPolicy, now: float) -> dict[str, tuple[str, ...]]:
    whole = [entry for entry in there if entry.listed.problem is None]
    decisions = decide(policy, [entry.saved for entry in whole], now)
    reasons = {decision.checkpoint.path: decision.reasons for decision in decisions}
    for entry in whole:
        if entry.is_newest and not reasons[entry.listed.path.name]:
            reasons[entry.listed.path.name] = ("newest of its saver",)
    return reasons


def _as_recorded(
    directory: Path, there: Sequence[_Entry], watched: Mapping[str, Sequence[Path]], now: float
) -> dict[str, tuple[str, ...]]:
    """For each checkpoint why it stays, by the rules that the savers of the directory have recorded."""
    result: dict[str, tuple[str, ...]] = {}
    for saver, paths in watched.items():
        mine = [entry for entry in there if entry.saver == saver and entry.listed.problem is None]
        newest = next((entry for entry in mine if entry.is_newest), None)
        if newest is None:
            continue
        rule = decode_rule(newest.record.retention)
        if rule is None:
            found = [Decision(entry.saved, ("its saver has not recorded what it keeps",)) for entry in mine]
        elif isinstance(rule, SaverRule):
            names = [] if watches_nothing(directory, saver) else [path.name for path in paths if os.path.lexists(path)]
            found = _of_saver(rule, names, mine)
        else:
            found = _of_manager(directory, newest.record, rule, now)
        result |= {decision.checkpoint.path: decision.reasons for decision in found}
    return result


def _watched(directory: Path, state_file: str) -> list[Path]:
    """The checkpoints that a saver watches, and those that it saved before it died, the newest last."""
    listed = [canonical(path) for path in listed_checkpoints(directory, state_file)]
    newer = [canonical(path) for path, _ in unlisted_to_adopt(directory, state_file, listed)]
    return list(dict.fromkeys([*(path for path in listed if path not in newer), *newer]))


def _of_saver(rule: SaverRule, watched: Sequence[str], mine: Sequence[_Entry]) -> list[Decision]:
    count = rule.max_to_keep or len(watched)
    last = set(watched[-count:])
    result = []
    for entry in mine:
        name = entry.listed.path.name
        reasons = ["newest"] if entry.is_newest else []
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
