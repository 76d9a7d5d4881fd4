"""Saving to an object store in a format that can only be written to a disk: write it there, and send its files."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.files import read_fully
from pytreesaver._io.parallel import SLICE_NBYTES
from pytreesaver.formats import places
from pytreesaver.formats.protocol import Format


def write_and_upload(target: Path, writer: Format, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Write a checkpoint into a temporary directory, then send it to an object store, its index last.

    Args:
        target: the path in the store.
        writer: the format.
        write: writes the checkpoint to a path on the disk.
        overwrite: replace an existing checkpoint of the format.

    Raises:
        CheckpointExistsError: if `target` exists and may not be replaced.
    """
    exists = places.exists(target)
    if exists and not overwrite:
        raise CheckpointExistsError(f"{target} exists already; pass overwrite=True to replace a checkpoint")
    if exists and not writer.recognizes(target):
        raise CheckpointExistsError(
            f"{target}: expected a checkpoint of the format {writer.name} to overwrite, found something else; save "
            "elsewhere, or remove it if it is not needed"
        )
    before = places.fingerprint(target) if exists else ()
    with tempfile.TemporaryDirectory(prefix="pytreesaver-") as directory:
        local = Path(directory) / target.name
        write(local)
        heading = writer.heading_file(local)
        files = sorted(_files_of(local), key=lambda file: (file == heading, file))
        for file in files:
            _upload(file, target.parent / file.relative_to(directory))
        if filesystem.is_directory(local):
            new = {str(file.relative_to(local)) for file in files}
            for name, *_ in before:
                if name not in new:
                    filesystem.remove_file(target / name)


def _files_of(path: Path) -> list[Path]:
    if filesystem.is_directory(path):
        return [path / name for name in filesystem.file_sizes(path)]
    return [path] if filesystem.exists(path) else places.files_beside(path)


def _upload(file: Path, target: Any) -> None:
    from pytreesaver._io.stores import objects

    descriptor = filesystem.open_existing(file)
    try:
        size = filesystem.file_size(descriptor)

        def parts() -> Iterator[memoryview]:
            for begin in range(0, size, SLICE_NBYTES):
                part = np.empty(min(SLICE_NBYTES, size - begin), np.uint8)
                read_fully(descriptor, part, begin)
                yield memoryview(part)  # type: ignore[arg-type]

        objects.put_stream(target, parts, size)
    finally:
        filesystem.release(descriptor)
