"""Reads and writes of the state file of a run directory. As in `tf.train`.

The state file has TensorFlow's format, which has no checksum. A hidden file beside it holds the checksums of its last
two contents, so that a flipped bit in a path or a time is detected. Without that file, any content counts.
"""

import errno
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pytreesaver._errors import CheckpointError, CorruptCheckpointError, RetentionWarning
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import remove_leftovers, replace_file
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.files import read_file, write_fully
from pytreesaver._io.paths import PathLike, as_path, local_path, wrap_os_errors
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._run.state_text import (
    CheckpointState,
    MalformedStateError,
    format_state,
    parse_state,
    paths_in_order,
    state_file_name,
)
from pytreesaver._text import quoted
from pytreesaver.formats.registry import format_at


def get_checkpoint_state(checkpoint_dir: PathLike, latest_filename: str | None = None) -> CheckpointState | None:
    """Return the state in a state file, or None if the file does not exist. After `tf.train.get_checkpoint_state`.

    Relative paths in the file are joined to `checkpoint_dir`. A file that is damaged, or that another program changed,
    causes a `RetentionWarning`.

    Raises:
        CorruptCheckpointError: if the state file is malformed. TensorFlow only logs this, and returns None.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "run/model-1")
        >>> pytreesaver.update_checkpoint_state("run", path)
        >>> get_checkpoint_state("run").model_checkpoint_path
        'run/model-1'
    """
    state, problem = read_state_file(local_path(checkpoint_dir), state_file_name(latest_filename))
    if problem:
        warnings.warn(problem, RetentionWarning, stacklevel=2)
    return state


def read_state_file(directory: Path, name: str) -> tuple[CheckpointState | None, str | None]:
    """Return the state in a state file, or None, and a message if the file was not written by pytreesaver.

    Raises:
        CorruptCheckpointError: if the state file is malformed.
        CheckpointIOError: if the system could not read it.
    """
    file = directory / name
    with wrap_os_errors("read", file):
        content, known = _content_and_known_checksums(directory, name)
        if content is None:
            return None, None
    try:
        state = parse_state(content)
    except MalformedStateError as error:
        raise CorruptCheckpointError(f"{file}: {error}") from None
    if not state.model_checkpoint_path:
        raise CorruptCheckpointError(f"{file}: expected a model_checkpoint_path, found none")
    urls = _urls_elsewhere((state.model_checkpoint_path, *state.all_model_checkpoint_paths), directory)
    if urls:  # reading a directory must not send requests to hosts that a file names
        raise CorruptCheckpointError(
            f"{file}: expected paths, found the URL {quoted(urls[0])}; to read that, pass it itself"
        )
    problem = None
    if known and _checksum_text(content) not in known and not _is_of_another_program(directory, state):
        problem = (
            f"{file}: expected the contents that were last saved, found others: the file is damaged, or another "
            "program changed it; to choose a checkpoint, call update_checkpoint_state"
        )
    state = CheckpointState(
        str(_joined(directory, state.model_checkpoint_path)),
        [str(_joined(directory, path)) for path in state.all_model_checkpoint_paths],
        state.all_model_checkpoint_timestamps,
        state.last_preserved_timestamp,
    )
    return state, problem


def _joined(directory: Path, path: str) -> Path:
    """Return a path in a state file, which may be a URL, relative to a directory."""
    return as_path(path) if _is_url(path) else directory / path


def _is_url(path: str) -> bool:
    return is_in_store(as_path(path))


def _urls_elsewhere(paths: Sequence[str], directory: Path) -> list[str]:
    """Return the URLs among paths that are not of the bucket of the directory."""
    return [path for path in paths if _is_url(path) and _bucket(path) != _bucket(str(directory))]


def _bucket(location: str) -> str | None:
    """Return the scheme and the bucket or host of a URL, or None for another path."""
    return "/".join(location.split("/", 3)[:3]) if _is_url(location) else None


def _is_of_another_program(directory: Path, state: CheckpointState) -> bool:
    """Return whether another program saved the newest checkpoint of a state file, and then wrote the file.

    A flipped bit could name an older one.
    """
    newest = _joined(directory, state.model_checkpoint_path)
    try:
        found = format_at(newest)
        record = None if found is None else found.read_heading(newest).record
        if found is None or (record is not None and record["name"]):
            return False
        saved = filesystem.modified_ns(found.heading_file(newest))
        others = [path for path in state.all_model_checkpoint_paths if _joined(directory, path) != newest]
        return all(_written_ns(_joined(directory, path)) <= saved for path in others)
    except (CheckpointError, OSError, KeyError, TypeError):
        return False


def _written_ns(path: Path) -> int:
    found = format_at(path)
    return 0 if found is None else filesystem.modified_ns(found.heading_file(path))


def _content_and_known_checksums(directory: Path, name: str) -> tuple[bytes | None, list[str]]:
    """Return the contents of a state file, or None, and the checksums that it may have; none if they are not known.

    A saver may write both files between the two reads. Then the contents have changed when they are read again.
    """
    content = _content(directory / name)
    while True:
        known = _known_checksums(directory, name)
        if content is None or not known or _checksum_text(content) in known:
            return content, known
        before, content = content, _content(directory / name)
        if content == before:
            return content, known


def _content(file: Path) -> bytes | None:
    """Return the contents of a file, or None if there is no such file."""
    if filesystem.is_directory(file):
        return None
    try:
        descriptor = filesystem.open_existing(file)
    except OSError as error:
        if filesystem.is_absence(error):
            return None
        raise
    try:
        return read_file(descriptor)
    finally:
        filesystem.release(descriptor)


def checksums_file(name: str) -> str:
    """Return the name of the file with the checksums of a state file.

    Example:
        >>> checksums_file("checkpoint")
        '.pytreesaver.checkpoint.xxh3'
    """
    return f".pytreesaver.{name}.xxh3"


def _checksum_text(content: bytes) -> str:
    return f"{checksum(content):016x}"


def _known_checksums(directory: Path, name: str) -> list[str]:
    """Return the checksums that the state file may have; none if they are not known."""
    try:
        content = _content(directory / checksums_file(name))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return []  # a bad sector, while the state file may be intact
    *lines, last = (content or b"").decode("ascii", "replace").split() or [""]
    return lines if last == _checksum_text("".join(lines).encode()) else []


def _write_checksums(directory: Path, name: str, content: bytes) -> None:
    """Write the checksums before the state file, so that after a crash in between the previous contents still count."""
    previous = _content(directory / name)
    lines = [_checksum_text(content), _checksum_text(content if previous is None else previous)]
    lines.append(_checksum_text("".join(lines).encode()))
    descriptor = filesystem.open_or_create(directory / checksums_file(name))
    try:
        # In place, since the text has always the same length and needs only one sync. If it is torn, it does not count.
        write_fully(descriptor, ["".join(f"{line}\n" for line in lines).encode()], 0)
        filesystem.sync_file(descriptor)
    except BaseException:
        filesystem.release(descriptor)
        raise
    filesystem.close(descriptor)


def update_checkpoint_state(
    save_dir: PathLike,
    model_checkpoint_path: PathLike,
    all_model_checkpoint_paths: Sequence[PathLike] | None = None,
    latest_filename: str | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
) -> None:
    """Write the state file of a run directory, atomically and durably. After `tf.train.update_checkpoint_state`.

    Args:
        save_dir: the run directory, which must exist.
        model_checkpoint_path: the newest checkpoint.
        all_model_checkpoint_paths: all tracked checkpoints, oldest first. The newest is appended if it is not the last.
        latest_filename: the name of the state file, `checkpoint` by default.
        all_model_checkpoint_timestamps: the time of each save, in seconds since the epoch.
        last_preserved_timestamp: the time of the last checkpoint that is kept permanently.

    Paths in `save_dir` are stored relative to it. As in TensorFlow, a relative path is relative to the working
    directory if `save_dir` is relative, and to `save_dir` if that is absolute.

    Raises:
        ValueError: if the numbers of timestamps and paths differ, `latest_filename` is not a plain file name or is that
            of the newest checkpoint, or a checkpoint is in an object store and the directory is not.
        CheckpointIOError: if the file cannot be written.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "updated/model-1")
        >>> update_checkpoint_state("updated", path)
        >>> pytreesaver.latest_checkpoint("updated")
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
    urls = _urls_elsewhere(relative, directory)
    if urls:
        raise ValueError(f"save_dir: expected a directory in the store of the checkpoint {urls[0]}, found {directory}")
    remove_leftovers(directory)
    write_state(
        directory,
        state_file_name(latest_filename),
        CheckpointState(relative[-1], relative, times, last_preserved_timestamp),
    )


def path_in_state(path: str, directory: Path) -> str:
    """Return a path as it is stored in the state file of a directory: relative to the directory if it is inside.

    As in TensorFlow, a relative path with an absolute directory is already relative to that directory.

    Example:
        >>> path_in_state("runs/a/model-1", Path("runs/a")), path_in_state("/tmp/model-1", Path("/runs"))
        ('model-1', '/tmp/model-1')
        >>> path_in_state("model-1", Path("/runs"))
        'model-1'
    """
    if is_in_store(as_path(path)) or is_in_store(directory):
        inside = as_path(path).is_relative_to(directory)
        return str(as_path(path).relative_to(directory)) if inside else path
    is_absolute = as_path(path).is_absolute()
    if is_absolute and not as_path(path).is_relative_to(directory.absolute()):
        return path
    return os.path.relpath(path, directory) if is_absolute or not directory.is_absolute() else path


def write_state(directory: Path, name: str, state: CheckpointState) -> None:
    """Write a state file. The paths are stored as they are."""
    if state.model_checkpoint_path == name:
        raise ValueError(
            f"{directory / name}: the state file and the newest checkpoint have the same path; rename one of them"
        )
    content = format_state(state)
    with wrap_os_errors("write", directory / name):
        _write_checksums(directory, name, content)
        replace_file(directory / name, content)


def remove_state(directory: Path, name: str) -> None:
    """Delete a state file."""
    with wrap_os_errors("write to", directory):
        filesystem.remove_file(directory / name)
        with suppress(OSError):
            filesystem.remove_file(directory / checksums_file(name))


def listed_checkpoints(directory: Path, name: str) -> list[Path]:
    """Return the paths in a state file, the newest last. If it is damaged, warn and return none."""
    try:
        state, problem = read_state_file(directory, name)
    except CorruptCheckpointError as error:
        state, problem = None, str(error)
    if problem:
        warnings.warn(f"{problem}; searching for checkpoints without it", RetentionWarning, stacklevel=3)
        return []
    if state is None:
        return []
    return [as_path(path) for path in paths_in_order(state)]


def tracks_nothing(directory: Path, name: str) -> bool:
    """Return whether the saver of a state file tracks no checkpoints: the named one is kept permanently."""
    with suppress(CorruptCheckpointError):
        state, _ = read_state_file(directory, name)
        return state is not None and not state.all_model_checkpoint_paths
    return False
