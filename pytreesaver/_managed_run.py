"""A run directory as a CheckpointManager sees it: what there is, what its state file says, what is to be deleted."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, RetentionWarning
from pytreesaver._io import filesystem
from pytreesaver._retention import ManagerDecisions, ManagerRule, SavedCheckpoint, manager_decisions
from pytreesaver._run_directory import (
    get_checkpoint_state,
    modified_time,
    read_record,
    unlisted_checkpoints,
    unlisted_to_adopt,
)
from pytreesaver._run_writer import list_and_delete
from pytreesaver._state_file import STATE_FILE_NAME, CheckpointState
from pytreesaver._variables import load_checkpoint, open_reader
from pytreesaver.formats import PINNED_NAME


class RunState(NamedTuple):
    """What retention remembers between saves, and keeps in the state file.

    Attributes:
        tracked: (path, time) of the checkpoints that it watches, in the order of their saves.
        mark: the time of the last one that was preserved for ever.
        newest: the path of the newest checkpoint, tracked or not.
    """

    tracked: list[tuple[Path, float]]
    mark: float
    newest: Path | None

    def with_saved(self, path: Path, time: float) -> "RunState":
        """The state after one more save."""
        return RunState([*(entry for entry in self.tracked if entry[0] != path), (path, time)], self.mark, path)


class ManagedRun:
    """The checkpoints ``name-step`` of a directory, under a rule.

    Raises:
        ValueError: the name cannot be that of a checkpoint.
    """

    def __init__(self, directory: Path, name: str, pad: bool, rule: ManagerRule, started: float) -> None:
        if not name or os.path.basename(name) != name or name.startswith(".") or "\0" in name:  # noqa: PTH119
            raise ValueError(f"checkpoint_name: expected a name without slashes that is not hidden, found {name!r}")
        self.directory = directory.absolute()
        self._name = name
        self._pad = pad
        self._rule = rule
        self._started = started
        self._pattern = re.compile(re.escape(name) + r"-(0|[1-9][0-9]*|0[0-9]{7})")
        self._seen: dict[Path, tuple[Any, SavedCheckpoint | None]] = {}
        self._verified: dict[Path, Any] = {}

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.directory / (f"{self._name}-{step:08d}" if self._pad else f"{self._name}-{step}")

    def on_disk(self) -> dict[Path, SavedCheckpoint]:
        """Every checkpoint that is there with an intact index."""
        try:
            entries = filesystem.list_directory(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        paths = [self.directory / entry for entry in entries if self._pattern.fullmatch(entry)]
        self._seen = {path: self._seen[path] for path in paths if path in self._seen}
        found = {path: self._look(path) for path in paths}
        return {path: saved for path, saved in found.items() if saved is not None}

    def _look(self, path: Path) -> SavedCheckpoint | None:
        try:
            fingerprint = filesystem.fingerprint(path)
            if path not in self._seen or self._seen[path][0] != fingerprint:
                self._seen[path] = fingerprint, self._read(path)
        except OSError:
            return None  # it was deleted in this moment
        return self._seen[path][1]

    def _read(self, path: Path) -> SavedCheckpoint | None:
        try:
            record = read_record(path)
        except CheckpointError:
            return None
        time = modified_time(path) if record.time is None else record.time
        pinned = os.path.lexists(path / PINNED_NAME)
        return SavedCheckpoint(path.name, self._step_of(path), time, record.metrics, pinned)

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
            return RunState([], started, None)
        if state is None:
            adopted = self._unlisted([])
            found = unlisted_checkpoints(self.directory, STATE_FILE_NAME, [])
            return RunState(adopted, started, found[-1] if found else None)
        mark = state.last_preserved_timestamp or 0.0
        newest = Path(os.path.normpath(state.model_checkpoint_path))
        listed = [Path(os.path.normpath(path)) for path in state.all_model_checkpoint_paths]
        times = state.all_model_checkpoint_timestamps
        entries = list(zip(listed, times, strict=True)) if times else []
        if now < mark:
            self._warn(
                f"{self.directory}: the clock is {mark - now:.0f} s behind the time of the last checkpoint that was "
                "preserved; the checkpoints that are there will not be deleted"
            )
            mark, entries = now, []
        tracked = [(p, min(t, now)) for p, t in entries if self._is_ours(p) and os.path.lexists(p)]
        result = RunState(tracked, mark, newest)
        for path, time in self._unlisted([*listed, newest]):
            result = result.with_saved(path, time)
        return result

    def _unlisted(self, listed: Sequence[Path]) -> list[tuple[Path, float]]:
        found = unlisted_to_adopt(self.directory, STATE_FILE_NAME, listed)
        return [(path, time) for path, time in found if self._is_ours(path)]

    def _is_ours(self, path: Path) -> bool:
        return path.parent == self.directory and self._pattern.fullmatch(path.name) is not None

    def _warn(self, message: str) -> None:
        warnings.warn(message, RetentionWarning, stacklevel=4)

    # Retention.

    def decisions(self, state: RunState, now: float) -> ManagerDecisions:
        """What the rule says of the checkpoints that are watched."""
        on_disk = self.on_disk()
        tracked = [self._as_tracked(on_disk, path, time) for path, time in state.tracked]
        watched = {path for path, _ in state.tracked}
        others = [saved for path, saved in on_disk.items() if path not in watched]
        return manager_decisions(self._rule, tracked, others, state.mark, now)

    def _as_tracked(self, on_disk: dict[Path, SavedCheckpoint], path: Path, time: float) -> SavedCheckpoint:
        if path in on_disk:
            return replace(on_disk[path], time=time)
        return SavedCheckpoint(path.name, self._step_of(path), time)

    def retain(self, state: RunState, now: float) -> RunState:
        """Write the state file, and delete what the rule does not keep; gives the state after that.

        Raises:
            CheckpointIOError: the state file could not be written.
        """
        result = self.decisions(state, now)
        doomed = [path for (path, _), d in zip(state.tracked, result.decisions, strict=True) if not d.keep]

        def after(remaining: set[str]) -> RunState:
            gone = {path for path in doomed if str(path) not in remaining}
            tracked = [(p, t) for p, t in state.tracked if p not in gone and p.name not in result.preserved]
            return RunState(tracked, result.mark, state.newest)

        def state_with(remaining: set[str]) -> CheckpointState:
            tracked = after(remaining).tracked
            names, times = [path.name for path, _ in tracked], [time for _, time in tracked]
            return CheckpointState(names[-1], names, times, result.mark)

        failed = list_and_delete(self.directory, STATE_FILE_NAME, state_with, doomed)
        return after(set(map(str, failed)))

    # What can be restored.

    def candidates(self, state: RunState) -> list[SavedCheckpoint]:
        """Every checkpoint that can be tried, the newest first; those with a damaged index too."""
        on_disk = self.on_disk()
        order = {path: i for i, (path, _) in enumerate(state.tracked)}
        times = {**{path: saved.time for path, saved in on_disk.items()}, **dict(state.tracked)}
        if state.newest is not None and self._is_ours(state.newest):
            times.setdefault(state.newest, 0.0)
        paths = sorted(times, key=lambda path: (path == state.newest, times[path], order.get(path, -1)), reverse=True)
        return [self._as_tracked(on_disk, path, times[path]) for path in paths if os.path.lexists(path)]

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
        if every_byte:
            with load_checkpoint(path) as checkpoint:
                checkpoint.verify()
            self._verified = {p: f for p, f in self._verified.items() if os.path.lexists(p)} | {path: fingerprint}
        else:
            reader = open_reader(path)
            try:
                reader.check()
            finally:
                reader.close()

    def trust(self, path: Path) -> None:
        """Take a checkpoint that was just saved for whole, as long as nobody writes to it."""
        self._verified[path] = filesystem.fingerprint(path)
