"""Saving to an object store in a format that can only be written to a disk: write it there, and send its files."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.files import read_file, read_fully
from pytreesaver._io.parallel import SLICE_NBYTES
from pytreesaver._io.stores import objects
from pytreesaver._io.stores.engine import ChangedError
from pytreesaver._io.stores.objects import version_to_replace
from pytreesaver.formats import places
from pytreesaver.formats.protocol import Format


def write_and_upload(target: Path, writer: Format, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Write a checkpoint into a temporary directory, then send it to an object store, its index last.

    Args:
        target: the path in the store.
        writer: the format.
        write: writes the checkpoint to a path on the disk.
        overwrite: replace an existing checkpoint of the format, if it is a single file.

    Raises:
        CheckpointExistsError: if `target` exists and may not be replaced.
    """
    mode: Any = version_to_replace(cast(Any, target)) if overwrite else "create"
    _refuse(target, writer, overwrite)
    with tempfile.TemporaryDirectory(prefix="pytreesaver-") as directory:
        local = Path(directory) / target.name
        write(local)
        files = _files_of(local)
        if len(files) > 1 and places.exists(target):
            raise CheckpointExistsError(
                f"{target}: a checkpoint of several files in the format {writer.name} cannot replace another one in an "
                "object store; remove that first, or save elsewhere"
            )
        heading = writer.heading_file(local)
        ordered = sorted(files, key=lambda file: (file == heading, file))
        prepare = getattr(writer, "prepare_upload", None)
        if prepare is not None:
            ordered = [local / name for name in prepare(local)]
        for file in ordered:
            _upload(file, target.parent / file.relative_to(directory), mode if file == local else "create")


def _refuse(target: Path, writer: Format, overwrite: bool) -> None:
    exists = places.exists(target)
    if exists and not overwrite:
        raise CheckpointExistsError(f"{target} exists already; pass overwrite=True to replace a checkpoint")
    if exists and not writer.recognizes(target):
        raise CheckpointExistsError(
            f"{target}: expected a checkpoint of the format {writer.name} to overwrite, found something else; save "
            "elsewhere, or remove it if it is not needed"
        )


def _files_of(path: Path) -> list[Path]:
    if filesystem.is_directory(path):
        return [path / name for name in filesystem.file_sizes(path)]
    return [path] if filesystem.exists(path) else places.files_beside(path)


def _upload(file: Path, target: Any, mode: Any) -> None:
    """Send a file. Up to a size, only if the object still is the version that `mode` names."""
    descriptor = filesystem.open_existing(file)
    try:
        size = filesystem.file_size(descriptor)
        if size <= _MOST_CONDITIONAL_NBYTES:
            objects.put(target, read_file(descriptor), mode)
            return

        def parts() -> Iterator[memoryview]:
            for begin in range(0, size, SLICE_NBYTES):
                part = np.empty(min(SLICE_NBYTES, size - begin), np.uint8)
                read_fully(descriptor, part, begin)
                yield memoryview(part)  # type: ignore[arg-type]

        objects.put_stream(target, parts, size)
    except ChangedError as error:
        raise CheckpointExistsError(f"{target} was written by another process during the save") from error
    finally:
        filesystem.release(descriptor)


_MOST_CONDITIONAL_NBYTES = 64 << 20
"""Larger objects are sent in parts, for which stores know no conditions."""
