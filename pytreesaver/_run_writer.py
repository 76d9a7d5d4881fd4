"""What every saver does to a run directory: claim it, write its state file, and delete what retention lets go."""

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pytreesaver._background import OneAtATime, within
from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, RetentionWarning
from pytreesaver._history import CheckpointEvent, append_history, deletions
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import make_durable_directory
from pytreesaver._paths import named_os_errors
from pytreesaver._run_directory import delete_checkpoint, write_state
from pytreesaver._run_lock import RunLock
from pytreesaver._state_file import CheckpointState
from pytreesaver.formats import PINNED_NAME, native


def claim(directory: Path, held: RunLock | None) -> RunLock:
    """The lock on a run directory, which is created if need be: `held` if it is that one.

    With a new lock, what killed overwrites have left in its checkpoints is removed.

    Raises:
        ConcurrentWriterError: another live process saves into the directory.
        CheckpointIOError: the directory cannot be created or written to.
    """
    with named_os_errors("save to", directory):
        make_durable_directory(directory)
        if held is not None and held.holds(directory):
            return held
        lock = RunLock(directory)
        for entry in filesystem.list_directory(directory):
            if not entry.startswith("."):
                native.remove_unlisted_files(directory / entry)
        return lock


class WriterSession:
    """One saver's hold on a run directory, and its saves, one at a time, until it is closed.

    Args:
        owner: what kind of saver it is, as it stands in messages.

    Attributes:
        queue: the save that is under way in the background.
        turn: a lock that whoever saves holds.
        lock: the claim on the run directory, if there is one.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.queue = OneAtATime()
        self.turn = threading.RLock()
        self.lock: RunLock | None = None
        self._closed = False

    def claim(self, directory: Path) -> RunLock:
        """See `claim`; the lock is kept."""
        self.lock = claim(directory, self.lock)
        return self.lock

    def check_open(self) -> None:
        """Raise a ValueError if it was closed."""
        if self._closed:
            raise ValueError(f"this {self._owner} was closed; make a new one")

    def perform(self, what: str, work: Callable[[], Path], *, block: bool) -> None:
        """Do the work of a save now, or in the background."""
        if block:
            work()
        else:
            self.queue.start(what, work)

    def close(self, timeout: float | None, *, before: Callable[[], None] = lambda: None) -> None:
        """Wait for the save that is under way, and let go of the run directory; if it is still under way, stay open.

        Args:
            timeout: how many seconds to wait at most; an hour if None.
            before: called when nothing is under way any more.

        Raises:
            SaveTimeoutError: a save is still under way.
            What the save failed with.
        """
        with within(timeout, self.turn, f"another thread's save with this {self._owner}") as left:
            try:
                self.queue.wait(left)
            finally:
                if self.queue.pending is None:
                    before()
                    self._closed = True
                    if self.lock is not None:
                        self.lock.release()
                        self.lock = None


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
