"""The functions of `pytreesaver._io.filesystem` for object stores, under the same names.

There are no directories: a prefix of objects looks like one. There are no locks but the leases of
`pytreesaver._io.stores.lease`, and no renames: an object appears whole.
"""

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np

from pytreesaver._io.stores import objects
from pytreesaver._io.stores.engine import call, obstore
from pytreesaver._io.stores.handles import (
    BufferHandle,
    ReadHandle,
    WholeHandle,
    forget_handle,
    handle_at,
    new_handle,
)
from pytreesaver._io.stores.objects import content, identity, objects_under, version_of
from pytreesaver._io.stores.paths import READ_ONLY_SCHEMES, StorePath


def open_existing(path: StorePath) -> int:
    """See `filesystem.open_existing`. An index is read at once, so that all of it is of one version."""
    if path.suffix not in _READ_AT_ONCE:
        return new_handle(ReadHandle(path, objects.head(path)))

    def read(store: Any, key: str) -> ReadHandle:
        result = obstore().get(store, key)
        if result.meta["size"] > _MOST_AT_ONCE:
            return ReadHandle(path, result.meta)
        return WholeHandle(path, result.meta, bytes(result.bytes()))

    return new_handle(call(path, read))


_READ_AT_ONCE = ("", ".json", ".xxh3", ".history", ".index")
_MOST_AT_ONCE = 256 << 20


def open_new(path: StorePath) -> int:
    """See `filesystem.open_new`."""
    objects.refuse_read_only(path)
    return new_handle(BufferHandle(path, b"", is_new=True))


def open_or_create(path: StorePath) -> int:
    """See `filesystem.open_or_create`."""
    objects.refuse_read_only(path)
    try:
        return new_handle(BufferHandle(path, content(path)))
    except FileNotFoundError:
        return new_handle(BufferHandle(path, b"", is_new=True))


def open_to_lock(path: StorePath) -> int:
    """See `filesystem.open_to_lock`."""
    return open_existing(path)


def close(number: int) -> None:
    """See `filesystem.close`."""
    handle = forget_handle(number)
    if handle is not None:
        handle.close()


def release(number: int) -> None:
    """See `filesystem.release`."""
    handle = forget_handle(number)
    if handle is not None:
        handle.release()


def reserve(number: int, nbytes: int) -> None:
    """See `filesystem.reserve`. A store has no limit that is known."""


def write(number: int, buffers: Sequence[Any], offset: int) -> int:
    """See `filesystem.write`."""
    written: int = handle_at(number).write(buffers, offset)
    return written


def start_writeback(number: int, offset: int, nbytes: int) -> None:
    """See `filesystem.start_writeback`."""


def read_into(number: int, buffer: np.ndarray, offset: int) -> int:
    """See `filesystem.read_into`."""
    count: int = handle_at(number).read_into(buffer, offset)
    return count


def file_size(number: int) -> int:
    """See `filesystem.file_size`."""
    size: int = handle_at(number).size
    return size


def sync_file(number: int) -> None:
    """See `filesystem.sync_file`."""
    sync = getattr(handle_at(number), "sync", None)
    if sync is not None:
        sync()


def truncate(number: int) -> None:
    """See `filesystem.truncate`."""
    handle_at(number).truncate()


def version(number: int) -> tuple[int, int, int, int]:
    """See `filesystem.version`."""
    found: tuple[int, int, int, int] = handle_at(number).version()
    return found


def is_linked(number: int) -> bool:
    """See `filesystem.is_linked`: whether a lease is still held."""
    is_held = getattr(handle_at(number), "is_held", None)
    return is_held is None or bool(is_held())


def try_lock(number: int) -> bool:
    """See `filesystem.try_lock`. Objects have no locks."""
    return True


try_lock_if_supported = try_lock


def lock(number: int, *, shared: bool = False) -> None:
    """See `filesystem.lock`. Objects have no locks."""


def is_cached(number: int, offset: int) -> bool:
    """See `filesystem.is_cached`."""
    return True


def map_file(number: int, nbytes: int) -> np.ndarray:
    """See `filesystem.map_file`."""
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def sync_directory(path: StorePath) -> None:
    """See `filesystem.sync_directory`. What a store has acknowledged is durable."""


make_directory = remove_directory = sync_directory


def generation(path: StorePath) -> int | None:
    """See `filesystem.generation`."""
    return None


def status(path: StorePath, *, follow_links: bool = True) -> os.stat_result | None:
    """See `filesystem.status`. A prefix of objects is a directory."""
    # What has no ending is likely to be a directory: then one request is enough.
    looks = [_status_of_prefix, _status_of_object]
    for look in reversed(looks) if "." in path.name else looks:
        found = look(path)
        if found is not None:
            return found
    return None


def _status_of_object(path: StorePath) -> os.stat_result | None:
    if not path.key:
        return None
    try:
        device, inode, size, modified = version_of(path, objects.head(path))
    except FileNotFoundError:
        return None
    return _status(stat.S_IFREG | 0o644, inode, device, size, modified)


def _status_of_prefix(path: StorePath) -> os.stat_result | None:
    if path.scheme in READ_ONLY_SCHEMES or not _has_objects(path):
        return None
    device, inode = identity(path)
    return _status(stat.S_IFDIR | 0o755, inode, device, 0, 0)


def _status(mode: int, inode: int, device: int, size: int, modified_ns: int) -> os.stat_result:
    seconds = modified_ns // 10**9
    times = (seconds, seconds, seconds)
    exact = (seconds + modified_ns % 10**9 / 1e9,) * 3
    return os.stat_result((mode, inode, device, 1, 0, 0, size, *times, *exact, *(modified_ns,) * 3))


def _has_objects(path: StorePath) -> bool:
    def first(store: Any, key: str) -> bool:
        pages = iter(obstore().list(store, prefix=key or None, chunk_size=1))
        return bool(next(pages, ()))

    return call(path, first)


def resolved(path: StorePath) -> StorePath:
    """See `filesystem.resolved`."""
    return path


def fingerprint(path: StorePath) -> tuple[tuple[str, int, int, int], ...]:
    """See `filesystem.fingerprint`."""
    found = objects_under(path)
    if not found:
        meta = objects.head(path)
        return ((path.name, *version_of(path, meta)[1:]),)
    return tuple((name, *version_of(path, meta)[1:]) for name, meta in found)


def file_sizes(path: StorePath) -> dict[str, int]:
    """See `filesystem.file_sizes`."""
    found = objects_under(path)
    if found:
        return {name: meta["size"] for name, meta in found}
    return {"": objects.head(path)["size"]}


def stored_files(path: StorePath) -> list[Any]:
    """See `filesystem.stored_files`. Every object has one name."""
    from pytreesaver._io.filesystem import StoredFile

    device = identity(path)[0]
    return [StoredFile((device, hash(f"{path}/{name}")), size, 1) for name, size in file_sizes(path).items()]


def modified_ns(path: StorePath) -> int:
    """See `filesystem.modified_ns`."""
    found = status(path)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "No such object", str(path))
    return found.st_mtime_ns


def list_directory(path: StorePath) -> list[str]:
    """See `filesystem.list_directory`."""
    if path.scheme in READ_ONLY_SCHEMES:
        raise FileNotFoundError(errno.ENOENT, f"{path.scheme}:// has no listings of directories", str(path))
    found = call(path, lambda store, key: obstore().list_with_delimiter(store, key or None))
    names = [each.rstrip("/").rpartition("/")[2] for each in found["common_prefixes"]]
    names += [each["path"].rpartition("/")[2] for each in found["objects"]]
    if not names:
        raise FileNotFoundError(errno.ENOENT, "No such prefix", str(path))
    return sorted(set(names))


refuse_read_only = objects.refuse_read_only


def remove_file(path: StorePath) -> None:
    """See `filesystem.remove_file`."""
    objects.refuse_read_only(path)
    call(path, lambda store, key: obstore().delete(store, key))


def rename(path: StorePath, target: Any) -> None:
    """See `filesystem.rename`. No store can."""
    raise OSError(errno.EOPNOTSUPP, "An object store cannot rename", str(path))


link = exchange = rename


def rename_to_new(path: StorePath, target: Any) -> bool:
    """See `filesystem.rename_to_new`. No store can."""
    return False
