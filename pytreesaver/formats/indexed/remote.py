"""Write or overwrite a checkpoint in an object store.

Data objects get unique names. The index is written last, and only if nobody else has written one meanwhile: it is
created, or replaces the version that was there at the beginning. So a checkpoint appears whole, and of several writers
one wins.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import ABANDONED_SECS
from pytreesaver._io.processes.meeting import Meeting
from pytreesaver._io.stores.dispatch import before_commit, is_in_store
from pytreesaver.formats.indexed.data import ChunkTable, stored_chunks
from pytreesaver.formats.indexed.directory import DirectoryLayout
from pytreesaver.formats.indexed.index import Index, check_before_commit, encode_index
from pytreesaver.formats.indexed.parts import FileLimits, WrittenFile, joined_index, plan_files
from pytreesaver.formats.indexed.streaming import data_stream
from pytreesaver.formats.indexed.together import Begin, collect_parts, send_part
from pytreesaver.formats.protocol import TreeContents


class RemoteFormat(NamedTuple):
    """What a format decides about its objects.

    Attributes:
        layout: its files.
        name_of: returns the name of a data object from a token, its number and the count.
        metadata_of: as in `write_data`.
        share: copies objects of an earlier checkpoint that hold chunks with the same bytes. It is called with the tree,
            its chunks, the numbers of those that this process writes, the path, the token, and a list to which it
            appends the names of the copies.
        done: called with the tree's index, as far as this process knows it, and the names of the data objects of this
            process, once they are written.
        sampled: as in `write_data`.
    """

    layout: DirectoryLayout
    name_of: Callable[[str, int, int], str]
    metadata_of: Callable[[Index], Any]
    share: Callable[[TreeContents, ChunkTable, Sequence[int], Any, str, list[str]], list[WrittenFile]]
    done: Callable[[Index, Sequence[str]], None]
    sampled: Callable[[TreeContents, ChunkTable], Callable[[int, np.ndarray], None] | None]


def write_to_store(
    path: Any,
    contents: TreeContents,
    format: RemoteFormat,
    limits: FileLimits,
    *,
    overwrite: bool,
    meeting: Meeting | None,
) -> None:
    """Write a checkpoint to a `StorePath`. See `pytreesaver.formats.Format.write`.

    Args:
        path: where to write it.
        contents: the tree.
        format: the format.
        limits: how to spread the tree over objects.
        overwrite: replace an existing checkpoint.
        meeting: the other processes that write it; None if there are none.
    """
    from pytreesaver._io.stores import objects

    most = objects.MAX_OBJECT_NBYTES
    limits = limits._replace(nbytes=most if limits.nbytes is None else min(limits.nbytes, most))
    written: list[str] = []
    are_told = False
    try:
        if meeting is not None and not meeting.is_first:
            begin = msgspec.msgpack.decode(meeting.hear("begin", "begin"), type=Begin)
            table = ChunkTable.of(contents)
            files = _write_objects(path, contents, table, format, limits, begin.token, written)
            are_told = True  # process 0 may complete the checkpoint with them, whatever happens here
            send_part(meeting, contents, files)
            meeting.hear("end", "complete the checkpoint")
            index = joined_index(table.unplaced, stored_chunks(table.unplaced), files, is_partial=True)
            format.done(index, written)
            return
        index_object = path / format.layout.index_name
        objects.refuse_read_only(path)
        condition = objects.version_to_replace(index_object)
        _refuse(path, condition, format.layout, overwrite)
        token = os.urandom(8).hex()
        if meeting is not None:
            meeting.publish("begin", msgspec.msgpack.encode(Begin("", token, True)))
        table = ChunkTable.of(contents)
        files = _write_objects(path, contents, table, format, limits, token, written)
        own = list(written)
        if meeting is not None:
            files = collect_parts(meeting, contents, files)
            written += [each.file.name for each in files if each.file.name not in written]
        # Those that are here now belong to the checkpoint that is replaced, to interrupted saves, or to writers that
        # have begun before the index changes, and can no longer win.
        unused = [name for name, _ in objects.objects_under(path) if format.layout.replaceable.fullmatch(name)]
        index = joined_index(table.unplaced, stored_chunks(table.unplaced), files)
        if any(file.shared for file in index.files):
            check_before_commit(index)
        text = encode_index(index)
        if meeting is not None:
            meeting.raise_failure()
        before_commit()
        _commit(index_object, text, condition, path)
    except BaseException:
        with suppress(OSError, CheckpointError):
            is_unused = not are_told or (meeting is not None and meeting.has_failed_first)
            if is_unused and not _is_listed(path, format.layout, written):
                objects.remove_objects(path, written)
        raise
    format.done(index, own)
    with suppress(OSError):  # the next save tries again
        objects.remove_objects(path, [name for name in unused if name not in written])
    if meeting is not None:
        meeting.publish("end", b"")


def _refuse(path: Any, condition: Any, layout: DirectoryLayout, overwrite: bool) -> None:
    if condition == "create":
        if filesystem.is_regular_file(path):
            raise CheckpointExistsError(
                f"{path}: expected nothing there, found an object; save elsewhere, or remove it"
            )
        others = [] if filesystem.status(path) is None else filesystem.list_directory(path)
        if layout.index_name in others:
            raise CheckpointExistsError(f"{path} was created by another process during the save")
        others = [name for name in others if not layout.replaceable.fullmatch(name)]
        if others:
            raise CheckpointExistsError(
                f"{path}: expected nothing there, found objects such as {', '.join(others[:3])}; save elsewhere, or "
                "remove them if they are not needed"
            )
    elif not overwrite:
        raise CheckpointExistsError(f"{path} exists already; pass overwrite=True to replace a checkpoint")
    elif not layout.recognizes(path):
        raise CheckpointExistsError(
            f"{path}: expected a checkpoint to overwrite, found another {layout.index_name}; save elsewhere, or remove "
            "it if it is not needed"
        )


def _commit(index_object: Any, index: bytes, condition: Any, path: Any) -> None:
    from pytreesaver._io.stores import engine, objects

    try:
        objects.put(index_object, index, condition)
    except engine.ChangedError as error:
        # The answer to a request may have been lost, and the engine has repeated it: then the index is ours.
        with suppress(OSError):
            if objects.content(index_object) == index:
                return
        what = "created" if condition == "create" else "replaced"
        raise CheckpointExistsError(f"{path} was {what} by another process during the save") from error


def _is_listed(path: Any, layout: DirectoryLayout, written: Sequence[str]) -> bool:
    """Return whether the index lists an object that was written: a save that failed may have completed."""
    try:
        return bool(written) and bool(set(written) & set(layout.listed_files(path)))
    except CheckpointNotFoundError:
        return False


def _write_objects(
    path: Any,
    contents: TreeContents,
    table: ChunkTable,
    format: RemoteFormat,
    limits: FileLimits,
    token: str,
    written: list[str],
) -> list[WrittenFile]:
    """Write the data objects of this process. Append their names to `written`."""
    shared = contents.shared
    stored = sorted(set(stored_chunks(table.unplaced)))
    devices = [device for cells in contents.cells for device in cells.devices or [0] * len(cells.arrays)]
    plans = plan_files(stored, table.sizes, None if shared is None else shared.writers, devices, limits)
    rank = 0 if shared is None else shared.rank
    own = [chunk for plan in plans if plan.writer == rank for chunk in plan.chunks]
    files = format.share(contents, table, own, path, token, written)
    unchanged = {chunk for file in files for chunk in file.chunks}
    sampled = format.sampled(contents, table)
    for number, plan in enumerate(plans):
        chunks = [chunk for chunk in plan.chunks if chunk not in unchanged]
        if plan.writer == rank and (chunks or not unchanged):
            name = format.name_of(token, number, len(plans))
            written.append(name)
            files.append(_write_object(path / name, name, table, chunks, format.metadata_of, sampled))
    return files


def _write_object(
    path: Any,
    name: str,
    table: ChunkTable,
    chunks: list[int],
    metadata_of: Callable[[Index], Any],
    sampled: Callable[[int, np.ndarray], None] | None,
) -> WrittenFile:
    from pytreesaver._io.stores import objects

    index, parts = data_stream(name, table, metadata_of, chunks=chunks, sampled=sampled)
    objects.put_stream(path, parts, index.files[0].nbytes)
    return WrittenFile(index.files[0], chunks, list(index.chunk_offsets), index.checksums)


def remove_from_store(path: Any, layout: DirectoryLayout) -> None:
    """Delete a checkpoint: first the index, without which it does not exist, then the rest."""
    from pytreesaver._io.stores import objects

    assert is_in_store(path)
    objects.remove_objects(path, [layout.index_name])
    objects.remove_objects(path, [name for name, _ in objects.objects_under(path)])


def remove_abandoned(path: Any, layout: DirectoryLayout, now: float) -> None:
    """Delete data objects that no index lists and that are a day old: those of interrupted saves."""
    from pytreesaver._io.stores import objects

    listed = set(layout.listed_files(path)) if layout.recognizes(path) else set()
    old = [
        name
        for name, meta in objects.objects_under(path)
        if layout.replaceable.fullmatch(name)
        and name not in listed
        and now - meta["last_modified"].timestamp() > ABANDONED_SECS
    ]
    objects.remove_objects(path, old)
