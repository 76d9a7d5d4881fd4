"""The files of an Orbax checkpoint: where its trees and its JSON items are."""

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_file, read_fully
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._text import NotJSONError, decode_json
from pytreesaver.formats.protocol import PINNED_NAME, SYSTEM_FILES

TREE_FILE = "_METADATA"
ROOT_FILE = "_CHECKPOINT_METADATA"
MANIFEST = "manifest.ocdbt"
SIDECAR = "pytreesaver.json"
"""What pytreesaver notes beside the files of Orbax, which ignores it."""
AGGREGATE = "checkpoint"  # of versions before 0.5: the structure, and small values
STRINGS = "_strings.json"
ARRAY_METADATA = "array_metadatas"
_MARKER = "orbax.checkpoint"  # of the v1 API
SUCCESS = "commit_success.txt"
_NATIVE_INDEX = "index.json"
_TEMPORARY = ".orbax-checkpoint-tmp"
_JSON_ITEMS = ("metadata", "metrics")
_RANDOM_KEYS = {"jax_random_key": "typed", "np_random_key": "legacy"}
"""The directories of the trees of random keys, and what Orbax notes of each in the directory beside it."""
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
        random_keys: what Orbax noted of those trees that are random keys, by their prefixes.
    """

    trees: Mapping[str, Path]
    natives: Mapping[str, Path]
    json_files: Mapping[str, Path]
    others: Sequence[str]
    root: Mapping[str, Any]
    random_keys: Mapping[str, Mapping[str, bool]] = MappingProxyType({})

    def tree_alone(self, prefix: str) -> "Layout":
        """Return the layout of a checkpoint that is one of the trees."""
        random_keys = {"": self.random_keys[prefix]} if prefix in self.random_keys else {}
        return Layout({"": self.trees[prefix]}, {}, {}, [], {}, random_keys)

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
    try:
        names = set(filesystem.list_directory(path))
        if _is_unfinished(path, names):
            return False
        return _is_tree(path, names) or (_is_root(path, names) and _items(path, names).exist)
    except OSError as error:
        if filesystem.is_absence(error):  # also if it is deleted meanwhile
            return False
        raise


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
    if _is_unfinished(path, names):
        return None
    if _is_tree(path, names):
        return Layout({"": path}, {}, {}, [], _root(path, names))
    if not _is_root(path, names):
        return None
    key = _random_key(path, names)
    if key and (noted := _noted_of_key(path, key)):
        return Layout({"": path / key}, {}, {}, [], _root(path, names), {"": noted})
    items = _items(path, names)
    noted_of = {item: _noted_of_key(path / item, key) for item, key in items.trees.items() if key}
    for item in [item for item, noted in noted_of.items() if not noted]:
        del items.trees[item]
        items.others.append(item)
    if not items.exist:
        return None
    root = _root(path, names)
    trees = [*items.trees, *items.natives]
    handlers = root.get("item_handlers")
    is_v1 = _MARKER in names or (isinstance(handlers, dict) and ".v1." in str(handlers.get("".join(trees[:1]))))
    is_single = trees == ["default"] or (trees in (["state"], ["pytree"]) and is_v1)
    prefixes = {item: "" if is_single else f"{item}/" for item in trees}
    by_prefix = {prefixes[item]: path / item / key for item, key in items.trees.items()}
    natives_by_prefix = {prefixes[item]: path / item for item in items.natives}
    json_files = {item: path / item / file for item, file in items.json_files.items()}
    random_keys = {prefixes[item]: noted for item, noted in noted_of.items() if noted}
    return Layout(by_prefix, natives_by_prefix, json_files, items.others, root, random_keys)


def other_files(path: Path, listed: Collection[str] | None = None) -> list[str]:
    """Return the files in a checkpoint that neither Orbax nor pytreesaver nor the system writes, by their paths in it.

    Args:
        path: the checkpoint.
        listed: the files that belong to it, if that is known. Otherwise their names tell.
    """
    found = []
    for name in filesystem.file_sizes(path):
        parts = name.split("/")
        if any(map(SYSTEM_FILES.fullmatch, parts)) or parts[-1] == PINNED_NAME:
            continue
        is_own = _is_own_file(path, parts) if listed is None else name in listed
        if not is_own:
            found.append(name)
    return sorted(found)


_OWN_FILES = re.compile(
    rf"{TREE_FILE}|{ROOT_FILE}|{re.escape(MANIFEST)}(\.__lock)?|{AGGREGATE}|{STRINGS}|{re.escape(_MARKER)}"
    rf"|{re.escape(SUCCESS)}|_[a-z_]+|_[A-Z_]+|pytreesaver\.json|\.zarray|\.zattrs|zarr\.json|[0-9]+([./][0-9]+)*"
    rf"|metadata|metrics|{re.escape(_NATIVE_INDEX)}|data-[0-9]{{5}}-of-[0-9]{{5}}(-[0-9a-f]{{16}})?\.safetensors"
)
_IN_OWN_DIRECTORIES = re.compile(
    rf"(.*/)?(d/[0-9a-f]{{32}}|{ARRAY_METADATA}/process_[0-9]+|descriptor/[^/]+|c(/[0-9]+)*|c\.[0-9.]+)"
)


def _is_own_file(path: Path, parts: Sequence[str]) -> bool:
    """Return whether a file in a checkpoint has a name that Orbax gives to files, in a directory that it makes."""
    if _IN_OWN_DIRECTORIES.fullmatch("/".join(parts)):
        return True
    if not _OWN_FILES.fullmatch(parts[-1]):
        return False
    if parts[-1] == SUCCESS:
        return True
    directory = path.joinpath(*parts[:-1])
    if parts[-1] in _JSON_ITEMS:
        beside = set(filesystem.list_directory(directory)) - {parts[-1], SUCCESS}
        is_item = len(parts) > 1 and all(map(SYSTEM_FILES.fullmatch, beside))
        return is_item and not _is_tree(path, set(filesystem.list_directory(path)))
    if parts[-1][0].isdigit():  # a chunk of an array, whose directory may have further levels
        above = [path.joinpath(*parts[:i]) for i in range(1, len(parts))]
        return any(map(_is_zarr, above))
    return directory == path or _is_zarr(directory) or _is_tree(directory, set(filesystem.list_directory(directory)))


def _is_unfinished(path: Path, names: Collection[str]) -> bool:
    """Return whether a path belongs to a save that has not ended, or is a part of a checkpoint."""
    if is_in_store(path) and SIDECAR in names and SUCCESS not in names:
        return True  # what completes a save in a store comes last
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
    has_metadata = bool(names & {"_sharding", ARRAY_METADATA, ROOT_FILE, SUCCESS}) or path.name == "default"
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


def _is_root(path: Path, names: set[str]) -> bool:
    """Return whether a directory says that it is one of items.

    The steps of old versions say nothing. They contain a tree called ``default``, and at most JSON items beside it
    unless their name is a step.
    """
    if names & {ROOT_FILE, _MARKER, SUCCESS}:
        return True
    if "default" not in names or not filesystem.is_directory(path / "default"):
        return False
    others = {name for name in names if not SYSTEM_FILES.fullmatch(name)} - {"default", PINNED_NAME, *_JSON_ITEMS}
    if others and step_of(path) is None:
        return False
    return _is_tree(path / "default", set(filesystem.list_directory(path / "default")))


class _Items(NamedTuple):
    """The items in a directory: trees, native checkpoints, JSON items, and others.

    `trees` has the directory of each tree in its item: "" for the item itself, which it is but for random keys.
    """

    trees: dict[str, str]
    natives: list[str]
    json_files: dict[str, str]
    others: list[str]

    @property
    def exist(self) -> bool:
        return bool(self.trees or self.natives or self.json_files)


def _items(path: Path, names: set[str]) -> _Items:
    items = _Items({}, [], {}, [])
    for name in sorted(names):
        if name in _OWN_DIRECTORIES or name.startswith((".", "ocdbt.process_")) or _TEMPORARY in name:
            continue
        if not filesystem.is_directory(path / name):
            continue
        inside = set(filesystem.list_directory(path / name))
        file = next((each for each in _JSON_ITEMS if each in inside), None)
        if _NATIVE_INDEX in inside:
            items.natives.append(name)
        elif _is_tree(path / name, inside):
            items.trees[name] = ""
        elif key := _random_key(path / name, inside):
            items.trees[name] = key
        elif file is not None and filesystem.is_regular_file(path / name / file):
            items.json_files[name] = file
        else:
            items.others.append(name)
    return items


def _random_key(path: Path, names: set[str]) -> str:
    """Return the name of the tree in the item of a random key, or nothing if the item is of another kind."""
    for name in _RANDOM_KEYS:
        if {name, f"{name}_metadata"} <= names and filesystem.is_regular_file(_file_of_key(path, name)):
            is_directory = filesystem.is_directory(path / name)
            return name if is_directory and _is_tree(path / name, set(filesystem.list_directory(path / name))) else ""
    return ""


def _file_of_key(path: Path, key: str) -> Path:
    return path / f"{key}_metadata" / "metadata"


def _noted_of_key(path: Path, key: str) -> Mapping[str, bool]:
    """Return what Orbax noted of a random key, or nothing if this version of pytreesaver does not know what that means.

    Raises:
        CorruptCheckpointError: if it is damaged.
    """
    noted = read_json(_file_of_key(path, key))
    is_known = isinstance(noted, dict) and [*noted] == [_RANDOM_KEYS[key]]
    return noted if is_known and isinstance(noted[_RANDOM_KEYS[key]], bool) else {}


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
        return decode_json(read_bytes(file), type)
    except NotJSONError as error:
        raise CorruptCheckpointError(f"{file}: expected JSON, found damaged metadata ({error})") from None
