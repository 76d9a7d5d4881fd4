"""What every saver does to a run directory: claim it, write its state file, and delete what retention lets go."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, RetentionWarning
from pytreesaver._io.atomic import make_durable_directory
from pytreesaver._paths import named_os_errors
from pytreesaver._run_directory import remove_checkpoint, write_state
from pytreesaver._run_lock import RunLock
from pytreesaver._state_file import CheckpointState


def claim(directory: Path, held: RunLock | None) -> RunLock:
    """The lock on a run directory, which is created if need be: `held` if it is that one.

    Raises:
        ConcurrentWriterError: another live process saves into the directory.
        CheckpointIOError: the directory cannot be created or written to.
    """
    with named_os_errors("save to", directory):
        make_durable_directory(directory)
        if held is not None and held.holds(directory):
            return held
        return RunLock(directory)


def list_and_delete(
    directory: Path, name: str, state_with: Callable[[set[str]], CheckpointState], doomed: Iterable[Path]
) -> set[Path]:
    """Bring a state file up to date and delete the doomed checkpoints; gives those that could not be deleted.

    The state file lists the doomed ones until they are gone: whoever comes after a crash in between finds them there.

    Args:
        directory: the run directory.
        name: the name of the state file.
        state_with: the state that lists what is kept and the paths it is called with.
        doomed: the checkpoints to delete.

    Raises:
        CheckpointIOError: the state file could not be written. If that was the first time, nothing was deleted.
    """
    remaining = {str(path): path for path in doomed}
    write_state(directory, name, state_with(set(remaining)))
    problems = []
    before = len(remaining)
    for path in list(remaining.values()):
        try:
            remove_checkpoint(path)
        except CheckpointNotFoundError as error:
            problems.append(f"{error}; it is not watched any more")
        except CheckpointError as error:
            problems.append(f"{error}; the next save tries again")
            continue
        del remaining[str(path)]
    if len(remaining) < before:
        write_state(directory, name, state_with(set(remaining)))
    if problems:
        warnings.warn("could not delete an old checkpoint: " + "\n".join(problems), RetentionWarning, stacklevel=2)
    return set(remaining.values())
