"""Paths as users give them, and the operating system's refusals as errors that say what was being done and where."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytreesaver._errors import CheckpointError, CheckpointIOError, CheckpointPermissionError

PathLike = str | os.PathLike[str]


def local_path(path: PathLike) -> Path:
    """A path on this machine, ``~`` resolved.

    Raises:
        TypeError: it is neither a str nor an `os.PathLike` of one.
        ValueError: it is empty, or the address of something elsewhere.
    """
    given: object = path  # whatever its annotation says
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"path: expected a str or a pathlib.Path, found {path!r}")
    if not text or "\0" in text or not _is_encodable(text):
        raise ValueError(f"path: expected the path of a checkpoint, found {text!r}")
    if "://" in text:
        raise ValueError(f"path: expected a path on this machine, found the address {text!r}")
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"path: expected the home directory of a user of this machine, found {text!r}") from error


def canonical(path: PathLike) -> Path:
    """The one path of an entry of a directory, however the directory is spelt; the entry itself may be a link.

    Example:
        >>> canonical("/usr/../usr/./model")
        PosixPath('/usr/model')
    """
    absolute = Path(path).absolute()
    return Path(os.path.realpath(absolute.parent)) / absolute.name


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def named_os_errors(action: str, path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error that says what was being done, and where."""
    try:
        yield
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(
            f"cannot {action} {path}: the call stack is too full; call from fewer frames, or use sys.setrecursionlimit"
        ) from None
    except OSError as error:
        denied = isinstance(error, PermissionError) or error.errno == errno.EROFS
        kind = CheckpointPermissionError if denied else CheckpointIOError
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise kind(f"cannot {action} {path}: {error.strerror or error}{where}", error.errno) from error
