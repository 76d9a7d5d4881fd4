"""The saves of a CheckpointManager: when one is due, who may save, and what is listed and deleted afterwards."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsFloat, get_args

import jax

from pytreesaver._checkpoint.saving import contents_of
from pytreesaver._checkpoint.snapshot import snapshot
from pytreesaver._errors import CheckpointError, CheckpointPermissionError
from pytreesaver._progress import Progress
from pytreesaver._run.directory import Deletions
from pytreesaver._run.history import CheckpointEvent, SaveTimings
from pytreesaver._run.lock import RunLock
from pytreesaver._run.managed_run import ManagedRun, RunState
from pytreesaver._run.policies.recording import encode_rule
from pytreesaver._run.policies.retention import SavedCheckpoint, check_count, check_duration
from pytreesaver._run.policies.rules import ManagerRule
from pytreesaver._run.policies.saving import SaveInterval, SavePolicy, check_save_policy
from pytreesaver._run.policies.schedule import LastSave, SaveSchedule
from pytreesaver._run.record import Record, checked_metrics, encode_record
from pytreesaver._run.state_text import STATE_FILE_NAME
from pytreesaver._savers.fallback import refuse_foreign_steps
from pytreesaver._savers.preemption import Preemption
from pytreesaver._savers.session import WriterSession
from pytreesaver.formats import places

logger = logging.getLogger("pytreesaver")
WhenBusy = Literal["wait", "skip"]


class SaveArguments(NamedTuple):
    """The arguments of one call of `CheckpointManager.save`."""

    step: int
    tree: Any
    metrics: Mapping[str, SupportsFloat] | None
    metadata: Mapping[str, Any] | None
    force: bool
    restart: bool
    progress: Progress


class SaveSettings(NamedTuple):
    """The arguments of `CheckpointManager` that are about saving, as it documents them."""

    policy: SavePolicy
    block: bool
    copy: bool
    format: str | None
    when_busy: WhenBusy
    read_only: bool
    clock: Callable[[], float]


def checked_save_policy(steps: Any, seconds: Any, policy: SavePolicy | None) -> SavePolicy:
    """Return the save policy of a manager with these arguments.

    Raises:
        TypeError, ValueError: if an argument is invalid, or `policy` is combined with an interval.
    """
    check_count("save_interval_steps", steps, least=1, optional=False)
    check_duration("save_interval_secs", seconds, "seconds")
    if seconds == 0:
        raise ValueError("save_interval_secs: expected a positive number or None, found 0")
    if policy is None:
        return SaveInterval(int(steps), seconds)
    check_save_policy(policy)
    if steps != 1 or seconds is not None:
        raise ValueError(
            "save_policy: cannot be combined with save_interval_steps or save_interval_secs; "
            "add SaveEverySteps or SaveEverySeconds to the policy with | instead"
        )
    return policy


def check_when_busy(when_busy: object) -> None:
    """Raise a ValueError if this is not one of the answers to a save that is due while another one is running."""
    if when_busy not in get_args(WhenBusy):
        raise ValueError(f'when_busy: expected "wait" or "skip", found {when_busy!r}')


class ManagedSaves:
    """The saves of one manager, one at a time.

    Args:
        run: the checkpoints of the run directory.
        directory: the run directory, as the user gave it.
        name: the `checkpoint_name`.
        rule: the retention rule.
        settings: the other settings.
        signals: the signals after which the next save is the last one.

    Attributes:
        session: the lock of the run directory, and the pending save.
        schedule: decides which steps are due.
        preemption: whether one of the signals has arrived.
    """

    def __init__(
        self,
        run: ManagedRun,
        directory: Path,
        name: str,
        rule: ManagerRule,
        settings: SaveSettings,
        signals: tuple[int, ...],
    ) -> None:
        self._run = run
        self._given_directory = directory
        self._name = name
        self._rule = rule
        self._settings = settings
        self.schedule = SaveSchedule(settings.policy, self._last_on_disk, self._is_last)
        self.session = WriterSession("CheckpointManager")
        self.preemption = Preemption(self._finish, signals)
        self._held_state: RunState | None = None  # set while this process has claimed the directory
        self._version = -1  # of the state file that `_held_state` agrees with

    def is_due(self, step: int) -> bool:
        """Return whether a step is due. See `CheckpointManager.should_save`."""
        if self._settings.read_only:
            return False
        at_once = self.preemption.requested
        if self._settings.when_busy == "skip" and not at_once and self._is_busy():
            return False
        return self.schedule.is_due(step, float(self._settings.clock()), at_once=at_once)

    def _is_busy(self) -> bool:
        pending = self.session.queue.pending
        return pending is not None and not pending.done()

    def check_writable(self, what: str) -> None:
        """Raise a CheckpointPermissionError if the manager is read-only."""
        if self._settings.read_only:
            raise CheckpointPermissionError(
                f"{self._given_directory}: {what} expected a manager that may write, found one with read_only=True"
            )

    def save(self, arguments: SaveArguments, is_due: Callable[[int], bool]) -> Path | None:
        """Save a tree if a save is due, as `is_due` says. See `CheckpointManager.save`."""
        with self.session.turn:
            self.session.check_open()
            with self.preemption.saving():
                self._raise_or_log_last_failure()
                saved = self._save_if_due(arguments, is_due)
                # A signal may have arrived after it was decided that no save is due.
                return self._save_if_due(arguments, is_due) if saved is None and self.preemption.requested else saved

    def _save_if_due(self, arguments: SaveArguments, is_due: Callable[[int], bool]) -> Path | None:
        step, started = arguments.step, time.monotonic()
        goes_back = arguments.restart and not self._is_after_last(step)
        if not goes_back:
            self.schedule.refuse_to_go_back(step, self._given_directory)
        if not (arguments.force or goes_back or is_due(step)):
            return None
        if self.schedule.last.step is None:
            refuse_foreign_steps(self._given_directory)
        self._raise_or_log_last_failure(wait=True)
        waited_secs = time.monotonic() - started
        now = float(self._settings.clock())
        metrics = checked_metrics(arguments.metrics)
        path = self._run.path_of(step)
        block = self._settings.block
        with jax.profiler.TraceAnnotation("CheckpointManager.save"):
            contents = contents_of(arguments.tree, arguments.metadata)
            lock, state = self._claim()
            if not goes_back:
                self.schedule.refuse_to_go_back(step, self._given_directory)
            newest = None if state.newest is None else state.newest.name
            record = Record(
                step, now, metrics, state.state_name, state.serial + 1, path.name, newest, encode_rule(self._rule)
            )
            contents = contents._replace(record=encode_record(record))
            if not block:
                contents = snapshot(contents, copy=self._settings.copy)
            saved = CheckpointEvent("saved", path.name, now, step, metrics)
            self.schedule.pending = LastSave(step, now, record.serial, path.name)
            self.session.save(
                contents,
                path,
                self._given_directory / path.name,
                list_saved=partial(self._list_saved, lock, path, saved),
                failed=self._forget_state,
                block=block,
                format=self._settings.format,
                progress=arguments.progress,
                started=started,
                waited_secs=waited_secs,
            )
        self.preemption.used = True
        return self._given_directory / path.name

    def _is_after_last(self, step: int) -> bool:
        last = self.schedule.last.step
        return last is None or step > last

    def _raise_or_log_last_failure(self, *, wait: bool = False) -> None:
        try:
            if wait:
                self.session.queue.wait()
            else:
                self.session.queue.raise_if_failed()
        except CheckpointError:
            if not self.preemption.requested:
                raise
            logger.exception("the save before the last one failed")

    def _claim(self) -> tuple[RunLock, RunState]:
        before = self.session.lock
        lock = self.session.claim(self._run.directory)
        if lock is not before or self._held_state is None or self._version != lock.version:
            self._hold(lock)
            known = self.schedule.saved
            if known is not None and known.serial != self.state().serial:
                self.schedule.saved = None  # another saver has saved since
        state = self.state()
        lock.state_owners.setdefault(state.state_name, self._name)
        return lock, state

    def _hold(self, lock: RunLock) -> RunState:
        # A write in another thread meanwhile changes the version again, and the state is then read again.
        version = lock.version
        state = self._state_on_disk(lock)
        self._held_state, self._version = state, version
        return state

    def _state_on_disk(self, lock: RunLock | None) -> RunState:
        owner = None if lock is None else lock.state_owners.get(STATE_FILE_NAME)
        return self._run.read_state(float(self._settings.clock()), owner)

    def _list_saved(self, lock: RunLock, path: Path, saved: CheckpointEvent, timings: SaveTimings) -> Deletions:
        held = self._held_state
        state = held if held is not None and self._version == lock.version else self._hold(lock)
        state = state.with_saved(path, saved.time, state.serial + 1)
        try:
            self._held_state, deletions = self._run.retain(state, dataclasses.replace(saved, timings=timings))
        finally:
            self._version = lock.advance()
        self._run.trust(path)
        self.schedule.saved = LastSave(saved.step, saved.time, state.serial, path.name)
        self.schedule.pending = None
        return deletions

    def _forget_state(self) -> None:
        """After a failed save, which may have left a complete checkpoint: what is on disk counts."""
        self._held_state = None
        self.schedule.pending = None

    # The state of the run.

    def state(self) -> RunState:
        """Return the state of retention: held in memory while this process has claimed the directory, else on disk."""
        lock, held = self.session.lock, self._held_state
        if lock is None:
            return self._state_on_disk(None)
        return held if held is not None and self._version == lock.version else self._hold(lock)

    def _is_last(self, saved: LastSave) -> bool:
        """Return whether a save that this manager knows still is the last one of the run."""
        lock = self.session.lock
        if lock is not None and self._held_state is not None and self._version != lock.version:
            return saved.serial == self.state().serial
        return not saved.name or places.may_exist(self._run.directory / saved.name)

    def _last_on_disk(self) -> LastSave:
        state = self.state()
        newest = next(iter(self._run.candidates(state)), None)
        if newest is None:
            return LastSave(None, 0.0, state.serial)
        return LastSave(newest.step, newest.time, state.serial, newest.path)

    def go_on_from(self, saved: SavedCheckpoint, state: RunState) -> None:
        """Let the loop go on from a checkpoint that was restored, which need not be the newest one."""
        self.schedule.saved = LastSave(saved.step, saved.time, state.serial, saved.path)

    # The end.

    def close(self, timeout: float | None) -> None:
        """Wait for the pending save, then release the directory. See `CheckpointManager.close`."""
        try:
            self.session.close(timeout, before=self._before_closing)
        except CheckpointError:
            if self.preemption.requested:
                logger.exception("the last save before the end of the process failed")
            raise

    def _before_closing(self) -> None:
        self.preemption.end_if_requested(closing=True)
        self.preemption.release()
        self._held_state = None

    def _finish(self) -> None:
        self.session.queue.settle()
        if self.session.queue.pending is not None:
            self.session.queue.pending.complain()
