"""The saves of a CheckpointManager: when one is due, who may save, and what is listed and deleted afterwards."""

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import msgspec

from pytreesaver._checkpoint.saving.contents import contents_of
from pytreesaver._errors import CheckpointError, CheckpointPermissionError, RetentionWarning
from pytreesaver._io.processes.meeting import Meeting, new_meeting, next_of, telling
from pytreesaver._run.directory import Deletions
from pytreesaver._run.history import CheckpointEvent, SaveTimings
from pytreesaver._run.lock import RunLock
from pytreesaver._run.managed_run import ManagedRun, RunState
from pytreesaver._run.policies.recording import encode_rule
from pytreesaver._run.policies.retention import SavedCheckpoint
from pytreesaver._run.policies.rules import ManagerRule
from pytreesaver._run.policies.schedule import LastSave, SaveSchedule
from pytreesaver._run.record import Record, checked_metrics, encode_record
from pytreesaver._run.state_text import STATE_FILE_NAME
from pytreesaver._savers.fallback import refuse_foreign_steps
from pytreesaver._savers.preemption import Preemption
from pytreesaver._savers.session import WriterSession
from pytreesaver._savers.settings import SaveArguments, SaveSettings
from pytreesaver._text import quoted
from pytreesaver.formats import places
from pytreesaver.formats.protocol import TreeContents

logger = logging.getLogger("pytreesaver")
T = TypeVar("T")


class _Decision(msgspec.Struct):
    """What process 0 decides about a call of `save`.

    Attributes:
        is_due: whether the step is saved.
        name: the name of the checkpoint.
        signal: the number of the signal that has arrived in any process, or 0.
    """

    is_due: bool
    name: str = ""
    signal: int = 0


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
        self._continues_run = False
        self._has_warned_of_metric = False
        self.schedule = SaveSchedule(settings.policy, self._last_on_disk, self._is_last)
        self.session = WriterSession("CheckpointManager")
        self.preemption = Preemption(self._finish, signals)
        # A new manager begins to count its calls anew, so that processes that were out of step can go on. One process
        # alone may have a read-only manager.
        self._kind = "reader" if settings.read_only else "manager"
        self._number: int | None = None
        if settings.processes == "all" and not settings.read_only:
            self._number = next_of(f"{self._kind}s of {directory / name}")
        self._held_state: RunState | None = None  # set while this process has claimed the directory
        self._version = -1  # of the state file that `_held_state` agrees with
        self._is_deciding = False  # process 0 asks `should_save`, of which the others hear the result only

    def new_meeting(self, what: str) -> Meeting | None:
        """Return a meeting of the processes that use this manager, or None if there is only one."""
        directory = self._given_directory
        if self._number is None and self._settings.processes == "all":
            self._number = next_of(f"{self._kind}s of {directory / self._name}")
        subject = f"{self._kind} {self._number} of {directory / self._name}"
        writing = self._settings.writing
        options = (writing.format, writing.shard_nbytes, writing.block, writing.incremental)
        return new_meeting(f"{what} in {directory}", subject, self._settings.timeout, self._settings.processes, options)

    def decided(self, what: str, decide: Callable[[], T], kind: Any) -> T:
        """Return what `decide` returns in process 0, in all processes. Its value is a message of this type."""
        meeting = self.new_meeting(what)
        if meeting is None:
            return decide()
        with telling(meeting):
            meeting.gather("asked", b"", f"call {what}")  # none of them can be ahead of the others
            result: T = meeting.first("decided", decide, kind, f"answer {what}")
        meeting.forget()
        return result

    def is_due(self, step: int) -> bool:
        """Return whether a step is due, as process 0 decides. See `CheckpointManager.should_save`."""
        if self._settings.read_only or self._is_deciding:
            return self._is_due_here(step)
        meeting = self.new_meeting(f"should_save({step})")
        if meeting is None:
            return self._is_due_here(step)
        with telling(meeting):
            self._share_signals(meeting)
            due = meeting.first("due", lambda: self._is_due_here(step), bool, "decide whether a save is due")
        meeting.forget()
        return due

    def _is_due_here(self, step: int) -> bool:
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
                f"{self._given_directory}: {what}: expected a manager that may write, found one with read_only=True"
            )

    def save(self, arguments: SaveArguments, is_due: Callable[[int], bool]) -> Path | None:
        """Save a tree if a save is due, as `is_due` says. See `CheckpointManager.save`."""
        meeting = self.new_meeting(f"save({arguments.step})")
        with telling(meeting), self.session.turn:
            self.session.check_open()
            with self.preemption.saving():
                self._raise_or_log_last_failure()
                if meeting is not None:
                    self._share_signals(meeting)
                    if not meeting.is_first:
                        return self._save_if_told(arguments, meeting)
                saved = self._save_if_due(arguments, is_due, meeting)
                if saved is None and self.preemption.requested:
                    # A signal may have arrived after it was decided that no save is due.
                    saved = self._save_if_due(arguments, is_due, meeting)
                if saved is None and meeting is not None:
                    self._tell_decision(meeting, _Decision(False))
                    meeting.forget()
                return saved

    def _share_signals(self, meeting: Meeting) -> None:
        """Tell process 0 of a signal that has arrived here."""
        ended = self.preemption.ended
        if self.preemption.signals and not meeting.is_first and self.preemption.requested:
            meeting.raise_flag("signal", f"{self.preemption.arrived} {ended}".encode())
        if self.preemption.signals and meeting.is_first and not self.preemption.requested:
            for flag in meeting.flags("signal"):
                number, before = map(int, flag.split())
                if before >= ended:  # otherwise it was raised for a signal after which the program has gone on
                    self.preemption.arrive_here_too(number)
                meeting.lower_flags("signal")

    def _tell_decision(self, meeting: Meeting, decision: _Decision) -> None:
        meeting.publish("decision", msgspec.msgpack.encode(decision))
        # After a signal that arrives later than this, the others have to hear of it first.
        self.preemption.is_undecided = self.preemption.requested and not decision.signal

    def _save_if_told(self, arguments: SaveArguments, meeting: Meeting) -> Path | None:
        """Save this process's share of a tree if process 0 has decided that a save is due."""
        started = time.monotonic()
        decision = msgspec.msgpack.decode(meeting.hear("decision", "decide whether a save is due"), type=_Decision)
        self.preemption.arrive_here_too(decision.signal)
        self.preemption.is_undecided = self.preemption.requested and not decision.signal
        if not decision.is_due:
            return None
        self._raise_or_log_last_failure(wait=True)
        waited_secs = time.monotonic() - started
        with jax.profiler.TraceAnnotation("CheckpointManager.save"):
            contents = contents_of(arguments.tree, arguments.metadata, meeting=meeting)
            return self._start(contents, decision.name, arguments, started, waited_secs, meeting, None)

    def _start(
        self,
        contents: TreeContents,
        name: str,
        arguments: SaveArguments,
        started: float,
        waited_secs: float,
        meeting: Meeting | None,
        list_saved: Callable[[SaveTimings], Deletions] | None,
    ) -> Path:
        path = self._given_directory / name
        self.session.save(
            contents,
            self._run.directory / name,
            path,
            list_saved=list_saved,
            failed=self._forget_state,
            options=self._settings.writing,
            progress=arguments.progress,
            started=started,
            waited_secs=waited_secs,
            meeting=meeting,
        )
        self.preemption.used = True
        return path

    def _save_if_due(
        self, arguments: SaveArguments, is_due: Callable[[int], bool], meeting: Meeting | None
    ) -> Path | None:
        step, started = arguments.step, time.monotonic()
        goes_back = arguments.restart and not self._is_after_last(step)
        if not goes_back:
            self.schedule.refuse_to_go_back(step, self._given_directory)
        self._is_deciding = True
        try:
            if not (arguments.force or goes_back or is_due(step)):
                self._warn_of_another_run(step)
                return None
        finally:
            self._is_deciding = False
        if self.schedule.last.step is None:
            refuse_foreign_steps(self._given_directory)
        self._raise_or_log_last_failure(wait=True)
        waited_secs = time.monotonic() - started
        now = float(self._settings.clock())
        metrics = checked_metrics(arguments.metrics)
        self._warn_of_metric(step, metrics)
        path = self._run.path_of(step)
        if meeting is not None:
            self._tell_decision(meeting, _Decision(True, path.name, self.preemption.arrived))
        with jax.profiler.TraceAnnotation("CheckpointManager.save"):
            contents = contents_of(arguments.tree, arguments.metadata, meeting=meeting)
            lock, state = self._claim()
            if not goes_back:
                self.schedule.refuse_to_go_back(step, self._given_directory)
            newest = None if state.newest is None else state.newest.name
            record = Record(
                step, now, metrics, state.state_name, state.serial + 1, path.name, newest, encode_rule(self._rule)
            )
            contents = contents._replace(record=encode_record(record))
            saved = CheckpointEvent("saved", path.name, now, step, metrics)
            self.schedule.pending = LastSave(step, now, record.serial, path.name)
            list_saved = partial(self._list_saved, lock, path, saved)
            self._continues_run = True
            return self._start(contents, path.name, arguments, started, waited_secs, meeting, list_saved)

    def _warn_of_another_run(self, step: int) -> None:
        """Warn of a step that was not saved because there is one of a run that this manager does not continue."""
        if not self._continues_run and step == self.schedule.last.step:
            self._continues_run = True
            warnings.warn(
                f"{self._given_directory}: step {step} exists already, and was not saved again: call restore first to "
                "continue that run, or save into another directory",
                RetentionWarning,
                stacklevel=5,
            )

    def _warn_of_metric(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn once of a metric that retention asks for, and that is not among others."""
        metric = None if self._rule.best is None else self._rule.best.metric
        if metric is not None and metrics and metric not in metrics and not self._has_warned_of_metric:
            self._has_warned_of_metric = True
            warnings.warn(
                f"{self._given_directory}: the best checkpoints are those by the metric {quoted(metric)}, but step "
                f"{step} has only {', '.join(map(quoted, metrics))}",
                RetentionWarning,
                stacklevel=5,
            )

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
        self._continues_run = True
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
