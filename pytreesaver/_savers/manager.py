"""CheckpointManager: a run directory for a training loop. After TensorFlow 2's `tf.train.CheckpointManager`."""

import logging
import time
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeVar, Unpack, overload

import jax

from pytreesaver._checkpoint.restoring.options import RestoreArguments, RestoreOptions
from pytreesaver._checkpoint.restoring.restore import restore_with
from pytreesaver._checkpoint.saving.background import SaveFuture, close_on_exit
from pytreesaver._checkpoint.saving.writing import check_format
from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from pytreesaver._io.paths import PathLike, local_path
from pytreesaver._io.processes.meeting import (
    DEFAULT_TIMEOUT,
    WhichProcesses,
    check_taking_part,
    is_first,
    telling,
)
from pytreesaver._progress import Progress, check_progress
from pytreesaver._run.directory import check_run_directory
from pytreesaver._run.managed_run import ManagedRun, RunState
from pytreesaver._run.policies.retention import Decision, KeepBest, RetentionPolicy, SavedCheckpoint
from pytreesaver._run.policies.rules import manager_rule
from pytreesaver._run.policies.saving import SavePolicy
from pytreesaver._run.record import as_step
from pytreesaver._savers.fallback import first_intact, first_intact_of_all, refuse_foreign_steps, warn_of_damaged
from pytreesaver._savers.managed_saves import ManagedSaves
from pytreesaver._savers.preemption import checked_signals
from pytreesaver._savers.session import WriteOptions
from pytreesaver._savers.settings import (
    SaveArguments,
    SaveSettings,
    WhenBusy,
    check_when_busy,
    checked_save_policy,
)
from pytreesaver.formats.registry import format_named, format_of_ending

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
        save_policy: a save policy in place of these two; see `SaveEverySteps` and the other policies.
        when_busy: what `save` does if the previous save is still running: ``"wait"`` for it, or ``"skip"`` this one.
        pad_step_number: pad steps to eight digits, so that names sort in the order of steps.
        block: whether `save` returns only when the checkpoint is durable. By default it returns once the tree is safe
            to modify or donate, and the save continues asynchronously.
        copy: without `block`, as in `pytreesaver.save_async`.
        format: the name of the format, as in `pytreesaver.save`.
        shard_nbytes: as in `pytreesaver.save`.
        incremental: whether not to write again what is unchanged since the last checkpoint that this manager has saved
            or restored; as `base` in `pytreesaver.save`. Every checkpoint is complete without the others.
        clock: returns the time, in seconds since the epoch.
        save_on_signal: one or more signals that announce that the machine will be taken away, such as
            ``signal.SIGUSR1``. After one, the next call of `save` saves a last checkpoint although none is due. Then
            the previous handler of the signal is called, which ends the process by default. If a second signal arrives,
            that happens once the pending save has finished.
        save_on_sigterm: the same for SIGTERM. The process also ends if there is no such call within 20 seconds.
        read_only: refuse to save, pin and unpin, as an evaluator does.
        processes: as in `pytreesaver.save`. Process 0 decides what is saved, deleted and restored; every process has to
            call `save`, `should_save`, `restore`, `restore_or_init`, `latest_step`, `pin` and `unpin`.
        timeout: as in `pytreesaver.save`.

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
        save_on_signal: int | Iterable[int] | None = None,
        save_policy: SavePolicy | None = None,
        when_busy: WhenBusy = "wait",
        read_only: bool = False,
        shard_nbytes: int | None = None,
        incremental: bool = False,
        processes: WhichProcesses = "all",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name != "self"}
        self._given_directory = local_path(directory)
        check_run_directory(self._given_directory)
        rule = manager_rule(max_to_keep, keep_checkpoint_every_n_hours, keep_every_n_steps, keep_best, policy)
        saving = checked_save_policy(save_interval_steps, save_interval_secs, save_policy)
        check_when_busy(when_busy)
        signals = checked_signals(save_on_signal, save_on_sigterm)
        format = format_named(format or format_of_ending(checkpoint_name)).name
        if not isinstance(incremental, bool):
            raise TypeError(f"incremental: expected True or False, found {incremental!r}")
        asked_by = "incremental" if incremental else None
        check_format(self._given_directory / checkpoint_name, format, shard_nbytes, incremental_argument=asked_by)
        self._rule = rule
        self._clock = clock
        self._run = ManagedRun(self._given_directory, checkpoint_name, pad_step_number, rule, float(clock()))
        together = check_taking_part(processes, timeout)
        writing = WriteOptions(block, copy, format, shard_nbytes, incremental)
        settings = SaveSettings(saving, *together, writing, when_busy, read_only, clock)
        self._saves = ManagedSaves(
            self._run, self._given_directory, checkpoint_name, rule, settings, () if read_only else signals
        )
        self._session = self._saves.session
        self._arguments = arguments

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has no pending save and no lock. It reads the directory again, wherever it runs.
        return {**self._arguments, "directory": self._run.directory}

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._given_directory

    @property
    def preemption_requested(self) -> bool:
        """Whether one of the signals of `save_on_signal` has arrived: the next `save` is the last one.

        A long evaluation may poll this, and end early.
        """
        return self._saves.preemption.requested

    @property
    def pending(self) -> SaveFuture | None:
        """The future of the save that is running or ended since the last `save` or `wait_until_finished`, or None.

        ``manager.pending.add_done_callback(function)`` calls a function at its end.
        """
        return self._session.queue.pending

    # Saving.

    def should_save(self, step: SupportsIndex) -> bool:
        """Return whether `save` would save this step: it is due, or a signal to save for the last time has arrived.

        Example:
            >>> manager = CheckpointManager("due", save_interval_steps=100, block=True)
            >>> path = manager.save(0, {"w": np.zeros(2)})
            >>> [step for step in (0, 50, 100) if manager.should_save(step)]
            [100]
        """
        return self._saves.is_due(as_step(step))

    def save(
        self,
        step: SupportsIndex,
        tree: Any,
        *,
        metrics: Mapping[str, SupportsFloat] | None = None,
        metadata: Mapping[str, Any] | None = None,
        force: bool = False,
        restart: bool = False,
        progress: Progress = False,
    ) -> Path | None:
        """Save a tree as the checkpoint of a step if a save is due, then delete what retention does not keep.

        Nothing is deleted before the new checkpoint is durable. A failed save changes nothing in the run directory.

        Args:
            step: an int, or a 0-d integer array.
            tree: the tree to save.
            metrics: numbers by name, for `keep_best`, `best_step` and policies.
            metadata: as in `pytreesaver.save`.
            force: save although no save is due. A checkpoint of the same step is overwritten.
            restart: save even a step that is not after the last one, and go on from it. Retention then deletes the
                later checkpoints first, as old ones. Without this, restore the checkpoint of a step to go back to it.
            progress: as in `pytreesaver.save`.

        Returns:
            The path of the checkpoint, or None if no save is due. Unless the manager blocks, the checkpoint is complete
            when `wait_until_finished` returns.

        Raises:
            CheckpointExistsError: if the step is before the last one of the run, as when a loop that starts from the
                beginning saves into the directory of another run, unless `restart` is True.
            CheckpointPermissionError: if the manager is read-only.
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
        self._saves.check_writable("save")
        arguments = SaveArguments(as_step(step), tree, metrics, metadata, force, restart, progress)
        return self._saves.save(arguments, self.should_save)

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
        number = None if step is None else as_step(step)
        incremental = bool(self._arguments["incremental"])
        alone = checked._replace(processes="this", is_incremental=incremental)  # the checkpoint is chosen already
        path = self._run.directory

        def restored(saved: SavedCheckpoint) -> Any:
            with jax.profiler.TraceAnnotation("CheckpointManager.restore"):
                return restore_with(path / saved.path, like, alone, stacklevel=5)

        meeting = self._saves.new_meeting(f"restore(step={number})")
        with telling(meeting):
            self._session.queue.settle()
            state = self._saves.state() if is_first(meeting) else None
            candidates = partial(self._candidates, state, number)
            if meeting is None:
                saved, tree, problems = first_intact(candidates(), restored)
            else:
                saved, tree, problems = first_intact_of_all(meeting, candidates, restored)
        if saved is not None:
            warn_of_damaged(problems, str(self._given_directory / saved.path))
            self._session.go_on_from(path / saved.path)
            if state is not None:
                self._saves.go_on_from(saved, state)
            return tree
        if len(problems) == 1:
            raise problems[0]
        raise CorruptCheckpointError(
            f"{self._given_directory}: no checkpoint can be restored:\n" + "\n".join(map(str, problems))
        )

    def _candidates(self, state: RunState | None, step: int | None) -> list[SavedCheckpoint]:
        """Return the checkpoints that `restore` tries, the newest first, or that of a step."""
        assert state is not None
        candidates = self._run.candidates(state)
        if step is not None:
            candidates = [saved for saved in candidates if saved.step == step][:1]
            if not candidates:
                raise self._run.no_such_step(step)
        elif not candidates:
            refuse_foreign_steps(self._given_directory)
            raise CheckpointNotFoundError(f"{self._given_directory}: expected a checkpoint, found none")
        return candidates

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
            CheckpointExistsError: if there is none, but the directory contains steps of another library.

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
        if self._saves.decided("restore_or_init()", self._has_checkpoints, bool):
            return self.restore(tree, **options)
        return tree

    def _has_checkpoints(self) -> bool:
        self._session.queue.settle()
        found = bool(self._run.candidates(self._saves.state()))
        if not found:
            refuse_foreign_steps(self._given_directory)
        return found

    # Listing.

    def all_steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, in ascending order.

        Raises:
            CheckpointExistsError: if there is none, but steps of another library.
        """
        steps = self._run.steps()
        if not steps:
            refuse_foreign_steps(self._given_directory)
        return steps

    def latest_step(self, *, verify: bool = True) -> int | None:
        """Return the step of the newest checkpoint that can be restored, or None.

        Skips damaged checkpoints, with a `RetentionWarning` that names them.

        Args:
            verify: whether to read every byte of the checkpoint, once, unless this manager saved it. Otherwise only the
                index and the sizes of the files are checked.
        """
        return self._saves.decided("latest_step()", lambda: self._latest_step(verify), int | None)

    def _latest_step(self, verify: bool) -> int | None:
        saved, problems = self._newest_intact(every_byte=verify)
        warn_of_damaged(problems, "nothing" if saved is None else str(self._given_directory / saved.path))
        if saved is None and not problems:
            refuse_foreign_steps(self._given_directory)
        return None if saved is None else saved.step

    def _newest_intact(
        self, *, every_byte: bool, attempts: int = 10
    ) -> tuple[SavedCheckpoint | None, list[CheckpointError]]:
        """Return the newest checkpoint that can be restored, and the errors of those that are newer."""
        saved, _, problems = first_intact(
            self._run.candidates(self._saves.state()),
            lambda saved: self._run.verify(self._run.directory / saved.path, every_byte=every_byte),
        )
        # A concurrent save may have deleted checkpoints since they were listed.
        if attempts and any(isinstance(problem, CheckpointNotFoundError) for problem in problems):
            return self._newest_intact(every_byte=every_byte, attempts=attempts - 1)
        return saved, problems

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
        return self._run.explain(self._saves.state(), float(self._clock()))

    def pin(self, step: SupportsIndex) -> None:
        """Keep the checkpoint of a step, regardless of the policy, until `unpin`.

        Raises:
            CheckpointNotFoundError: if there is no checkpoint of that step.
        """
        self._saves.check_writable("pin")
        self._session.queue.settle()
        with self._session.turn:
            self._saves.decided(f"pin({step})", lambda: self._run.pin(as_step(step)), None)

    def unpin(self, step: SupportsIndex) -> None:
        """Let retention decide about the checkpoint of a step again, if retention still tracks it.

        Raises:
            CheckpointNotFoundError: if there is no checkpoint of that step.
        """
        self._saves.check_writable("unpin")
        self._saves.decided(f"unpin({step})", lambda: self._run.unpin(as_step(step)), None)

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
        self._saves.close(timeout)

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if error is not None and self.preemption_requested:
            logger.error("the process ends after a signal, and after this error", exc_info=error)
        close_on_exit(self.close, error)
