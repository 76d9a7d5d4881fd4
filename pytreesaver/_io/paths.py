"""Validation of user-supplied paths, and conversion of OSErrors to pytreesaver exceptions."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pytreesaver._errors import (
    CheckpointError,
    CheckpointIOError,
    CheckpointPermissionError,
    CorruptCheckpointError,
)
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError
from pytreesaver._io.stores.paths import SCHEMES, StorePath, store_path

T = TypeVar("T")
PathLike = str | os.PathLike[str]
"""Type of arguments that are paths: a path, or the URL of something in an object store."""


def local_path(path: PathLike) -> Path:
    """Return a path with ``~`` expanded, or that of a URL of an object store.

    Raises:
        TypeError: if `path` is neither a str nor an `os.PathLike` of str.
        ValueError: if `path` is empty, the URL of something else, contains NUL, cannot be encoded, or names an unknown
            user.
    """
    if isinstance(path, StorePath):
        return path
    given: object = path  # callers may ignore the annotation
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else _url_of(given)
    if not isinstance(text, str):
        raise TypeError(f"path: expected a str or a pathlib.Path, found {_described(given)}")
    if not text or "\0" in text or not _is_encodable(text):
        raise ValueError(f"path: expected a valid path, found {text!r}")
    if text.startswith("file://"):
        text = _path_of_file_url(text)
    elif "://" in text:
        return store_path(text)
    elif _BROKEN_URL.match(text):
        raise ValueError(f"path: expected a URL as a str, found {text!r}; pathlib.Path has removed a slash from it")
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"path: expected the home directory of an existing user, found {text!r}") from error


def _described(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | bytes):
        return repr(value)[:60]
    order = "the order is save(tree, path) and restore(path, like=tree)"
    return f"an object of the type {type(value).__name__}; {order}"


def as_path(text: str) -> Path:
    """Return the path with this text, as `str` has made it from one: a leading ``~`` is a name.

    Example:
        >>> as_path("s3://bucket/run"), as_path("~/run")
        (StorePath('s3://bucket/run'), PosixPath('~/run'))
    """
    return StorePath(text) if _STORE_URL.match(text) else Path(text)


_BROKEN_URL = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")
_STORE_URL = re.compile(rf"({'|'.join(SCHEMES)})://")


def _path_of_file_url(url: str) -> str:
    path = url.removeprefix("file://").removeprefix("localhost")
    if not path.startswith("/"):
        raise ValueError(f"path: expected a URL like file:///directory/model, found {url!r}")
    return path


def _url_of(given: object) -> str | None:
    """Return the URL of a path object that has no path in the file system, such as a `upath.UPath`, or None."""
    text = str(given)
    return text if hasattr(given, "joinpath") and "://" in text else None


def canonical(path: PathLike) -> Path:
    """Return the absolute path of a directory entry, with links resolved in its directory but not in the entry.

    Example:
        >>> canonical("/usr/../usr/./model")
        PosixPath('/usr/model')
    """
    given = as_path(os.fspath(path))
    with wrap_os_errors("look at", given):
        absolute = given.absolute()
        return filesystem.resolved(absolute.parent) / absolute.name


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def again_after_io_error(look: Callable[[], T]) -> T:
    """Call `look`, and once more after a CheckpointIOError: on network file systems, such errors often pass."""
    try:
        return look()
    except CheckpointIOError:
        return look()


@contextmanager
def wrap_os_errors(action: str, path: Path) -> Iterator[None]:
    """Convert OSErrors in the block to `CheckpointIOError`, with `action` and `path` in the message.

    A MemoryError becomes one too, and a file that is shorter than the system said a `CorruptCheckpointError`.
    """
    try:
        yield
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(
            f"cannot {action} {path}: the call stack is too deep; call from fewer frames or use sys.setrecursionlimit"
        ) from None
    except EndOfFileError as error:
        raise CorruptCheckpointError(f"{path}: a file ended before all of its bytes were read") from error
    except MemoryError as error:
        raise CheckpointIOError(f"cannot {action} {path}: there is not enough memory", errno.ENOMEM) from error
    except OSError as error:
        denied = isinstance(error, PermissionError) or error.errno == errno.EROFS
        kind = CheckpointPermissionError if denied else CheckpointIOError
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise kind(f"cannot {action} {path}: {error.strerror or error}{where}", error.errno) from error
