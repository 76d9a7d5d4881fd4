"""Giving data files of an earlier checkpoint a second name in a new one, or copying them within an object store."""

import errno
import logging
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

from pytreesaver._io import filesystem
from pytreesaver._io.atomic import temporary_sibling
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver.formats.native.known import KnownCheckpoint

logger = logging.getLogger("pytreesaver")

_HAVE_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)

_may_link: dict[tuple[Path, Path], bool] = {}
"""Whether files of one directory can be given a second name in another one, as far as it was tried."""


def may_share(base: KnownCheckpoint, path: Path) -> bool:
    """Return whether a checkpoint at `path` can share data files of another one. Says once that it cannot.

    Tries it where a later failure would come too late, because the arrays may be gone then.
    """
    if is_in_store(path) or is_in_store(base.path):
        if getattr(path, "root_url", None) == getattr(base.path, "root_url", None):
            return True
        return _refuse(base.path.parent, path.parent, "they are in different places")
    pair = base.path.parent, path.parent
    if pair not in _may_link:
        if not base.index.files or not filesystem.exists(path.parent):
            return True
        trial = temporary_sibling(path)
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
            from pytreesaver._io.stores import objects

            objects.copy(cast(Any, source), cast(Any, target))
            if objects.head(cast(Any, target))["size"] == base.index.files[number].nbytes:
                return True
            filesystem.remove_file(target)
            return False
        filesystem.link(source, target)
    except OSError as error:
        if error.errno in _HAVE_NO_LINKS:
            _refuse(base.path.parent, target.parent.parent, error.strerror or str(error))
        return False
    try:
        descriptor = filesystem.open_existing(target)
        locks.callback(filesystem.release, descriptor)
        filesystem.lock(descriptor, shared=True)
        if filesystem.version(descriptor) != base.versions[number]:
            raise OSError(errno.ESTALE, "Another file", str(target))
        if durable and not base.is_durable:
            filesystem.sync_file(descriptor)
    except OSError:
        with suppress(OSError):
            filesystem.remove_file(target)
        return False
    return True
