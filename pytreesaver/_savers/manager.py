"""CheckpointManager: a run directory for a training loop. After TensorFlow 2's `tf.train.CheckpointManager`."""

import errno
import logging
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import jax

from pytreesaver._checkpoint.background import close_on_exit
from pytreesaver._checkpoint.restoring.options import RestoreArguments, RestoreOptions
from pytreesaver._checkpoint.restoring.restore import restore_with
from pytreesaver._checkpoint.saving import contents_of
from pytreesaver._checkpoint.snapshot import snapshot
from pytreesaver._errors import (
    CheckpointError,
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
)
from pytreesaver._io.paths import PathLike, local_path
from pytreesaver._progress import Progress, check_progress
from pytreesaver._run.directory import Deletions
from pytreesaver._run.history import CheckpointEvent
from pytreesaver._run.lock import RunLock
from pytreesaver._run.managed_run import ManagedRun, RunState
from pytreesaver._run.policies.recording import encode_rule
from pytreesaver._run.policies.retention import (
    AnyOf,
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


class CheckpointManager:
    """Saves a training loop's state into a run directory, keeps what is worth keeping, and finds it again.

    What retention remembers is in the directory: a loop that was killed and started again goes on as if nothing had
    happened. By default that is the rule of TensorFlow 2's manager: the last `max_to_keep` checkpoints, and one for
    every `keep_checkpoint_every_n_hours`. The newest complete checkpoint is always kept.

    Args:
        directory: the run directory; it is created by the first save.
        max_to_keep: how many of the last checkpoints to keep; all if None.
        keep_checkpoint_every_n_hours: also keep for ever one checkpoint for every so many hours.
        keep_every_n_steps: also keep the checkpoints whose step is a multiple of this.
        keep_best: also keep the best ones by a metric: a `KeepBest`, or (count, metric) where less is better, or
            (count, metric, "max").
        policy: which checkpoints to keep, in place of the four arguments above; see `KeepLast` and its kin.
        checkpoint_name: checkpoints are called ``checkpoint_name-step``.
        save_interval_steps: how many steps lie between two saves at least.
        save_interval_secs: how many seconds lie between two saves at least.
        pad_step_number: write steps with eight digits, so that names sort as steps do.
        block: with it, `save` returns when the checkpoint is durable; without it, as soon as nothing that happens to
            the tree can change what is saved.
        copy: without `block`, as in `pytreesaver.save_async`.
        format: None, or ``"native"``.
        clock: gives the time, in seconds since the epoch.
        save_on_sigterm: when the process gets a SIGTERM, as it does when its machine is taken away, the next call of
            `save` makes a last checkpoint, whatever the interval; then the process ends. Without a call of `save`
            within 20 seconds, or with a second signal, it ends as soon as the save that is under way has finished.

    Raises:
        TypeError, ValueError: an argument makes no sense.

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
        keep_best: KeepBest | tuple[Any, ...] | None = None,
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
        self._shown = local_path(directory)
        rule = manager_rule(max_to_keep, keep_checkpoint_every_n_hours, keep_every_n_steps, keep_best, policy)
        check_count("save_interval_steps", save_interval_steps, least=1, optional=False)
        check_duration("save_interval_secs", save_interval_secs, "seconds")
        if save_interval_secs == 0:
            raise ValueError("save_interval_secs: expected a positive number or None, found 0")
        format_named(format)  # raises if there is no such format
        self._format = format
        self._rule = rule
        self._run = ManagedRun(self._shown, checkpoint_name, pad_step_number, rule, float(clock()))
        self._schedule = SaveSchedule(save_interval_steps, save_interval_secs, self._last_on_disk)
        self._block = block
        self._copy = copy
        self._clock = clock
        self._session = WriterSession("CheckpointManager")
        self._held_state: RunState | None = None  # while this process holds the directory
        self._preemption = Preemption(self._finish) if save_on_sigterm else None

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._shown

    # Saving.

    def should_save(self, step: Any) -> bool:
        """Whether `save` would save this step: it is due by the interval, or the process is to end.

        Example:
            >>> manager = CheckpointManager("due", save_interval_steps=100, block=True)
            >>> path = manager.save(0, {"w": np.zeros(2)})
            >>> [step for step in (0, 50, 100) if manager.should_save(step)]
            [100]
        """
        return self._schedule.is_due(as_step(step), float(self._clock()), at_once=self._is_ending)

    def save(
        self,
        step: Any,
        tree: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        force: bool = False,
        progress: Progress = False,
    ) -> Path | None:
        """Save a tree as the checkpoint of a step, if that is due; then delete what is not to be kept.

        Nothing is deleted before the new checkpoint is durable. A save that fails changes nothing that was remembered.

        Args:
            step: an int, or an integer array without axes.
            tree: what to save.
            metrics: numbers by name, for `keep_best`, `best_step` and policies.
            metadata: as in `pytreesaver.save`.
            force: save whatever the interval says, and even a step that is not after the last one; a checkpoint of
                the same step is replaced.
            progress: as in `pytreesaver.save`.

        Returns:
            The path of the checkpoint, or None if none is due. Unless the manager blocks, it is complete when
            `wait_until_finished` returns.

        Raises:
            CheckpointExistsError: the step lies before the last one of the run, which would happen if a loop started
                from the beginning in the directory of another run.
            ConcurrentWriterError: another live process saves into the directory.
            TypeError, ValueError: an argument makes no sense.
            What `pytreesaver.save` raises; and what the save before failed with.

        Example:
            >>> with CheckpointManager("measured", keep_best=(1, "loss"), max_to_keep=1) as manager:
            ...     for step, loss in enumerate([0.5, 0.2, 0.3]):
            ...         path = manager.save(step, {"w": np.zeros(2)}, metrics={"loss": loss})
            >>> manager.all_steps(), manager.best_step()
            ([1, 2], 1)
        """
        check_progress(progress)
        number = as_step(step)
        with self._session.turn:
            self._session.check_open()
            if self._preemption is None:
                self._session.queue.raise_if_failed()
                return self._save_if_due(number, tree, metrics, metadata, force, progress)
            try:
                with self._preemption.saving():
                    self._raise_or_log_the_last_failure()
                    saved = self._save_if_due(number, tree, metrics, metadata, force, progress)
                    if saved is None and self._preemption.requested:  # the signal came after that was decided
                        saved = self._save_if_due(number, tree, metrics, metadata, force, progress)
                    return saved
            except Exception:
                if self._preemption.requested:
                    logger.exception("the last save before the end of the process failed")
                raise
            finally:
                self._end_if_preempted()

    def _save_if_due(
        self,
        step: int,
        tree: Any,
        metrics: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        force: bool,
        progress: Progress,
    ) -> Path | None:
        if not force:
            self._schedule.refuse_to_go_back(step, self._shown)
        if not (force or self.should_save(step)):
            return None
        self._raise_or_log_the_last_failure(wait=True)
        now = float(self._clock())
        checked = checked_metrics(metrics)
        path = self._run.path_of(step)
        with jax.profiler.TraceAnnotation("CheckpointManager.save"):
            contents = contents_of(tree, metadata)
            lock, state = self._claim()
            if not force:
                self._schedule.refuse_to_go_back(step, self._shown)
            newest = None if state.newest is None else state.newest.name
            record = Record(
                step, now, checked, STATE_FILE_NAME, state.serial + 1, path.name, newest, encode_rule(self._rule)
            )
            contents = contents._replace(record=encode_record(record))
            if not self._block:
                contents = snapshot(contents, copy=self._copy)
            self._schedule.under_way = LastSave(step, now, record.serial)
            saved = CheckpointEvent("saved", path.name, now, step, checked)
            self._session.save(
                contents,
                path,
                self._shown / path.name,
                list_saved=partial(self._list_saved, path, saved, lock, state),
                failed=self._forget_state,
                block=self._block,
                format=self._format,
                progress=progress,
            )
        return self._shown / path.name

    def _raise_or_log_the_last_failure(self, *, wait: bool = False) -> None:
        try:
            if wait:
                self._session.queue.wait()
            else:
                self._session.queue.raise_if_failed()
        except CheckpointError:
            if not self._is_ending:
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
                self._schedule.saved = None  # somebody has saved since this manager looked
        return lock, self._held_state

    def _list_saved(self, path: Path, saved: CheckpointEvent, lock: RunLock, state: RunState) -> Deletions:
        if not lock.wrote_last(self):
            state = self._run.read_state(saved.time)
        state = state.with_saved(path, saved.time, state.serial + 1)
        self._held_state, deletions = self._run.retain(state, saved)
        self._run.trust(path)
        self._schedule.saved = LastSave(saved.step, saved.time, state.serial)
        self._schedule.under_way = None
        return deletions

    def _forget_state(self) -> None:
        """After a failed save, which may have left a complete checkpoint: what is on disk counts."""
        self._held_state = None
        self._schedule.under_way = None

    # Restoring.

    def restore(
        self,
        like: Any = None,
        *,
        step: Any = None,
        **options: Unpack[RestoreArguments],
    ) -> Any:
        """Restore the newest checkpoint, or that of a step. The other arguments are those of `pytreesaver.restore`.

        A save that is under way is waited for. If the newest checkpoint is damaged, the one before it is restored,
        with a `RetentionWarning` that names the damaged one; that of a step is restored or an error.

        Raises:
            CheckpointNotFoundError: there is none.
            CorruptCheckpointError: all are damaged, or that of the step is.
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
            raise CheckpointNotFoundError(f"{self._shown}: expected a checkpoint, found none")
        path = self._run.directory

        def restored(saved: SavedCheckpoint) -> Any:
            with jax.profiler.TraceAnnotation("CheckpointManager.restore"):
                return restore_with(path / saved.path, like, checked, stacklevel=5)

        saved, tree, problems = _first_intact(candidates, restored)
        if saved is not None:
            _warn_of(problems, str(self._shown / saved.path))
            self._schedule.saved = LastSave(saved.step, saved.time, state.serial)
            return tree
        if len(problems) == 1:
            raise problems[0]
        raise CorruptCheckpointError(
            f"{self._shown}: none of its checkpoints can be restored:\n" + "\n".join(map(str, problems))
        )

    def restore_or_init(self, init: Any, **options: Unpack[RestoreArguments]) -> Any:
        """Restore the newest checkpoint like `init`, or give `init` if there is none.

        Args:
            init: the initial state, or a function of no arguments that makes it. It is the template, so that the
                restored state has its containers, dtypes and shardings.
            options: as in `restore`.

        Raises:
            What `restore` raises if there is a checkpoint.

        Example:
            >>> manager = CheckpointManager("resumed", block=True)
            >>> state = manager.restore_or_init(lambda: {"step": 0})
            >>> path = manager.save(7, {"step": 7})
            >>> state, manager.restore_or_init(lambda: {"step": 0})
            ({'step': 0}, {'step': 7})
        """
        is_function = callable(init) and jax.tree_util.all_leaves([init])  # some modules are both tree and function
        tree = init() if is_function else init
        RestoreOptions.of("CheckpointManager.restore_or_init", options).checked(tree)  # whether it is needed or not
        self._session.queue.settle()
        return self.restore(tree, **options) if self._run.candidates(self._state()) else tree

    # What there is.

    def all_steps(self) -> list[int]:
        """The steps of all complete checkpoints, in ascending order."""
        return self._run.steps()

    def latest_step(self, *, verify: bool = True) -> int | None:
        """The step of the newest checkpoint that can be restored, or None.

        A damaged one is passed over, with a `RetentionWarning` that names it. Every byte of a checkpoint is read for
        that, once, unless this manager has saved it itself; with ``verify=False`` only its index and the sizes of its
        files are checked.
        """
        saved, _, problems = _first_intact(
            self._run.candidates(self._state()),
            lambda saved: self._run.verify(self._run.directory / saved.path, every_byte=verify),
        )
        _warn_of(problems, "nothing" if saved is None else str(self._shown / saved.path))
        return None if saved is None else saved.step

    def best_step(self, metric: str | None = None, mode: Literal["min", "max"] = "min") -> int | None:
        """The step of the best checkpoint by a metric, or None if none has that metric. NaN is never best.

        Args:
            metric: by default that of `keep_best` or of the policy.
            mode: whether less or more is better: ``"min"`` or ``"max"``.

        Raises:
            ValueError: no metric is given, and neither `keep_best` nor the policy has one.
        """
        if metric is not None:
            best = KeepBest(1, metric, mode)
        else:
            parts = AnyOf(tuple(part for part in (self._rule.policy, self._rule.also) if part is not None)).parts
            found = [part for part in parts if isinstance(part, KeepBest)]
            if not found:
                raise ValueError("best_step: expected the name of a metric, as there is no keep_best to take it from")
            best = found[0]
        saved = sorted(self._run.on_disk().values(), key=lambda checkpoint: (checkpoint.time, checkpoint.step))
        ranked = best.ranked(saved)
        return saved[ranked[0]].step if ranked else None

    def explain(self) -> list[Decision]:
        """What retention says of each checkpoint now, in the order of their saves: kept and why, or to be deleted.

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

    def pin(self, step: Any) -> None:
        """Keep the checkpoint of a step, whatever the policy says, until `unpin`.

        Raises:
            CheckpointNotFoundError: there is none.
        """
        self._session.queue.settle()
        with self._session.turn:
            self._run.pin(as_step(step))

    def unpin(self, step: Any) -> None:
        """Leave the checkpoint of a step to the policy again, if retention still watches it.

        Raises:
            CheckpointNotFoundError: there is none.
        """
        self._run.unpin(as_step(step))

    # The background.

    def wait_until_finished(self, timeout: float | None = None) -> None:
        """Wait for the save that is under way, `timeout` seconds at most; an hour if None.

        Raises:
            SaveTimeoutError: it has not finished, and goes on.
            What it failed with.
        """
        self._session.queue.wait(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Wait as `wait_until_finished` does, and then let other processes save into the directory.

        Raises:
            What `wait_until_finished` raises. If the save is still under way, the manager stays open.
        """
        try:
            self._session.close(timeout, before=self._before_closing)
        except CheckpointError:
            if self._is_ending:
                logger.exception("the last save before the end of the process failed")
            raise

    def _before_closing(self) -> None:
        self._end_if_preempted()
        if self._preemption is not None:
            self._preemption.give_back()
        self._held_state = None

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if error is not None and self._is_ending:
            logger.error("the process ends after SIGTERM, and after this", exc_info=error)
        close_on_exit(self.close, error)

    def _finish(self) -> None:
        self._session.queue.settle()
        if self._session.queue.pending is not None:
            self._session.queue.pending.complain()

    @property
    def _is_ending(self) -> bool:
        return self._preemption is not None and self._preemption.requested

    def _end_if_preempted(self) -> None:
        if self._preemption is not None and self._preemption.requested:
            self._preemption.end()

    def _last_on_disk(self) -> LastSave:
        state = self._state()
        newest = next(iter(self._run.candidates(state)), None)
        return LastSave(None, 0.0, state.serial) if newest is None else LastSave(newest.step, newest.time, state.serial)

    def _state(self) -> RunState:
        """What retention remembers: of this process if it holds the directory, otherwise as it is on disk now."""
        state = self._held_state
        return self._run.read_state(float(self._clock())) if state is None else state


def _first_intact(
    candidates: Sequence[SavedCheckpoint], use: Callable[[SavedCheckpoint], Any]
) -> tuple[SavedCheckpoint | None, Any, list[CheckpointError]]:
    """The first checkpoint that is not damaged, what `use` gives for it, and what is wrong with those before it.

    What the process lacks, a right or a file descriptor, is no damage, and is raised.
    """
    problems: list[CheckpointError] = []
    for saved in candidates:
        try:
            return saved, use(saved), problems
        except (CorruptCheckpointError, CheckpointNotFoundError) as error:
            problems.append(error)
        except CheckpointIOError as error:
            if error.errno != errno.EIO:
                raise
            problems.append(error)
    return None, None, problems


def _warn_of(problems: Sequence[CheckpointError], offered: str) -> None:
    if problems:
        lines = "\n".join(map(str, problems))
        warnings.warn(f"{lines}\noffered instead: {offered}", RetentionWarning, stacklevel=3)
