"""npz: an archive of NumPy arrays, as `numpy.savez` writes it.

An archive that pytreesaver wrote has a description of the tree between its entries and its directory, where other
programs do not look, and a checksum of the whole file in its comment. Those of other programs hold named arrays, with
the checksums of zip. https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html specifies the entries.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._text import SINGLE_LEAF_NAME
from pytreesaver._tree.kinds import LeafType
from pytreesaver.formats.npz.reading import (
    PICKLED,
    check_file,
    described_entries,
    load_array,
    open_archive,
    pickled_names,
    recognizes,
)
from pytreesaver.formats.npz.writing import write
from pytreesaver.formats.protocol import Heading, TreeContents
from pytreesaver.formats.readers.loaded import LoadedReader
from pytreesaver.formats.single_file import heading_file, remove, remove_unlisted_files

__all__ = [
    "heading_file",
    "name",
    "open",
    "read_heading",
    "recognizes",
    "remove",
    "remove_unlisted_files",
    "unsupported",
    "write",
]

name = "npz"
_MAX_NAME_NBYTES = 60_000


def unsupported(contents: TreeContents) -> Mapping[str, str]:
    """Return the variables whose names are too long. See `pytreesaver.formats.Format.unsupported`."""
    if not contents.names:
        return {SINGLE_LEAF_NAME: "npz holds no empty tree"}
    return {
        each: f"npz holds no names of more than {_MAX_NAME_NBYTES} bytes"
        for each in contents.names
        if len(each.encode()) > _MAX_NAME_NBYTES
    }


def open(path: Path) -> LoadedReader:
    """Open an archive. See `pytreesaver.formats.Format.open`."""
    opened = open_archive(path)
    try:
        description = opened.description or described_entries(path, opened)
        if opened.description is not None and set(opened.entries) != set(description.keys):
            raise CorruptCheckpointError(f"{path}: expected the arrays of its description, found others")
    except BaseException:
        opened.file.close()
        raise

    def load(key: str, leaf_type: LeafType, shape: tuple[int, ...]) -> np.ndarray:
        return load_array(path, opened, key, leaf_type, shape)

    reader = LoadedReader(
        path,
        description,
        load,
        check_file=lambda: check_file(path, opened),
        close=opened.file.close,
        format_name=name,
    )
    if opened.description is None:
        reader.unreadable = dict.fromkeys(pickled_names(description), PICKLED)
    return reader


def read_heading(path: Path) -> Heading:
    """Return the heading of an archive. See `pytreesaver.formats.Format.read_heading`."""
    opened = open_archive(path)
    opened.file.close()
    sizes = filesystem.file_sizes(path)
    if opened.description is None:
        return Heading(None, {}, sizes)
    return Heading(opened.description.record, opened.description.metadata, sizes)
