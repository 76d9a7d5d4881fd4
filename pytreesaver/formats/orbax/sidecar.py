"""What pytreesaver adds to an Orbax checkpoint that it writes: a file that Orbax ignores, ``pytreesaver.json``.

It holds what Orbax does not: the exact structure and types, the metadata and the record, and a checksum of each array.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.files import map_or_read
from pytreesaver.formats.description import Description, decode_description
from pytreesaver.formats.orbax.layout import SIDECAR, SUCCESS, other_files, read_bytes

MARKER: dict[str, Any] = {"pytreesaver": f"structure, types and checksums are in {SIDECAR}"}
"""The metadata in Orbax's own file, so that a missing description is noticed."""


def read_sidecar(directory: Path) -> Description:
    """Read the file in the directory of an Orbax checkpoint. Raises what `decode_description` raises."""
    return decode_description(read_bytes(directory / SIDECAR), str(directory / SIDECAR))


def files_of_others(directory: Path) -> list[str]:
    """Return the files in an Orbax checkpoint that neither Orbax nor pytreesaver wrote, by their paths in it."""
    listed: set[str] | None = None
    if filesystem.exists(directory / SIDECAR):
        with suppress(CheckpointError):  # if it is damaged, the names tell
            listed = {SIDECAR, SUCCESS, *read_sidecar(directory).files}
    return other_files(directory, listed)


def checksums_of_files(directory: Path, names: Collection[str]) -> dict[str, tuple[int, str]]:
    """Return the size in bytes and the xxh3 of each of the named files in a directory that exists."""
    found = {}
    for name in names:
        try:
            content = _content_of(directory / name)
        except OSError as error:
            if not filesystem.is_absence(error):
                raise
        else:
            found[name] = content.nbytes, f"{checksum(content):016x}"
    return found


def _content_of(file: Path) -> np.ndarray:
    descriptor = filesystem.open_existing(file)
    try:
        size = filesystem.file_size(descriptor)
        return map_or_read(descriptor, size) if size else np.zeros(0, np.uint8)
    finally:
        filesystem.release(descriptor)
