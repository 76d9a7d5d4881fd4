"""The history of a run directory: every save and every deletion, one JSON object per line, in a hidden file.

The history is only shown to users. Everything else works without it, and with lines missing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from pytreesaver._errors import CheckpointNotFoundError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import replace_file
from pytreesaver._io.files import read_file, write_fully
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._text import NotJSONError, decode_json
from pytreesaver._tree.kinds import NotPlainError
from pytreesaver._tree.plain import decode_as, encode_value

HISTORY_NAME = ".pytreesaver.history"
_MAX_NBYTES = 8 << 20  # the older half of a longer file is dropped


@dataclass(frozen=True)
class SaveTimings:
    """How long a save took.

    Attributes:
        blocked_secs: the seconds until the training loop could go on: the copy of the tree or, if the save blocks, all.
        waited_secs: the seconds of these in which the loop waited for the previous save.
        wrote_secs: the seconds in which the checkpoint was written.
        nbytes: the size of the checkpoint's files in bytes.
    """

    blocked_secs: float
    waited_secs: float
    wrote_secs: float
    nbytes: int


@dataclass(frozen=True)
class CheckpointEvent:
    """A save or a deletion of a checkpoint of a run directory.

    Attributes:
        kind: ``"saved"``, or ``"deleted"`` by retention, `prune` or ``pytreesaver rm``.
        name: the name of the checkpoint in the directory.
        time: when it happened, in seconds since the epoch.
        step: the step that was saved; None if the save had no step, and for deletions.
        metrics: the metrics that were passed to the save.
        timings: how long the save took; None for deletions, and for saves of earlier versions.
    """

    kind: str
    name: str
    time: float
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    timings: SaveTimings | None = field(default=None, compare=False)


def get_checkpoint_history(directory: PathLike) -> list[CheckpointEvent]:
    """Return the saves and deletions in a run directory, in order, including those of deleted checkpoints.

    Saves by a `Saver` or `CheckpointManager` are recorded, those by `pytreesaver.save` are not. The file holds the last
    tens of thousands of events. Lines that a crash truncated are skipped.

    Raises:
        CheckpointNotFoundError: if the directory does not exist.

    Example:
        >>> with pytreesaver.CheckpointManager("noted", max_to_keep=1) as manager:
        ...     for step in (1, 2):
        ...         path = manager.save(step, {"w": np.zeros(2)}, metrics={"loss": 1 / step})
        >>> [(event.kind, event.name, dict(event.metrics)) for event in get_checkpoint_history("noted")]
        [('saved', 'ckpt-1', {'loss': 1.0}), ('saved', 'ckpt-2', {'loss': 0.5}), ('deleted', 'ckpt-1', {})]
    """
    where = local_path(directory)
    with wrap_os_errors("read", where):
        if not filesystem.is_directory(where):
            raise CheckpointNotFoundError(f"{where}: expected a run directory, found none")
        content = _content(where / HISTORY_NAME)
    return [event for event in map(_decoded, content.split(b"\n")) if event is not None]


def _content(path: Path) -> bytes:
    """Return the contents of a history, none if it does not exist. It may grow meanwhile."""
    try:
        descriptor = filesystem.open_existing(path)
    except OSError as error:
        if filesystem.is_absence(error):
            return b""
        raise
    try:
        return read_file(descriptor)
    finally:
        filesystem.release(descriptor)


def append_history(directory: Path, events: Iterable[CheckpointEvent]) -> str | None:
    """Append events to the history. Return a message if this fails, which is worth only a warning.

    The caller must hold the lock of the run directory.
    """
    try:
        _append(directory / HISTORY_NAME, b"".join(map(_encoded, events)))
    except OSError as error:
        return f"{directory / HISTORY_NAME}: could not record saves and deletions: {error}"
    return None


def _append(path: Path, lines: bytes) -> None:
    descriptor = filesystem.open_or_create(path)
    try:
        size = filesystem.file_size(descriptor)
        last = np.frombuffer(b"\n", np.uint8).copy()
        if size:
            filesystem.read_into(descriptor, last, size - 1)
        is_truncated = last.tobytes() != b"\n"
        write_fully(descriptor, [b"\n" + lines if is_truncated else lines], size)
    except BaseException:
        filesystem.release(descriptor)
        raise
    filesystem.close(descriptor)
    if size > _MAX_NBYTES:
        content = _content(path)
        replace_file(path, content[content.find(b"\n", len(content) // 2) + 1 :])


class _Line(msgspec.Struct, omit_defaults=True):
    event: str
    name: str
    time: float
    step: int | None = None
    metrics: dict[str, float] = {}
    timings: SaveTimings | None = None


def _encoded(event: CheckpointEvent) -> bytes:
    line = _Line(event.kind, event.name, event.time, event.step, dict(event.metrics), event.timings)
    return msgspec.json.encode(encode_value(msgspec.to_builtins(line), classes=False)) + b"\n"


def _decoded(line: bytes) -> CheckpointEvent | None:
    """Return the event in a line, or None if the line is truncated or malformed."""
    try:
        found: _Line = decode_as(decode_json(line), _Line)
    except (NotJSONError, NotPlainError):
        return None
    if not math.isfinite(found.time):
        return None
    return CheckpointEvent(found.event, found.name, found.time, found.step, found.metrics, found.timings)


def deletions(directory: Path, paths: Sequence[Path], time: float) -> list[CheckpointEvent]:
    """Return the deletion events of checkpoints. Those outside of the directory are named by their full paths."""
    return [CheckpointEvent("deleted", p.name if p.parent == directory else str(p), time) for p in paths]
