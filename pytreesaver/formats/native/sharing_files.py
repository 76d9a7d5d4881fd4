"""Giving data files of an earlier checkpoint a second name in a new one, or copying them within an object store."""

import errno
import logging
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

from pytreesaver._io import filesystem
from pytreesaver._io.atomic import temporary_sibling
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver.formats.native.known import UNIQUE_NAME, KnownCheckpoint

logger = logging.getLogger("pytreesaver")

MOST_COPIED_NBYTES = 4 << 30
"""Stores copy objects of up to 5 GB in one request."""

_HAVE_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)

_may_link: dict[tuple[Path, Path], bool] = {}
"""Whether files of one directory can be given a second name in another one, as far as it was tried."""

_reasons: set[tuple[Path, str]] = set()
"""The reasons for which files of a directory could not be shared, as far as they were logged."""


def may_share(base: KnownCheckpoint, path: Path) -> bool:
    """Return whether a checkpoint at an absolute path can share data files of another one. Says once that it cannot.

    Tries it, because arrays that need not be written may be gone when a later attempt fails.
    """
    if is_in_store(path) or is_in_store(base.path):
        if getattr(path, "root_url", None) == getattr(base.path, "root_url", None):
            return True
        return _refuse(base.path.parent, path.parent, "they are in different places")
    pair = base.path.parent, path.parent
    if pair not in _may_link:
        if not base.index.files:
            return True
        trial = temporary_sibling(_existing_directory(path.parent) / path.name)
        try:
            filesystem.link(base.path / base.index.files[0].name, trial)
        except OSError as error:
            if error.errno in _HAVE_NO_LINKS:
                return _refuse(*pair, error.strerror or str(error))
            return True  # the base may be gone
        with suppress(OSError):
            filesystem.remove_file(trial)
        _may_link[pair] = True
    return _may_link[pair]


def _existing_directory(path: Path) -> Path:
    while not filesystem.exists(path) and path != path.parent:
        path = path.parent
    return path


def _refuse(source: Path, target: Path, reason: str) -> bool:
    if _may_link.get((source, target), True):
        _may_link[source, target] = False
        logger.warning(
            "data files of %s cannot be linked into %s (%s): every incremental save there writes everything",
            source,
            target,
            reason,
        )
    return False


def share_file(base: KnownCheckpoint, number: int, target: Path, locks: ExitStack, *, durable: bool) -> bool:
    """Give a data file of a checkpoint a second name, or copy it within its store. Return False if that is impossible.

    Args:
        base: the checkpoint.
        number: the number of the file.
        target: the new name. It becomes durable with its directory.
        locks: keeps the name from being taken for a leftover.
        durable: sync the file, if it may not be durable.
    """
    source = base.path / base.index.files[number].name
    try:
        if is_in_store(target):
            _copy(base, number, source, target)
            return True
        filesystem.link(source, target)
    except OSError as error:
        if error.errno in _HAVE_NO_LINKS and not is_in_store(target):
            return _refuse(base.path.parent, target.parent.parent, error.strerror or str(error))
        return _note(base, error)
    try:
        descriptor = filesystem.open_existing(target)
        locks.callback(filesystem.release, descriptor)
        filesystem.lock(descriptor, shared=True)
        if filesystem.version(descriptor) != base.versions[number]:
            raise OSError(errno.ESTALE, "it has been modified or replaced", str(source))
        if durable and not base.is_durable:
            filesystem.sync_file(descriptor)
    except OSError as error:
        with suppress(OSError):
            filesystem.remove_file(target)
        return _note(base, error)
    return True


def _copy(base: KnownCheckpoint, number: int, source: Any, target: Any) -> None:
    from pytreesaver._io.stores import objects

    if base.versions[number] != UNIQUE_NAME:
        found = objects.version_of(source, objects.head(source))
        if found != base.versions[number]:
            raise OSError(errno.ESTALE, "it has been replaced", str(source))
    objects.copy(source, target)
    if objects.head(target)["size"] != base.index.files[number].nbytes:
        with suppress(OSError):
            filesystem.remove_file(cast(Any, target))
        raise OSError(errno.EIO, "the store has not copied all of it", str(source))


def _note(base: KnownCheckpoint, error: OSError) -> bool:
    """Log once why files of a directory are written again, and return False."""
    reason = error.strerror or str(error)
    if (base.path.parent, reason) not in _reasons:
        _reasons.add((base.path.parent, reason))
        logger.warning("a data file of %s cannot be shared, and what it holds is written again: %s", base.path, reason)
    return False
