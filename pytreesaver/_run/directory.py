"""A run directory: its checkpoints, and the state file that names the newest one. As in `tf.train`.

State files have TensorFlow's format, checkpoints have pytreesaver's. Paths in a state file are relative to its
directory, so that a run directory can be moved and copied.
"""

import errno
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pytreesaver._errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
    UnsupportedVersionError,
)
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, again_after_io_error, local_path, wrap_os_errors
from pytreesaver._run.history import CheckpointEvent, append_history, deletions
from pytreesaver._run.recorded import (
    check_has_listings,
    modified_time,
    recorded_checkpoints,
    recorded_time,
    saved_at,
    unlisted_checkpoints,
    visible_entries,
)
from pytreesaver._run.state_file import listed_checkpoints, write_state
from pytreesaver._run.state_text import STATE_FILE_NAME, CheckpointState, state_file_name
from pytreesaver.formats import places
from pytreesaver.formats.protocol import CheckpointReader, pin_of
from pytreesaver.formats.registry import format_at, is_checkpoint, open_reader, opened

logger = logging.getLogger("pytreesaver")


def newest_listed(directory: Path) -> Path | None:
    """Return the checkpoint of a run directory that was saved last, even if it is damaged, or None."""
    listed = listed_checkpoints(directory, STATE_FILE_NAME)
    unlisted = [path for path, _ in unlisted_checkpoints(directory, STATE_FILE_NAME, listed)]
    return next(iter([*reversed(unlisted), *reversed(listed)]), None)


def is_complete(path: Path) -> bool:
    """Return whether there is a checkpoint at `path` with an intact index and files of the right sizes.

    Raises:
        CheckpointIOError: if the system could not look.
    """
    try:
        with opened(path) as reader:
            reader.check()
    except (CheckpointNotFoundError, CorruptCheckpointError, UnsupportedVersionError):
        return False
    return True


def _is_usable(path: Path) -> bool:
    try:
        return again_after_io_error(lambda: is_complete(path))
    except CheckpointIOError as error:
        if error.errno != errno.EIO:
            raise
        return False  # a bad sector is damage


def checkpoint_exists(path: PathLike) -> bool:
    """Return whether there is a complete checkpoint at exactly this path. After `tf.train.checkpoint_exists`.

    Only the index and the sizes of the files are checked; `verify` checks every byte.

    Raises:
        CheckpointIOError: if the system could not look.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "existing")
        >>> checkpoint_exists(path), checkpoint_exists("exist*")
        (True, False)
    """
    return is_complete(local_path(path))


def get_checkpoint_mtimes(paths: Iterable[PathLike]) -> list[float]:
    """Return when checkpoints were written, in seconds since the epoch. After `tf.train.get_checkpoint_mtimes`.

    As in TensorFlow, a path without a complete checkpoint has no entry in the list.

    Raises:
        CheckpointIOError: if the system could not look.

    Example:
        >>> len(get_checkpoint_mtimes([pytreesaver.save({"w": np.ones(3)}, "timed"), "not there"]))
        1
    """
    return [modified_time(path) for path in map(local_path, paths) if is_complete(path)]


def check_run_directory(directory: Path) -> None:
    """Raise a CheckpointExistsError if there is a checkpoint at the path of a run directory.

    Raises:
        ValueError: if it is in a store without listings, where a run cannot be looked at.
    """
    check_has_listings(directory)
    if is_checkpoint(directory):
        raise CheckpointExistsError(
            f"{directory}: expected a run directory, found a checkpoint; pass the directory that contains it"
        )


def delete_checkpoint(target: Path) -> bool:
    """Delete the checkpoint at a path. Return whether it existed. Raises what `remove_checkpoint` raises."""
    with wrap_os_errors("remove", target):
        filesystem.refuse_read_only(target)
        if not places.exists(target):
            return False
        found = format_at(target)
        if found is None:
            raise CheckpointNotFoundError(f"{target}: expected a checkpoint to remove, found something else")
        found.remove(target)
    return True


def latest_checkpoint(checkpoint_dir: PathLike, latest_filename: str | None = None) -> Path | None:
    """Return the newest complete checkpoint of a run directory, or None. After `tf.train.latest_checkpoint`.

    This is the checkpoint that the state file names as the newest. Unlike TensorFlow, this function also finds newer
    checkpoints that a `Saver` or `CheckpointManager` completed but did not list before its process ended, and if the
    newest checkpoint is damaged or missing, it returns the one before it, with a `RetentionWarning`. If the directory
    was moved, and its state file has absolute paths, it finds the same names in the directory. Without a state
    file, it finds the newest checkpoint whose name ends in a step, such as ``ckpt-100``, or ``100`` as Orbax names it.
    Only indexes and the sizes of files are checked; arrays are not read. ``""`` is the working directory.

    Raises:
        CheckpointIOError: if the system could not look, for example because a permission is missing.

    Example:
        >>> saver = pytreesaver.Saver()
        >>> path = saver.save({"w": np.ones(3)}, "latest/model", global_step=100)
        >>> latest_checkpoint("latest"), latest_checkpoint("no such run")
        (PosixPath('latest/model-100'), None)
    """
    directory = Path() if checkpoint_dir == "" else local_path(checkpoint_dir)
    name = state_file_name(latest_filename)
    listed: list[Path] | None = None
    candidates: list[Path] = []
    while True:
        before, listed = listed, listed_checkpoints(directory, name)
        if listed == before:
            break
        unlisted = [path for path, _ in unlisted_checkpoints(directory, name, listed)]
        candidates = [*reversed(unlisted), *(path for path in reversed(listed) if path not in unlisted)]
        newest = next(filter(_is_usable, candidates[:1]), None)
        if newest is not None:
            return newest
        if not candidates:
            return _newest_plain(directory) if latest_filename is None else None
        # A saver may have deleted it concurrently. Then the state file has changed too: read it again.
    older = [path for path, _ in reversed(recorded_checkpoints(directory, name)) if path not in candidates]
    # A state file with absolute paths, as TensorFlow writes it, in a directory that has been moved.
    moved = [directory / path.name for path in candidates]
    fallback = next(filter(_is_usable, [*candidates, *older, *moved]), None)
    skipped = candidates[: candidates.index(fallback)] if fallback and fallback in candidates else candidates
    _warn_of_skipped(skipped, fallback)
    return fallback


def _newest_plain(directory: Path) -> Path | None:
    """Return the newest complete checkpoint whose name ends in a step, or None. Nothing lists such checkpoints."""
    try:
        entries = visible_entries(directory)
    except CheckpointIOError as error:
        if filesystem.is_absence(error):
            return None
        raise
    steps = {path: int(match[1]) for path in entries if (match := _ENDS_IN_STEP.fullmatch(path.name))}
    found = [path for path in steps if again_after_io_error(partial(is_checkpoint, path))]
    times = {path: recorded_time(path) for path in found}
    if None in times.values():  # copying changes the times of files, but not the steps
        times = {}
    found.sort(key=lambda path: (times.get(path) or 0.0, steps[path], saved_at(path)), reverse=True)
    newest = next(filter(_is_usable, found), None)
    skipped = found[: found.index(newest)] if newest else found
    if skipped:
        _warn_of_skipped(skipped, newest)
    return newest


_ENDS_IN_STEP = re.compile(r"(?:.*[-_])?([0-9]+)(?:\.[a-z]+)?", re.DOTALL)


def _warn_of_skipped(skipped: Sequence[Path], fallback: Path | None) -> None:
    instead = f"using instead: {fallback}" if fallback else "no usable checkpoint is left"
    warnings.warn(
        f"damaged or missing: {', '.join(map(str, skipped))}; {instead}",
        RetentionWarning,
        stacklevel=3,
    )


def checkpoint_at(path: PathLike) -> Path:
    """Return the path if it is a checkpoint, else the newest checkpoint of the run directory there, else the path.

    The newest checkpoint of a run directory is logged, since the caller did not name it.
    """
    target = local_path(path)
    if is_checkpoint(target):
        return target
    newest = latest_checkpoint(target)
    if newest is not None:
        logger.info("%s is a run directory; its newest checkpoint is %s", target, newest)
    return newest or target


def open_checkpoint(
    path: PathLike, format: str | None = None, newest_at: Callable[[PathLike], Path] = checkpoint_at
) -> CheckpointReader:
    """Open a checkpoint, or the newest one of a run directory. Raises what `open_reader` raises.

    Args:
        path: the path of either.
        format: as in `open_reader`.
        newest_at: chooses the checkpoint of a run directory.
    """
    try:
        return open_reader(path, format)
    except CheckpointNotFoundError:
        newest = newest_at(path)
        if newest == local_path(path):
            raise
        return open_reader(newest, format)


@contextmanager
def opened_checkpoint(
    path: PathLike, format: str | None = None, newest_at: Callable[[PathLike], Path] = checkpoint_at
) -> Iterator[CheckpointReader]:
    """Open a checkpoint for a ``with`` block, as `open_checkpoint`."""
    reader = open_checkpoint(path, format, newest_at)
    try:
        with wrap_os_errors("read", reader.path):
            yield reader
    finally:
        reader.close()


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
        try:
            if is_pinned(path):
                continue  # pinned after the decision
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
    """Return whether a checkpoint is pinned, so that retention does not delete it.

    Raises:
        CheckpointIOError: if the system could not look.
    """
    with wrap_os_errors("look at", path):
        return filesystem.exists(pin_of(path, is_directory=filesystem.is_directory(path)))


def may_be_pinned(path: Path) -> bool:
    """Return whether a checkpoint is pinned, or the system could not look."""
    try:
        return is_pinned(path)
    except CheckpointIOError:
        return True
