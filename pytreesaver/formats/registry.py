"""The formats by name and by what lies at a path: the only place that knows which formats there are."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver.formats.protocol import CheckpointReader, Format

# Modules are imported when a checkpoint of their format is met or asked for: some import heavy packages.
_MODULES = {"native": "pytreesaver.formats.native"}
_DEFAULT = "native"


def format_named(name: str | None) -> Format:
    """The format of a name, the native one if None.

    Raises:
        ValueError: there is no such format.

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
    """The format of the checkpoint at `path`, complete or damaged, or None if there is no checkpoint.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "recognized")
        >>> format_at(path).name, format_at(path / "index.json")
        ('native', None)
    """
    return next((each for each in map(_imported, _MODULES) if each.recognizes(path)), None)


def is_checkpoint(path: Path) -> bool:
    """Whether a checkpoint of any format lies at `path`, complete or damaged."""
    return format_at(path) is not None


def format_to_read(path: Path) -> Format:
    """The format in which to read what lies at `path`.

    Where no format recognizes anything it is the native one, whose errors say what was found instead.
    """
    others = (name for name in _MODULES if name != _DEFAULT)
    return next((each for each in map(_imported, others) if each.recognizes(path)), _imported(_DEFAULT))


def open_reader(path: PathLike) -> CheckpointReader:
    """Open the checkpoint at `path`, whatever its format is. Raises what `Format.open` raises."""
    source = local_path(path)
    with wrap_os_errors("read", source):
        return format_to_read(source).open(source)


@contextmanager
def opened(path: PathLike) -> Iterator[CheckpointReader]:
    """As `open_reader`, in a ``with`` block that closes it."""
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
