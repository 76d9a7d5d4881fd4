"""The files of an Orbax checkpoint: where its trees and its JSON items are."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_file, read_fully
from pytreesaver.formats.protocol import PINNED_NAME

TREE_FILE = "_METADATA"
ROOT_FILE = "_CHECKPOINT_METADATA"
MANIFEST = "manifest.ocdbt"
AGGREGATE = "checkpoint"  # of versions before 0.5: the structure, and small values
STRINGS = "_strings.json"
ARRAY_METADATA = "array_metadatas"
_MARKER = "orbax.checkpoint"  # of the v1 API
_SUCCESS = "commit_success.txt"
_NATIVE_INDEX = "index.json"
_TEMPORARY = ".orbax-checkpoint-tmp"
_JSON_ITEMS = ("metadata", "metrics")
_OWN_DIRECTORIES = {"d", ARRAY_METADATA}
_MAX_JSON_NBYTES = 1 << 30
_STEP = re.compile(r"(?:.*[-_])?([0-9]{1,18})")


class Layout(NamedTuple):
    """What an Orbax checkpoint consists of.

    Attributes:
        trees: the directories of trees, by the prefix of the names of their variables.
        natives: the directories of items that are native checkpoints, by the same prefixes: those that
            `pytreesaver.orbax` wrote.
        json_files: the files of JSON items, by name.
        others: the names of items of other kinds.
        root: the decoded root metadata; empty if there is none.
    """

    trees: Mapping[str, Path]
    natives: Mapping[str, Path]
    json_files: Mapping[str, Path]
    others: Sequence[str]
    root: Mapping[str, Any]

    @property
    def time(self) -> float | None:
        """The time of the save, in seconds since the epoch."""
        nanoseconds = self.root.get("commit_timestamp_nsecs") or self.root.get("init_timestamp_nsecs")
        return nanoseconds / 1e9 if isinstance(nanoseconds, int) and 0 < nanoseconds < 1 << 63 else None


def recognizes(path: Path) -> bool:
    """Return whether `path` is an Orbax checkpoint: a tree, or a directory of items. Reads little.

    Raises:
        OSError: if the system could not look.
    """
    if _is_unfinished(path):
        return False
    try:
        names = set(filesystem.list_directory(path))
    except OSError as error:
        if filesystem.is_absence(error):
            return False
        raise
    return _is_tree(path, names) or (_is_root(names) and bool(_items(path, names)))


def layout_of(path: Path) -> Layout | None:
    """Return the layout of the checkpoint at `path`, or None if it is none.

    Raises:
        CorruptCheckpointError: if its root metadata is damaged.
        OSError: if the system could not look.
    """
    try:
        names = set(filesystem.list_directory(path))
    except OSError as error:
        if filesystem.is_absence(error):
            return None
        raise
    if _is_unfinished(path):
        return None
    if _is_tree(path, names):
        return Layout({"": path}, {}, {}, [], _root(path, names))
    if not _is_root(names):
        return None
    trees: dict[str, Path] = {}
    natives: dict[str, Path] = {}
    json_files: dict[str, Path] = {}
    others: list[str] = []
    for item in _items(path, names):
        inside = set(filesystem.list_directory(path / item))
        file = next((name for name in _JSON_ITEMS if name in inside), None)
        if _NATIVE_INDEX in inside:
            natives[item] = path / item
        elif _is_tree(path / item, inside):
            trees[item] = path / item
        elif file is not None and filesystem.is_regular_file(path / item / file):
            json_files[item] = path / item / file
        else:
            others.append(item)
    if not trees and not natives and not json_files:
        return None
    items = [*trees, *natives]
    is_single = items == ["default"] or (items == ["state"] and _MARKER in names)
    by_prefix, natives_by_prefix = (
        {"" if is_single else f"{item}/": directory for item, directory in found.items()} for found in (trees, natives)
    )
    return Layout(by_prefix, natives_by_prefix, json_files, others, _root(path, names))


def other_files(path: Path) -> list[str]:
    """Return the names of the files in a checkpoint that neither Orbax nor pytreesaver writes."""
    names = set(filesystem.list_directory(path))
    return sorted(
        name
        for name in names
        if not (_OWN_NAMES.fullmatch(name) or (filesystem.is_directory(path / name) and _is_own(path / name)))
    )


_OWN_NAMES = re.compile(
    rf"{TREE_FILE}|{ROOT_FILE}|{re.escape(MANIFEST)}.*|{AGGREGATE}|{STRINGS}|{re.escape(_MARKER)}|{re.escape(_SUCCESS)}"
    rf"|_sharding|_.*|{PINNED_NAME}|pytreesaver\.json|{ARRAY_METADATA}|d|ocdbt\.process_.*|descriptor|default"
)


def _is_own(directory: Path) -> bool:
    """Return whether a directory in a checkpoint is an array or an item."""
    names = set(filesystem.list_directory(directory))
    return _is_zarr(directory) or _is_tree(directory, names) or bool(names & {*_JSON_ITEMS, _SUCCESS})


def _is_unfinished(path: Path) -> bool:
    """Return whether a path belongs to a save of Orbax that has not ended, or is a part of a checkpoint."""
    return any(_TEMPORARY in part for part in path.parts) or path.name.startswith("ocdbt.process_")


def step_of(path: Path) -> int | None:
    """Return the step that the name of a checkpoint ends in, or None.

    Example:
        >>> step_of(Path("run/300")), step_of(Path("run/checkpoint_30")), step_of(Path("model"))
        (300, 30, None)
    """
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def _is_tree(path: Path, names: set[str]) -> bool:
    if TREE_FILE in names or MANIFEST in names:
        return True
    if AGGREGATE in names and _is_msgpack_map(path / AGGREGATE):
        return True
    has_metadata = bool(names & {"_sharding", ARRAY_METADATA, ROOT_FILE, _SUCCESS}) or path.name == "default"
    return has_metadata and any(_is_zarr(path / name) for name in sorted(names)[:8])


def _is_zarr(path: Path) -> bool:
    return filesystem.is_regular_file(path / ".zarray") or filesystem.is_regular_file(path / "zarr.json")


def _is_msgpack_map(file: Path) -> bool:
    """Return whether a file starts like a map in msgpack. The state file of a run directory does not."""
    if not filesystem.is_regular_file(file):
        return False
    descriptor = filesystem.open_existing(file)
    try:
        with suppress(EndOfFileError):
            first = np.zeros(1, np.uint8)
            read_fully(descriptor, first, 0)
            return 0x80 <= int(first[0]) <= 0x8F or int(first[0]) in (0xDE, 0xDF)
        return False
    finally:
        filesystem.release(descriptor)


def _is_root(names: set[str]) -> bool:
    return bool(names & {ROOT_FILE, _MARKER, _SUCCESS, "default"})


def _items(path: Path, names: set[str]) -> list[str]:
    return [
        name
        for name in sorted(names)
        if name not in _OWN_DIRECTORIES
        and not name.startswith((".", "ocdbt.process_"))
        and _TEMPORARY not in name
        and filesystem.is_directory(path / name)
    ]


def _root(path: Path, names: set[str]) -> Mapping[str, Any]:
    if ROOT_FILE not in names:
        return {}
    found = read_json(path / ROOT_FILE)
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"{path / ROOT_FILE}: expected an object, found {str(found)[:40]}")
    return found


def read_bytes(file: Path) -> bytes:
    """Return the contents of a file of metadata.

    Raises:
        CorruptCheckpointError: if it is too large for that, or was truncated meanwhile.
    """
    descriptor = filesystem.open_existing(file)
    try:
        if filesystem.file_size(descriptor) > _MAX_JSON_NBYTES:
            raise CorruptCheckpointError(f"{file}: expected at most {_MAX_JSON_NBYTES} bytes of metadata")
        return read_file(descriptor)
    except EndOfFileError as error:
        raise CorruptCheckpointError(f"{file}: a part of it could not be read") from error
    finally:
        filesystem.release(descriptor)


def read_json(file: Path, type: Any = Any) -> Any:
    """Return the decoded contents of a JSON file.

    Raises:
        CorruptCheckpointError: if it is damaged.
    """
    try:
        return msgspec.json.decode(read_bytes(file), type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file}: expected JSON, found damaged metadata ({error})") from None
