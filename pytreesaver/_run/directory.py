"""A run directory: the checkpoints in it, and the state file that says which is the newest. As in `tf.train`.

State files are TensorFlow's, checkpoints are pytreesaver's. Paths in a state file are relative to its directory, so
that a run directory can be moved and copied.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pytreesaver._errors import (
    CheckpointError,
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
    """Whether there is a checkpoint at `path` whose index is intact and whose files have their sizes."""
    try:
        with opened(path) as reader:
            reader.check()
    except (CheckpointError, OSError):
        return False
    return True


def checkpoint_exists(path: PathLike) -> bool:
    """Whether there is a complete checkpoint at exactly this path. After `tf.train.checkpoint_exists`.

    Its index is checked, and that its files are there; `verify` checks every byte.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "existing")
        >>> checkpoint_exists(path), checkpoint_exists("exist*")
        (True, False)
    """
    return is_complete(local_path(path))


def get_checkpoint_mtimes(paths: Iterable[PathLike]) -> list[float]:
    """When the checkpoints were written, in seconds since the epoch. After `tf.train.get_checkpoint_mtimes`.

    As in TensorFlow, a path without a checkpoint has no entry in the list.

    Example:
        >>> len(get_checkpoint_mtimes([pytreesaver.save({"w": np.ones(3)}, "timed"), "not there"]))
        1
    """
    return [modified_time(path) for path in map(local_path, paths) if is_complete(path)]


def modified_time(path: Path) -> float:
    """When a checkpoint was written, in seconds since the epoch."""
    return filesystem.modified_ns(format_to_read(path).heading_file(path)) / 1e9


def delete_checkpoint(target: Path) -> bool:
    """Delete the checkpoint at a path; gives whether there was one. Raises what `remove_checkpoint` raises."""
    if not os.path.lexists(target):
        return False
    with wrap_os_errors("remove", target):
        found = format_at(target)
        if found is None:
            raise CheckpointNotFoundError(f"{target}: expected a checkpoint to remove, found something else")
        found.remove(target)
    return True


def read_record(path: Path) -> Record:
    """What was recorded with a checkpoint. Raises what `load_checkpoint` raises."""
    with wrap_os_errors("read", path):
        return decode_record(format_to_read(path).read_heading(path).record, path)


def latest_checkpoint(checkpoint_dir: PathLike, latest_filename: str | None = None) -> Path | None:
    """The newest complete checkpoint of a run directory, or None. After `tf.train.latest_checkpoint`.

    It is the one that the state file names as the newest. Where TensorFlow would give up, this looks further: if that
    one is damaged or gone, the one before it is given, with a `RetentionWarning`; and a checkpoint that was completed
    by a `Saver` or `CheckpointManager` which died before it could list it counts too. Indexes and the sizes of files
    are checked, arrays are not read.

    Example:
        >>> saver = pytreesaver.Saver()
        >>> path = saver.save({"w": np.ones(3)}, "latest/model", global_step=100)
        >>> latest_checkpoint("latest"), latest_checkpoint("no such run")
        (PosixPath('latest/model-100'), None)
    """
    directory, name = local_path(checkpoint_dir), state_file_name(latest_filename)
    listed: list[Path] | None = None
    while True:
        before, listed = listed, listed_checkpoints(directory, name)
        if listed == before:
            break
        unlisted = [path for path, _ in unlisted_checkpoints(directory, name, listed)]
        candidates = [*reversed(unlisted), *(path for path in reversed(listed) if path not in unlisted)]
        newest = next(filter(is_complete, candidates[:1]), None)
        if newest is not None or not candidates:
            return newest
        # A saver may have replaced and deleted it in this moment; then the state file has changed too.
    older = [path for path, _ in reversed(recorded_checkpoints(directory, name)) if path not in candidates]
    offered = next(filter(is_complete, [*candidates, *older]), None)
    skipped = candidates[: candidates.index(offered)] if offered in candidates else candidates
    warnings.warn(
        f"damaged or gone: {', '.join(map(str, skipped))}; offered instead: {offered or 'nothing'}",
        RetentionWarning,
        stacklevel=2,
    )
    return offered


def checkpoint_at(path: PathLike) -> Path:
    """The checkpoint at a path, or the newest one of the run directory there; the path itself if there is neither."""
    target = local_path(path)
    return target if is_checkpoint(target) else latest_checkpoint(target) or target


def recorded_checkpoints(directory: Path, name: str, written_since: int = 0) -> list[tuple[Path, Record]]:
    """Every checkpoint in a directory that was recorded for a state file, in the order of the saves.

    `written_since`, in nanoseconds since the epoch, passes over those whose files are older.
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
    """The serial number of the newest checkpoint that a state file lists and that can be read, 0 if none can."""
    records = (_record_for(path, name) for path in reversed(listed))
    return next((record.serial for record in records if record is not None), 0)


def unlisted_checkpoints(directory: Path, name: str, listed: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Checkpoints that a saver completed and did not come to list before it died, oldest first.

    They were written after the state file was, and saved after the newest one in it, one after the other; copies of
    the checkpoints of other runs were not. Without a state file it is every one that was not copied under another name.
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
    """The unlisted checkpoints that retention may take charge of, oldest first.

    Where there is no state file they are a run from its beginning, whose saver never came to write it, or a collection.
    """
    found = unlisted_checkpoints(directory, name, listed)
    predecessors = [None, *(path.name for path, _ in found[:-1])]
    whole_run = all(record.predecessor == each for (_, record), each in zip(found, predecessors, strict=False))
    return found if listed or whole_run else []


def saved_at(path: Path) -> float:
    """When a checkpoint was saved: as recorded with it, or else by the time of its files; 0 if it cannot be read."""
    try:
        recorded = read_record(path).time
        return modified_time(path) if recorded is None else recorded
    except (CheckpointError, OSError):
        return 0.0


class Deletions(NamedTuple):
    """What came of deleting: the checkpoints that could not be deleted, and lines that say what went wrong."""

    remaining: set[Path]
    problems: list[str]

    def warn(self) -> None:
        """Say what went wrong, when everything else is done: a warning may be an error."""
        if self.problems:
            warnings.warn("\n".join(self.problems), RetentionWarning, stacklevel=3)


def list_and_delete(
    directory: Path,
    name: str,
    state_with: Callable[[set[Path]], CheckpointState],
    doomed: Sequence[Path],
    saved: CheckpointEvent,
    *,
    listed: Callable[[], None] = lambda: None,
) -> Deletions:
    """Bring a state file up to date, delete the doomed checkpoints, and note both in the history.

    The state file lists the doomed ones until they are gone: whoever comes after a crash in between finds them there.

    Args:
        directory: the run directory.
        name: the name of the state file.
        state_with: the state that lists what is kept and the paths it is called with.
        doomed: the checkpoints to delete.
        saved: what the history of the directory is to tell of the new checkpoint.
        listed: called when the state file lists the new checkpoint, before anything is deleted.

    Raises:
        CheckpointIOError: the state file could not be written. If that was the first time, nothing was deleted.
    """
    remaining = set(doomed)
    write_state(directory, name, state_with(remaining))
    listed()
    problems = []
    for path in doomed:
        if os.path.lexists(path / PINNED_NAME):
            continue  # pinned since that was decided
        try:
            delete_checkpoint(path)
        except CheckpointNotFoundError as error:
            problems.append(f"could not delete an old checkpoint: {error}; it is not watched any more")
        except CheckpointError as error:
            problems.append(f"could not delete an old checkpoint: {error}; the next save tries again")
            continue
        remaining.discard(path)
    if len(remaining) < len(doomed):
        write_state(directory, name, state_with(remaining))
    gone = [path for path in doomed if path not in remaining]
    problem = append_history(directory, [saved, *deletions(directory, gone, saved.time)])
    problems += [problem] if problem else []
    return Deletions(remaining, problems)


_POLL_EVERY = 1.0


def checkpoints_iterator(
    checkpoint_dir: PathLike,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
) -> Iterator[Path]:
    """Give each new latest checkpoint of a run directory, as it comes. After `tf.train.checkpoints_iterator`.

    The directory is looked at once a second. Checkpoints that come and go in between are passed over; the run may
    delete one while it is being read, and then the read either completes or raises an error.

    Args:
        checkpoint_dir: the run directory, which need not exist yet.
        min_interval_secs: at least how many seconds lie between two checkpoints that are given.
        timeout: how many seconds to wait for the next one; None waits for ever.
        timeout_fn: called after a timeout, and after each checkpoint; the iterator ends when it gives True. Without
            one it ends after the first timeout.

    Raises:
        ValueError: `min_interval_secs` or `timeout` is negative.

    Example:
        >>> path = pytreesaver.Saver().save({"w": np.ones(3)}, "watched/model", global_step=1)
        >>> for path in checkpoints_iterator("watched", timeout=0):
        ...     print(path)
        watched/model-1
    """
    directory = local_path(checkpoint_dir)
    for what, value in (("min_interval_secs", min_interval_secs), ("timeout", timeout)):
        if value is not None and not value >= 0:
            raise ValueError(f"{what}: expected no negative number of seconds, found {value!r}")
    return _checkpoints(directory, min_interval_secs, timeout, timeout_fn)


def _checkpoints(
    directory: Path, min_interval_secs: float, timeout: float | None, timeout_fn: Callable[[], bool] | None
) -> Iterator[Path]:
    path: Path | None = None
    while True:
        new = _wait_for_another(directory, path, timeout)
        if new is None:
            if timeout_fn is None or timeout_fn():
                return
            continue
        path = new
        given = time.monotonic()
        yield path
        rest = given + min_interval_secs - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        if timeout_fn is not None and timeout_fn():
            return


def _wait_for_another(directory: Path, last: Path | None, timeout: float | None) -> Path | None:
    stop = None if timeout is None else time.monotonic() + timeout
    while True:
        path = latest_checkpoint(directory)
        if path is not None and path != last:
            return path
        if stop is not None and time.monotonic() + _POLL_EVERY > stop:
            return None
        time.sleep(_POLL_EVERY)


def is_pinned(path: Path) -> bool:
    """Whether retention is to leave a checkpoint alone."""
    return os.path.lexists(path / PINNED_NAME)
