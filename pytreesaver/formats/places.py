"""Where a checkpoint lies: in a directory, in a single file, or in several files whose names begin with its own.

The last is how TensorFlow writes them: the checkpoint ``model-1`` is in ``model-1.index`` and
``model-1.data-00000-of-00001``, and there is no file ``model-1``. Checkpoints of incremental saves share files, which
take their place on the disk once.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pytreesaver._io import filesystem
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._io.stores.paths import StorePath

_PART = re.compile(r"(.+)\.(index|meta|data-[0-9]{5}-of-[0-9]{5})", re.DOTALL)


def index_file(path: Path) -> Path:
    """Return the file that a checkpoint of several files needs to exist."""
    return path.with_name(f"{path.name}.index")


def files_beside(path: Path) -> list[Path]:
    """Return the files of a checkpoint of several files, with those that only TensorFlow uses. The first is the index.

    Raises:
        OSError: if the system could not look.
    """
    return _sorted(path, [name for name in filesystem.list_directory(path.parent) if _prefix_of(name) == path.name])


def _prefix_of(name: str) -> str | None:
    match = _PART.fullmatch(name)
    return match[1] if match else None


def _sorted(path: Path, names: Iterable[str]) -> list[Path]:
    return sorted(map(path.with_name, names), key=lambda file: (not file.name.endswith(".index"), file.name))


def _files_to_look_at(path: Path) -> list[Path]:
    """Return what `files_beside` does, from the last listing of the directory if nothing has changed in it since.

    A directory with thousands of checkpoints would otherwise be listed thousands of times.
    """
    if is_in_store(path):  # where a prefix has no time
        return files_beside(path)
    modified, listing = filesystem.modified_ns(path.parent), _listing
    if listing.directory != path.parent or listing.modified_ns != modified:
        by_prefix: dict[str, list[str]] = {}
        for name in filesystem.list_directory(path.parent):
            prefix = _prefix_of(name)
            if prefix is not None:
                by_prefix.setdefault(prefix, []).append(name)
        # A change within a tick of the clock does not show in the time: then the listing is not used again.
        is_settled = time.time_ns() - modified > _TICK_NS
        _set_listing(_Listing(path.parent, modified if is_settled else -1, by_prefix))
        return _sorted(path, by_prefix.get(path.name, []))
    return _sorted(path, listing.by_prefix.get(path.name, []))


class _Listing(NamedTuple):
    directory: Path
    modified_ns: int
    by_prefix: dict[str, list[str]]


_TICK_NS = 1_000_000_000
_listing = _Listing(Path(), -1, {})


def _set_listing(listing: _Listing) -> None:
    global _listing  # noqa: PLW0603
    _listing = listing


def names_in(entries: Iterable[str]) -> list[str]:
    """Return the names of what may be checkpoints, from the names in a directory.

    Example:
        >>> names_in(["checkpoint", "m-1.data-00000-of-00001", "m-1.index", "m-1.meta", "m-2"])
        ['checkpoint', 'm-1', 'm-2']
    """
    names = set(entries)
    prefixes = {name.removesuffix(".index") for name in names if name.endswith(".index")} - {""}
    parts = {name for name in names if (match := _PART.fullmatch(name)) is not None and match[1] in prefixes}
    return sorted((names - parts) | prefixes)


def exists(path: Path) -> bool:
    """Return whether there is something at a path, or files of a checkpoint beside it. Raises an OSError if unknown."""
    return filesystem.exists(path) or _is_beside(path)


def may_exist(path: Path) -> bool:
    """Return whether there is something, as `exists`, or the system could not look."""
    try:
        return exists(path)
    except OSError:
        return True


def may_be_prefix(path: Path) -> bool:
    """Return whether files can begin with the name of a path. A root and a bucket have no files beside them."""
    return bool(path.name) and not (isinstance(path, StorePath) and not path.key)


def _is_beside(path: Path) -> bool:
    return may_be_prefix(path) and not filesystem.exists(path) and filesystem.exists(index_file(path))


def file_sizes(path: Path) -> dict[str, int]:
    """Return the size in bytes of each file of a checkpoint. See `filesystem.file_sizes`.

    Files that lie beside each other are called by their whole names.
    """
    if not _is_beside(path):
        return filesystem.file_sizes(path)
    return {file.name: filesystem.file_sizes(file)[""] for file in _files_to_look_at(path)}


def _paths_of(path: Path) -> list[Path]:
    """Return the file or directory of a checkpoint, or its files beside each other."""
    return _files_to_look_at(path) if _is_beside(path) else [path]


def fingerprint(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return what changes when a checkpoint does. See `filesystem.fingerprint`."""
    if not _is_beside(path):
        return filesystem.fingerprint(path)
    return tuple(each for file in _files_to_look_at(path) for each in filesystem.fingerprint(file))


def modified_ns(path: Path) -> int:
    """Return when a file or directory was modified, in nanoseconds since the epoch, or the index beside the path."""
    return filesystem.modified_ns(index_file(path) if _is_beside(path) else path)


# The disk.


def stored_files(path: Path) -> list[filesystem.StoredFile]:
    """Return the files of a checkpoint, or none if it does not exist. Raises an OSError if the system cannot look."""
    try:
        return [file for each in _paths_of(path) for file in filesystem.stored_files(each)]
    except FileNotFoundError:  # a saver deleted it concurrently
        return []


def nbytes_on_disk(files: Iterable[filesystem.StoredFile]) -> int:
    """Return how many bytes of the disk files take. Those that are one file with several names count once.

    Example:
        >>> nbytes_on_disk([filesystem.StoredFile((1, 7), 100, 2), filesystem.StoredFile((1, 7), 100, 2)])
        100
    """
    return sum({file.identity: file.nbytes for file in files}.values())


def freed_nbytes(files: Sequence[filesystem.StoredFile]) -> int:
    """Return how many bytes would be free if these names were deleted: a file goes with the last of its names.

    Example:
        >>> freed_nbytes([filesystem.StoredFile((1, 7), 100, 2), filesystem.StoredFile((1, 8), 30, 1)])
        30
    """
    names = Counter(file.identity for file in files)
    return nbytes_on_disk(file for file in files if names[file.identity] >= file.names)
