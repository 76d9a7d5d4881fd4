"""Deletion of checkpoints from a run directory, by a retention policy or by path."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pytreesaver._errors import (
    CheckpointError,
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
    UnsupportedVersionError,
)
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, as_path, canonical, local_path, wrap_os_errors
from pytreesaver._run.directory import delete_checkpoint
from pytreesaver._run.history import HISTORY_NAME, append_history, deletions
from pytreesaver._run.listing import ListedCheckpoint, listed_and_unreadable
from pytreesaver._run.lock import RunLock, claim
from pytreesaver._run.policies.retention import AnyOf, KeepBest, KeepSteps, RetentionPolicy
from pytreesaver._run.recorded import read_record, recorded_checkpoints
from pytreesaver._run.state_file import path_in_state, read_state_file, remove_state, write_state
from pytreesaver._run.state_text import STATE_FILE_NAME, CheckpointState, paths_in_order, state_file_name
from pytreesaver.formats import places
from pytreesaver.formats.registry import is_checkpoint


def prune(
    directory: PathLike,
    policy: RetentionPolicy | None = None,
    *,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> list[ListedCheckpoint]:
    """Delete the checkpoints of a run directory that a policy does not keep, and remove them from its state files.

    The newest complete checkpoint, pinned checkpoints and damaged checkpoints are always kept.

    Args:
        directory: the run directory. No other process may be saving into it.
        policy: a retention policy; if None, the rules that the savers of the directory recorded apply.
        dry_run: whether to delete nothing.
        clock: returns the time, in seconds since the epoch.

    Returns:
        What `list_checkpoints` returned before the deletion. Checkpoints without `keep` were deleted, or would be.

    Raises:
        CheckpointNotFoundError: if the directory does not exist, or is itself a checkpoint.
        ConcurrentWriterError: if another live process is saving into the directory.
        ValueError: if the policy names a metric or a step that no checkpoint has.
        CheckpointIOError: if the system could not look at some checkpoints, or could not delete some. The message names
            them. The others were deleted.

    Example:
        >>> for step in (1, 2, 3):
        ...     path = pytreesaver.save({"w": np.zeros(2)}, f"pruned/model-{step}")
        >>> [each.path.name for each in prune("pruned", pytreesaver.KeepLast(1)) if not each.keep]
        ['model-1', 'model-2']
        >>> [each.path.name for each in pytreesaver.list_checkpoints("pruned")]
        ['model-3']
    """
    found, errors = listed_and_unreadable(directory, policy, clock)
    if policy is not None:
        _check_policy(policy, found)
    if dry_run:
        return found
    where = local_path(directory)
    failures: list[CheckpointError] = []
    if not all(each.keep for each in found):
        with _locked(where) as lock:
            # Another process may have saved or pinned a checkpoint before the directory was locked.
            found, errors = listed_and_unreadable(directory, policy, clock)
            to_delete = [each.path for each in found if not each.keep]
            failures = _delete_and_record(where, to_delete, lock)
    if errors or failures:
        problems = "\n".join(f"  {error}" for error in (*errors, *failures))
        raise CheckpointIOError(f"{where}: some checkpoints could not be deleted:\n{problems}")
    return found


def _check_policy(policy: RetentionPolicy, found: Sequence[ListedCheckpoint]) -> None:
    """Raise a ValueError if the policy names a metric or step that no checkpoint has."""
    if not found:
        return
    metrics = sorted({name for each in found for name in each.metrics})
    steps = [each.step for each in found]
    for part in policy.parts if isinstance(policy, AnyOf) else (policy,):
        if isinstance(part, KeepBest) and part.metric not in metrics:
            raise ValueError(f"KeepBest: expected one of the metrics {metrics}, found {part.metric!r}")
        if isinstance(part, KeepSteps) and (missing := [step for step in part.steps if step not in steps]):
            raise ValueError(f"KeepSteps: expected some of the steps {steps}, found {missing}")


def remove_checkpoint(path: PathLike, *, update_state: bool = False) -> bool:
    """Delete the checkpoint at exactly this path. Return whether it existed. After `tf.train.remove_checkpoint`.

    The deletion is atomic. Readers that have opened the checkpoint can continue to read it.

    Args:
        path: the checkpoint.
        update_state: whether to remove it from the state files in its directory. By default, as in TensorFlow, they do
            not change; if it was the newest checkpoint, `latest_checkpoint` then returns an older one, with a warning.

    Raises:
        CheckpointNotFoundError: if the path exists but is not a checkpoint.
        CheckpointExistsError: if the directory of the checkpoint contains other files. Nothing is deleted.
        CheckpointIOError: if the deletion fails. The checkpoint still exists.
        ConcurrentWriterError: with `update_state`, if another live process is saving into the directory.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "to-be-removed")
        >>> remove_checkpoint(path), remove_checkpoint(path)
        (True, False)
    """
    target = local_path(path)
    if not update_state:
        return delete_checkpoint(target)
    with wrap_os_errors("remove", target):
        if not places.exists(target):
            return False
    _remove(target.parent, [target])
    return True


def remove_all(paths: Sequence[Path]) -> None:
    """Delete checkpoints and remove them from the state files of their runs, if all of them exist.

    Raises:
        CheckpointNotFoundError: if a path does not exist or is not a checkpoint. Nothing is deleted.
        What `remove_checkpoint` raises.
    """
    missing = [f"  {path}" for path in paths if not is_checkpoint(path)]
    if missing:
        raise CheckpointNotFoundError(
            "nothing was deleted; expected checkpoints, found none at these paths:\n" + "\n".join(missing)
        )
    targets = [local_path(path) for path in dict.fromkeys(paths)]
    for directory in dict.fromkeys(target.parent for target in targets):
        _remove(directory, [target for target in targets if target.parent == directory])


def _remove(directory: Path, paths: Sequence[Path]) -> None:
    """Delete checkpoints of one directory. Lock it only if a state file or a history has to be updated."""
    if not _states_that_list(directory, paths) and not filesystem.may_exist(directory / HISTORY_NAME):
        for path in paths:
            delete_checkpoint(path)
        return
    with _locked(directory) as lock:
        errors = _delete_and_record(directory, paths, lock)
    if errors:
        raise errors[0]


@contextmanager
def _locked(directory: Path) -> Iterator[RunLock]:
    """Exclude other savers, of this process too, from a directory."""
    with wrap_os_errors("write to", directory):
        lock = claim(directory, None)
    try:
        with lock.saving:
            yield lock
    finally:
        lock.release()


def _delete_and_record(directory: Path, paths: Sequence[Path], lock: RunLock) -> list[CheckpointError]:
    """Delete checkpoints, and update the state files and the history. Return the errors of failed deletions."""
    states = _states_that_list(directory, paths)
    done: set[Path] = set()
    errors, problem = [], None
    try:
        for path in paths:
            try:
                delete_checkpoint(path)
                done.add(path)
            except CheckpointError as error:
                errors.append(error)
    finally:
        if deleted := [path for path in paths if path in done or not places.may_exist(path)]:
            for name, state in states.items():
                _write_without(directory, name, state, {canonical(path) for path in deleted})
            lock.advance()  # so that savers of this process read the state file again
            if states or filesystem.may_exist(directory / HISTORY_NAME):
                problem = append_history(directory, deletions(directory, deleted, time.time()))
    if problem:
        warnings.warn(problem, RetentionWarning, stacklevel=3)
    return errors


def _states_that_list(directory: Path, wanted: Sequence[Path]) -> dict[str, CheckpointState]:
    """Return the state files of a directory that list any of these paths, by name."""
    locations = {canonical(path) for path in wanted}
    names = {STATE_FILE_NAME}
    for path in wanted:
        with suppress(CheckpointNotFoundError, CorruptCheckpointError, UnsupportedVersionError):
            names.add(state_file_name(read_record(path).state_file))
    found = {}
    for name in sorted(names):
        with suppress(CorruptCheckpointError):  # a damaged state file lists nothing
            state, problem = read_state_file(directory, name)
            listed = paths_in_order(state) if state is not None and problem is None else []
            if state is not None and locations & {canonical(path) for path in listed}:
                found[name] = state
    return found


def _write_without(directory: Path, name: str, state: CheckpointState, deleted: set[Path]) -> None:
    """Write a state file without deleted checkpoints and those that do not exist. Remove it if none of its run does."""

    def remains(path: str) -> bool:
        return canonical(path) not in deleted and places.may_exist(as_path(path))

    times = dict(zip(state.all_model_checkpoint_paths, state.all_model_checkpoint_timestamps, strict=False))
    tracked = [path for path in dict.fromkeys(state.all_model_checkpoint_paths) if remains(path)]
    existing = [path for path in paths_in_order(state) if remains(path)]
    if not existing:
        # The remaining checkpoints are kept permanently: the state file names the newest of them and lists none.
        existing = [str(path) for path, record in recorded_checkpoints(directory, name) if record.name == path.name]
    if not existing:
        remove_state(directory, name)
        return
    write_state(
        directory,
        name,
        CheckpointState(
            path_in_state(existing[-1], directory),
            [path_in_state(path, directory) for path in tracked],
            [times[path] for path in tracked] if all(path in times for path in tracked) else [],
            state.last_preserved_timestamp,
        ),
    )
