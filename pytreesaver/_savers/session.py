"""The common part of `Saver` and `CheckpointManager`: the lock of a run directory, and one save at a time."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pytreesaver._checkpoint.saving.background import SaveQueue, lock_within
from pytreesaver._checkpoint.saving.snapshot import snapshot
from pytreesaver._checkpoint.saving.writing import check_format, unchanged_since, write_contents
from pytreesaver._io.processes.meeting import Meeting, is_first
from pytreesaver._io.stores.dispatch import checking_before_commit
from pytreesaver._progress import Progress
from pytreesaver._run.directory import Deletions
from pytreesaver._run.history import SaveTimings
from pytreesaver._run.lock import RunLock, claim
from pytreesaver.formats import places
from pytreesaver.formats.protocol import TreeContents

logger = logging.getLogger("pytreesaver")


class WriteOptions(NamedTuple):
    """How a saver writes checkpoints: the arguments of `pytreesaver.save_async` of these names, and of `Saver`."""

    block: bool
    copy: bool
    format: str | None
    shard_nbytes: int | None
    incremental: bool
    sharded: bool = False


class WriterSession:
    """The saves of one saver, one at a time, and its lock of the run directory, until it is closed.

    Args:
        owner: the class of the saver, for messages.
        label: the name at the start of messages about a save; None for no name.

    Attributes:
        queue: runs asynchronous saves, one at a time.
        turn: a lock between threads, held by the one that calls `save`.
        lock: the lock of the run directory, or None.
    """

    _MOST_EARLIER = 2  # the last one, and the one before if the last save has failed

    def __init__(self, owner: str, label: str | None = None) -> None:
        self._owner = owner
        self._label = label
        self.queue = SaveQueue()
        self.turn = threading.RLock()
        self.lock: RunLock | None = None
        self._closed = False
        self._earlier: list[Path] = []

    def go_on_from(self, path: Path) -> None:
        """Let the next incremental save share data files with a checkpoint that was restored from an absolute path."""
        self._earlier = [*self._earlier, path][-self._MOST_EARLIER :]

    def _unchanged(self, contents: TreeContents, location: Path, options: WriteOptions) -> tuple[TreeContents, Any]:
        """Return what to write, and the `base` of `write_contents`, if what the last checkpoint has is not written."""
        base = None
        for earlier in reversed(self._earlier):
            contents, base = unchanged_since(
                contents,
                earlier,
                location,
                options.format,
                shard_nbytes=options.shard_nbytes,
                sharded=options.sharded,
                is_known=True,
            )
            if base is not None:
                break
        return contents, base

    def claim(self, directory: Path) -> RunLock:
        """Lock a run directory, as `pytreesaver._run.lock.claim` does, in place of the previous one."""
        self.lock = claim(directory, self.lock)
        return self.lock

    def check_open(self) -> None:
        """Raise a ValueError if the session is closed."""
        if self._closed:
            raise ValueError(f"this {self._owner} is closed; create a new one")

    def save(
        self,
        contents: TreeContents,
        location: Path,
        path: Path,
        *,
        list_saved: Callable[[SaveTimings], Deletions] | None,
        failed: Callable[[], None],
        options: WriteOptions,
        progress: Progress,
        started: float,
        waited_secs: float,
        meeting: Meeting | None = None,
    ) -> None:
        """Write a checkpoint into the claimed directory and list it in the state file, now or asynchronously.

        Args:
            contents: the checkpoint. Unless the save blocks, a snapshot of it is saved.
            location: its absolute path.
            path: the same path for messages, as the user gave it.
            list_saved: called with the timings once the checkpoint is complete: updates the state file, and deletes
                what retention does not keep. No other saver of this process writes to the directory meanwhile. None to
                list nothing, as when process 0 does it.
            failed: called if any of this fails. The checkpoint may exist all the same.
            options: how to write it.
            progress: as in `write_contents`.
            started: when the user called `save`, as `time.monotonic` gives it.
            waited_secs: how long that call waited for the previous save.
            meeting: as in `write_contents`. Only process 0 has to claim the directory.
        """
        asked_by = "incremental" if options.incremental else None
        # Now, rather than in the background.
        check_format(location, options.format, options.shard_nbytes, incremental_argument=asked_by)
        lock, block, base = self.lock, options.block, None
        if options.incremental:
            contents, base = self._unchanged(contents, location, options)
        if not block:
            contents = snapshot(contents, copy=options.copy)
        assert lock is not None or not is_first(meeting), "call claim first"
        blocked_secs = 0.0

        def work() -> Path:
            try:
                began = time.monotonic()
                with checking_before_commit(lock.check if lock is not None else lambda: None):
                    write_contents(
                        location,
                        contents,
                        overwrite=True,
                        durable=True,
                        in_background=not block,
                        format=options.format,
                        sharded=options.sharded,
                        shard_nbytes=options.shard_nbytes,
                        progress=progress,
                        what=f"{self._label}: saving {path}" if self._label else f"saving {path}",
                        meeting=meeting,
                        base=base,
                        is_incremental=options.incremental,
                    )
                self.go_on_from(location)
                ended = time.monotonic()
                blocked = ended - started if block else blocked_secs
                timings = SaveTimings(blocked, waited_secs, ended - began, _size_of(location))
                deletions = None
                if list_saved is not None and lock is not None:
                    with lock.saving:
                        deletions = list_saved(timings)
                if meeting is not None:
                    meeting.first("listed", bool, bool, "apply retention")
                    meeting.forget()
                if deletions is not None:
                    deletions.warn()
            except BaseException as error:
                failed()
                if meeting is not None:
                    meeting.fail(error)
                    meeting.forget()
                raise
            saved = f"{self._label} saved {path}" if self._label else f"saved {path}"
            logger.info("%s", saved, extra={"timings": timings})
            return path

        if block:
            work()
        else:
            blocked_secs = time.monotonic() - started
            self.queue.start(f"{self._label}'s save of {path}" if self._label else f"the save of {path}", work)

    def close(self, timeout: float | None, *, before: Callable[[], None] = lambda: None) -> None:
        """Wait for the pending save, then release the run directory. If the save is still pending, stay open.

        Args:
            timeout: the maximum number of seconds to wait; an hour if None.
            before: called once no save is pending, before the directory is released.

        Raises:
            SaveTimeoutError: if a save is still pending.
            The error of the save, if it failed.
        """
        with lock_within(timeout, self.turn, f"another thread's save with this {self._owner}") as left:
            try:
                self.queue.wait(left)
            finally:
                if self.queue.pending is None:
                    before()
                    self._closed = True
                    if self.lock is not None:
                        self.lock.release()
                        self.lock = None


def _size_of(path: Path) -> int:
    try:
        return sum(size for _, _, size, _ in places.fingerprint(path))
    except OSError:  # another program deleted it
        return 0
