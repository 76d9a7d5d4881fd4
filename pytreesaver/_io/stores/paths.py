"""Paths in object stores, such as ``s3://bucket/run/model-1``. Does not import the engine."""

import errno
import re
from pathlib import PosixPath
from typing import Any

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "memory", "http", "https")
FIRST_HANDLE = 1 << 40
"""The handles of open objects begin here, so that they differ from file descriptors."""

READ_ONLY_SCHEMES = ("http", "https")
_URL = re.compile(r"([a-z][a-z0-9]*)://([^/]*)(/.*)?", re.DOTALL)


class StorePath(PosixPath):
    """The path of an object, or of a prefix of objects, in a store. Its text is the URL.

    It is a `pathlib.Path`, so that names, parents and joins work as usual, but only `pytreesaver._io.filesystem` can
    open it.
    """

    __slots__ = ()

    def __str__(self) -> str:
        scheme, colon, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}" if colon else scheme

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def absolute(self) -> "StorePath":
        """Return the path itself: a URL is absolute."""
        return self

    def is_absolute(self) -> bool:
        """Return True: a URL is absolute."""
        return True

    def expanduser(self) -> "StorePath":
        """Return the path itself."""
        return self

    @property
    def scheme(self) -> str:
        """The scheme of the URL, such as ``s3``."""
        return str(self).partition("://")[0]

    @property
    def root_url(self) -> str:
        """The URL of the store: the scheme and the bucket, container or host."""
        return "/".join(str(self).split("/")[:3])

    @property
    def key(self) -> str:
        """The name of the object in the store."""
        return "/".join(str(self).split("/")[3:])

    def __reduce__(self) -> Any:
        return StorePath, (str(self),)

    def resolve(self, strict: bool = False) -> "StorePath":
        """Return the path itself."""
        return self


def _refuse(name: str) -> Any:
    def method(self: StorePath, *arguments: Any, **options: Any) -> Any:
        raise OSError(
            errno.EOPNOTSUPP,
            f"{name}: this path is in an object store, where pathlib cannot look; use the functions of pytreesaver",
            str(self),
        )

    return method


for _name in (
    *("exists", "is_dir", "is_file", "is_symlink", "stat", "lstat", "iterdir", "glob", "rglob", "open", "samefile"),
    *("read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "rmdir", "unlink", "touch", "rename", "replace"),
):
    setattr(StorePath, _name, _refuse(_name))


def store_path(url: str) -> StorePath:
    """Return the path of a URL.

    Raises:
        ValueError: if the URL has an unknown scheme, no bucket, a query, or credentials.

    Example:
        >>> path = store_path("s3://bucket/run") / "model-1"
        >>> str(path), path.parent.name, path.key
        ('s3://bucket/run/model-1', 'run', 'run/model-1')
    """
    if "://" not in url:
        raise ValueError(f"expected the URL of an object store, such as s3://bucket, found {url!r}")
    match = _URL.fullmatch(url)
    scheme = match[1] if match else url.partition("://")[0]
    if match is None or scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in ("s3", "gs", "az", "https", "memory"))
        raise ValueError(f"path: expected a local path or a URL with one of {known}, found the scheme {scheme!r}")
    if not match[2] or (scheme in READ_ONLY_SCHEMES and not (match[3] or "").strip("/")):
        raise ValueError(f"path: expected a URL with a bucket and a path, found {scheme}://{match[2]}")
    if "@" in match[2] and not scheme.startswith(("abfs", "az", "adl")):
        raise ValueError(
            f"path: expected a URL without credentials, found some before the host of a {scheme}:// URL; set them in "
            "the environment, or with set_store_options"
        )
    if "?" in url or "#" in url:
        where = re.split("[?#]", url)[0]
        raise ValueError(f"path: expected a URL without a query or a fragment, found one after {where}")
    if ".." in (match[3] or "").split("/"):
        raise ValueError(f"path: expected a URL without '..', found {url}")
    return StorePath(url)
