"""A run directory: its checkpoints, and the state file that names the newest one. As in `tf.train`.

State files have TensorFlow's format, checkpoints have pytreesaver's. Paths in a state file are relative to its
directory, so that a run directory can be moved and copied.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pytreesaver._errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    RetentionWarning,
)
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._run.history import CheckpointEvent, append_history, deletions
from pytreesaver._run.record import Record, decode_record
from pytreesaver._run.state_file import listed_checkpoints, state_file_name, write_state
from pytreesaver._run.state_text import (
    CheckpointState,
)
from pytreesaver.formats.protocol import PINNED_NAME
from pytreesaver.formats.registry import format_at, format_to_read, is_checkpoint, opened


def is_complete(path: Path) -> bool:
    """Return whether there is a checkpoint at `path` with an intact index and files of the right sizes."""
    try:
        with opened(path) as reader:
            reader.check()
    except (CheckpointError, OSError):
        return False
    return True


def checkpoint_exists(path: PathLike) -> bool:
    """Return whether there is a complete checkpoint at exactly this path. After `tf.train.checkpoint_exists`.

    Only the index and the sizes of the files are checked; `verify` checks every byte.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "existing")
        >>> checkpoint_exists(path), checkpoint_exists("exist*")
        (True, False)
    """
    return is_complete(local_path(path))


def get_checkpoint_mtimes(paths: Iterable[PathLike]) -> list[float]:
    """Return when checkpoints were written, in seconds since the epoch. After `tf.train.get_checkpoint_mtimes`.

    As in TensorFlow, a path without a complete checkpoint has no entry in the list.

    Example:
        >>> len(get_checkpoint_mtimes([pytreesaver.save({"w": np.ones(3)}, "timed"), "not there"]))
        1
    """
    return [modified_time(path) for path in map(local_path, paths) if is_complete(path)]


def check_run_directory(directory: Path) -> None:
    """Raise a CheckpointExistsError if there is a checkpoint at the path of a run directory."""
    if is_checkpoint(directory):
        raise CheckpointExistsError(
            f"{directory}: expected a run directory, found a checkpoint; pass the directory that contains it"
        )


def modified_time(path: Path) -> float:
    """Return when a checkpoint was written, in seconds since the epoch."""
    return filesystem.modified_ns(format_to_read(path).heading_file(path)) / 1e9


def delete_checkpoint(target: Path) -> bool:
    """Delete the checkpoint at a path. Return whether it existed. Raises what `remove_checkpoint` raises."""
    if not os.path.lexists(target):
        return False
    with wrap_os_errors("remove", target):
        found = format_at(target)
        if found is None:
            raise CheckpointNotFoundError(f"{target}: expected a checkpoint to remove, found something else")
        found.remove(target)
    return True


def read_record(path: Path) -> Record:
    """Return the record of a checkpoint. Raises what `load_checkpoint` raises."""
    with wrap_os_errors("read", path):
        return decode_record(format_to_read(path).read_heading(path).record, path)


def latest_checkpoint(checkpoint_dir: PathLike, latest_filename: str | None = None) -> Path | None:
    """Return the newest complete checkpoint of a run directory, or None. After `tf.train.latest_checkpoint`.

    This is the checkpoint that the state file names as the newest. Unlike TensorFlow, this function also finds newer
    checkpoints that a `Saver` or `CheckpointManager` completed but did not list before its process ended, and if the
    newest checkpoint is damaged or missing, it returns the one before it, with a `RetentionWarning`. Only indexes and
    the sizes of files are checked; arrays are not read.

    Example:
        >>> saver = pytreesaver.Saver()
        >>> path = saver.save({"w": np.ones(3)}, "latest/model", global_step=100)
        >>> latest_checkpoint("latest"), latest_checkpoint("no such run")
        (PosixPath('latest/model-100'), None)
    """
    directory, name = local_path(checkpoint_dir), state_file_name(latest_filename)
    listed: list[Path] | None = None
    candidates: list[Path] = []
    while True:
        before, listed = listed, listed_checkpoints(directory, name)
        if listed == before:
            break
        unlisted = [path for path, _ in unlisted_checkpoints(directory, name, listed)]
        candidates = [*reversed(unlisted), *(path for path in reversed(listed) if path not in unlisted)]
        newest = next(filter(is_complete, candidates[:1]), None)
        if newest is not None or not candidates:
            return newest
        # A saver may have deleted it concurrently. Then the state file has changed too: read it again.
    older = [path for path, _ in reversed(recorded_checkpoints(directory, name)) if path not in candidates]
    fallback = next(filter(is_complete, [*candidates, *older]), None)
    skipped = candidates[: candidates.index(fallback)] if fallback and fallback in candidates else candidates
    warnings.warn(
        f"damaged or missing: {', '.join(map(str, skipped))}; using instead: {fallback or 'nothing'}",
        RetentionWarning,
        stacklevel=2,
    )
    return fallback


def checkpoint_at(path: PathLike) -> Path:
    """Return the path if it is a checkpoint, else the newest checkpoint of the run directory there, else the path."""
    target = local_path(path)
    return target if is_checkpoint(target) else latest_checkpoint(target) or target


def recorded_checkpoints(directory: Path, name: str, written_since: int = 0) -> list[tuple[Path, Record]]:
    """Return each checkpoint in a directory whose record names a state file, in the order of the saves.

    Checkpoints that were written before `written_since`, in nanoseconds since the epoch, are skipped.
    """
    try:
        entries = filesystem.list_directory(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [
        (directory / entry, record)
        for entry in entries
        if not entry.startswith(".") and (record := _record_for(directory / entry, name, written_since)) is not None
    ]
    return sorted(found, key=lambda each: (each[1].serial, each[1].time or 0.0))


def _record_for(path: Path, name: str, written_since: int = 0) -> Record | None:
    try:
        if filesystem.modified_ns(format_to_read(path).heading_file(path)) < written_since:
            return None
        record = read_record(path)
    except (CheckpointError, OSError):
        return None
    return record if record.state_file == name else None


def last_serial(directory: Path, name: str, listed: Sequence[Path]) -> int:
    """Return the serial number of the newest listed checkpoint that can be read, or 0."""
    records = (_record_for(path, name) for path in reversed(listed))
    return next((record.serial for record in records if record is not None), 0)


def unlisted_checkpoints(directory: Path, name: str, listed: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Return the checkpoints that a saver completed but did not list before its process ended, oldest first.

    They are newer than the state file, and each of them names the one before as its predecessor, beginning with the
    newest listed one. This excludes copies of checkpoints of other runs. If nothing is listed, they are all checkpoints
    that still have their recorded names.
    """
    try:
        state_time = filesystem.modified_ns(directory / name) if listed else 0
    except OSError:
        state_time = 0
    found = [
        (path, record)
        for path, record in recorded_checkpoints(directory, name, state_time)
        if record.name == path.name and path not in listed[-1:]
    ]
    if not listed:
        return found
    chain: list[tuple[Path, Record]] = []
    last, newest = last_serial(directory, name, listed) if found else 0, listed[-1].name
    for path, record in found:
        if record.predecessor == newest and record.serial > last:
            chain.append((path, record))
            last, newest = record.serial, path.name
    return chain


def unlisted_to_adopt(directory: Path, name: str, listed: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Return the unlisted checkpoints that retention may track, oldest first.

    If nothing is listed, they are tracked only if they are one run from its first save, whose saver was killed before
    it wrote the state file. Otherwise they may be a collection of checkpoints, which must not be deleted.
    """
    found = unlisted_checkpoints(directory, name, listed)
    predecessors = [None, *(path.name for path, _ in found[:-1])]
    is_one_run = all(record.predecessor == each for (_, record), each in zip(found, predecessors, strict=False))
    return found if listed or is_one_run else []


def saved_at(path: Path) -> float:
    """Return when a checkpoint was saved: as recorded, else when it was written; 0 if it cannot be read."""
    try:
        recorded = read_record(path).time
        return modified_time(path) if recorded is None else recorded
    except (CheckpointError, OSError):
        return 0.0


class Deletions(NamedTuple):
    """The result of deleting checkpoints: those that still exist, and a message for each problem."""

    remaining: set[Path]
    problems: list[str]

    def warn(self) -> None:
        """Warn about the problems. Call this last, since users may turn warnings into errors."""
        if self.problems:
            warnings.warn("\n".join(self.problems), RetentionWarning, stacklevel=3)


def list_and_delete(
    directory: Path,
    name: str,
    state_with: Callable[[set[Path]], CheckpointState],
    to_delete: Sequence[Path],
    saved: CheckpointEvent,
    *,
    on_listed: Callable[[], None] = lambda: None,
) -> Deletions:
    """Update a state file after a save, delete checkpoints, and record both in the history.

    The state file lists the checkpoints until they are deleted, so that the next saver finds them after a crash.

    Args:
        directory: the run directory.
        name: the name of the state file.
        state_with: returns the state that lists the given paths in addition to the kept checkpoints.
        to_delete: the checkpoints to delete.
        saved: the event of the new checkpoint, for the history.
        on_listed: called once the state file lists the new checkpoint, before anything is deleted.

    Raises:
        CheckpointIOError: if the state file cannot be written. If the first of two writes fails, nothing is deleted.
    """
    remaining = set(to_delete)
    write_state(directory, name, state_with(remaining))
    on_listed()
    problems = []
    for path in to_delete:
        if os.path.lexists(path / PINNED_NAME):
            continue  # pinned after the decision
        try:
            delete_checkpoint(path)
        except CheckpointNotFoundError as error:
            problems.append(f"could not delete an old checkpoint: {error}; it is no longer tracked")
        except CheckpointError as error:
            problems.append(f"could not delete an old checkpoint: {error}; the next save tries again")
            continue
        remaining.discard(path)
    if len(remaining) < len(to_delete):
        write_state(directory, name, state_with(remaining))
    deleted = [path for path in to_delete if path not in remaining]
    problem = append_history(directory, [saved, *deletions(directory, deleted, saved.time)])
    problems += [problem] if problem else []
    return Deletions(remaining, problems)


_POLL_SECS = 1.0


def checkpoints_iterator(
    checkpoint_dir: PathLike,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
) -> Iterator[Path]:
    """Yield each new latest checkpoint of a run directory. After `tf.train.checkpoints_iterator`.

    The directory is polled once a second. Checkpoints that are created and replaced by newer ones in between are
    skipped. The run may delete a checkpoint while it is being read: the read then either completes or raises an error.

    Args:
        checkpoint_dir: the run directory, which need not exist yet.
        min_interval_secs: the minimum number of seconds between two checkpoints.
        timeout: the number of seconds to wait for the next checkpoint; None waits indefinitely.
        timeout_fn: called after each timeout and after each checkpoint. The iterator ends when it returns True. By
            default, the iterator ends after the first timeout.

    Raises:
        ValueError: if `min_interval_secs` or `timeout` is negative.

    Example:
        >>> path = pytreesaver.Saver().save({"w": np.ones(3)}, "watched/model", global_step=1)
        >>> for path in checkpoints_iterator("watched", timeout=0):
        ...     print(path)
        watched/model-1
    """
    directory = local_path(checkpoint_dir)
    for what, value in (("min_interval_secs", min_interval_secs), ("timeout", timeout)):
        if value is not None and not value >= 0:
            raise ValueError(f"{what}: expected a non-negative number of seconds, found {value!r}")
    return _checkpoints(directory, min_interval_secs, timeout, timeout_fn)


def _checkpoints(
    directory: Path, min_interval_secs: float, timeout: float | None, timeout_fn: Callable[[], bool] | None
) -> Iterator[Path]:
    path: Path | None = None
    while True:
        new = _wait_for_next(directory, path, timeout)
        if new is None:
            if timeout_fn is None or timeout_fn():
                return
            continue
        path = new
        yielded = time.monotonic()
        yield path
        remaining = yielded + min_interval_secs - time.monotonic()
        if remaining > 0:
            time.sleep(remaining)
        if timeout_fn is not None and timeout_fn():
            return


def _wait_for_next(directory: Path, last: Path | None, timeout: float | None) -> Path | None:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        path = latest_checkpoint(directory)
        if path is not None and path != last:
            return path
        if deadline is not None and time.monotonic() + _POLL_SECS > deadline:
            return None
        time.sleep(_POLL_SECS)


def is_pinned(path: Path) -> bool:
    """Return whether a checkpoint is pinned, so that retention does not delete it."""
    return os.path.lexists(path / PINNED_NAME)
