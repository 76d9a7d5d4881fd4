"""The functions of `pytreesaver._io.filesystem` for object stores, under the same names.

There are no directories: a prefix of objects looks like one. There are no locks but the leases of
`pytreesaver._io.stores.lease`, and no renames: an object appears whole. A handle takes the place of a file descriptor.
"""

import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.stores.engine import call, obstore
from pytreesaver._io.stores.paths import FIRST_HANDLE, READ_ONLY_SCHEMES, StorePath

PART_NBYTES = 8 << 20
"""The size of the parts of an upload."""

_MAX_PARTS = 9_000
_CONCURRENCY = 6
MAX_OBJECT_NBYTES = PART_NBYTES * _MAX_PARTS
"""The size up to which an upload needs no larger parts."""


class Handle(Protocol):
    """What an open object can do. Methods that it lacks are errors of the system."""

    def close(self) -> None:
        """Complete a write."""
        ...

    def release(self) -> None:
        """Give up."""
        ...


_handles: dict[int, Any] = {}
_numbers = itertools.count(FIRST_HANDLE)
_guard = threading.Lock()


def new_handle(handle: Handle) -> int:
    """Return the number of a handle."""
    with _guard:
        number = next(_numbers)
        _handles[number] = handle
    return number


def _at(number: int) -> Any:
    try:
        return _handles[number]
    except KeyError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None


class ReadHandle:
    """An object that is read in ranges, all of one version."""

    def __init__(self, path: StorePath, meta: Any) -> None:
        self.path = path
        self.size: int = meta["size"]
        self._meta = meta

    def read_into(self, buffer: np.ndarray, offset: int) -> int:
        """Read a range."""
        count = min(buffer.nbytes, self.size - offset)
        if count <= 0:
            return 0
        options: dict[str, Any] = {"range": (offset, offset + count)}
        if self._meta.get("e_tag"):
            options["if_match"] = self._meta["e_tag"]
        data = call(self.path, lambda store, key: obstore().get(store, key, options=options).bytes())
        part = np.frombuffer(data, np.uint8)
        buffer[: part.nbytes] = part
        return part.nbytes

    def version(self) -> tuple[int, int, int, int]:
        """Return what tells this version from others."""
        return _version_of(self.path, self._meta)

    def close(self) -> None:
        """Do nothing."""

    release = close


class WholeHandle(ReadHandle):
    """An object that was read as a whole when it was opened, in one request."""

    def __init__(self, path: StorePath, meta: Any, content: bytes) -> None:
        super().__init__(path, meta)
        self._content = np.frombuffer(content, np.uint8)

    def read_into(self, buffer: np.ndarray, offset: int) -> int:
        """Return a part of what was read."""
        part = self._content[offset : offset + buffer.nbytes]
        buffer[: part.nbytes] = part
        return part.nbytes


class BufferHandle:
    """A small object that is changed in memory, and written as a whole when it is synced or closed."""

    def __init__(self, path: StorePath, content: bytes, *, is_new: bool = False) -> None:
        self._path = path
        self._content = bytearray(content)
        self._is_changed = is_new

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self._content)

    def read_into(self, buffer: np.ndarray, offset: int) -> int:
        """Read a range."""
        part = self._content[offset : offset + buffer.nbytes]
        buffer[: len(part)] = np.frombuffer(bytes(part), np.uint8)
        return len(part)

    def write(self, buffers: Sequence[Any], offset: int) -> int:
        """Write the buffers at an offset."""
        data = b"".join(bytes(memoryview(each).cast("B")) for each in buffers)
        self._content.extend(bytes(max(offset - len(self._content), 0)))
        self._content[offset : offset + len(data)] = data
        self._is_changed = True
        return len(data)

    def truncate(self) -> None:
        """Empty the object."""
        self._content.clear()
        self._is_changed = True

    def sync(self) -> None:
        """Write the object."""
        if self._is_changed:
            put(self._path, bytes(self._content))
            self._is_changed = False

    close = sync

    def release(self) -> None:
        """Do nothing: what was not synced is lost."""


class MeasuringHandle:
    """Takes a data file without keeping it, except for its header, which is written at the start."""

    def __init__(self) -> None:
        self.header = b""

    def write(self, buffers: Sequence[Any], offset: int) -> int:
        """Keep what is written at the start."""
        if offset == 0:
            self.header = b"".join(bytes(each) for each in buffers)
        return sum(memoryview(each).nbytes for each in buffers)

    def close(self) -> None:
        """Do nothing."""

    release = close


# Writing whole objects.


def refuse_read_only(path: StorePath) -> None:
    """Raise a PermissionError if nothing can be written to a store."""
    if path.scheme in READ_ONLY_SCHEMES:
        raise PermissionError(errno.EROFS, f"{path.scheme}:// is read-only", str(path))


def put(path: StorePath, content: bytes, mode: Any = "overwrite") -> Any:
    """Write an object, or, with another mode of obstore, only if a condition holds. Return its version."""
    refuse_read_only(path)
    return call(path, lambda store, key: obstore().put(store, key, content, mode=mode, use_multipart=False))


def put_stream(path: StorePath, parts: Callable[[], Iterable[Any]], nbytes: int) -> None:
    """Write an object from parts of memory, in parts that are sent in parallel.

    Args:
        path: the object.
        parts: returns buffers of bytes.
        nbytes: their total size.
    """
    refuse_read_only(path)
    size = max(PART_NBYTES, -(-nbytes // _MAX_PARTS))
    options: dict[str, Any] = {"chunk_size": size, "max_concurrency": _CONCURRENCY}
    if nbytes <= PART_NBYTES:
        put(path, b"".join(bytes(each) for each in parts()))
        return
    call(path, lambda store, key: obstore().put(store, key, iter(parts()), use_multipart=True, **options))


def content(path: StorePath) -> bytes:
    """Return the contents of an object."""
    return call(path, lambda store, key: bytes(obstore().get(store, key).bytes()))


def version_to_replace(path: StorePath) -> Any:
    """Return the mode in which to write an object: create it, or replace the version that is there now."""
    try:
        meta = call(path, lambda store, key: obstore().head(store, key))
    except FileNotFoundError:
        return "create"
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def objects_under(path: StorePath) -> list[tuple[str, Any]]:
    """Return the objects of a prefix: their names in it, and what the store says about each."""
    if path.scheme in READ_ONLY_SCHEMES:
        raise FileNotFoundError(errno.ENOENT, f"{path.scheme}:// has no directories", str(path))
    prefix = f"{path.key}/" if path.key else ""

    def listed(store: Any, key: str) -> list[Any]:
        return [meta for page in obstore().list(store, prefix=key or None) for meta in page]

    found = call(path, listed)
    return sorted(
        ((meta["path"].removeprefix(prefix), meta) for meta in found if meta["path"].startswith(prefix)),
        key=lambda each: each[0],
    )


def remove_objects(path: StorePath, names: Sequence[str]) -> None:
    """Delete objects of a prefix. Those that do not exist are no error."""
    refuse_read_only(path)
    prefix = f"{path.key}/" if path.key else ""
    if names:
        call(path, lambda store, key: obstore().delete(store, [prefix + name for name in names]))


# The functions of `filesystem`.


def open_existing(path: StorePath) -> int:
    """See `filesystem.open_existing`. An index is read at once, so that all of it is of one version."""
    if path.suffix not in _READ_AT_ONCE:
        return new_handle(ReadHandle(path, call(path, lambda store, key: obstore().head(store, key))))

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
    refuse_read_only(path)
    return new_handle(BufferHandle(path, b"", is_new=True))


def open_or_create(path: StorePath) -> int:
    """See `filesystem.open_or_create`."""
    refuse_read_only(path)
    try:
        return new_handle(BufferHandle(path, content(path)))
    except FileNotFoundError:
        return new_handle(BufferHandle(path, b"", is_new=True))


def open_to_lock(path: StorePath) -> int:
    """See `filesystem.open_to_lock`."""
    return open_existing(path)


def close(number: int) -> None:
    """See `filesystem.close`."""
    handle = _handles.pop(number, None)
    if handle is not None:
        handle.close()


def release(number: int) -> None:
    """See `filesystem.release`."""
    handle = _handles.pop(number, None)
    if handle is not None:
        handle.release()


def reserve(number: int, nbytes: int) -> None:
    """See `filesystem.reserve`. A store has no limit that is known."""


def write(number: int, buffers: Sequence[Any], offset: int) -> int:
    """See `filesystem.write`."""
    written: int = _at(number).write(buffers, offset)
    return written


def start_writeback(number: int, offset: int, nbytes: int) -> None:
    """See `filesystem.start_writeback`."""


def read_into(number: int, buffer: np.ndarray, offset: int) -> int:
    """See `filesystem.read_into`."""
    count: int = _at(number).read_into(buffer, offset)
    return count


def file_size(number: int) -> int:
    """See `filesystem.file_size`."""
    size: int = _at(number).size
    return size


def sync_file(number: int) -> None:
    """See `filesystem.sync_file`."""
    sync = getattr(_at(number), "sync", None)
    if sync is not None:
        sync()


def truncate(number: int) -> None:
    """See `filesystem.truncate`."""
    _at(number).truncate()


def version(number: int) -> tuple[int, int, int, int]:
    """See `filesystem.version`."""
    found: tuple[int, int, int, int] = _at(number).version()
    return found


def is_linked(number: int) -> bool:
    """See `filesystem.is_linked`: whether a lease is still held."""
    is_held = getattr(_at(number), "is_held", None)
    return is_held is None or bool(is_held())


def try_lock(number: int) -> bool:
    """See `filesystem.try_lock`. Objects have no locks."""
    return True


try_lock_if_supported = try_lock


def lock(number: int) -> None:
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
    try:
        meta = call(path, lambda store, key: obstore().head(store, key)) if path.key else None
    except FileNotFoundError:
        return None
    if meta is None:
        return None
    device, inode, size, modified = _version_of(path, meta)
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


def _version_of(path: StorePath, meta: Any) -> tuple[int, int, int, int]:
    text = f"{meta.get('e_tag')} {meta.get('version')}"
    modified = meta["last_modified"].timestamp()
    return identity(path)[0], checksum(text.encode()) >> 1, meta["size"], round(modified * 1e6) * 1000


def resolved(path: StorePath) -> StorePath:
    """See `filesystem.resolved`."""
    return path


def identity(path: StorePath) -> tuple[int, int]:
    """See `filesystem.identity`."""
    return checksum(path.root_url.encode()) >> 1, checksum(path.key.encode()) >> 1


def fingerprint(path: StorePath) -> tuple[tuple[str, int, int, int], ...]:
    """See `filesystem.fingerprint`."""
    found = objects_under(path)
    if not found:
        meta = call(path, lambda store, key: obstore().head(store, key))
        return ((path.name, *_version_of(path, meta)[1:]),)
    return tuple((name, *_version_of(path, meta)[1:]) for name, meta in found)


def file_sizes(path: StorePath) -> dict[str, int]:
    """See `filesystem.file_sizes`."""
    found = objects_under(path)
    if found:
        return {name: meta["size"] for name, meta in found}
    return {"": call(path, lambda store, key: obstore().head(store, key))["size"]}


def modified_ns(path: StorePath) -> int:
    """See `filesystem.modified_ns`."""
    found = status(path)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "No such object", str(path))
    return found.st_mtime_ns


def list_directory(path: StorePath) -> list[str]:
    """See `filesystem.list_directory`."""
    if path.scheme in READ_ONLY_SCHEMES:
        raise FileNotFoundError(errno.ENOENT, f"{path.scheme}:// has no directories", str(path))
    found = call(path, lambda store, key: obstore().list_with_delimiter(store, key or None))
    names = [each.rstrip("/").rpartition("/")[2] for each in found["common_prefixes"]]
    names += [each["path"].rpartition("/")[2] for each in found["objects"]]
    if not names:
        raise FileNotFoundError(errno.ENOENT, "No such prefix", str(path))
    return sorted(set(names))


def remove_file(path: StorePath) -> None:
    """See `filesystem.remove_file`."""
    refuse_read_only(path)
    call(path, lambda store, key: obstore().delete(store, key))


def rename(path: StorePath, target: Any) -> None:
    """See `filesystem.rename`. No store can."""
    raise OSError(errno.EOPNOTSUPP, "An object store cannot rename", str(path))


link = exchange = rename


def rename_to_new(path: StorePath, target: Any) -> bool:
    """See `filesystem.rename_to_new`. No store can."""
    return False
