"""The checkpoints in a directory as their records describe them: who saved them, when, and in which order."""

import errno
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pytreesaver._errors import (
    CheckpointError,
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
    UnsupportedVersionError,
)
from pytreesaver._io import filesystem
from pytreesaver._io.paths import again_after_io_error, as_path, wrap_os_errors
from pytreesaver._io.stores.paths import READ_ONLY_SCHEMES, StorePath
from pytreesaver._run.record import Record, decode_record
from pytreesaver._run.state_file import read_state_file
from pytreesaver._run.state_text import STATE_FILE_NAME, paths_in_order
from pytreesaver.formats import places
from pytreesaver.formats.registry import format_named, format_names, format_to_read


def is_visible(name: str) -> bool:
    """Return whether an entry of a run directory may be a checkpoint: hidden ones and ``lost+found`` are not."""
    return not name.startswith(".") and name != "lost+found"


def check_has_listings(directory: Path) -> None:
    """Raise a ValueError if a directory is in a store that cannot list it."""
    if isinstance(directory, StorePath) and directory.scheme in READ_ONLY_SCHEMES:
        raise ValueError(
            f"{directory}: {directory.scheme}:// has no listings; restore the path that latest_checkpoint returns, or "
            "open the bucket by its own URL"
        )


def visible_entries(directory: Path) -> list[Path]:
    """Return the paths in a directory that may be checkpoints, sorted by name."""
    with wrap_os_errors("read", directory):
        names = places.names_in(filesystem.list_directory(directory))
        return [directory / name for name in names if is_visible(name)]


def modified_time(path: Path) -> float:
    """Return when a checkpoint was written, in seconds since the epoch."""
    with wrap_os_errors("read", path):
        return filesystem.modified_ns(format_to_read(path).heading_file(path)) / 1e9


def _named_as_heading_ns(path: Path) -> int:
    """Return when a checkpoint was written, in nanoseconds, by the names of its files: none of them is opened."""
    for name in format_names():
        try:
            return filesystem.modified_ns(format_named(name).heading_file(path))
        except OSError as error:
            if not filesystem.is_absence(error):
                raise
    return 0


def read_record(path: Path) -> Record:
    """Return the record of a checkpoint. Raises what `load_checkpoint` raises."""
    with wrap_os_errors("read", path):
        return decode_record(format_to_read(path).read_heading(path).record, path)


def saved_at(path: Path) -> float:
    """Return when a checkpoint was saved: as recorded, else when it was written; 0 if it cannot be read."""
    recorded = recorded_time(path)
    with suppress(CheckpointError):
        return modified_time(path) if recorded is None else recorded
    return 0.0


def recorded_time(path: Path) -> float | None:
    """Return the time that was recorded with a checkpoint, or None if there is none or it cannot be read."""
    with suppress(CheckpointError):
        return again_after_io_error(lambda: read_record(path)).time
    return None


def managed_name(directory: Path, *, by_times: bool = True) -> str | None:
    """Return the `checkpoint_name` of the manager that uses the state file ``checkpoint`` of a directory, or None.

    Times in the state file are those of a manager, as in TensorFlow, if `by_times`. Otherwise only its record counts.
    """
    try:
        state, _ = read_state_file(directory, STATE_FILE_NAME)
    except CorruptCheckpointError:
        state = None
    if state is None:
        paths = [path for path, _ in recorded_checkpoints(directory, STATE_FILE_NAME)]
    else:
        paths = [as_path(path) for path in paths_in_order(state)]
    for path in reversed(paths):
        if path.parent == directory and places.may_exist(path):
            has_times = by_times and state is not None and bool(state.all_model_checkpoint_timestamps)
            is_managed = has_times or _is_managed(path)
            return path.name.rpartition("-")[0] if is_managed else None
    return None


def _is_managed(path: Path) -> bool:
    try:
        retention = again_after_io_error(lambda: read_record(path)).retention
    except (CheckpointNotFoundError, CorruptCheckpointError, UnsupportedVersionError):
        return False
    return isinstance(retention, dict) and "manager" in retention


def recorded_checkpoints(directory: Path, name: str, written_since: int = 0) -> list[tuple[Path, Record]]:
    """Return each checkpoint in a directory whose record names a state file, in the order of the saves.

    Checkpoints that were written before `written_since`, in nanoseconds since the epoch, are skipped.
    """
    try:
        paths = visible_entries(directory)
    except CheckpointIOError as error:
        if filesystem.is_absence(error):
            return []
        raise
    found = [(path, record) for path in paths if (record := _record_for(path, name, written_since)) is not None]
    return sorted(found, key=lambda each: (each[1].serial, each[1].time or 0.0))


def _record_for(path: Path, name: str, written_since: int = 0) -> Record | None:
    """Return the record of a checkpoint if it names this state file, and the checkpoint is not older."""

    def look() -> Record | None:
        with wrap_os_errors("read", path):
            is_older = _named_as_heading_ns(path) < written_since
        return None if is_older else read_record(path)

    try:
        record = again_after_io_error(look)
    except (CheckpointNotFoundError, CorruptCheckpointError, UnsupportedVersionError):
        return None
    except CheckpointIOError as error:
        if error.errno in (errno.EIO, errno.EACCES, errno.EPERM):  # the system may never be able to look
            warnings.warn(f"{error}; if it is a checkpoint, retention ignores it", RetentionWarning, stacklevel=2)
        elif not filesystem.is_absence(error):
            raise
        return None
    return record if record is not None and record.state_file == name else None


def last_serial(directory: Path, name: str, listed: Sequence[Path]) -> int:
    """Return the serial number of the newest listed checkpoint that can be read, or 0."""
    records = (_record_for(path, name) for path in reversed(listed))
    return next((record.serial for record in records if record is not None), 0)


def unlisted_checkpoints(directory: Path, name: str, listed: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Return the checkpoints that a saver completed but did not list before its process ended, oldest first.

    They are newer than the state file, and each of them names the one before as its predecessor, beginning with the
    newest listed one. This excludes copies of checkpoints of other runs. If nothing is listed, they are all checkpoints
    that still have their recorded names.
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
    """Return the unlisted checkpoints that retention may track, oldest first.

    If nothing is listed, they are tracked only if they are one run from its first save, whose saver was killed before
    it wrote the state file. Otherwise they may be a collection of checkpoints, which must not be deleted.
    """
    found = unlisted_checkpoints(directory, name, listed)
    predecessors = [None, *(path.name for path, _ in found[:-1])]
    is_one_run = all(record.predecessor == each for (_, record), each in zip(found, predecessors, strict=False))
    return found if listed or is_one_run else []
