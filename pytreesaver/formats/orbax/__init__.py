"""Orbax: checkpoints that orbax-checkpoint of any version wrote, and new ones that it can restore.

They are read with TensorStore, without Orbax, and written through Orbax. What Orbax cannot hold, such as the exact
types of containers, is in a file that Orbax ignores.
"""

from pathlib import Path

from pytreesaver._io import filesystem
from pytreesaver._io.atomic import remove_directory_atomically
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver.formats import native
from pytreesaver.formats.orbax.in_stores import in_order, is_left_over, open_anywhere, prepare_upload
from pytreesaver.formats.orbax.layout import (
    AGGREGATE,
    MANIFEST,
    ROOT_FILE,
    SIDECAR,
    TREE_FILE,
    layout_of,
    recognizes,
)
from pytreesaver.formats.orbax.opening import metadata_of, record_of
from pytreesaver.formats.orbax.reader import NAME, VERSION, OrbaxReader, read_heading, warn_of_others
from pytreesaver.formats.orbax.sidecar import files_of_others
from pytreesaver.formats.orbax.writing import unsupported, write
from pytreesaver.formats.protocol import CheckpointReader, refuse_other_files
from pytreesaver.formats.readers.joined import joined_items

__all__ = [
    "heading_file",
    "is_left_over",
    "name",
    "open",
    "prepare_upload",
    "read_heading",
    "recognizes",
    "remove",
    "remove_unlisted_files",
    "unsupported",
    "write",
]

name = NAME


def remove_unlisted_files(path: Path) -> None:
    """Do nothing: a checkpoint is replaced as a whole. See `pytreesaver.formats.Format.remove_unlisted_files`."""


def remove(path: Path) -> None:
    """Delete a checkpoint. See `pytreesaver.formats.Format.remove`."""
    if filesystem.is_link(path):
        return filesystem.remove_file(path)
    refuse_other_files(path, files_of_others(path))
    if is_in_store(path):
        for each in reversed(in_order(filesystem.file_sizes(path))):
            filesystem.remove_file(path / each)
        return None
    return remove_directory_atomically(path)


def heading_file(path: Path) -> Path:
    """Return the metadata that was written last. See `pytreesaver.formats.Format.heading_file`."""
    candidates = (path / name for name in (SIDECAR, ROOT_FILE, TREE_FILE, MANIFEST, AGGREGATE))
    return next((each for each in candidates if filesystem.exists(each)), path / SIDECAR)


def open(path: Path) -> CheckpointReader:
    """Open a checkpoint. See `pytreesaver.formats.Format.open`."""
    return open_anywhere(path, _open)


def _open(directory: Path, path: Path) -> CheckpointReader:
    layout = layout_of(directory)
    if layout is not None and list(layout.natives) == [""]:
        reader = native.open(layout.natives[""])
        if reader.record is None:
            reader.record = record_of(path, layout)
        return reader
    if layout is None or not layout.natives:
        return OrbaxReader(directory, path)
    readers: dict[str, CheckpointReader] = {}
    try:
        for prefix, item in sorted({**layout.trees, **layout.natives}.items()):
            readers[prefix.removesuffix("/")] = (
                native.open(item)
                if prefix in layout.natives
                else OrbaxReader(item, path / item.relative_to(directory), layout.tree_alone(prefix))
            )
        metadata, record = metadata_of(path, layout), record_of(path, layout)
    except BaseException:
        for each in readers.values():
            each.close()
        raise
    warn_of_others(path, layout)
    return joined_items(path, readers, metadata, record, format_name=NAME, format_version=VERSION)
