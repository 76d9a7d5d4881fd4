"""The checkpoints of a run directory, with their steps, sizes and metrics, and the reasons to keep them."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytreesaver._errors import (
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedVersionError,
)
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, again_after_io_error, canonical, local_path, wrap_os_errors
from pytreesaver._run.managed_run import ManagedRun
from pytreesaver._run.policies.recording import decode_rule
from pytreesaver._run.policies.retention import (
    Decision,
    RetentionPolicy,
    SavedCheckpoint,
    check_policy,
    decide,
)
from pytreesaver._run.policies.rules import ManagerRule, SaverRule
from pytreesaver._run.record import Record, decode_record
from pytreesaver._run.recorded import check_has_listings, is_visible, modified_time, unlisted_to_adopt
from pytreesaver._run.state_file import listed_checkpoints, read_state_file, tracks_nothing
from pytreesaver._run.state_text import STATE_FILE_NAME, paths_in_order
from pytreesaver._tree.kinds import NotPlainError
from pytreesaver._tree.plain import decode_value
from pytreesaver.formats import places
from pytreesaver.formats.foreign import foreign_kind
from pytreesaver.formats.protocol import pin_of
from pytreesaver.formats.registry import format_named, format_to_read, is_checkpoint


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint of a run directory.

    Attributes:
        path: the path of the checkpoint.
        step: the step that was saved, or None.
        time: the time of the save, in seconds since the epoch.
        nbytes: the total size of its files in bytes.
        metrics: the metrics that were passed to the save.
        metadata: the metadata that was passed to the save.
        keep: whether retention keeps it at the next save, or the given policy keeps it.
        reasons: the reasons to keep it.
        problem: what is wrong with it; None if no problem was found. Its arrays were not read.
        shared_nbytes: how many of these bytes an incremental save did not write, but took from an earlier checkpoint.
        freed_nbytes: how many bytes deleting this checkpoint alone would free: files that others share stay.
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
    shared_nbytes: int = 0
    freed_nbytes: int = 0


def list_checkpoints(
    directory: PathLike, *, policy: RetentionPolicy | None = None, clock: Callable[[], float] = time.time
) -> list[ListedCheckpoint]:
    """Return all checkpoints of a run directory, in the order of the saves, with their retention decisions.

    They are ordered by time; those of one saver are in the order of its saves, even if the clock was set back.

    A `Saver` or `CheckpointManager` records its retention rule with each checkpoint; its newest record counts. Only
    indexes and the sizes of files are checked; arrays are not read.

    Args:
        directory: the run directory.
        policy: a retention policy in place of the recorded rules, as in `prune`.
        clock: returns the time, in seconds since the epoch.

    Raises:
        CheckpointNotFoundError: if the directory does not exist, or is itself a checkpoint.
        TypeError: if `policy` is not a policy.

    Example:
        >>> with pytreesaver.CheckpointManager("listed", max_to_keep=2) as manager:
        ...     for step in (1, 2, 3):
        ...         path = manager.save(step, {"w": np.zeros(2)}, metrics={"loss": 1 / step})
        >>> for each in list_checkpoints("listed"):
        ...     print(each.path, each.metrics, each.reasons)
        listed/ckpt-2 {'loss': 0.5} ('last 2',)
        listed/ckpt-3 {'loss': 0.3333333333333333} ('newest', 'last 2')
    """
    return listed_and_unreadable(directory, policy, clock)[0]


def listed_and_unreadable(
    directory: PathLike, policy: RetentionPolicy | None, clock: Callable[[], float]
) -> tuple[list[ListedCheckpoint], list[CheckpointIOError]]:
    """Return what `list_checkpoints` returns, and an error for each path that the system could not look at."""
    if policy is not None:
        check_policy(policy)
    where = local_path(directory)
    check_has_listings(where)
    with wrap_os_errors("read", where):
        try:
            names = places.names_in(filesystem.list_directory(where))
        except OSError as error:
            if not filesystem.is_absence(error):
                raise
            raise CheckpointNotFoundError(f"{where}: expected a run directory, found {_kind_of(where)}") from None
    if is_checkpoint(where):
        raise CheckpointNotFoundError(f"{where}: expected a run directory, found a checkpoint")
    found_entries = [_read_entry(where / name) for name in names if is_visible(name)]
    entries = [entry for entry in found_entries if entry is not None]
    entries += _entries_without_index(where, names)
    tracked = {saver: _tracked(where, saver) for saver in dict.fromkeys(entry.saver for entry in entries) if saver}
    entries = _in_order(entries, tracked)
    now = float(clock())
    reasons = _reasons_of_policy(entries, policy, now) if policy else _recorded_reasons(where, entries, tracked, now)
    result = []
    for listed in (entry.listed for entry in entries):
        why = reasons.get(listed.path.name, ("no saver tracks it",)) if listed.problem is None else ()
        result.append(replace(listed, keep=bool(why) or listed.problem is not None, reasons=why))
    return result, [entry.error for entry in entries if entry.error is not None]


def _kind_of(path: Path) -> str:
    if filesystem.status(path) is None:
        return foreign_kind(path) or "nothing"
    return "a checkpoint" if is_checkpoint(path) else foreign_kind(path) or "a file"


def _entries_without_index(directory: Path, names: Sequence[str]) -> list["_Entry"]:
    """Return the checkpoints of the state file of which there are files beside each other, but not the index."""
    listed: list[str] = []
    with suppress(CorruptCheckpointError):
        state, _ = read_state_file(directory, STATE_FILE_NAME)
        listed = [] if state is None else [Path(path).name for path in paths_in_order(state)]
    entries = []
    for path in (directory / name for name in listed if name and name not in names):
        with suppress(OSError):
            if files := places.files_beside(path):
                problem = f"{path}: expected a checkpoint, found {foreign_kind(path)}"
                modified = max(filesystem.modified_ns(file) for file in files) / 1e9
                entries.append(_Entry(ListedCheckpoint(path, None, modified, 0, problem=problem), Record()))
    return entries


@dataclass(frozen=True)
class _Entry:
    """A checkpoint with its record. `order` is its time of save, made increasing among those of its saver."""

    listed: ListedCheckpoint
    record: Record
    order: float = 0.0
    is_newest: bool = False  # among the undamaged ones of its saver
    is_pinned: bool = False
    error: CheckpointIOError | None = None  # the system could not look at the checkpoint
    is_of_run: bool = True  # rather than a model or data of another program beside the run, whose name has no step

    @property
    def saver(self) -> str | None:
        """The state file of the saver that tracked it; None if it had none, or if the checkpoint is a copy."""
        return self.record.state_file if self.record.name == self.listed.path.name else None

    @property
    def saved(self) -> SavedCheckpoint:
        """The checkpoint as policies see it."""
        listed = self.listed
        step = -1 if listed.step is None else listed.step
        return SavedCheckpoint(listed.path.name, step, self.order, listed.metrics, self.is_pinned)


def _read_entry(path: Path) -> _Entry | None:
    """Read the checkpoint at a path. Return None if it is not a checkpoint."""
    try:
        return again_after_io_error(lambda: _look_at_entry(path))
    except CheckpointIOError as error:
        if not places.may_exist(path):
            return None  # a saver deleted it concurrently
        return _Entry(ListedCheckpoint(path, None, _last_modified(path), 0, problem=str(error)), Record(), error=error)


def _last_modified(path: Path) -> float:
    with suppress(OSError):
        return places.modified_ns(path) / 1e9
    return 0.0


def _look_at_entry(path: Path) -> _Entry | None:
    if not is_checkpoint(path):
        return None
    nbytes = freed = 0
    modified = 0.0
    try:
        with wrap_os_errors("read", path):
            pinned = filesystem.exists(pin_of(path, is_directory=filesystem.is_directory(path)))
            sizes = places.file_sizes(path)
            nbytes = sum(sizes.values())
            freed = places.freed_nbytes(places.stored_files(path))
            modified = modified_time(path)
            heading = format_to_read(path).read_heading(path)
        record = decode_record(heading.record, path)
        metadata = decode_value(heading.metadata)
    except (CheckpointNotFoundError, CorruptCheckpointError, UnsupportedVersionError, NotPlainError) as error:
        if not places.may_exist(path):
            return None  # a saver deleted it concurrently
        modified = modified or _last_modified(path)
        listed = ListedCheckpoint(path, None, modified, nbytes, problem=str(error), freed_nbytes=freed)
        return _Entry(listed, Record())
    wrong = [
        f"{name or path.name}: expected {size} bytes, found {sizes.get(name, 'no file')}"
        for name, size in heading.file_sizes.items()
        if sizes.get(name) != size
    ]
    saved = modified if record.time is None else record.time
    problem = "; ".join(wrong) or None
    listed = ListedCheckpoint(
        path,
        record.step,
        saved,
        nbytes,
        record.metrics,
        metadata,
        problem=problem,
        shared_nbytes=heading.shared_nbytes,
        freed_nbytes=freed,
    )
    is_native = format_to_read(path).name == format_named(None).name
    is_of_run = heading.record is not None or is_native or _STEP.search(path.name) is not None
    return _Entry(listed, record, is_pinned=pinned, is_of_run=is_of_run)


_STEP = re.compile(r"(\A|[-_=.])[0-9]+(\.[a-z]+)?\Z")


def _in_order(entries: Sequence[_Entry], tracked: Mapping[str, Sequence[Path]]) -> list[_Entry]:
    """Return the checkpoints in the order of the saves, with increasing times among those of each saver."""
    result = [replace(entry, order=entry.listed.time) for entry in entries if entry.saver is None]
    for saver, paths in tracked.items():
        newest = paths[-1] if paths else None
        own = [entry for entry in entries if entry.saver == saver]
        own.sort(key=lambda entry: (canonical(entry.listed.path) == newest, entry.record.serial, entry.listed.time))
        last = -math.inf
        undamaged = [entry for entry in own if entry.listed.problem is None]
        for entry in own:
            last = max(entry.listed.time, math.nextafter(last, math.inf))
            result.append(replace(entry, order=last, is_newest=entry in undamaged[-1:]))
    return sorted(result, key=lambda entry: (entry.order, entry.record.serial, entry.listed.path.name))


def _reasons_of_policy(entries: Sequence[_Entry], policy: RetentionPolicy, now: float) -> dict[str, tuple[str, ...]]:
    undamaged = [entry for entry in entries if entry.listed.problem is None]
    decisions = decide(policy, [entry.saved for entry in undamaged if entry.is_of_run], now)
    reasons = {decision.checkpoint.path: decision.reasons for decision in decisions}
    reasons |= {entry.listed.path.name: ("a file beside the run",) for entry in undamaged if not entry.is_of_run}
    for entry in undamaged:
        if entry.is_newest and not reasons[entry.listed.path.name]:
            reasons[entry.listed.path.name] = ("newest of its saver",)
    return reasons


def _recorded_reasons(
    directory: Path, entries: Sequence[_Entry], tracked: Mapping[str, Sequence[Path]], now: float
) -> dict[str, tuple[str, ...]]:
    """Return the reasons to keep each checkpoint, by the rules that the savers of the directory recorded."""
    result: dict[str, tuple[str, ...]] = {}
    for saver, paths in tracked.items():
        own = [entry for entry in entries if entry.saver == saver and entry.listed.problem is None]
        newest = next((entry for entry in own if entry.is_newest), None)
        if newest is None:
            continue
        rule = decode_rule(newest.record.retention)
        if rule is None:
            found = [Decision(entry.saved, ("its saver recorded no retention rule",)) for entry in own]
        elif isinstance(rule, SaverRule):
            existing = [path.name for path in paths if places.may_exist(path)]
            found = _saver_decisions(rule, [] if tracks_nothing(directory, saver) else existing, own)
        else:
            found = _manager_decisions(directory, newest.record, rule, now)
        result |= {decision.checkpoint.path: decision.reasons for decision in found}
    return result


def _tracked(directory: Path, state_file: str) -> list[Path]:
    """Return the paths that a saver lists, and those that it saved but did not list, the newest last."""
    listed = [canonical(path) for path in listed_checkpoints(directory, state_file)]
    newer = [canonical(path) for path, _ in unlisted_to_adopt(directory, state_file, listed)]
    return list(dict.fromkeys([*(path for path in listed if path not in newer), *newer]))


def _saver_decisions(rule: SaverRule, tracked: Sequence[str], own: Sequence[_Entry]) -> list[Decision]:
    count = rule.max_to_keep or len(tracked)
    last = set(tracked[-count:])
    result = []
    for entry in own:
        name = entry.listed.path.name
        reasons = ["newest"] if entry.is_newest else []
        if entry.is_pinned:
            reasons.append("pinned")
        if name in last:
            reasons.append(f"last {count}" if rule.max_to_keep else "all")
        elif name not in tracked:
            reasons.append("preserved: no longer tracked")
        result.append(Decision(entry.saved, tuple(reasons)))
    return result


def _manager_decisions(directory: Path, newest: Record, rule: ManagerRule, now: float) -> list[Decision]:
    name = newest.name.rpartition("-")[0]
    run = ManagedRun(directory, name, False, rule, now, newest.state_file)
    return run.explain(run.read_state(now), now)
