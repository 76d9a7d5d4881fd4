"""Delete checkpoints of a run directory by hand: those that a policy lets go, or those that are named."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pytreesaver._errors import CheckpointError, CheckpointIOError, CorruptCheckpointError, RetentionWarning
from pytreesaver._history import HISTORY_NAME, append_history, deletions
from pytreesaver._io import filesystem
from pytreesaver._listing import ListedCheckpoint, list_checkpoints
from pytreesaver._paths import PathLike, canonical, local_path, named_os_errors
from pytreesaver._retention import RetentionPolicy
from pytreesaver._run_directory import (
    delete_checkpoint,
    get_checkpoint_state,
    path_in_state,
    read_record,
    state_file_name,
    write_state,
)
from pytreesaver._run_writer import claim
from pytreesaver._state_file import STATE_FILE_NAME, CheckpointState


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
    doomed = [each.path for each in found if not each.keep]
    if doomed and not dry_run:
        _delete_all(local_path(directory), doomed)
    return found


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
    with _out_of_state(target.parent, [target]):
        return delete_checkpoint(target)


def _delete_all(directory: Path, doomed: Sequence[Path]) -> None:
    problems = []
    with _out_of_state(directory, doomed):
        for path in doomed:
            try:
                delete_checkpoint(path)
            except CheckpointError as error:
                problems.append(f"  {error}")
    if problems:
        raise CheckpointIOError(f"{directory}: not every checkpoint could be deleted:\n" + "\n".join(problems))


@contextmanager
def _out_of_state(directory: Path, doomed: Sequence[Path]) -> Iterator[None]:
    """Hold the directory, and afterwards take out of its state files those of the doomed that are gone by then, and
    note in its history that they are."""
    listing = _states_that_list(directory, {canonical(path) for path in doomed})
    if not listing and not os.path.lexists(directory / HISTORY_NAME):
        yield
        return
    with named_os_errors("write to", directory):
        lock = claim(directory, None)
    try:
        with lock.saving:
            try:
                yield
            finally:
                for name, state in _states_that_list(directory, {canonical(path) for path in doomed}).items():
                    _write_without_lost(directory, name, state)
                gone = [path for path in doomed if not os.path.lexists(path)]
                problem = append_history(directory, deletions(directory, gone, time.time()))
    finally:
        lock.release()
    if problem:
        warnings.warn(problem, RetentionWarning, stacklevel=4)


def _states_that_list(directory: Path, wanted: set[Path]) -> dict[str, CheckpointState]:
    """The state files of a directory, by name, that list a path of these."""
    names = [STATE_FILE_NAME, *_state_file_names(directory)]
    found = {}
    for name in dict.fromkeys(names):
        with suppress(CorruptCheckpointError):  # it lists nothing
            state = get_checkpoint_state(directory, name)
            if state is not None and wanted & set(map(canonical, _paths_in(state))):
                found[name] = state
    return found


def _state_file_names(directory: Path) -> Iterator[str]:
    for entry in filesystem.list_directory(directory):
        with suppress(CheckpointError, OSError):
            name = None if entry.startswith(".") else read_record(directory / entry).state_file
            if name is not None:
                yield state_file_name(name)


def _paths_in(state: CheckpointState) -> list[str]:
    return list(dict.fromkeys([*state.all_model_checkpoint_paths, state.model_checkpoint_path]))


def _write_without_lost(directory: Path, name: str, state: CheckpointState) -> None:
    """Write a state file again without the checkpoints that are not there any more."""
    paths, times = _paths_in(state), state.all_model_checkpoint_timestamps
    there = [i for i, path in enumerate(paths) if os.path.lexists(path)]
    if not there:
        with named_os_errors("write to", directory):
            filesystem.remove_file(directory / name)
        return
    kept = [path_in_state(paths[i], directory) for i in there]
    kept_times = [times[i] for i in there] if len(times) == len(paths) else []
    write_state(directory, name, CheckpointState(kept[-1], kept, kept_times, state.last_preserved_timestamp))
