"""Delete checkpoints of a run directory by hand: those that a policy lets go, or those that are named."""

import os
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
)
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, canonical, local_path, wrap_os_errors
from pytreesaver._run.directory import delete_checkpoint, is_pinned, read_record, recorded_checkpoints
from pytreesaver._run.history import HISTORY_NAME, append_history, deletions
from pytreesaver._run.listing import ListedCheckpoint, list_checkpoints
from pytreesaver._run.lock import RunLock, claim
from pytreesaver._run.policies.retention import AnyOf, KeepBest, KeepSteps, RetentionPolicy
from pytreesaver._run.state_file import get_checkpoint_state, path_in_state, state_file_name, write_state
from pytreesaver._run.state_text import STATE_FILE_NAME, CheckpointState, paths_in_order
from pytreesaver.formats.registry import is_checkpoint


def prune(
    directory: PathLike,
    policy: RetentionPolicy | None = None,
    *,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> list[ListedCheckpoint]:
    """Delete the checkpoints of a run directory that a policy does not keep, and take them out of its state files.

    The newest complete checkpoint, pinned ones, and those in which something is wrong are always kept.

    Args:
        directory: the run directory. No process may be saving into it.
        policy: what to keep; if None, what the directory's saver has recorded.
        dry_run: delete nothing.
        clock: gives the time, in seconds since the epoch.

    Returns:
        What `list_checkpoints` gave before anything was deleted: those without `keep` have gone, or would go.

    Raises:
        CheckpointNotFoundError: there is no such directory.
        ConcurrentWriterError: another live process saves into it.
        ValueError: the policy names a metric or a step that no checkpoint has.
        CheckpointIOError: not all could be deleted; the message names them.

    Example:
        >>> for step in (1, 2, 3):
        ...     path = pytreesaver.save({"w": np.zeros(2)}, f"pruned/model-{step}")
        >>> [each.path.name for each in prune("pruned", pytreesaver.KeepLast(1)) if not each.keep]
        ['model-1', 'model-2']
        >>> [each.path.name for each in pytreesaver.list_checkpoints("pruned")]
        ['model-3']
    """
    found = list_checkpoints(directory, policy=policy, clock=clock)
    if policy is not None:
        _check_policy(policy, found)
    if dry_run or all(each.keep for each in found):
        return found
    where = local_path(directory)
    with _held(where) as lock:
        # Somebody may have saved or pinned one since: what is there now counts.
        found = list_checkpoints(directory, policy=policy, clock=clock)
        doomed = [each.path for each in found if not each.keep and not is_pinned(each.path)]
        errors = _delete_and_note(where, doomed, lock)
    if errors:
        problems = "\n".join(f"  {error}" for error in errors)
        raise CheckpointIOError(f"{where}: not every checkpoint could be deleted:\n{problems}")
    return found


def _check_policy(policy: RetentionPolicy, found: Sequence[ListedCheckpoint]) -> None:
    """Refuse a policy that names a metric or a step that no checkpoint has: it would keep less than it seems to."""
    if not found:
        return
    metrics = sorted({name for each in found for name in each.metrics})
    steps = [each.step for each in found]
    for part in policy.parts if isinstance(policy, AnyOf) else (policy,):
        if isinstance(part, KeepBest) and part.metric not in metrics:
            raise ValueError(f"KeepBest: expected one of the metrics that there are, {metrics}; found {part.metric!r}")
        if isinstance(part, KeepSteps) and (missing := [step for step in part.steps if step not in steps]):
            raise ValueError(f"KeepSteps: expected some of the steps that there are, {steps}; found {missing}")


def remove_checkpoint(path: PathLike, *, update_state: bool = False) -> bool:
    """Delete the checkpoint at exactly this path; gives whether there was one. After `tf.train.remove_checkpoint`.

    At every moment it is there whole or not at all. A reader that has opened it can read on.

    Args:
        path: the checkpoint.
        update_state: also take it out of the state files in its directory. As in TensorFlow, they stay as they are
            otherwise, and `latest_checkpoint` looks further, with a warning, if it was the newest.

    Raises:
        CheckpointNotFoundError: there is something at the path, and it is no checkpoint.
        CheckpointExistsError: there are other things than the checkpoint in its directory; nothing was deleted.
        CheckpointIOError: the system refused; the checkpoint is still there.
        ConcurrentWriterError: with `update_state`, if another live process saves into the directory.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "to-be-removed")
        >>> remove_checkpoint(path), remove_checkpoint(path)
        (True, False)
    """
    target = local_path(path)
    if not update_state:
        return delete_checkpoint(target)
    if not os.path.lexists(target):
        return False
    _remove(target.parent, [target])
    return True


def remove_all(paths: Sequence[Path]) -> None:
    """Delete checkpoints and take them out of the state files of their runs; look first whether all are there.

    Raises:
        CheckpointNotFoundError: one is not there, or is no checkpoint; nothing was deleted.
        What `remove_checkpoint` raises.
    """
    missing = [f"  {path}" for path in paths if not is_checkpoint(path)]
    if missing:
        raise CheckpointNotFoundError(
            "expected checkpoints to delete, found none at these paths; nothing was deleted:\n" + "\n".join(missing)
        )
    targets = [local_path(path) for path in dict.fromkeys(paths)]
    for directory in dict.fromkeys(target.parent for target in targets):
        _remove(directory, [target for target in targets if target.parent == directory])


def _remove(directory: Path, doomed: Sequence[Path]) -> None:
    """Delete checkpoints of one directory; where nobody else is to know, without holding it."""
    if not _states_that_list(directory, doomed) and not os.path.lexists(directory / HISTORY_NAME):
        for path in doomed:
            delete_checkpoint(path)
        return
    with _held(directory) as lock:
        errors = _delete_and_note(directory, doomed, lock)
    if errors:
        raise errors[0]


@contextmanager
def _held(directory: Path) -> Iterator[RunLock]:
    """Keep other savers out of a directory."""
    with wrap_os_errors("write to", directory):
        lock = claim(directory, None)
    try:
        with lock.saving:
            yield lock
    finally:
        lock.release()


def _delete_and_note(directory: Path, doomed: Sequence[Path], lock: RunLock) -> list[CheckpointError]:
    """Delete checkpoints, take those that are gone out of the state files, and note them in the history.

    Gives the errors of those that could not be deleted.
    """
    states = _states_that_list(directory, doomed)
    errors, problem = [], None
    try:
        for path in doomed:
            try:
                delete_checkpoint(path)
            except CheckpointError as error:
                errors.append(error)
    finally:
        if gone := [path for path in doomed if not os.path.lexists(path)]:
            for name, state in states.items():
                _write_without_lost(directory, name, state)
            lock.wrote_last(_delete_and_note)  # what savers of this process remember is no longer so
            if states or os.path.lexists(directory / HISTORY_NAME):
                problem = append_history(directory, deletions(directory, gone, time.time()))
    if problem:
        warnings.warn(problem, RetentionWarning, stacklevel=3)
    return errors


def _states_that_list(directory: Path, wanted: Sequence[Path]) -> dict[str, CheckpointState]:
    """The state files of a directory, by name, that list a path of these."""
    places = {canonical(path) for path in wanted}
    names = {STATE_FILE_NAME}
    for path in wanted:
        with suppress(CheckpointError, OSError):
            names.add(state_file_name(read_record(path).state_file))
    found = {}
    for name in sorted(names):
        with suppress(CorruptCheckpointError):  # it lists nothing
            state = get_checkpoint_state(directory, name)
            if state is not None and places & {canonical(path) for path in paths_in_order(state)}:
                found[name] = state
    return found


def _write_without_lost(directory: Path, name: str, state: CheckpointState) -> None:
    """Write a state file again without the checkpoints that are not there any more."""
    times = dict(zip(state.all_model_checkpoint_paths, state.all_model_checkpoint_timestamps, strict=False))
    watched = [path for path in dict.fromkeys(state.all_model_checkpoint_paths) if os.path.lexists(path)]
    there = [path for path in paths_in_order(state) if os.path.lexists(path)]
    if not there:
        # Those that are left are kept for ever, which a state file says by naming the newest of them and listing none.
        there = [str(path) for path, record in recorded_checkpoints(directory, name) if record.name == path.name]
    if not there:
        with wrap_os_errors("write to", directory):
            filesystem.remove_file(directory / name)
        return
    write_state(
        directory,
        name,
        CheckpointState(
            path_in_state(there[-1], directory),
            [path_in_state(path, directory) for path in watched],
            [times[path] for path in watched] if all(path in times for path in watched) else [],
            state.last_preserved_timestamp,
        ),
    )
