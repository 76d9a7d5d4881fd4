"""The registry of formats: by name, by the ending of a path, or by the contents of a path.

No other module names a format.
"""

import importlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from pytreesaver._errors import CheckpointNotFoundError, not_installed
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver.formats.protocol import CheckpointReader, Format, TreeContents

# Modules are imported on first use: some import heavy packages.
_MODULES = {
    "native": "pytreesaver.formats.native",
    "safetensors": "pytreesaver.formats.safetensors",
    "orbax": "pytreesaver.formats.orbax",
    "npz": "pytreesaver.formats.npz",
    "equinox": "pytreesaver.formats.npz.equinox",
    "msgpack": "pytreesaver.formats.msgpack",
    "tensorflow": "pytreesaver.formats.tensorflow",
}
_PACKAGES = {"orbax": ("orbax.checkpoint", "tensorstore")}
"""The packages that a format needs and only the extra of the same name installs."""

_DEFAULT = "native"
STREAM_FORMAT = "safetensors"
"""The format of file objects and bytes."""

_ENDINGS = {".safetensors": "safetensors", ".npz": "npz", ".msgpack": "msgpack"}
_registered: dict[str, Format] = {}
_METHODS = (
    "unsupported",
    "write",
    "remove",
    "remove_unlisted_files",
    "recognizes",
    "heading_file",
    "read_heading",
    "open",
)


def register_format(format: Format, *, ending: str | None = None) -> None:
    """Add a format, so that every function of pytreesaver reads it, and writes it with ``format=`` its name.

    A format is an object, or a module, that implements `pytreesaver.formats.Format`. The tests in
    `pytreesaver.testing.FormatConformance` show whether it does.

    Args:
        format: the format. Its `name` is what ``format=`` takes. A format that was registered under the same name
            before is replaced.
        ending: paths with this ending, such as ``".zarr"``, are written in this format unless ``format=`` says
            otherwise.

    Raises:
        TypeError: if the format lacks a method.
        ValueError: if its name is taken by a format of pytreesaver, or is not an identifier, or the ending is not one.

    Example:
        >>> from pytreesaver.formats import native
        >>> class Mine:
        ...     name = "mine"
        ...     def __getattr__(self, attribute):
        ...         return getattr(native, attribute)
        ...     def recognizes(self, path):
        ...         return False
        >>> register_format(Mine())
        >>> path = pytreesaver.save({"w": np.ones(3)}, "in-my-format", format="mine")
    """
    lacking = [name for name in ("name", *_METHODS) if not hasattr(format, name)]
    if lacking:
        raise TypeError(f"format: expected the methods of Format, found an object without {', '.join(lacking)}")
    if format.name in _MODULES or not re.fullmatch(r"[a-z][a-z0-9_-]*", format.name):
        raise ValueError(f"format: expected a new name of lower-case letters and digits, found {format.name!r}")
    if ending is not None and (ending in _ENDINGS or not re.fullmatch(r"\.[A-Za-z0-9_.-]+", ending)):
        raise ValueError(f"ending: expected a new ending like '.zarr', found {ending!r}")
    owner = _registered_endings.get(ending or "", format.name)
    if owner != format.name:
        raise ValueError(f"ending: expected one that no other format has, found {ending!r} of the format {owner!r}")
    _registered[format.name] = format
    if ending is not None:
        _registered_endings[ending] = format.name


_registered_endings: dict[str, str] = {}


def format_names() -> list[str]:
    """Return the names of all formats."""
    return [*_MODULES, *_registered]


def format_named(name: str | None) -> Format:
    """Return the format called `name`, or the native format if None.

    Raises:
        ValueError: if there is no such format.

    Example:
        >>> format_named(None).name
        'native'
    """
    key = _DEFAULT if name is None else name
    if key in _registered:
        return _registered[key]
    if key not in _MODULES:
        known = ", ".join(f'"{each}"' for each in format_names())
        raise ValueError(f"format: expected None or {known}, found {name!r}")
    return _imported(key)


def format_to_write(path: Path, name: str | None) -> Format:
    """Return the format in which to write to `path`: the one called `name`, else the one of its ending, else native.

    Raises:
        ValueError: if there is no such format, or the ending is that of one that pytreesaver does not write.
        ImportError: if a package that the format needs is not installed.

    Example:
        >>> format_to_write(Path("model.safetensors"), None).name, format_to_write(Path("model"), None).name
        ('safetensors', 'native')
    """
    if name is None:
        name = format_of_ending(path.name)
        foreign = next((ending for ending in _ENDINGS_OF_OTHERS if path.name.lower().endswith(ending)), None)
        if name is None and foreign is not None:
            raise ValueError(
                f"{path}: pytreesaver does not write {foreign} files; expected a path without the ending {foreign}, or "
                'format="native"'
            )
        if name is None and path.suffix:
            _refuse_misspelled_ending(path)
    format = format_named(name)
    for package in _PACKAGES.get(format.name, ()):
        if not _is_installed(package):
            raise not_installed(path, package, f'writing format="{format.name}"', extra=format.name)
    return format


def _refuse_misspelled_ending(path: Path) -> None:
    import difflib

    meant = difflib.get_close_matches(path.suffix.lower(), _ENDINGS | _registered_endings, 1, _LIKE_AN_ENDING)
    if meant:
        raise ValueError(
            f"{path}: expected the ending {meant[0]}, or none, found {path.suffix}; "
            'pass format="native" for a directory of this name'
        )


_LIKE_AN_ENDING = 0.9


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def format_of_ending(name: str) -> str | None:
    """Return the name of the format that the ending of a name chooses, or None."""
    endings = _ENDINGS | _registered_endings
    lower = name.lower()
    return next((endings[ending] for ending in endings if lower.endswith(ending)), None)


_ENDINGS_OF_OTHERS = (
    *(".npy", ".pt", ".pth", ".bin", ".pkl"),
    *(".h5", ".hdf5", ".keras", ".gguf", ".eqx"),
)


def format_at(path: Path) -> Format | None:
    """Return the format of the checkpoint at `path`, intact or damaged, or None if `path` is not a checkpoint.

    Raises:
        CheckpointIOError: if the system could not look.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "recognized")
        >>> format_at(path).name, format_at(path / "index.json")
        ('native', None)
    """
    likely = format_of_ending(path.name)
    names = format_names() if likely is None else [likely, *format_names()]  # at most one recognizes it
    with wrap_os_errors("read", path):
        return next((each for each in map(format_named, names) if each.recognizes(path)), None)


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is a checkpoint of any format, intact or damaged. Raises what `format_at` raises."""
    return format_at(path) is not None


def format_to_read(path: Path) -> Format:
    """Return the format of the checkpoint at `path`.

    If no format recognizes it, return the native one, whose errors say what was found instead.
    """
    return format_at(path) or _imported(_DEFAULT)


def open_reader(path: PathLike, format: str | None = None) -> CheckpointReader:
    """Open the checkpoint at `path`, of the named format or of any. Raises what `Format.open` raises.

    Raises:
        ImportError: if a package that the format needs is not installed.
    """
    source = local_path(path)
    with wrap_os_errors("read", source):
        if format is None:
            return _opened_by(format_to_read(source), source)
        named = format_named(format)
        if not named.recognizes(source) and (found := format_at(source)) is not None:
            raise CheckpointNotFoundError(
                f'{source}: expected a checkpoint of the format "{format}", found one of "{found.name}"; '
                "leave out format="
            )
        return _opened_by(named, source)


def _opened_by(format: Format, path: Path) -> CheckpointReader:
    try:
        return format.open(path)
    except ModuleNotFoundError as error:
        if error.name is None or error.name not in _PACKAGES.get(format.name, ()):
            raise
        purpose = f'reading a checkpoint of the format "{format.name}"'
        raise not_installed(path, error.name, purpose, extra=format.name) from None


def write_into(directory: Path, contents: TreeContents) -> None:
    """Write the files of a native checkpoint into an existing directory, which another program commits."""
    native: Any = _imported(_DEFAULT)
    with wrap_os_errors("save to", directory):
        native.write_into(directory, contents)


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
