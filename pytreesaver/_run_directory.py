"""A run directory: the checkpoints in it, and the state file that says which is the newest. As in `tf.train`.

State files are TensorFlow's, checkpoints are pytreesaver's. Paths in a state file are relative to its directory, so
that a run directory can be moved and copied.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pytreesaver._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
)
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import replace_file
from pytreesaver._io.reading import read_file
from pytreesaver._paths import PathLike, local_path, named_os_errors
from pytreesaver._records import Record, decode_record
from pytreesaver._state_file import (
    STATE_FILE_NAME,
    CheckpointState,
    MalformedStateError,
    format_state,
    parse_state,
    paths_in_order,
)
from pytreesaver._variables import open_reader
from pytreesaver.formats import native


def get_checkpoint_state(checkpoint_dir: PathLike, latest_filename: str | None = None) -> CheckpointState | None:
    """What the state file of a run directory says, or None if there is none. After `tf.train.get_checkpoint_state`.

    Relative paths come joined to `checkpoint_dir`.

    Raises:
        CorruptCheckpointError: the file is no state file. (TensorFlow only logs that, and gives None.)

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "run/model-1")
        >>> pytreesaver.update_checkpoint_state("run", path)
        >>> get_checkpoint_state("run").model_checkpoint_path
        'run/model-1'
    """
    directory = local_path(checkpoint_dir)
    file = directory / state_file_name(latest_filename)
    if file.is_dir():
        return None
    with named_os_errors("read", file):
        try:
            descriptor = filesystem.open_existing(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            content = read_file(descriptor)
        finally:
            filesystem.close(descriptor)
    try:
        state = parse_state(content)
    except MalformedStateError as error:
        raise CorruptCheckpointError(f"{file}: {error}") from None
    if not state.model_checkpoint_path:
        raise CorruptCheckpointError(f"{file}: expected a model_checkpoint_path, found none")
    return CheckpointState(
        str(directory / state.model_checkpoint_path),
        [str(directory / path) for path in state.all_model_checkpoint_paths],
        state.all_model_checkpoint_timestamps,
        state.last_preserved_timestamp,
    )


def state_file_name(latest_filename: str | None) -> str:
    """The name of a state file, `checkpoint` by default.

    Raises:
        ValueError: it is a path and not a name.
    """
    if latest_filename is None:
        return STATE_FILE_NAME
    if latest_filename in ("", ".", ".."):
        raise ValueError(f"latest_filename: expected the name of a file, found {latest_filename!r}")
    if os.path.basename(latest_filename) != latest_filename or "\0" in latest_filename:  # noqa: PTH119
        raise ValueError(f"'latest_filename' must not contain path components, found {latest_filename!r}")
    return latest_filename


def update_checkpoint_state(
    save_dir: PathLike,
    model_checkpoint_path: PathLike,
    all_model_checkpoint_paths: Sequence[PathLike] | None = None,
    latest_filename: str | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
) -> None:
    """Write the state file of a run directory, in one step and durably. After `tf.train.update_checkpoint_state`.

    Args:
        save_dir: the run directory, which must exist.
        model_checkpoint_path: the newest checkpoint.
        all_model_checkpoint_paths: all of them, oldest first; the newest is added if it is not the last.
        latest_filename: the name of the state file, `checkpoint` by default.
        all_model_checkpoint_timestamps: when each was saved, in seconds since the epoch.
        last_preserved_timestamp: the time of the last one that is kept for ever.

    Paths in `save_dir` are stored relative to it. As in TensorFlow, a relative path counts from the working directory
    if `save_dir` is relative too, and from `save_dir` if that is absolute.

    Raises:
        ValueError: there are not as many timestamps as paths, or `latest_filename` is no name.
        CheckpointIOError: the file could not be written.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "updated/model-1")
        >>> update_checkpoint_state("updated", path)
        >>> latest_checkpoint("updated")
        PosixPath('updated/model-1')
    """
    directory = local_path(save_dir)
    newest = str(local_path(model_checkpoint_path))
    paths = [str(local_path(path)) for path in all_model_checkpoint_paths or ()]
    if not paths or paths[-1] != newest:
        paths.append(newest)
    times = [float(time) for time in all_model_checkpoint_timestamps or ()]
    if times and len(times) != len(paths):
        raise ValueError(
            "Checkpoint timestamps, if provided, must match checkpoint paths "
            f"(got paths {paths} and timestamps {times})"
        )
    relative = [path_in_state(path, directory) for path in paths]
    write_state(
        directory,
        state_file_name(latest_filename),
        CheckpointState(relative[-1], relative, times, last_preserved_timestamp),
    )


def path_in_state(path: str, directory: Path) -> str:
    """A path as it stands in the state file of a directory: relative to it wherever it lies in it.

    As in TensorFlow, a relative path with an absolute directory is taken to be relative to that directory already.

    Example:
        >>> path_in_state("runs/a/model-1", Path("runs/a")), path_in_state("/tmp/model-1", Path("/runs"))
        ('model-1', '/tmp/model-1')
        >>> path_in_state("model-1", Path("/runs"))
        'model-1'
    """
    is_absolute = Path(path).is_absolute()
    if is_absolute and not Path(path).is_relative_to(directory.absolute()):
        return path
    return os.path.relpath(path, directory) if is_absolute or not directory.is_absolute() else path


def write_state(directory: Path, name: str, state: CheckpointState) -> None:
    """Write a state file, its paths as they are."""
    if state.model_checkpoint_path == name:
        raise ValueError(
            f"{directory / name}: the state file and the newest checkpoint have the same path; name one differently"
        )
    with named_os_errors("write", directory / name):
        replace_file(directory / name, format_state(state))


def is_complete(path: Path) -> bool:
    """Whether there is a checkpoint at `path` whose index is intact and whose files have their sizes."""
    try:
        reader = open_reader(path)
        try:
            reader.check()
        finally:
            reader.close()
    except (CheckpointError, OSError):
        return False
    return True


def checkpoint_exists(path: PathLike) -> bool:
    """Whether there is a complete checkpoint at exactly this path. After `tf.train.checkpoint_exists`.

    Its index is checked, and that its files are there; `verify` checks every byte.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "existing")
        >>> checkpoint_exists(path), checkpoint_exists("exist*")
        (True, False)
    """
    return is_complete(local_path(path))


def get_checkpoint_mtimes(paths: Iterable[PathLike]) -> list[float]:
    """When the checkpoints were written, in seconds since the epoch. After `tf.train.get_checkpoint_mtimes`.

    As in TensorFlow, a path without a checkpoint has no entry in the list.

    Example:
        >>> len(get_checkpoint_mtimes([pytreesaver.save({"w": np.ones(3)}, "timed"), "not there"]))
        1
    """
    return [modified_time(path) for path in map(local_path, paths) if is_complete(path)]


def modified_time(path: Path) -> float:
    """When a checkpoint was written, in seconds since the epoch."""
    return filesystem.modified_ns(native.heading_file(path)) / 1e9


def delete_checkpoint(target: Path) -> bool:
    """Delete the checkpoint at a path; gives whether there was one. Raises what `remove_checkpoint` raises."""
    if not os.path.lexists(target):
        return False
    with named_os_errors("remove", target):
        if not native.recognizes(target):
            raise CheckpointNotFoundError(f"{target}: expected a checkpoint to remove, found something else")
        native.remove(target)
    return True


def read_record(path: Path) -> Record:
    """What was recorded with a checkpoint. Raises what `load_checkpoint` raises."""
    with named_os_errors("read", path):
        return decode_record(native.read_heading(path).record, path)


def latest_checkpoint(checkpoint_dir: PathLike, latest_filename: str | None = None) -> Path | None:
    """The newest complete checkpoint of a run directory, or None. After `tf.train.latest_checkpoint`.

    It is the one that the state file names as the newest. Where TensorFlow would give up, this looks further: if that
    one is damaged or gone, the one before it is given, with a `RetentionWarning`; and a checkpoint that was completed
    by a `Saver` or `CheckpointManager` which died before it could list it counts too. Indexes and the sizes of files
    are checked, arrays are not read.

    Example:
        >>> saver = pytreesaver.Saver()
        >>> path = saver.save({"w": np.ones(3)}, "latest/model", global_step=100)
        >>> latest_checkpoint("latest"), latest_checkpoint("no such run")
        (PosixPath('latest/model-100'), None)
    """
    directory, name = local_path(checkpoint_dir), state_file_name(latest_filename)
    listed: list[Path] | None = None
    while True:
        before, listed = listed, listed_checkpoints(directory, name)
        if listed == before:
            break
        unlisted = [path for path, _ in unlisted_checkpoints(directory, name, listed)]
        candidates = [*reversed(unlisted), *(path for path in reversed(listed) if path not in unlisted)]
        newest = next(filter(is_complete, candidates[:1]), None)
        if newest is not None or not candidates:
            return newest
        # A saver may have replaced and deleted it in this moment; then the state file has changed too.
    older = [path for path, _ in reversed(recorded_checkpoints(directory, name)) if path not in candidates]
    offered = next(filter(is_complete, [*candidates, *older]), None)
    skipped = candidates[: candidates.index(offered)] if offered in candidates else candidates
    warnings.warn(
        f"damaged or gone: {', '.join(map(str, skipped))}; offered instead: {offered or 'nothing'}",
        RetentionWarning,
        stacklevel=2,
    )
    return offered


def checkpoint_at(path: PathLike) -> Path:
    """The checkpoint at a path, or the newest one of the run directory there; the path itself if there is neither."""
    target = local_path(path)
    return target if native.recognizes(target) else latest_checkpoint(target) or target


def listed_checkpoints(directory: Path, name: str) -> list[Path]:
    """The paths in a state file, the newest last; with a warning, none if it is damaged."""
    try:
        state = get_checkpoint_state(directory, name)
    except CorruptCheckpointError as error:
        warnings.warn(f"{error}; the checkpoints are looked for without it", RetentionWarning, stacklevel=3)
        return []
    if state is None:
        return []
    return [Path(path) for path in paths_in_order(state)]


def watches_nothing(directory: Path, name: str) -> bool:
    """Whether a state file says that its saver watches no checkpoint: that it names is one that is kept for ever."""
    with suppress(CorruptCheckpointError):
        state = get_checkpoint_state(directory, name)
        return state is not None and not state.all_model_checkpoint_paths
    return False


def recorded_checkpoints(directory: Path, name: str, written_since: int = 0) -> list[tuple[Path, Record]]:
    """Every checkpoint in a directory that was recorded for a state file, in the order of the saves.

    `written_since`, in nanoseconds since the epoch, passes over those whose files are older.
    """
    try:
        entries = filesystem.list_directory(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [
        (directory / entry, record)
        for entry in entries
        if not entry.startswith(".") and (record := _record_for(directory / entry, name, written_since)) is not None
    ]
    return sorted(found, key=lambda each: (each[1].serial, each[1].time or 0.0))


def _record_for(path: Path, name: str, written_since: int = 0) -> Record | None:
    try:
        if filesystem.modified_ns(native.heading_file(path)) < written_since:
            return None
        record = read_record(path)
    except (CheckpointError, OSError):
        return None
    return record if record.state_file == name else None


def last_serial(directory: Path, name: str, listed: Sequence[Path]) -> int:
    """The serial number of the newest checkpoint that a state file lists and that can be read, 0 if none can."""
    records = (_record_for(path, name) for path in reversed(listed))
    return next((record.serial for record in records if record is not None), 0)


def unlisted_checkpoints(directory: Path, name: str, listed: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Checkpoints that a saver completed and did not come to list before it died, oldest first.

    They were written after the state file was, and saved after the newest one in it, one after the other; copies of
    the checkpoints of other runs were not. Without a state file it is every one that was not copied under another name.
    """
    try:
        state_time = filesystem.modified_ns(directory / name) if listed else 0
    except OSError:
        state_time = 0
    found = [
        (path, record)
        for path, record in recorded_checkpoints(directory, name, state_time)
        if record.name == path.name and path not in listed[-1:]
    ]
    if not listed:
        return found
    chain: list[tuple[Path, Record]] = []
    last, newest = last_serial(directory, name, listed) if found else 0, listed[-1].name
    for path, record in found:
        if record.predecessor == newest and record.serial > last:
            chain.append((path, record))
            last, newest = record.serial, path.name
    return chain


def unlisted_to_adopt(directory: Path, name: str, listed: Sequence[Path]) -> list[tuple[Path, Record]]:
    """The unlisted checkpoints that retention may take charge of, oldest first.

    Where there is no state file they are a run from its beginning, whose saver never came to write it, or a collection.
    """
    found = unlisted_checkpoints(directory, name, listed)
    predecessors = [None, *(path.name for path, _ in found[:-1])]
    whole_run = all(record.predecessor == each for (_, record), each in zip(found, predecessors, strict=False))
    return found if listed or whole_run else []


def saved_at(path: Path) -> float:
    """When a checkpoint was saved: as recorded with it, or else by the time of its files; 0 if it cannot be read."""
    try:
        recorded = read_record(path).time
        return modified_time(path) if recorded is None else recorded
    except (CheckpointError, OSError):
        return 0.0
