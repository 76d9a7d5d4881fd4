"""Objects of a store: writing them whole, if a condition holds, listing and deleting them."""

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.stores.engine import call, obstore
from pytreesaver._io.stores.paths import READ_ONLY_SCHEMES, StorePath

PART_NBYTES = 8 << 20
"""The size of the parts of an upload."""

_MAX_PARTS = 9_000
_CONCURRENCY = 6
MAX_OBJECT_NBYTES = PART_NBYTES * _MAX_PARTS
"""The size up to which an upload needs no larger parts."""


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


def copy(source: StorePath, target: StorePath) -> None:
    """Copy an object within its store, without transferring it. Raises a FileNotFoundError if it does not exist."""
    refuse_read_only(target)
    call(source, lambda store, key: obstore().copy(store, key, target.key))


def content(path: StorePath) -> bytes:
    """Return the contents of an object."""
    return call(path, lambda store, key: bytes(obstore().get(store, key).bytes()))


def head(path: StorePath) -> Any:
    """Return what the store says about an object: its size, version and time. Raises a FileNotFoundError."""
    return call(path, lambda store, key: obstore().head(store, key))


def replacing(meta: Any) -> dict[str, Any]:
    """Return the mode in which to write an object if it still is this version, from `head` or the result of a write."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def version_to_replace(path: StorePath) -> Any:
    """Return the mode in which to write an object: create it, or replace the version that is there now."""
    try:
        return replacing(head(path))
    except FileNotFoundError:
        return "create"


def objects_under(path: StorePath) -> list[tuple[str, Any]]:
    """Return the objects of a prefix: their names in it, and what the store says about each."""
    if path.scheme in READ_ONLY_SCHEMES:
        raise FileNotFoundError(errno.ENOENT, f"{path.scheme}:// has no listings of directories", str(path))
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


def version_of(path: StorePath, meta: Any) -> tuple[int, int, int, int]:
    """Return what tells a version of an object from others; see `filesystem.version`."""
    text = f"{meta.get('e_tag')} {meta.get('version')}"
    modified = meta["last_modified"].timestamp()
    return identity(path)[0], checksum(text.encode()) >> 1, meta["size"], round(modified * 1e6) * 1000


def identity(path: StorePath) -> tuple[int, int]:
    """See `filesystem.identity`."""
    return checksum(path.root_url.encode()) >> 1, checksum(path.key.encode()) >> 1
