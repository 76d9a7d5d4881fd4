"""The run directory of a CheckpointManager: its checkpoints, its state file, and retention."""

import math
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pytreesaver._errors import (
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
    UnsupportedVersionError,
)
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import write_pin
from pytreesaver._io.paths import again_after_io_error, as_path, wrap_os_errors
from pytreesaver._run.directory import Deletions, is_pinned, list_and_delete, may_be_pinned
from pytreesaver._run.history import CheckpointEvent
from pytreesaver._run.policies.retention import Decision, SavedCheckpoint
from pytreesaver._run.policies.rules import ManagerDecisions, ManagerRule, manager_decisions
from pytreesaver._run.recorded import (
    last_serial,
    managed_name,
    modified_time,
    read_record,
    recorded_checkpoints,
    saved_at,
    unlisted_checkpoints,
    unlisted_to_adopt,
)
from pytreesaver._run.state_file import read_state_file
from pytreesaver._run.state_text import STATE_FILE_NAME, CheckpointState
from pytreesaver.formats import places
from pytreesaver.formats.protocol import pin_of
from pytreesaver.formats.registry import is_checkpoint, opened

T = TypeVar("T")


class RunState(NamedTuple):
    """The state of retention between saves, which `ManagedRun.read_state` restores from disk.

    Attributes:
        tracked: (path, time) of the tracked checkpoints, in the order of their saves.
        mark: the time of the last checkpoint that was preserved permanently.
        newest: the path of the newest checkpoint, tracked or not.
        serial: the number of saves so far.
        state_name: the name of the state file.
    """

    tracked: list[tuple[Path, float]]
    mark: float
    newest: Path | None
    serial: int
    state_name: str = STATE_FILE_NAME

    def with_saved(self, path: Path, time: float, serial: int) -> "RunState":
        """Return the state after one more save."""
        tracked = [*(entry for entry in self.tracked if entry[0] != path), (path, time)]
        return self._replace(tracked=tracked, newest=path, serial=serial)


class ManagedRun:
    """The checkpoints ``name-step`` of a directory, under a retention rule.

    Args:
        directory: the run directory.
        name: the `checkpoint_name`.
        pad: whether steps are padded to eight digits.
        rule: the retention rule.
        started: when the manager was created, in seconds since the epoch.
        state_name: the name of the state file; None for ``checkpoint``, or ``checkpoint_name`` with the name if a
            manager of another name uses ``checkpoint``.

    Raises:
        ValueError: if `name` is not a valid name for a checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        pad: bool,
        rule: ManagerRule,
        started: float,
        state_name: str | None = None,
    ) -> None:
        if not name or os.path.basename(name) != name or name.startswith(".") or "\0" in name:  # noqa: PTH119
            raise ValueError(f"checkpoint_name: expected a name without slashes or a leading dot, found {name!r}")
        self.directory = directory.absolute()
        self._given_directory = directory
        self._name = name
        self._pad = pad
        self._rule = rule
        self._started = started
        self._pattern = re.compile(re.escape(name) + r"-(0|[1-9][0-9]*|0[0-9]{7})")
        self._state_name = state_name
        self._cached: dict[Path, tuple[Any, SavedCheckpoint | None]] = {}
        self._verified: dict[Path, Any] = {}

    def path_of(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        padded, plain = self.directory / f"{self._name}-{step:08d}", self.directory / f"{self._name}-{step}"
        usual, other = (padded, plain) if self._pad else (plain, padded)
        # A checkpoint of this step that was saved with the other padding is overwritten, not duplicated.
        with wrap_os_errors("look at", usual):
            return other if places.exists(other) and not places.exists(usual) else usual

    def on_disk(self) -> dict[Path, SavedCheckpoint]:
        """Return the checkpoints by path, except those with a damaged index or a newer format version."""
        found: dict[Path, SavedCheckpoint] = {}
        seen = {}
        for path in self._named():
            try:
                fingerprint, saved = again_after_io_error(partial(self._look, path))
                seen[path] = fingerprint, saved
            except CheckpointIOError as error:
                if filesystem.is_absence(error):
                    continue  # it was deleted concurrently
                # The error may be temporary. The checkpoint counts as pinned, so that it is not deleted.
                saved = SavedCheckpoint(path.name, self._step_of(path), 0.0, {}, True)
            if saved is not None:
                found[path] = saved
        self._cached = seen
        return found

    def _look(self, path: Path) -> tuple[Any, SavedCheckpoint | None]:
        with wrap_os_errors("look at", path):
            fingerprint = places.fingerprint(path)
            known = self._cached.get(path)
            return fingerprint, known[1] if known is not None and known[0] == fingerprint else self._read(path)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints on disk, in ascending order."""
        return sorted({saved.step for saved in self.on_disk().values()})

    def no_such_step(self, step: int) -> CheckpointNotFoundError:
        """Return the error for a step without a checkpoint. It names the steps that exist."""
        steps = self.steps()
        found = f"the steps {steps}" if steps else "no checkpoints"
        return CheckpointNotFoundError(f"{self._given_directory}: expected a checkpoint of step {step}, found {found}")

    def pin(self, step: int) -> None:
        """Pin the checkpoint of a step. Raises a CheckpointNotFoundError if it does not exist."""
        marker = self._marker(step)
        with wrap_os_errors("pin", marker.parent):
            write_pin(marker)

    def unpin(self, step: int) -> None:
        """Unpin the checkpoint of a step. Raises a CheckpointNotFoundError if it does not exist."""
        marker = self._marker(step)
        with wrap_os_errors("unpin", marker.parent):
            with suppress(FileNotFoundError):
                filesystem.remove_file(marker)
            filesystem.sync_directory(marker.parent)

    def _marker(self, step: int) -> Path:
        for path, saved in self.on_disk().items():
            if saved.step == step:
                with wrap_os_errors("look at", path):
                    return pin_of(path, is_directory=filesystem.is_directory(path))
        raise self.no_such_step(step)

    def _named(self) -> list[Path]:
        """Return all paths in the directory that have the name of a checkpoint."""
        with wrap_os_errors("read", self.directory):
            try:
                entries = places.names_in(filesystem.list_directory(self.directory))
            except (FileNotFoundError, NotADirectoryError):
                return []
        return [self.directory / entry for entry in entries if self._pattern.fullmatch(entry)]

    def _read(self, path: Path) -> SavedCheckpoint | None:
        try:
            record = read_record(path)
            time = modified_time(path) if record.time is None else record.time
        except (CheckpointNotFoundError, CorruptCheckpointError, UnsupportedVersionError):
            return None
        return SavedCheckpoint(path.name, self._step_of(path), time, record.metrics, is_pinned(path))

    def _step_of(self, path: Path) -> int:
        match = self._pattern.fullmatch(path.name)
        return int(match[1]) if match else -1

    # The state file.

    def read_state(self, now: float, owner: str | None = None) -> RunState:
        """Return the state in the state file, with checkpoints that were saved but not listed before a process ended.

        As in TensorFlow, checkpoints that are listed without times, as by a `Saver`, are not tracked. They are kept.

        Args:
            now: the time, in seconds since the epoch.
            owner: the name of the manager of this process that uses the state file ``checkpoint``, if any.
        """
        started = self._started - 1.0  # as in TensorFlow, in case a manager is created again immediately
        name = self._state_name or self._chosen_state_name(owner)
        try:
            state, problem = read_state_file(self.directory, name)
        except CorruptCheckpointError as error:
            self._warn(f"{error}; the existing checkpoints will not be deleted")
            found = recorded_checkpoints(self.directory, name)
            newest = found[-1][0] if found else None
            return RunState([], started, newest, found[-1][1].serial if found else 0, name)
        if state is None:
            found = unlisted_checkpoints(self.directory, name, [])
            newest = found[-1][0] if found else None
            return self._with_unlisted(RunState([], started, newest, found[-1][1].serial if found else 0, name), [])
        if problem:
            self._warn(
                f"{problem}; until then, the times that were recorded with the checkpoints count, and older "
                "checkpoints that the file does not list are not deleted"
            )
            return self._state_by_records(state, name)
        mark = state.last_preserved_timestamp or 0.0
        newest = as_path(state.model_checkpoint_path)
        listed = [as_path(path) for path in state.all_model_checkpoint_paths]
        times = state.all_model_checkpoint_timestamps
        entries = list(zip(listed, times, strict=True)) if times else []
        if now < mark:
            self._warn(
                f"{self.directory}: the clock is {mark - now:.0f} s behind the time of the last preserved checkpoint; "
                "the existing checkpoints will not be deleted"
            )
            mark, entries = now, []
        if self._rule.is_tensorflow_rule:
            # As in TensorFlow, checkpoints that are not newer than the last preserved one count as preserved too.
            entries = [(path, time) for path, time in entries if min(time, now) > mark or may_be_pinned(path)]
        tracked = [(p, min(t, now)) for p, t in entries if self._is_ours(p) and places.may_exist(p)]
        paths = list(dict.fromkeys([*listed, newest]))
        serial = last_serial(self.directory, name, paths)
        return self._with_unlisted(RunState(tracked, mark, newest, serial, name), paths)

    def _chosen_state_name(self, owner: str | None) -> str:
        own = f"{STATE_FILE_NAME}_{self._name}"
        with wrap_os_errors("look at", self.directory):
            if filesystem.exists(self.directory / own):
                return own
        return STATE_FILE_NAME if (owner or managed_name(self.directory)) in (None, self._name) else own

    def _state_by_records(self, state: CheckpointState, name: str) -> RunState:
        """Return the state with the times that the listed checkpoints recorded, for a state file that was changed.

        A checkpoint that was saved after a listed one is listed too, unless its path is what was changed.
        """
        recorded = {path: record for path, record in recorded_checkpoints(self.directory, name) if self._is_ours(path)}
        listed = {as_path(path) for path in state.all_model_checkpoint_paths} & recorded.keys()
        first = min((recorded[path].serial for path in listed), default=math.inf)
        listed |= {path for path, record in recorded.items() if record.serial > first}
        tracked = [(path, record.time or 0.0) for path, record in recorded.items() if path in listed]
        untracked = [record.time or 0.0 for path, record in recorded.items() if path not in listed]
        oldest = tracked[0][1] if tracked else math.inf
        mark = max((time for time in untracked if time <= oldest), default=0.0)
        newest = next(reversed(recorded), None)
        return RunState(tracked, mark, newest, recorded[newest].serial if newest else 0, name)

    def _with_unlisted(self, state: RunState, listed: Sequence[Path]) -> RunState:
        for path, record in unlisted_to_adopt(self.directory, state.state_name, listed):
            if self._is_ours(path):
                state = state.with_saved(path, record.time or 0.0, record.serial)
        return state

    def _is_ours(self, path: Path) -> bool:
        return path.parent == self.directory and self._pattern.fullmatch(path.name) is not None

    def _warn(self, message: str) -> None:
        warnings.warn(message, RetentionWarning, stacklevel=4)

    # Retention.

    def decisions(self, state: RunState, now: float) -> ManagerDecisions:
        """Return the decisions of the rule for the tracked checkpoints that exist."""
        on_disk = self.on_disk()
        tracked = [self._as_tracked(on_disk, path, time) for path, time in state.tracked if places.may_exist(path)]
        tracked_paths = {path for path, _ in state.tracked}
        others = [saved for path, saved in on_disk.items() if path not in tracked_paths]
        return manager_decisions(self._rule, tracked, others, state.mark, now)

    def explain(self, state: RunState, now: float) -> list[Decision]:
        """Return the decision for every checkpoint, untracked ones first."""
        decisions = self.decisions(state, now).decisions
        tracked = {decision.checkpoint.path for decision in decisions}
        others = [
            Decision(saved, (*(["pinned"] if saved.pinned else []), "preserved: no longer tracked"))
            for saved in self.on_disk().values()
            if saved.path not in tracked
        ]
        others.sort(key=lambda decision: (decision.checkpoint.time, decision.checkpoint.step))
        return [*others, *decisions]

    def _as_tracked(self, on_disk: dict[Path, SavedCheckpoint], path: Path, time: float) -> SavedCheckpoint:
        if path in on_disk:
            return replace(on_disk[path], time=time)
        return SavedCheckpoint(path.name, self._step_of(path), time, {}, may_be_pinned(path))

    def retain(self, state: RunState, saved: CheckpointEvent) -> tuple[RunState, Deletions]:
        """Write the state file, then delete what the rule does not keep. Return the new state and the deletions.

        Raises:
            CheckpointIOError: if the state file cannot be written.
        """
        result = self.decisions(state, saved.time)
        existing = {decision.checkpoint.path for decision in result.decisions}
        to_delete = [self.directory / decision.checkpoint.path for decision in result.decisions if not decision.keep]

        def state_after(remaining: set[Path]) -> RunState:
            deleted = set(to_delete) - remaining
            tracked = [(p, t) for p, t in state.tracked if p.name in existing and p not in deleted]
            # While deletions remain, the state has to lead to the same decisions after a crash.
            if remaining:
                return state._replace(tracked=tracked)
            still_tracked = [(p, t) for p, t in tracked if p.name not in result.preserved]
            return state._replace(tracked=still_tracked, mark=result.mark)

        def state_with(remaining: set[Path]) -> CheckpointState:
            tracked, mark = state_after(remaining)[:2]
            names, times = [path.name for path, _ in tracked], [time for _, time in tracked]
            return CheckpointState(names[-1], names, times, mark)

        deletions = list_and_delete(self.directory, state.state_name, state_with, to_delete, saved)
        return state_after(deletions.remaining), deletions

    # Restoring.

    def candidates(self, state: RunState) -> list[SavedCheckpoint]:
        """Return all checkpoints that may be restored, the newest first, including damaged ones."""
        on_disk = self.on_disk()
        times = {path: saved_at(path) for path in self._named() if path not in on_disk and _may_be_checkpoint(path)}
        times |= {path: saved.time for path, saved in on_disk.items()}
        last = -math.inf
        for path, time in state.tracked:  # in the order of their saves, even if the clock was set back
            if places.may_exist(path):
                times[path] = last = max(time, math.nextafter(last, math.inf))
        paths = sorted(times, key=lambda path: (path == state.newest, times[path]), reverse=True)
        return [self._as_tracked(on_disk, path, times[path]) for path in paths]

    def verify(self, path: Path, *, every_byte: bool) -> None:
        """Check that a checkpoint can be restored. An intact checkpoint is not read again until it changes.

        Raises:
            CorruptCheckpointError: if it is damaged.
            CheckpointNotFoundError: if it no longer exists.
            CheckpointIOError: if the system could not look.
        """
        with wrap_os_errors("verify", path):
            try:
                fingerprint = places.fingerprint(path)
            except OSError as error:
                if not filesystem.is_absence(error):
                    raise
                raise CheckpointNotFoundError(f"{path}: the checkpoint no longer exists") from error
        if self._verified.get(path) == fingerprint:
            return
        with opened(path) as reader:
            reader.verify() if every_byte else reader.check()
        if every_byte:
            self._remember(path, fingerprint)

    def trust(self, path: Path) -> None:
        """Treat a checkpoint that was just saved as intact until it changes."""
        with suppress(OSError):  # another saver of this run may have deleted it by now
            self._remember(path, places.fingerprint(path))

    def _remember(self, path: Path, fingerprint: Any) -> None:
        # Replaced, not modified in place, since the thread that saves and readers use it concurrently.
        self._verified = {p: f for p, f in self._verified.items() if places.may_exist(p)} | {path: fingerprint}


def _may_be_checkpoint(path: Path) -> bool:
    try:
        return is_checkpoint(path)
    except CheckpointIOError:
        return True
