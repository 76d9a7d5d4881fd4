"""CheckpointManager: a run directory for a training loop. After TensorFlow 2's `tf.train.CheckpointManager`."""

import logging
import time
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeVar, Unpack, overload

import jax

from pytreesaver._checkpoint.background import close_on_exit
from pytreesaver._checkpoint.restoring.options import RestoreArguments, RestoreOptions
from pytreesaver._checkpoint.restoring.restore import restore_with
from pytreesaver._checkpoint.saving import contents_of
from pytreesaver._checkpoint.snapshot import snapshot
from pytreesaver._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
)
from pytreesaver._io.paths import PathLike, local_path
from pytreesaver._progress import Progress, check_progress
from pytreesaver._run.directory import Deletions, check_run_directory
from pytreesaver._run.history import CheckpointEvent
from pytreesaver._run.lock import RunLock
from pytreesaver._run.managed_run import ManagedRun, RunState, first_intact, warn_of_damaged
from pytreesaver._run.policies.recording import encode_rule
from pytreesaver._run.policies.retention import (
    Decision,
    KeepBest,
    RetentionPolicy,
    SavedCheckpoint,
    check_count,
    check_duration,
)
from pytreesaver._run.policies.rules import manager_rule
from pytreesaver._run.policies.schedule import LastSave, SaveSchedule
from pytreesaver._run.record import Record, as_step, checked_metrics, encode_record
from pytreesaver._run.state_text import STATE_FILE_NAME
from pytreesaver._savers.preemption import Preemption
from pytreesaver._savers.session import WriterSession
from pytreesaver.formats.registry import format_named

logger = logging.getLogger("pytreesaver")
T = TypeVar("T")


class CheckpointManager:
    """Saves the state of a training loop into a run directory, applies retention, and restores the newest state.

    All that retention has to remember is stored in the directory: a loop that was killed and started again continues as
    if nothing had happened. The default is the rule of TensorFlow 2's manager: the last `max_to_keep` checkpoints, and
    one for every `keep_checkpoint_every_n_hours`. The newest complete checkpoint is always kept.

    Args:
        directory: the run directory. The first save creates it.
        max_to_keep: the number of most recent checkpoints to keep; None keeps all.
        keep_checkpoint_every_n_hours: also keep one checkpoint per this many hours, permanently.
        keep_every_n_steps: also keep the first checkpoint at or after each multiple of this number of steps.
        keep_best: also keep the best checkpoints by a metric: a `KeepBest`, or (count, metric) to minimize the metric,
            or (count, metric, "max") to maximize it.
        policy: a retention policy in place of the four arguments above; see `KeepLast` and the other policies.
        checkpoint_name: checkpoints are named ``checkpoint_name-step``.
        save_interval_steps: the minimum number of steps between two saves.
        save_interval_secs: the minimum number of seconds between two saves.
        pad_step_number: pad steps to eight digits, so that names sort in the order of steps.
        block: whether `save` returns only when the checkpoint is durable. By default it returns once the tree is safe
            to modify or donate, and the save continues asynchronously.
        copy: without `block`, as in `pytreesaver.save_async`.
        format: None, or ``"native"``.
        clock: returns the time, in seconds since the epoch.
        save_on_sigterm: after a SIGTERM, which announces that the machine will be taken away, the next call of `save`
            saves a last checkpoint regardless of the interval, and then the process ends. If there is no such call
            within 20 seconds, or if a second signal arrives, the process ends once the pending save has finished.

    Raises:
        TypeError, ValueError: if an argument is invalid.
        CheckpointExistsError: if `directory` is itself a checkpoint.

    Example:
        >>> with CheckpointManager("run", max_to_keep=2, save_interval_steps=10) as manager:
        ...     state = manager.restore_or_init({"w": np.zeros(2), "step": 0})
        ...     for step in range(state["step"], 41):
        ...         path = manager.save(step, {"w": np.full(2, step), "step": step})
        >>> manager.all_steps(), manager.latest_step()
        ([30, 40], 40)
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float | None = None,
        keep_every_n_steps: int | None = None,
        keep_best: KeepBest | tuple[int, str] | tuple[int, str, Literal["min", "max"]] | None = None,
        policy: RetentionPolicy | None = None,
        checkpoint_name: str = "ckpt",
        save_interval_steps: int = 1,
        save_interval_secs: float | None = None,
        pad_step_number: bool = False,
        block: bool = False,
        copy: bool = False,
        format: str | None = None,
        clock: Callable[[], float] = time.time,
        save_on_sigterm: bool = False,
    ) -> None:
        self._given_directory = local_path(directory)
        check_run_directory(self._given_directory)
        rule = manager_rule(max_to_keep, keep_checkpoint_every_n_hours, keep_every_n_steps, keep_best, policy)
        check_count("save_interval_steps", save_interval_steps, least=1, optional=False)
        check_duration("save_interval_secs", save_interval_secs, "seconds")
        if save_interval_secs == 0:
            raise ValueError("save_interval_secs: expected a positive number or None, found 0")
        format_named(format)  # raises if there is no such format
        self._format = format
        self._rule = rule
        self._run = ManagedRun(self._given_directory, checkpoint_name, pad_step_number, rule, float(clock()))
        self._schedule = SaveSchedule(save_interval_steps, save_interval_secs, self._last_on_disk)
        self._block = block
        self._copy = copy
        self._clock = clock
        self._session = WriterSession("CheckpointManager")
        self._held_state: RunState | None = None  # set while this process has claimed the directory
        self._preemption = Preemption(self._finish, enabled=save_on_sigterm)

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._given_directory

    # Saving.

    def should_save(self, step: SupportsIndex) -> bool:
        """Return whether `save` would save this step: it is due by the interval, or a SIGTERM has arrived.

        Example:
            >>> manager = CheckpointManager("due", save_interval_steps=100, block=True)
            >>> path = manager.save(0, {"w": np.zeros(2)})
            >>> [step for step in (0, 50, 100) if manager.should_save(step)]
            [100]
        """
        return self._schedule.is_due(as_step(step), float(self._clock()), at_once=self._preemption.requested)

    def save(
        self,
        step: SupportsIndex,
        tree: Any,
        *,
        metrics: Mapping[str, SupportsFloat] | None = None,
        metadata: Mapping[str, Any] | None = None,
        force: bool = False,
        progress: Progress = False,
    ) -> Path | None:
        """Save a tree as the checkpoint of a step if a save is due, then delete what retention does not keep.

        Nothing is deleted before the new checkpoint is durable. A failed save changes nothing in the run directory.

        Args:
            step: an int, or a 0-d integer array.
            tree: the tree to save.
            metrics: numbers by name, for `keep_best`, `best_step` and policies.
            metadata: as in `pytreesaver.save`.
            force: save regardless of the interval, even a step before the last one. A checkpoint of the same step is
                overwritten.
            progress: as in `pytreesaver.save`.

        Returns:
            The path of the checkpoint, or None if no save is due. Unless the manager blocks, the checkpoint is complete
            when `wait_until_finished` returns.

        Raises:
            CheckpointExistsError: if the step is before the last one of the run, as when a loop that starts from the
                beginning saves into the directory of another run.
            ConcurrentWriterError: if another live process is saving into the directory.
            TypeError, ValueError: if an argument is invalid.
            What `pytreesaver.save` raises, and the error of the previous save if that failed.

        Example:
            >>> with CheckpointManager("measured", keep_best=(1, "loss"), max_to_keep=1) as manager:
            ...     for step, loss in enumerate([0.5, 0.2, 0.3]):
            ...         path = manager.save(step, {"w": np.zeros(2)}, metrics={"loss": loss})
            >>> manager.all_steps(), manager.best_step()
            ([1, 2], 1)
        """
        check_progress(progress)
        number = as_step(step)
        save = partial(self._save_if_due, number, tree, metrics, metadata, force, progress)
        with self._session.turn:
            self._session.check_open()
            with self._preemption.saving():
                self._raise_or_log_last_failure()
                saved = save()
                # A SIGTERM may have arrived after it was decided that no save is due.
                return save() if saved is None and self._preemption.requested else saved

    def _save_if_due(
        self,
        step: int,
        tree: Any,
        metrics: Mapping[str, SupportsFloat] | None,
        metadata: Mapping[str, Any] | None,
        force: bool,
        progress: Progress,
    ) -> Path | None:
        if not force:
            self._schedule.refuse_to_go_back(step, self._given_directory)
        if not (force or self.should_save(step)):
            return None
        self._raise_or_log_last_failure(wait=True)
        now = float(self._clock())
        checked = checked_metrics(metrics)
        path = self._run.path_of(step)
        with jax.profiler.TraceAnnotation("CheckpointManager.save"):
            contents = contents_of(tree, metadata)
            lock, state = self._claim()
            if not force:
                self._schedule.refuse_to_go_back(step, self._given_directory)
            newest = None if state.newest is None else state.newest.name
            record = Record(
                step, now, checked, STATE_FILE_NAME, state.serial + 1, path.name, newest, encode_rule(self._rule)
            )
            contents = contents._replace(record=encode_record(record))
            if not self._block:
                contents = snapshot(contents, copy=self._copy)
            self._schedule.pending = LastSave(step, now, record.serial)
            saved = CheckpointEvent("saved", path.name, now, step, checked)
            self._session.save(
                contents,
                path,
                self._given_directory / path.name,
                list_saved=partial(self._list_saved, path, saved, lock, state),
                failed=self._forget_state,
                block=self._block,
                format=self._format,
                progress=progress,
            )
        return self._given_directory / path.name

    def _raise_or_log_last_failure(self, *, wait: bool = False) -> None:
        try:
            if wait:
                self._session.queue.wait()
            else:
                self._session.queue.raise_if_failed()
        except CheckpointError:
            if not self._preemption.requested:
                raise
            logger.exception("the save before the last one failed")

    def _claim(self) -> tuple[RunLock, RunState]:
        before = self._session.lock
        lock = self._session.claim(self._run.directory)
        alone = lock.wrote_last(self)
        if lock is not before or self._held_state is None or not alone:
            self._held_state = self._run.read_state(float(self._clock()))
            known = self._schedule.saved
            if known is not None and known.serial != self._held_state.serial:
                self._schedule.saved = None  # another saver has saved since
        return lock, self._held_state

    def _list_saved(self, path: Path, saved: CheckpointEvent, lock: RunLock, state: RunState) -> Deletions:
        if not lock.wrote_last(self):
            state = self._run.read_state(saved.time)
        state = state.with_saved(path, saved.time, state.serial + 1)
        self._held_state, deletions = self._run.retain(state, saved)
        self._run.trust(path)
        self._schedule.saved = LastSave(saved.step, saved.time, state.serial)
        self._schedule.pending = None
        return deletions

    def _forget_state(self) -> None:
        """After a failed save, which may have left a complete checkpoint: what is on disk counts."""
        self._held_state = None
        self._schedule.pending = None

    # Restoring.

    @overload
    def restore(
        self, like: None = None, *, step: SupportsIndex | None = None, **options: Unpack[RestoreArguments]
    ) -> Any: ...
    @overload
    def restore(self, like: T, *, step: SupportsIndex | None = None, **options: Unpack[RestoreArguments]) -> T: ...
    def restore(
        self, like: Any = None, *, step: SupportsIndex | None = None, **options: Unpack[RestoreArguments]
    ) -> Any:
        """Restore the newest checkpoint, or the one of a step.

        Waits for a pending save. If the newest checkpoint is damaged, the one before it is restored, with a
        `RetentionWarning` that names the damaged one. With `step`, a damaged checkpoint is an error.

        Args:
            like: the template, as in `pytreesaver.restore`.
            step: an int, or a 0-d integer array.
            options: the other arguments of `pytreesaver.restore`.

        Raises:
            CheckpointNotFoundError: if there is no checkpoint, or none of that step.
            CorruptCheckpointError: if all checkpoints are damaged, or the one of that step is.
            What `pytreesaver.restore` raises.

        Example:
            >>> manager = CheckpointManager("restored", block=True)
            >>> for step in (1, 2):
            ...     path = manager.save(step, {"w": np.full(2, step)})
            >>> manager.restore(), manager.restore(step=1)
            ({'w': array([2, 2])}, {'w': array([1, 1])})
        """
        checked = RestoreOptions.of("CheckpointManager.restore", options)
        self._session.queue.settle()
        state = self._state()
        candidates = self._run.candidates(state)
        if step is not None:
            number = as_step(step)
            candidates = [saved for saved in candidates if saved.step == number][:1]
            if not candidates:
                raise self._run.no_such_step(number)
        elif not candidates:
            raise CheckpointNotFoundError(f"{self._given_directory}: expected a checkpoint, found none")
        path = self._run.directory

        def restored(saved: SavedCheckpoint) -> Any:
            with jax.profiler.TraceAnnotation("CheckpointManager.restore"):
                return restore_with(path / saved.path, like, checked, stacklevel=5)

        saved, tree, problems = first_intact(candidates, restored)
        if saved is not None:
            warn_of_damaged(problems, str(self._given_directory / saved.path))
            self._schedule.saved = LastSave(saved.step, saved.time, state.serial)
            return tree
        if len(problems) == 1:
            raise problems[0]
        raise CorruptCheckpointError(
            f"{self._given_directory}: no checkpoint can be restored:\n" + "\n".join(map(str, problems))
        )

    @overload
    def restore_or_init(self, init: Callable[[], T], **options: Unpack[RestoreArguments]) -> T: ...
    @overload
    def restore_or_init(self, init: T, **options: Unpack[RestoreArguments]) -> T: ...
    def restore_or_init(self, init: Any, **options: Unpack[RestoreArguments]) -> Any:
        """Restore the newest checkpoint into the template `init`, or return `init` if there is no checkpoint.

        Args:
            init: the initial state, or a function without arguments that returns it. The restored state has its
                containers, dtypes and shardings.
            options: as in `restore`.

        Raises:
            What `restore` raises, if there is a checkpoint.

        Example:
            >>> manager = CheckpointManager("resumed", block=True)
            >>> state = manager.restore_or_init(lambda: {"step": 0})
            >>> path = manager.save(7, {"step": 7})
            >>> state, manager.restore_or_init(lambda: {"step": 0})
            ({'step': 0}, {'step': 7})
        """
        is_function = callable(init) and jax.tree_util.all_leaves([init])  # a module may be both a tree and callable
        tree = init() if is_function else init
        RestoreOptions.of("CheckpointManager.restore_or_init", options).checked(tree)
        self._session.queue.settle()
        return self.restore(tree, **options) if self._run.candidates(self._state()) else tree

    # Listing.

    def all_steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, in ascending order."""
        return self._run.steps()

    def latest_step(self, *, verify: bool = True) -> int | None:
        """Return the step of the newest checkpoint that can be restored, or None.

        Skips damaged checkpoints, with a `RetentionWarning` that names them.

        Args:
            verify: whether to read every byte of the checkpoint, once, unless this manager saved it. Otherwise only the
                index and the sizes of the files are checked.
        """
        saved, _, problems = first_intact(
            self._run.candidates(self._state()),
            lambda saved: self._run.verify(self._run.directory / saved.path, every_byte=verify),
        )
        warn_of_damaged(problems, "nothing" if saved is None else str(self._given_directory / saved.path))
        return None if saved is None else saved.step

    def best_step(self, metric: str | None = None, mode: Literal["min", "max"] = "min") -> int | None:
        """Return the step of the best checkpoint by a metric, or None if no checkpoint has the metric.

        NaN metrics are never ranked best.

        Args:
            metric: the name of the metric; by default that of `keep_best` or of the policy.
            mode: whether the ``"min"`` or the ``"max"`` is best.

        Raises:
            ValueError: if `metric` is None and neither `keep_best` nor the policy names one.
        """
        best = self._rule.best if metric is None else KeepBest(1, metric, mode)
        if best is None:
            raise ValueError("best_step: expected the name of a metric, as there is no keep_best to take it from")
        saved = sorted(self._run.on_disk().values(), key=lambda checkpoint: (checkpoint.time, checkpoint.step))
        ranked = best.ranked(saved)
        return saved[ranked[0]].step if ranked else None

    def explain(self) -> list[Decision]:
        """Return the retention decision for each checkpoint, in the order of the saves.

        Example:
            >>> manager = CheckpointManager("explained", max_to_keep=1, keep_every_n_steps=100, block=True)
            >>> for step in (100, 150, 200):
            ...     path = manager.save(step, {"w": np.zeros(2)})
            >>> for decision in manager.explain():
            ...     print(decision)
            ckpt-100 (step 100): kept: every 100 steps
            ckpt-200 (step 200): kept: newest, last 1, every 100 steps
        """
        return self._run.explain(self._state(), float(self._clock()))

    def pin(self, step: SupportsIndex) -> None:
        """Keep the checkpoint of a step, regardless of the policy, until `unpin`.

        Raises:
            CheckpointNotFoundError: if there is no checkpoint of that step.
        """
        self._session.queue.settle()
        with self._session.turn:
            self._run.pin(as_step(step))

    def unpin(self, step: SupportsIndex) -> None:
        """Let retention decide about the checkpoint of a step again, if retention still tracks it.

        Raises:
            CheckpointNotFoundError: if there is no checkpoint of that step.
        """
        self._run.unpin(as_step(step))

    # Asynchronous saves.

    def wait_until_finished(self, timeout: float | None = None) -> None:
        """Wait for the pending save.

        Args:
            timeout: in seconds; an hour if None.

        Raises:
            SaveTimeoutError: if the save has not finished in time. It continues.
            The error of the save, if it failed.
        """
        self._session.queue.wait(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Wait as `wait_until_finished` does, then release the directory for other processes.

        Raises:
            What `wait_until_finished` raises. If the save is still pending, the manager stays open.
        """
        try:
            self._session.close(timeout, before=self._before_closing)
        except CheckpointError:
            if self._preemption.requested:
                logger.exception("the last save before the end of the process failed")
            raise

    def _before_closing(self) -> None:
        self._preemption.end_if_requested()
        self._preemption.release()
        self._held_state = None

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if error is not None and self._preemption.requested:
            logger.error("the process ends after SIGTERM, and after this error", exc_info=error)
        close_on_exit(self.close, error)

    def _finish(self) -> None:
        self._session.queue.settle()
        if self._session.queue.pending is not None:
            self._session.queue.pending.complain()

    def _last_on_disk(self) -> LastSave:
        state = self._state()
        newest = next(iter(self._run.candidates(state)), None)
        return LastSave(None, 0.0, state.serial) if newest is None else LastSave(newest.step, newest.time, state.serial)

    def _state(self) -> RunState:
        """Return the state of retention: held in memory while this process has claimed the directory, else on disk."""
        state = self._held_state
        return self._run.read_state(float(self._clock())) if state is None else state
