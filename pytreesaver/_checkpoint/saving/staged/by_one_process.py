"""Saving of a tree of several processes in a format that a single process writes.

Together they write it in the native format, into a hidden directory beside the checkpoint. Then process 0 writes the
checkpoint from that.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pytreesaver._checkpoint.saving.staged.stored_array import StoredArray
from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io.atomic import (
    make_locked_directory,
    new_hidden_path,
    remove_abandoned,
    remove_leftovers,
    remove_tree,
    sync_parents,
)
from pytreesaver._io.parallel import unmetered
from pytreesaver._io.processes.meeting import Meeting
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._tree.kinds import Cells, is_stored_as_bytes
from pytreesaver.formats import places
from pytreesaver.formats.protocol import CheckpointReader, TreeContents
from pytreesaver.formats.registry import format_at, format_named

_STAGED = "together"


def write_by_one_process(
    target: Path,
    contents: TreeContents,
    write: Callable[[TreeContents], None],
    *,
    overwrite: bool,
    durable: bool,
    in_background: bool,
    meeting: Meeting,
) -> None:
    """Write a checkpoint of several processes. Return in all of them when it is complete.

    Args:
        target: the path.
        contents: what this process has of the tree.
        write: writes the contents of the whole tree to the path. It is called in process 0.
        overwrite: replace an existing checkpoint.
        durable: as in `pytreesaver.save`.
        in_background: as in `pytreesaver.formats.Format.write`.
        meeting: the processes.
    """
    if not meeting.is_first:
        hidden = meeting.hear("staged", "begin").decode()
        _write_together(target.with_name(hidden), contents, in_background, meeting)
        meeting.hear("written", "write the checkpoint from the parts of all processes")
        return
    exists = format_at(target) is not None if is_in_store(target) else places.exists(target)
    if exists and not overwrite:
        raise CheckpointExistsError(f"{target} exists already; pass overwrite=True to replace a checkpoint")
    with new_hidden_path(target) as (directory, made), ExitStack() as locks:
        make_locked_directory(directory, locks)
        remove_leftovers(target.parent)
        if is_in_store(target):
            remove_abandoned(target.parent, time.time())
        meeting.publish("staged", directory.name.encode())
        _write_together(directory, contents, in_background, meeting)
        reader = format_named("native").open(directory / _STAGED)
        try:
            with unmetered():  # the progress has counted these bytes
                write(_whole(contents, reader))
        finally:
            reader.close()
        remove_tree(directory)
    if durable:
        sync_parents(target, made)
    meeting.publish("written", b"")


def _write_together(directory: Path, contents: TreeContents, in_background: bool, meeting: Meeting) -> None:
    native: Any = format_named("native")
    native.write(
        directory / _STAGED, contents, overwrite=False, durable=False, in_background=in_background, meeting=meeting
    )


def _whole(contents: TreeContents, reader: CheckpointReader) -> TreeContents:
    """Return the contents of the whole tree: what process 0 has of it, with the arrays of a checkpoint."""
    positions = {name: position for position, name in enumerate(reader.names)}
    columns = zip(contents.names, contents.types, contents.cells, strict=True)
    cells = [
        own if is_stored_as_bytes(leaf_type) else Cells([StoredArray(reader, positions[name])])
        for name, leaf_type, own in columns
    ]
    return contents._replace(cells=cells, shared=None)
