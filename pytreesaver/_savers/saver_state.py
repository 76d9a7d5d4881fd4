"""What a Saver remembers between saves: the checkpoints that it watches, and where each directory of its stands."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, canonical, local_path
from pytreesaver._run.directory import Deletions, last_serial, list_and_delete, saved_at, unlisted_to_adopt
from pytreesaver._run.history import CheckpointEvent
from pytreesaver._run.policies.rules import saver_eviction, saver_interval
from pytreesaver._run.record import Record
from pytreesaver._run.state_file import listed_checkpoints, watches_nothing
from pytreesaver._run.state_text import STATE_FILE_NAME, CheckpointState
from pytreesaver._text import duplicates


class SaverMemory:
    """The checkpoints that a Saver watches, oldest first, under the rule of TensorFlow.

    Attributes:
        next_checkpoint_time: a checkpoint saved after this time, in seconds since the epoch, will be preserved.
    """

    def __init__(self, settings: Any, started: float) -> None:
        self._settings = settings
        self.next_checkpoint_time = started + saver_interval(settings.keep_checkpoint_every_n_hours or 0.0)
        self._tracked: list[tuple[str, float]] = []  # (canonical path, time)
        self._shown: dict[str, str] = {}
        self._seeded = False
        self._adopted: set[tuple[tuple[int, int], str, str]] = set()
        # The number and the name of the newest checkpoint, by directory and state file.
        self._last: dict[tuple[tuple[int, int], str], tuple[int, str | None]] = {}

    @property
    def paths(self) -> list[str]:
        """The paths that are watched, as they were given."""
        shown = self._shown
        return [shown.get(where, where) for where, _ in self._tracked]

    def watch(self, paths_with_times: Iterable[tuple[PathLike, float]]) -> None:
        """Watch these from now on and nothing else.

        Raises:
            ValueError: two of the paths are the same, or a time is NaN.
        """
        entries = [(str(local_path(path)), float(seconds)) for path, seconds in paths_with_times]
        places = [(str(canonical(path)), seconds) for path, seconds in entries]
        again = duplicates(where for where, _ in places)
        if again or any(math.isnan(seconds) for _, seconds in entries):
            raise ValueError(f"expected different paths, and times that are numbers, found {entries}")
        self._shown = {where: path for (where, _), (path, _) in zip(places, entries, strict=True)}
        self._tracked, self._seeded = places, True

    def look_again(self) -> None:
        """Look into every directory again before the next save, because the last one failed half-way."""
        self._adopted.clear()

    def list_saved(self, path: str, location: Path, record: Record, now: float) -> Deletions:
        """Put a checkpoint that is complete into its state file, and delete what is not to be kept.

        Raises:
            CheckpointIOError: the state file could not be written.
        """
        state_name = record.state_file or STATE_FILE_NAME
        result = saver_eviction(
            # What somebody else has deleted takes nobody's place.
            [(where, time) for where, time in self._tracked if os.path.lexists(where)],
            (str(location), now),
            self.next_checkpoint_time,
            self._settings.max_to_keep or 0,
            self._settings.keep_checkpoint_every_n_hours or 0.0,
        )
        directory = location.parent
        shown = {**self._shown, str(location): path}
        relative = self._settings.save_relative_paths or not os.path.isabs(path)  # noqa: PTH117
        times = dict(self._tracked)
        doomed = [Path(where) for where in result.deleted]

        def tracked_with(remaining: set[Path]) -> list[tuple[str, float]]:
            return [*((str(p), times[str(p)]) for p in doomed if p in remaining), *result.tracked]

        def state_with(remaining: set[Path]) -> CheckpointState:
            places = [where for where, _ in tracked_with(remaining)] or [str(location)]
            paths = [os.path.relpath(where, directory) if relative else shown[where] for where in places]
            return CheckpointState(paths[-1], paths)

        def listed() -> None:
            # Whatever happens from here on, what the state file lists is what is remembered.
            self._shown, self._tracked = shown, tracked_with(set(doomed))
            self.next_checkpoint_time = result.mark
            self._last[filesystem.identity(directory), state_name] = record.serial, location.name

        saved = CheckpointEvent("saved", location.name, now, record.step)
        deletions = list_and_delete(directory, state_name, state_with, doomed, saved, listed=listed)
        self._tracked = tracked_with(deletions.remaining)
        self._shown = {where: self._shown[where] for where, _ in self._tracked}
        return deletions

    def adopt(self, location: Path, step: int | None, state_name: str, *, absolute: bool, alone: bool) -> Record:
        """Go on with the checkpoints of the same name that an earlier Saver has left in a directory.

        Gives what the record of the next checkpoint says of those before it. `alone` says that no other saver of this
        process has saved there since this one did.
        """
        directory = location.parent
        identity = filesystem.identity(directory)
        base = location.name if step is None else location.name.rpartition("-")[0]
        adopted = (identity, base, state_name) in self._adopted
        if not (alone and adopted and (identity, state_name) in self._last):
            listed = [canonical(path) for path in listed_checkpoints(directory, state_name)]
            newer = [path for path, _ in unlisted_to_adopt(directory, state_name, listed)]
            self._last[identity, state_name] = (
                last_serial(directory, state_name, [*listed, *newer]),
                next((path.name for path in reversed([*listed, *newer])), None),
            )
            if not adopted:
                self._adopted.add((identity, base, state_name))
                watched = [] if watches_nothing(directory, state_name) else listed
                self._take_over(directory, base, watched, newer, absolute)
        serial, newest = self._last[identity, state_name]
        return Record(step, state_file=state_name, serial=serial + 1, name=location.name, predecessor=newest)

    def _take_over(
        self, directory: Path, base: str, listed: Sequence[Path], newer: Sequence[Path], absolute: bool
    ) -> None:
        """Watch what a state file lists, in its order, and what is newer than that, beside what is watched already."""
        of_same_name = re.compile(re.escape(base) + r"(-[0-9]+)?")
        known = dict(self._tracked)
        found: dict[str, float] = {}
        for path in [*(p for p in listed if p not in newer), *newer]:
            ours = path.parent == directory and of_same_name.fullmatch(path.name) is not None
            wanted = ours and os.path.lexists(path) and not (self._seeded and path not in newer)
            if str(path) in known or wanted:
                found[str(path)] = known[str(path)] if str(path) in known else saved_at(path)
                self._shown.setdefault(str(path), str(path) if absolute else os.path.relpath(path))
        others = [entry for entry in self._tracked if entry[0] not in found]
        self._tracked = [*others, *found.items()]
