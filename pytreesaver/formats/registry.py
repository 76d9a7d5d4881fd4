"""The registry of formats: by name, or by the contents of a path. No other module names a format."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver.formats.protocol import CheckpointReader, Format

# Modules are imported on first use: some import heavy packages.
_MODULES = {"native": "pytreesaver.formats.native"}
_DEFAULT = "native"


def format_named(name: str | None) -> Format:
    """Return the format called `name`, or the native format if None.

    Raises:
        ValueError: if there is no such format.

    Example:
        >>> format_named(None).name
        'native'
    """
    key = _DEFAULT if name is None else name
    if key not in _MODULES:
        known = ", ".join(f'"{each}"' for each in _MODULES)
        raise ValueError(f"format: expected None or {known}, found {name!r}")
    return _imported(key)


def format_at(path: Path) -> Format | None:
    """Return the format of the checkpoint at `path`, intact or damaged, or None if `path` is not a checkpoint.

    Raises:
        CheckpointIOError: if the system could not look.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "recognized")
        >>> format_at(path).name, format_at(path / "index.json")
        ('native', None)
    """
    with wrap_os_errors("read", path):
        return next((each for each in map(_imported, _MODULES) if each.recognizes(path)), None)


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is a checkpoint of any format, intact or damaged. Raises what `format_at` raises."""
    return format_at(path) is not None


def format_to_read(path: Path) -> Format:
    """Return the format of the checkpoint at `path`.

    If no format recognizes it, return the native one, whose errors say what was found instead.
    """
    others = (name for name in _MODULES if name != _DEFAULT)
    with wrap_os_errors("read", path):
        return next((each for each in map(_imported, others) if each.recognizes(path)), _imported(_DEFAULT))


def open_reader(path: PathLike) -> CheckpointReader:
    """Open the checkpoint at `path`, of any format. Raises what `Format.open` raises."""
    source = local_path(path)
    with wrap_os_errors("read", source):
        return format_to_read(source).open(source)


@contextmanager
def opened(path: PathLike) -> Iterator[CheckpointReader]:
    """Open the checkpoint at `path` for a ``with`` block, as `open_reader`."""
    reader = open_reader(path)
    try:
        with wrap_os_errors("read", reader.path):
            yield reader
    finally:
        reader.close()


@cache
def _imported(name: str) -> Format:
    module: Any = importlib.import_module(_MODULES[name])
    return cast(Format, module)
