"""A run directory as a CheckpointManager sees it: what there is, what its state file says, what is to be deleted."""

import errno
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pytreesaver._errors import (
    CheckpointError,
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
    UnsupportedVersionError,
)
from pytreesaver._io import filesystem
from pytreesaver._io.paths import wrap_os_errors
from pytreesaver._run.directory import (
    Deletions,
    is_pinned,
    last_serial,
    list_and_delete,
    modified_time,
    read_record,
    recorded_checkpoints,
    saved_at,
    unlisted_checkpoints,
    unlisted_to_adopt,
)
from pytreesaver._run.history import CheckpointEvent
from pytreesaver._run.policies.retention import Decision, SavedCheckpoint
from pytreesaver._run.policies.rules import ManagerDecisions, ManagerRule, manager_decisions
from pytreesaver._run.state_file import get_checkpoint_state
from pytreesaver._run.state_text import STATE_FILE_NAME, CheckpointState
from pytreesaver.formats.protocol import PINNED_NAME
from pytreesaver.formats.registry import is_checkpoint, opened

T = TypeVar("T")


class RunState(NamedTuple):
    """What retention remembers between saves, and keeps in the state file.

    Attributes:
        tracked: (path, time) of the checkpoints that it watches, in the order of their saves.
        mark: the time of the last one that was preserved for ever.
        newest: the path of the newest checkpoint, tracked or not.
        serial: how many checkpoints were saved so far.
    """

    tracked: list[tuple[Path, float]]
    mark: float
    newest: Path | None
    serial: int

    def with_saved(self, path: Path, time: float, serial: int) -> "RunState":
        """The state after one more save."""
        tracked = [*(entry for entry in self.tracked if entry[0] != path), (path, time)]
        return RunState(tracked, self.mark, path, serial)


class ManagedRun:
    """The checkpoints ``name-step`` of a directory, under a rule.

    Raises:
        ValueError: the name cannot be that of a checkpoint.
    """

    def __init__(self, directory: Path, name: str, pad: bool, rule: ManagerRule, started: float) -> None:
        if not name or os.path.basename(name) != name or name.startswith(".") or "\0" in name:  # noqa: PTH119
            raise ValueError(f"checkpoint_name: expected a name without slashes that is not hidden, found {name!r}")
        self.directory = directory.absolute()
        self._shown = directory
        self._name = name
        self._pad = pad
        self._rule = rule
        self._started = started
        self._pattern = re.compile(re.escape(name) + r"-(0|[1-9][0-9]*|0[0-9]{7})")
        self._seen: dict[Path, tuple[Any, SavedCheckpoint | None]] = {}
        self._verified: dict[Path, Any] = {}

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        padded, plain = self.directory / f"{self._name}-{step:08d}", self.directory / f"{self._name}-{step}"
        usual, other = (padded, plain) if self._pad else (plain, padded)
        # One that was saved before the padding was switched is replaced, and not doubled.
        return other if os.path.lexists(other) and not os.path.lexists(usual) else usual

    def on_disk(self) -> dict[Path, SavedCheckpoint]:
        """Every checkpoint that is there with an intact index."""
        found: dict[Path, SavedCheckpoint] = {}
        seen = {}
        for path in self._named():
            try:
                fingerprint = filesystem.fingerprint(path)
                known = self._seen.get(path)
                saved = known[1] if known is not None and known[0] == fingerprint else self._read(path)
                seen[path] = fingerprint, saved
            except (FileNotFoundError, NotADirectoryError):
                continue  # it was deleted in this moment
            except OSError:
                # That it cannot be read now is no reason to delete it: the next look may be luckier.
                saved = SavedCheckpoint(path.name, self._step_of(path), 0.0, {}, True)
            if saved is not None:
                found[path] = saved
        self._seen = seen
        return found

    def steps(self) -> list[int]:
        """The steps of all checkpoints on disk, in ascending order."""
        return sorted({saved.step for saved in self.on_disk().values()})

    def no_such_step(self, step: int) -> CheckpointNotFoundError:
        """The error that says which steps there are."""
        return CheckpointNotFoundError(
            f"{self._shown}: expected a checkpoint of step {step}, found those of {self.steps()}"
        )

    def pin(self, step: int) -> None:
        """Mark the checkpoint of a step as one to be kept. Raises a CheckpointNotFoundError if there is none."""
        marker = self._marker(step)
        with wrap_os_errors("pin", marker.parent):
            filesystem.close(filesystem.open_or_create(marker))

    def unpin(self, step: int) -> None:
        """Take that mark away. Raises a CheckpointNotFoundError if there is no such checkpoint."""
        marker = self._marker(step)
        with wrap_os_errors("unpin", marker.parent):
            if os.path.lexists(marker):
                filesystem.remove_file(marker)

    def _marker(self, step: int) -> Path:
        for path, saved in self.on_disk().items():
            if saved.step == step:
                return path / PINNED_NAME
        raise self.no_such_step(step)

    def _named(self) -> list[Path]:
        """Everything in the directory that has the name of a checkpoint."""
        with wrap_os_errors("read", self.directory):
            try:
                entries = filesystem.list_directory(self.directory)
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

    def read_state(self, now: float) -> RunState:
        """What the state file says, and what was saved by a manager that died before it could list that.

        As in TensorFlow, what a state file lists without times, as that of a `Saver`, is not watched: it is kept.
        """
        started = self._started - 1.0  # as in TensorFlow: a manager that is made twice in a moment forgets nothing
        try:
            state = get_checkpoint_state(self.directory)
        except CorruptCheckpointError as error:
            self._warn(f"{error}; the checkpoints that are there will not be deleted")
            found = recorded_checkpoints(self.directory, STATE_FILE_NAME)
            return RunState([], started, found[-1][0] if found else None, found[-1][1].serial if found else 0)
        if state is None:
            found = unlisted_checkpoints(self.directory, STATE_FILE_NAME, [])
            newest = found[-1][0] if found else None
            return self._with_unlisted(RunState([], started, newest, found[-1][1].serial if found else 0), [])
        mark = state.last_preserved_timestamp or 0.0
        newest = Path(state.model_checkpoint_path)
        listed = [Path(path) for path in state.all_model_checkpoint_paths]
        times = state.all_model_checkpoint_timestamps
        entries = list(zip(listed, times, strict=True)) if times else []
        if now < mark:
            self._warn(
                f"{self.directory}: the clock is {mark - now:.0f} s behind the time of the last checkpoint that was "
                "preserved; the checkpoints that are there will not be deleted"
            )
            mark, entries = now, []
        if self._rule.is_tensorflows:
            # As in TensorFlow: what is no later than the last one that was preserved counts as preserved too.
            entries = [(path, time) for path, time in entries if min(time, now) > mark or is_pinned(path)]
        tracked = [(p, min(t, now)) for p, t in entries if self._is_ours(p) and os.path.lexists(p)]
        paths = list(dict.fromkeys([*listed, newest]))
        serial = last_serial(self.directory, STATE_FILE_NAME, paths)
        return self._with_unlisted(RunState(tracked, mark, newest, serial), paths)

    def _with_unlisted(self, state: RunState, listed: Sequence[Path]) -> RunState:
        for path, record in unlisted_to_adopt(self.directory, STATE_FILE_NAME, listed):
            if self._is_ours(path):
                state = state.with_saved(path, record.time or 0.0, record.serial)
        return state

    def _is_ours(self, path: Path) -> bool:
        return path.parent == self.directory and self._pattern.fullmatch(path.name) is not None

    def _warn(self, message: str) -> None:
        warnings.warn(message, RetentionWarning, stacklevel=4)

    # Retention.

    def decisions(self, state: RunState, now: float) -> ManagerDecisions:
        """What the rule says of the checkpoints that are watched and there."""
        on_disk = self.on_disk()
        tracked = [self._as_tracked(on_disk, path, time) for path, time in state.tracked if os.path.lexists(path)]
        watched = {path for path, _ in state.tracked}
        others = [saved for path, saved in on_disk.items() if path not in watched]
        return manager_decisions(self._rule, tracked, others, state.mark, now)

    def explain(self, state: RunState, now: float) -> list[Decision]:
        """What the rule says of every checkpoint, those first that are not watched."""
        decisions = self.decisions(state, now).decisions
        watched = {decision.checkpoint.path for decision in decisions}
        others = [
            Decision(saved, (*(["pinned"] if saved.pinned else []), "preserved: not watched any more"))
            for saved in self.on_disk().values()
            if saved.path not in watched
        ]
        others.sort(key=lambda decision: (decision.checkpoint.time, decision.checkpoint.step))
        return [*others, *decisions]

    def _as_tracked(self, on_disk: dict[Path, SavedCheckpoint], path: Path, time: float) -> SavedCheckpoint:
        if path in on_disk:
            return replace(on_disk[path], time=time)
        return SavedCheckpoint(path.name, self._step_of(path), time, {}, is_pinned(path))

    def retain(self, state: RunState, saved: CheckpointEvent) -> tuple[RunState, Deletions]:
        """Write the state file after a save, and delete what the rule does not keep. Gives the state after that.

        Raises:
            CheckpointIOError: the state file could not be written.
        """
        result = self.decisions(state, saved.time)
        there = {decision.checkpoint.path for decision in result.decisions}
        doomed = [self.directory / decision.checkpoint.path for decision in result.decisions if not decision.keep]

        def after(remaining: set[Path]) -> RunState:
            gone = set(doomed) - remaining
            tracked = [(p, t) for p, t in state.tracked if p.name in there and p not in gone]
            # Until all that is to be deleted is gone, whoever comes after a crash has to decide as this does.
            if remaining:
                return state._replace(tracked=tracked)
            watched = [(p, t) for p, t in tracked if p.name not in result.preserved]
            return state._replace(tracked=watched, mark=result.mark)

        def state_with(remaining: set[Path]) -> CheckpointState:
            tracked, mark = after(remaining)[:2]
            names, times = [path.name for path, _ in tracked], [time for _, time in tracked]
            return CheckpointState(names[-1], names, times, mark)

        deletions = list_and_delete(self.directory, STATE_FILE_NAME, state_with, doomed, saved)
        return after(deletions.remaining), deletions

    # What can be restored.

    def candidates(self, state: RunState) -> list[SavedCheckpoint]:
        """Every checkpoint that can be tried, the newest first; damaged ones too."""
        on_disk = self.on_disk()
        times = {path: saved_at(path) for path in self._named() if path not in on_disk and is_checkpoint(path)}
        times |= {path: saved.time for path, saved in on_disk.items()}
        last = -math.inf
        for path, time in state.tracked:  # they come in the order of their saves, whatever the clock said
            if os.path.lexists(path):
                times[path] = last = max(time, math.nextafter(last, math.inf))
        paths = sorted(times, key=lambda path: (path == state.newest, times[path]), reverse=True)
        return [self._as_tracked(on_disk, path, times[path]) for path in paths]

    def verify(self, path: Path, *, every_byte: bool) -> None:
        """Make sure that a checkpoint can be restored; what was found whole is not read again until it changes.

        Raises:
            CorruptCheckpointError: it is damaged.
            CheckpointNotFoundError: it is gone.
        """
        try:
            fingerprint = filesystem.fingerprint(path)
        except OSError as error:
            raise CheckpointNotFoundError(f"{path}: expected a checkpoint, found nothing there any more") from error
        if self._verified.get(path) == fingerprint:
            return
        with opened(path) as reader:
            reader.verify() if every_byte else reader.check()
        if every_byte:
            self._remember(path, fingerprint)

    def trust(self, path: Path) -> None:
        """Take a checkpoint that was just saved for whole, as long as nobody writes to it."""
        with suppress(FileNotFoundError):  # another saver of this run may have deleted it by now
            self._remember(path, filesystem.fingerprint(path))

    def _remember(self, path: Path, fingerprint: Any) -> None:
        # Never changed in place: the thread that saves and those that ask look at it at the same time.
        self._verified = {p: f for p, f in self._verified.items() if os.path.lexists(p)} | {path: fingerprint}


def first_intact(
    candidates: Sequence[SavedCheckpoint], use: Callable[[SavedCheckpoint], T]
) -> tuple[SavedCheckpoint | None, T | None, list[CheckpointError]]:
    """Return the first undamaged checkpoint, the result of `use` for it, and the errors of those before it.

    Raises:
        The errors of `use` that do not mean damage, such as a missing permission or too many open files.
    """
    problems: list[CheckpointError] = []
    for saved in candidates:
        try:
            return saved, use(saved), problems
        except (CorruptCheckpointError, CheckpointNotFoundError) as error:
            problems.append(error)
        except CheckpointIOError as error:
            if error.errno != errno.EIO:
                raise
            problems.append(error)
    return None, None, problems


def warn_of_damaged(problems: Sequence[CheckpointError], offered: str) -> None:
    """Warn of the checkpoints that `first_intact` skipped."""
    if problems:
        lines = "\n".join(map(str, problems))
        warnings.warn(f"{lines}\noffered instead: {offered}", RetentionWarning, stacklevel=3)
