"""Retention state of a Saver: the tracked checkpoints, and the newest checkpoint of each directory."""

import copy
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, as_path, canonical, local_path, wrap_os_errors
from pytreesaver._run.directory import Deletions, list_and_delete
from pytreesaver._run.history import CheckpointEvent, SaveTimings
from pytreesaver._run.policies.rules import saver_eviction, saver_interval
from pytreesaver._run.record import Record
from pytreesaver._run.recorded import last_serial, managed_name, saved_at, unlisted_to_adopt
from pytreesaver._run.state_file import listed_checkpoints, tracks_nothing
from pytreesaver._run.state_text import STATE_FILE_NAME, CheckpointState
from pytreesaver._text import duplicates
from pytreesaver.formats import places


class SaverState:
    """The checkpoints that a Saver tracks, oldest first, under TensorFlow's rule.

    Attributes:
        next_checkpoint_time: a checkpoint saved after this time, in seconds since the epoch, is preserved.
    """

    def __init__(self, settings: Any, started: float) -> None:
        self._settings = settings
        self.next_checkpoint_time = started + saver_interval(settings.keep_checkpoint_every_n_hours or 0.0)
        self._tracked: list[tuple[str, float]] = []  # (canonical path, time)
        self._given_paths: dict[str, str] = {}  # by canonical path
        self._is_set_by_user = False
        self._state_names: dict[tuple[tuple[int, int], str], str] = {}
        self._adopted: set[tuple[tuple[int, int], str, str]] = set()
        # The serial number and the name of the newest checkpoint, by directory and state file.
        self._last: dict[tuple[tuple[int, int], str], tuple[int, str | None]] = {}

    def copied(self) -> "SaverState":
        """Return a copy, which reads the state file of every directory again before its next save."""
        other = copy.copy(self)
        other._tracked = list(self._tracked)
        # The copy may be used in another working directory.
        other._given_paths = {where: str(as_path(path).absolute()) for where, path in self._given_paths.items()}
        other._state_names = {}
        other._adopted, other._last = set(), {}
        return other

    @property
    def paths(self) -> list[str]:
        """The tracked paths, as the user passed them."""
        given_paths = self._given_paths
        return [given_paths.get(where, where) for where, _ in self._tracked]

    def track(self, paths_with_times: Iterable[tuple[PathLike, float]]) -> None:
        """Track these checkpoints from now on, and no others.

        Raises:
            ValueError: if two of the paths are the same, or a time is NaN.
        """
        entries = [(str(local_path(path)), float(seconds)) for path, seconds in paths_with_times]
        canonical_entries = [(str(canonical(path)), seconds) for path, seconds in entries]
        repeated = duplicates(where for where, _ in canonical_entries)
        if repeated or any(math.isnan(seconds) for _, seconds in entries):
            raise ValueError(f"expected distinct paths, and times that are not NaN, found {entries}")
        self._given_paths = {where: path for (where, _), (path, _) in zip(canonical_entries, entries, strict=True)}
        self._tracked, self._is_set_by_user = canonical_entries, True

    def reread_directories(self) -> None:
        """Read the state file of every directory again before the next save, since a save failed halfway."""
        self._adopted.clear()

    def list_saved(self, path: str, location: Path, record: Record, now: float, timings: SaveTimings) -> Deletions:
        """List a complete checkpoint in its state file, then delete what retention does not keep.

        Raises:
            CheckpointIOError: if the state file cannot be written.
        """
        state_name = record.state_file or STATE_FILE_NAME
        result = saver_eviction(
            # Checkpoints that were deleted by others do not count.
            [(where, time) for where, time in self._tracked if places.may_exist(as_path(where))],
            (str(location), now),
            self.next_checkpoint_time,
            self._settings.max_to_keep or 0,
            self._settings.keep_checkpoint_every_n_hours or 0.0,
        )
        directory, identity = location.parent, self._identity(location.parent)
        given_paths = {**self._given_paths, str(location): path}
        relative = self._settings.save_relative_paths or not as_path(path).is_absolute()
        times = dict(self._tracked)
        to_delete = [as_path(where) for where in result.deleted]

        def tracked_with(remaining: set[Path]) -> list[tuple[str, float]]:
            return [*((str(p), times[str(p)]) for p in to_delete if p in remaining), *result.tracked]

        def state_with(remaining: set[Path]) -> CheckpointState:
            listed = [where for where, _ in tracked_with(remaining)] or [str(location)]
            paths = [os.path.relpath(where, directory) if relative else given_paths[where] for where in listed]
            return CheckpointState(paths[-1], paths)

        def on_listed() -> None:
            # From here on this state agrees with the state file, even if a deletion fails.
            self._given_paths, self._tracked = given_paths, tracked_with(set(to_delete))
            self.next_checkpoint_time = result.mark
            self._last[identity, state_name] = record.serial, location.name

        saved = CheckpointEvent("saved", location.name, now, record.step, timings=timings)
        deletions = list_and_delete(directory, state_name, state_with, to_delete, saved, on_listed=on_listed)
        self._tracked = tracked_with(deletions.remaining)
        self._given_paths = {where: self._given_paths[where] for where, _ in self._tracked}
        return deletions

    def adopt(self, location: Path, step: int | None, state_name: str, *, absolute: bool, is_current: bool) -> Record:
        """Track the checkpoints of the same name that an earlier Saver left. Return the record of the new checkpoint.

        `is_current` is False if another saver of this process may have written to the directory since this one.
        """
        directory = location.parent
        identity = self._identity(directory)
        base = location.name if step is None else location.name.rpartition("-")[0]
        adopted = (identity, base, state_name) in self._adopted
        if not (is_current and adopted and (identity, state_name) in self._last):
            listed = [canonical(path) for path in listed_checkpoints(directory, state_name)]
            newer = [path for path, _ in unlisted_to_adopt(directory, state_name, listed)]
            self._last[identity, state_name] = (
                last_serial(directory, state_name, [*listed, *newer]),
                next((path.name for path in reversed([*listed, *newer])), None),
            )
            if not adopted:
                self._adopted.add((identity, base, state_name))
                tracked = [] if tracks_nothing(directory, state_name) else listed
                self._track_listed(directory, base, tracked, newer, absolute)
        serial, newest = self._last[identity, state_name]
        return Record(step, state_file=state_name, serial=serial + 1, name=location.name, predecessor=newest)

    def state_name_for(self, location: Path, base: str, *, is_current: bool) -> str:
        """Return the name of the state file for checkpoints called `base`: ``checkpoint``, if that is no manager's."""
        key = (self._identity(location.parent), base)
        if not is_current or key not in self._state_names:
            own = f"{STATE_FILE_NAME}_{base}"
            is_foreign = managed_name(location.parent, by_times=False) not in (None, base)
            with wrap_os_errors("look at", location.parent):
                has_own = filesystem.exists(location.parent / own)
            self._state_names[key] = own if is_foreign or has_own else STATE_FILE_NAME
        return self._state_names[key]

    @staticmethod
    def _identity(directory: Path) -> tuple[int, int]:
        with wrap_os_errors("look at", directory):
            return filesystem.identity(directory)

    def _track_listed(
        self, directory: Path, base: str, listed: Sequence[Path], newer: Sequence[Path], absolute: bool
    ) -> None:
        """Also track the listed checkpoints, in their order, and then the newer unlisted ones."""
        of_same_name = re.compile(re.escape(base) + r"(-[0-9]+)?")
        known = dict(self._tracked)
        found: dict[str, float] = {}
        for path in [*(p for p in listed if p not in newer), *newer]:
            ours = path.parent == directory and of_same_name.fullmatch(path.name) is not None
            wanted = ours and places.may_exist(path) and not (self._is_set_by_user and path not in newer)
            if str(path) in known or wanted:
                found[str(path)] = known[str(path)] if str(path) in known else saved_at(path)
                self._given_paths.setdefault(str(path), str(path) if absolute else os.path.relpath(path))
        others = [entry for entry in self._tracked if entry[0] not in found]
        self._tracked = [*others, *found.items()]
