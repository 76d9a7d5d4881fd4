"""Orbax checkpoints in object stores: TensorStore reads some stores itself, and what others hold is fetched."""

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import make_directories
from pytreesaver._io.files import read_fully, write_fully
from pytreesaver._io.parallel import RANGE_NBYTES, advance, run_all
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._io.stores.engine import options_of
from pytreesaver._io.stores.paths import StorePath
from pytreesaver.formats.orbax.layout import MANIFEST, ROOT_FILE, SIDECAR, SUCCESS, TREE_FILE
from pytreesaver.formats.protocol import CheckpointReader

_COMPLETING = (SIDECAR, TREE_FILE, MANIFEST, ROOT_FILE, SUCCESS)
"""The files that are sent after all others, in this order. With the last one, the checkpoint is complete."""


def prepare_upload(path: Path) -> Sequence[str]:
    """Add the file that completes a checkpoint in a store for Orbax. Return the files in the order of an upload."""
    if not filesystem.exists(path / SUCCESS):
        filesystem.close(filesystem.open_new(path / SUCCESS))
    return in_order(filesystem.file_sizes(path))


def in_order(names: Sequence[str] | Mapping[str, int]) -> list[str]:
    """Return the files of a checkpoint in the order in which they are sent: what makes it a checkpoint comes last.

    Example:
        >>> in_order(["_METADATA", "commit_success.txt", "d/0a", "pytreesaver.json"])
        ['d/0a', 'pytreesaver.json', '_METADATA', 'commit_success.txt']
    """
    ranks = {name: rank for rank, name in enumerate(_COMPLETING)}
    return sorted(names, key=lambda name: (ranks.get(name.rpartition("/")[2], -1), name))


def is_left_over(path: Path) -> bool:
    """Return whether there are only files of an interrupted save in a directory of a store."""
    names = set(filesystem.file_sizes(path))
    last = {name.rpartition("/")[2] for name in names}
    is_ours = SIDECAR in names or not last & {TREE_FILE, MANIFEST, ROOT_FILE}
    return bool(names) and SUCCESS not in names and is_ours and all(map(_SENT.fullmatch, names))


_SENT = re.compile(
    r"(default/)?(ocdbt\.process_[0-9]+/)?"
    r"(d/[0-9a-f]{32}|_[A-Za-z_]+|array_metadatas/process_[0-9]+|manifest\.ocdbt|pytreesaver\.json|commit_success\.txt)"
)
"""The files that a save sends. What has other names is not deleted."""


_UNDERSTOOD = {"endpoint", "region", "skip_signature"}


def key_value_store(path: Path) -> dict[str, Any]:
    """Return the specification of a directory for TensorStore, or {} if TensorStore has no driver for its store.

    TensorStore takes credentials from the environment or the machine. Where others were set, it cannot read either.

    Example:
        >>> key_value_store(StorePath("gs://bucket/run/7"))
        {'driver': 'gcs', 'bucket': 'bucket', 'path': 'run/7/'}
        >>> key_value_store(StorePath("gs://bucket"))
        {'driver': 'gcs', 'bucket': 'bucket', 'path': ''}
        >>> key_value_store(StorePath("memory://tests/7"))
        {}
    """
    store = cast(StorePath, path)
    options = options_of(store)
    is_public = options.get("skip_signature") or os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
    if not set(options) <= _UNDERSTOOD:
        return {}
    spec: dict[str, Any] = {"bucket": store.root_url.partition("://")[2], "path": f"{store.key}/" if store.key else ""}
    if store.scheme in ("gs", "gcs") and not options and "STORAGE_EMULATOR_HOST" not in os.environ:
        return {"driver": "gcs", **spec}
    if store.scheme in ("s3", "s3a"):
        if region := options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            spec["aws_region"] = region
        if endpoint := options.get("endpoint"):
            spec["endpoint"] = endpoint
        if is_public:
            spec["aws_credentials"] = {"type": "anonymous"}
        return {"driver": "s3", **spec}
    return {}


def open_anywhere(path: Path, open: Callable[[Path, Path], CheckpointReader]) -> CheckpointReader:
    """Open a checkpoint, on a disk or in a store. What TensorStore cannot read is fetched into a temporary directory.

    The directory is deleted when the reader is closed, or collected.

    Args:
        path: the checkpoint.
        open: opens a checkpoint; called with the directory that is read, and the path for messages.
    """
    if not is_in_store(path) or key_value_store(path):
        return open(path, path)
    directory = Path(tempfile.mkdtemp(prefix="pytreesaver-"))
    local = directory / path.name
    try:
        fetch(path, local)
        reader = open(local, path)
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, CorruptCheckpointError):
            message = str(error).replace(str(local), str(path))
            raise CorruptCheckpointError(message, damaged=error.damaged) from error.__cause__
        if isinstance(error, OSError) and error.filename is not None:
            raise type(error)(
                error.errno, error.strerror, str(error.filename).replace(str(local), str(path))
            ) from error
        raise
    remove = weakref.finalize(reader, shutil.rmtree, directory, ignore_errors=True)
    reader.on_close = remove  # type: ignore[attr-defined]
    return reader


def fetch(path: Path, target: Path) -> None:
    """Copy all files of a directory of a store to a disk.

    Raises:
        CorruptCheckpointError: if the name of one would be outside of the directory.
    """
    sizes = filesystem.file_sizes(path)
    for name in sizes:
        if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise CorruptCheckpointError(f"{path}: expected names of files, found {name[:60]!r}")
    tasks: list[Callable[[], None]] = []
    for name, size in sizes.items():
        file = target / name
        make_directories(file.parent, [])
        filesystem.close(filesystem.open_new(file))
        ranges = [(begin, min(begin + RANGE_NBYTES, size)) for begin in range(0, size, RANGE_NBYTES)]
        tasks += [partial(_fetch_range, path / name, file, begin, end) for begin, end in ranges]
    run_all(tasks, sum(sizes.values()), in_store=True)


def _fetch_range(source: Path, target: Path, begin: int, end: int) -> None:
    content = np.empty(end - begin, np.uint8)
    descriptor = filesystem.open_existing(source)
    try:
        read_fully(descriptor, content, begin)
    finally:
        filesystem.release(descriptor)
    descriptor = filesystem.open_or_create(target)
    try:
        write_fully(descriptor, [content], begin)
    finally:
        filesystem.release(descriptor)
    advance(content.nbytes)
