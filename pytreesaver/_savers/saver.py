"""Saver: saves checkpoints by name and step, and keeps the last few. After `tf.compat.v1.train.Saver`."""

import os
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, Unpack, cast, overload

import jax
import msgspec

from pytreesaver._checkpoint.restoring.options import RestoreArguments, RestoreOptions
from pytreesaver._checkpoint.restoring.restore import restore_with
from pytreesaver._checkpoint.saving.background import SaveFuture, close_on_exit
from pytreesaver._io.paths import PathLike, as_path, canonical, local_path
from pytreesaver._io.processes.meeting import (
    DEFAULT_TIMEOUT,
    WhichProcesses,
    check_taking_part,
    is_first,
    new_meeting,
    telling,
)
from pytreesaver._progress import Progress, check_progress
from pytreesaver._run.directory import Deletions, checkpoint_at, is_complete
from pytreesaver._run.history import SaveTimings
from pytreesaver._run.lock import RunLock
from pytreesaver._run.policies.recording import encode_rule
from pytreesaver._run.policies.rules import SaverRule
from pytreesaver._run.record import Record, as_step, encode_record
from pytreesaver._run.recorded import saved_at
from pytreesaver._run.state_text import state_file_name
from pytreesaver._savers.saver_def import SaverDef, VariableList, checked_saver_def, path_to_save
from pytreesaver._savers.saver_state import SaverState
from pytreesaver._savers.session import WriteOptions, WriterSession
from pytreesaver._savers.settings import SaverArguments
from pytreesaver._tree.names.select import Selection
from pytreesaver.formats.registry import format_of_ending, format_to_write

T = TypeVar("T")


class Saver:
    """Saves trees as ``path-step`` and keeps the last few of them. After `tf.compat.v1.train.Saver`.

    It writes the state file that `latest_checkpoint` reads. A new Saver that saves under the same name takes over the
    checkpoints of that name that the state file lists, and deletes them when they are no longer among the last.

    Args:
        var_list: the variables to save and restore: None for all, a selection (a glob, a compiled regular expression,
            a function of the name, a list of those, a tree of bools), or a dict {saved name: variable name}.
        reshape: whether `restore` accepts arrays of another shape with the same number of elements.
        sharded: whether to write a data file for each device that holds a shard of an array.
        max_to_keep: how many of the newest to keep; None or 0 keeps all, and the state file then lists the newest only.
        keep_checkpoint_every_n_hours: also keep one checkpoint per this many hours, permanently, counted from the
            construction of the Saver; None or 0 keeps all checkpoints that are saved after that.
        name: the name of this Saver in logs and profiler traces.
        restore_sequentially: whether to restore one variable at a time, to hold less memory above the result.
        saver_def: the settings of another Saver, in place of all arguments before `clock`.
        allow_empty: whether to accept a tree or a selection without variables.
        pad_step_number: pad steps to eight digits, so that names sort in the order of steps.
        save_relative_paths: whether the state file has relative paths even if `save` gets absolute ones.
        filename: the default of `save_path` in `save`.
        format: the name of the format, as in `pytreesaver.save`.
        clock: returns the time, in seconds since the epoch.
        shard_nbytes: as in `CheckpointManager`.
        incremental: as in `CheckpointManager`.
        processes: as in `CheckpointManager`.
        timeout: as in `CheckpointManager`.

    Raises:
        TypeError, ValueError: if an argument is invalid.

    Example:
        >>> saver = Saver(max_to_keep=2)
        >>> for step in (100, 200, 300):
        ...     path = saver.save({"w": np.full(3, step)}, "digits/model", global_step=step)
        >>> path, saver.last_checkpoints
        ('digits/model-300', ['digits/model-200', 'digits/model-300'])
        >>> saver.restore(pytreesaver.latest_checkpoint("digits"))
        {'w': array([300, 300, 300])}
    """

    def __init__(
        self,
        var_list: Selection | Mapping[str, str] | None = None,
        reshape: bool = False,
        sharded: bool = False,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float | None = 10000.0,
        name: str | None = None,
        restore_sequentially: bool = False,
        saver_def: SaverDef | None = None,
        *,
        allow_empty: bool = False,
        pad_step_number: bool = False,
        save_relative_paths: bool = True,
        filename: PathLike | None = None,
        format: str | None = None,
        clock: Callable[[], float] = time.time,
        shard_nbytes: int | None = None,
        incremental: bool = False,
        processes: WhichProcesses = "all",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        filename = None if filename is None else os.fspath(filename)
        given = SaverDef(
            var_list,
            reshape,
            sharded,
            max_to_keep,
            keep_checkpoint_every_n_hours,
            name,
            restore_sequentially,
            allow_empty,
            pad_step_number,
            save_relative_paths,
            filename,
            format,
        )
        if saver_def is not None:
            if not isinstance(saver_def, SaverDef):
                raise ValueError(f"saver_def: expected a SaverDef, found {saver_def!r}")
            if given != SaverDef():
                raise ValueError("saver_def: cannot be combined with other arguments")
            given = saver_def
        self._settings = given = checked_saver_def(given)
        self._variables = VariableList(given.var_list, given.allow_empty)
        self._clock = clock
        self._more = SaverArguments(shard_nbytes, bool(incremental), *check_taking_part(processes, timeout))
        self._state = SaverState(given, float(clock()))
        self._session = WriterSession("Saver", self._label)
        self._versions: dict[tuple[int, int], int] = {}  # of the state files that `_state` knows, by directory

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has no pending save and no lock. It reads the state files again.
        return {"given": (self._settings, self._more, self._clock), "state": self._state.copied()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        (self._settings, self._more, self._clock), self._state = state["given"], state["state"]
        self._variables = VariableList(self._settings.var_list, self._settings.allow_empty)
        self._session = WriterSession("Saver", self._label)
        self._versions = {}

    # Saving.

    def save(
        self,
        tree: Any,
        save_path: PathLike | None = None,
        global_step: SupportsIndex | None = None,
        latest_filename: str | None = None,
        write_state: bool = True,
        metadata: Mapping[str, Any] | None = None,
        block: bool = True,
        copy: bool = False,
        progress: Progress = False,
    ) -> str:
        """Save a tree as ``save_path-global_step``, list it in the state file, and delete what retention does not keep.

        Nothing is deleted before the new checkpoint is durable and listed. If writing it fails, the state file does not
        change. A checkpoint of the same name is overwritten.

        Args:
            tree: the tree to save.
            save_path: the path without the step; `filename` of the constructor if None. Directories are created.
            global_step: an int, or a 0-d integer array; None for no step in the name.
            latest_filename: the name of the state file, ``checkpoint`` by default.
            write_state: whether to list the checkpoint in the state file. An unlisted one is never deleted.
            metadata: as in `pytreesaver.save`.
            block: whether to return only when the checkpoint is durable. Otherwise this returns once the tree is safe
                to modify or donate, as `save_async` does. Only one save runs at a time: the next one waits for it.
            copy: without `block`, as in `pytreesaver.save_async`.
            progress: as in `pytreesaver.save`.

        Returns:
            The path of the checkpoint.

        Raises:
            TypeError, ValueError: if an argument is invalid.
            ConcurrentWriterError: if another live process is saving into the directory.
            What `pytreesaver.save` raises, and the error of the previous asynchronous save if that failed.

        Example:
            >>> Saver(pad_step_number=True).save({"w": np.ones(3)}, "padded/model", global_step=np.int32(7))
            'padded/model-00000007'
        """
        check_progress(progress)
        step = None if global_step is None else as_step(global_step)
        state_name = state_file_name(latest_filename)
        path = path_to_save(self._settings, save_path, step, state_name)
        ending_in = path if step is None else path.rpartition("-")[0]
        meeting = new_meeting(f"{self._label}: save to {path}", path, self._more.timeout, self._more.processes)
        with telling(meeting), self._session.turn:
            self._session.check_open()
            started = time.monotonic()
            self.wait()
            waited_secs = time.monotonic() - started
            with jax.profiler.TraceAnnotation(f"{self._label}.save"):
                contents = self._variables.contents(tree, metadata, meeting)
                location = canonical(path)
                list_saved = None
                format, sharded = self._format_of(path, ending_in), self._settings.sharded
                if is_first(meeting):
                    location, record, list_saved = self._prepare(
                        path, step, ending_in, state_name, is_default_state=latest_filename is None, listed=write_state
                    )
                    contents = contents._replace(record=encode_record(record))
                options = WriteOptions(block, copy, format, self._more.shard_nbytes, self._more.incremental, sharded)
                self._session.save(
                    contents,
                    location,
                    as_path(path),
                    list_saved=list_saved,
                    failed=self._state.reread_directories,
                    options=options,
                    progress=progress,
                    started=started,
                    waited_secs=waited_secs,
                    meeting=meeting,
                )
        return path

    def _prepare(
        self, path: str, step: int | None, ending_in: str, state_name: str, *, is_default_state: bool, listed: bool
    ) -> tuple[Path, Record, Callable[[SaveTimings], Deletions] | None]:
        """Claim the directory of a checkpoint. Return its location, its record, and what lists it once it is saved."""
        now = float(self._clock())
        location = canonical(path)
        lock = self._session.claim(location.parent)
        location = canonical(path)  # the directory exists now
        record = Record(step, name=location.name)
        if listed:
            absolute = as_path(path).is_absolute()
            is_current = self._versions.get(lock.identity) == lock.version
            if is_default_state:
                base = Path(ending_in).name
                state_name = self._state.state_name_for(location, base, is_current=is_current)
            self._versions[lock.identity] = lock.version
            record = self._state.adopt(location, step, state_name, absolute=absolute, is_current=is_current)
        rule = SaverRule(self._settings.max_to_keep, self._settings.keep_checkpoint_every_n_hours)
        record = msgspec.structs.replace(record, time=now, retention=encode_rule(rule))
        return location, record, partial(self._list_saved, lock, path, location, record, now) if listed else None

    def _list_saved(
        self, lock: RunLock, path: str, location: Path, record: Record, now: float, timings: SaveTimings
    ) -> Deletions:
        is_current = self._versions.get(lock.identity) == lock.version
        try:
            deletions = self._state.list_saved(path, location, record, now, timings)
        finally:
            version = lock.advance()
        if is_current:
            self._versions[lock.identity] = version
        return deletions

    def _format_of(self, path: str, before_step: str) -> str:
        """Return the name of the format: as given, or by the ending of the path before the step."""
        given = self._settings.format or format_of_ending(before_step)
        return format_to_write(as_path(path), given).name

    @property
    def _label(self) -> str:
        return self._settings.name or "Saver"

    # Restoring.

    @overload
    def restore(self, save_path: PathLike, like: None = None, **options: Unpack[RestoreArguments]) -> Any: ...
    @overload
    def restore(self, save_path: PathLike, like: T, **options: Unpack[RestoreArguments]) -> T: ...
    def restore(self, save_path: PathLike, like: Any = None, **options: Unpack[RestoreArguments]) -> Any:
        """Restore the variables of this Saver. The other arguments are those of `pytreesaver.restore`.

        With `like`, leaves outside of `var_list` are the template's own objects. Without it, a dict as `var_list`
        results in nested dicts of the variable names. `only` selects among the variables of `var_list`.

        Raises:
            ValueError: if `save_path` is None, or if `rename` is passed although `var_list` is a dict.
            What `pytreesaver.restore` raises.

        Example:
            >>> saver = Saver({"weights": "dense/w"})
            >>> path = saver.save({"dense": {"w": np.ones(2), "b": np.zeros(2)}}, "renamed/model")
            >>> pytreesaver.list_variables(path), saver.restore(path)
            ([('weights', (2,))], {'dense': {'w': array([1., 1.])}})
        """
        if cast(Any, save_path) is None:
            raise ValueError("Can't load save_path when it is None: no checkpoint was found")
        path = local_path(save_path)
        self._session.queue.settle()
        if self._variables.renaming is not None and options.get("rename") is not None:
            raise ValueError("rename: cannot be combined with a var_list that is a dict, which also renames variables")
        given_options = RestoreOptions.of("Saver.restore", options)
        everything = given_options._replace(
            only=self._variables.selected_by(given_options.only),
            rename=self._variables.renaming or given_options.rename,
            reshape=options.get("reshape", self._settings.reshape and like is not None),
            sequentially=self._settings.restore_sequentially,
            may_be_empty=self._settings.allow_empty,
            processes=options.get("processes", self._more.processes),
            timeout=options.get("timeout", self._more.timeout),
            is_incremental=self._more.incremental,
        )
        with jax.profiler.TraceAnnotation(f"{self._label}.restore"):
            tree = restore_with(save_path, like, everything)
        if self._more.incremental:
            self._session.go_on_from(checkpoint_at(path).absolute())
        return tree

    # Retention.

    @property
    def last_checkpoints(self) -> list[str]:
        """The tracked checkpoints, oldest first; empty if all checkpoints are kept."""
        return self._state.paths

    @property
    def next_checkpoint_time(self) -> float:
        """A checkpoint saved after this time, in seconds since the epoch, is preserved when it would be deleted."""
        return self._state.next_checkpoint_time

    def set_last_checkpoints_with_time(self, last_checkpoints_with_time: Iterable[tuple[PathLike, float]]) -> None:
        """Set the tracked checkpoints: (path, seconds since the epoch), oldest first.

        Example:
            >>> saver = Saver()
            >>> saver.set_last_checkpoints_with_time([("model-1", 60.0), ("model-2", 120.0)])
            >>> saver.last_checkpoints
            ['model-1', 'model-2']
        """
        with self._session.turn:
            self._session.queue.settle()
            self._state.track(last_checkpoints_with_time)

    def recover_last_checkpoints(self, checkpoint_paths: Sequence[PathLike]) -> None:
        """Set the tracked checkpoints to the complete ones among these paths, oldest first.

        Example:
            >>> saver = Saver()
            >>> saver.recover_last_checkpoints([pytreesaver.save({"w": np.ones(3)}, "recovered-1"), "recovered-2"])
            >>> saver.last_checkpoints
            ['recovered-1']
        """
        paths = [local_path(path) for path in checkpoint_paths]
        self.set_last_checkpoints_with_time([(path, saved_at(path)) for path in paths if is_complete(path)])

    def as_saver_def(self) -> SaverDef:
        """Return the settings, for ``Saver(saver_def=...)``.

        Raises:
            TypeError: if `var_list` is a function, a regular expression or a mask, which JSON cannot represent.

        Example:
            >>> Saver(max_to_keep=3).as_saver_def().max_to_keep
            3
        """
        variables = self._settings.var_list
        plain = variables is None or isinstance(variables, str)
        plain = plain or (isinstance(variables, list) and all(isinstance(entry, str) for entry in variables))
        if not plain and not isinstance(variables, dict):
            raise TypeError(f"var_list: expected a str, a list of str or a dict for a SaverDef, found {variables!r}")
        return self._settings

    # Asynchronous saves.

    @property
    def pending(self) -> SaveFuture | None:
        """The future of the asynchronous save that is running or ended since the last `save` or `wait`, or None."""
        return self._session.queue.pending

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the pending save, at most `timeout` seconds; an hour if None.

        Raises:
            SaveTimeoutError: if the save has not finished in time. It continues.
            The error of the save, if it failed.
        """
        self._session.queue.wait(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Wait as `wait` does, then release the directory for other processes.

        Raises:
            What `wait` raises. If the save is still pending, the Saver stays open.
        """
        self._session.close(timeout)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        close_on_exit(self.close, error)
