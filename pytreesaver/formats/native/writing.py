"""Write or overwrite a native checkpoint atomically."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointIOError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.parallel import advance
from pytreesaver._io.processes.meeting import Meeting
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._tree.kinds import source_of
from pytreesaver.formats.indexed.data import ChunkTable, WriteOptions, stored_chunks, write_data
from pytreesaver.formats.indexed.directory import (
    DataWriter,
    DirectoryLayout,
    remove_written,
    write_directory,
    write_files,
)
from pytreesaver.formats.indexed.index import (
    FORMAT_NAME,
    DataFile,
    Index,
    check_before_commit,
    encode_index,
    header_checksum,
)
from pytreesaver.formats.indexed.parts import FileLimits, WrittenFile, joined_index, plan_files
from pytreesaver.formats.indexed.remote import RemoteFormat, write_to_store
from pytreesaver.formats.indexed.together import collect_parts, send_part
from pytreesaver.formats.native.base import known_after_saving, without_damaged
from pytreesaver.formats.native.files import INDEX_NAME, REPLACEABLE_FILES, read_index, recognizes
from pytreesaver.formats.native.incremental import chunks_to_share
from pytreesaver.formats.native.known import (
    MIN_COMPARED_NBYTES,
    UNIQUE_NAME,
    FileVersion,
    KnownCheckpoint,
    remember,
    sample_of,
)
from pytreesaver.formats.native.same_tree import bytes_in_use, patched_index
from pytreesaver.formats.native.sharing_files import MOST_COPIED_NBYTES, share_file
from pytreesaver.formats.protocol import TreeContents


def write(
    path: Path,
    contents: TreeContents,
    *,
    overwrite: bool,
    durable: bool,
    in_background: bool = False,
    shard_nbytes: int | None = None,
    sharded: bool = False,
    meeting: Meeting | None = None,
    base: KnownCheckpoint | None = None,
    remembers: bool = False,
) -> None:
    """Write a checkpoint directory. See `pytreesaver.formats.Format.write`.

    Args:
        path: as there.
        contents: as there.
        overwrite: as there.
        durable: as there.
        in_background: as there.
        shard_nbytes: the maximum size of the arrays in a data file; a larger one has a file of its own.
        sharded: write a data file for each device.
        meeting: the other processes that write the checkpoint; None if there are none.
        base: an earlier checkpoint; what is unchanged since is not written again.
        remembers: whether a later save will probably have this checkpoint as its `base`.
    """
    if is_in_store(path) and remembers:
        shard_nbytes = min(shard_nbytes or MOST_COPIED_NBYTES, MOST_COPIED_NBYTES)
    saving = _Saving(FileLimits(shard_nbytes, sharded), base)
    if is_in_store(path):
        remote = _remote_format(saving)
        write_to_store(path, contents, remote, saving.limits, overwrite=overwrite, meeting=meeting)
    else:
        layout = layout_for(saving)
        options = {"overwrite": overwrite, "durable": durable, "in_background": in_background}
        write_directory(path, contents, layout, meeting=meeting, **options)
    index = saving.index
    if index is not None and contents.leaves:
        known = known_after_saving(
            path.absolute(), index, saving.versions, contents.leaves, saving.samples, is_durable=saving.is_durable
        )
        if contents.changed is not None and base is not None:
            base.pass_on(known)
        remember(known, on_request=remembers)


def write_into(directory: Path, contents: TreeContents) -> None:
    """Write the files of a checkpoint durably into an existing directory, whose own name is not synced."""
    with ExitStack() as locks:
        writer = DataWriter(directory, "", WriteOptions(durable=True, in_background=True), locks, [], [])
        write_files(writer, layout_for(_Saving(FileLimits())), INDEX_NAME, contents)


@dataclass
class _Saving:
    """One save: what it was asked for, and what it has written.

    Attributes:
        limits: how the tree is spread over files.
        base: the earlier checkpoint, or None.
        index: the index, as far as this process knows it; None until it has been written.
        versions: for each data file that this process has written or shared, what tells it from others.
        samples: as in `KnownCheckpoint`.
        is_durable: whether these files were synced.
    """

    limits: FileLimits
    base: KnownCheckpoint | None = None
    index: Index | None = None
    versions: dict[str, FileVersion] = field(default_factory=dict)
    samples: dict[int, bytes] = field(default_factory=dict)
    is_durable: bool = False

    def done(self, index: Index, writer: DataWriter) -> None:
        """Keep what was written."""
        self.index, self.is_durable = index, writer.options.durable
        self.versions = writer.versions | writer.shared


def _write_data(saving: _Saving, writer: DataWriter, contents: TreeContents) -> bytes:
    if contents.changed is not None and saving.base is not None:
        patched = _write_changed(saving, saving.base, writer, contents, contents.changed)
        if patched is not None:
            saving.done(patched, writer)
            return encode_index(patched)
    table = ChunkTable.of(contents)
    if writer.meeting is None and saving.base is None and saving.limits == FileLimits():
        name = _file_name(writer.token, 0, 1)
        index = _write_file(writer, name, table, sampled=_sampled(saving, contents, table))
        saving.done(index, writer)
        return encode_index(index)
    files = _write_files(saving, writer, contents, table)
    if writer.meeting is not None:
        own, files = files, collect_parts(writer.meeting, contents, files)
        _check_others(writer, [each.file for each in files if each not in own])
    index = joined_index(table.unplaced, stored_chunks(table.unplaced), files)
    if any(file.shared for file in index.files):
        check_before_commit(index)
    saving.done(index, writer)
    return encode_index(index)


def _write_changed(
    saving: _Saving, base: KnownCheckpoint, writer: DataWriter, contents: TreeContents, changed: Sequence[int]
) -> Index | None:
    """Write what has changed in a tree that is otherwise that of the base. Return None if a file cannot be shared."""
    shared: dict[int, DataFile] = {}
    for number in bytes_in_use(base, changed):
        name = _shared_name(writer.token, contents, base, number)
        version, path = base.versions[number], writer.directory / name
        writer.names.append(name)
        if version is None or not share_file(base, number, path, writer.locks, durable=writer.options.durable):
            remove_written(writer)
            writer.names, writer.shared = [], {}
            return None
        writer.shared[name] = version
        shared[number] = msgspec.structs.replace(base.index.files[number], name=name, shared=True)
    advance(sum(base.sizes) - sum(base.sizes[i] for i in changed))
    saving.samples = dict(base.samples)
    if not changed:
        return patched_index(base, contents, shared, changed, None)
    table, name = ChunkTable.of(contents.part(changed)), _file_name(writer.token, 0, 1)
    index = _write_file(writer, name, table)
    file = WrittenFile(index.files[0], list(changed), list(index.chunk_offsets), index.checksums)
    return patched_index(base, contents, shared, changed, file)


def _write_share(saving: _Saving, writer: DataWriter, contents: TreeContents) -> None:
    assert writer.meeting is not None
    table = ChunkTable.of(contents)
    files = _write_files(saving, writer, contents, table)
    writer.are_told = True
    send_part(writer.meeting, contents, files)
    saving.done(joined_index(table.unplaced, stored_chunks(table.unplaced), files, is_partial=True), writer)


def _sampled(saving: _Saving, contents: TreeContents, table: ChunkTable) -> Callable[[int, np.ndarray], None] | None:
    """Return what takes the samples of chunks when they are written, or None if none are needed."""
    if not contents.leaves or max(table.sizes, default=0) < MIN_COMPARED_NBYTES:
        return None

    def take(chunk: int, data: np.ndarray) -> None:
        if data.nbytes >= MIN_COMPARED_NBYTES:
            saving.samples[chunk] = sample_of(data)

    return take


def _check_others(writer: DataWriter, files: Sequence[DataFile]) -> None:
    """Check that the data files of other processes are there, before an index lists them."""
    for file in files:
        writer.names.append(file.name)
        status = filesystem.status(writer.directory / file.name)
        if status is None or status.st_size != file.nbytes:
            found = "none" if status is None else f"{status.st_size} bytes"
            raise CheckpointIOError(
                f"{writer.directory / file.name}: expected {file.nbytes} bytes that another process has written, found "
                f"{found}; the processes need a file system that all of them share"
            )


def _write_files(saving: _Saving, writer: DataWriter, contents: TreeContents, table: ChunkTable) -> list[WrittenFile]:
    """Write the data files of this process, and share those of the base that hold what is unchanged."""
    shared = contents.shared
    rank = 0 if shared is None else shared.rank
    stored = sorted(set(stored_chunks(table.unplaced)))
    devices = [device for cells in contents.cells for device in cells.devices or [0] * len(cells.arrays)]
    plans = plan_files(stored, table.sizes, None if shared is None else shared.writers, devices, saving.limits)
    own = [chunk for plan in plans if plan.writer == rank for chunk in plan.chunks]
    files, writer.shared = share_files(
        saving,
        contents,
        table,
        own,
        writer.directory,
        writer.token,
        writer.locks,
        durable=writer.options.durable,
        names=writer.names,
    )
    unchanged = {chunk for file in files for chunk in file.chunks}
    sampled = _sampled(saving, contents, table)
    for number, plan in enumerate(plans):
        chunks = [chunk for chunk in plan.chunks if chunk not in unchanged] if unchanged else plan.chunks
        if plan.writer != rank or (unchanged and not chunks):
            continue
        name = _file_name(writer.token, number, len(plans))
        index = _write_file(writer, name, table, chunks=chunks, sampled=sampled)
        files.append(WrittenFile(index.files[0], chunks, list(index.chunk_offsets), index.checksums))
    return files


def _write_file(writer: DataWriter, name: str, table: ChunkTable, **options: Any) -> Index:
    """Write a data file, as `write_data` does with the other options, and return its index."""
    written: list[Index] = []

    def write(descriptor: int) -> None:
        written.append(write_data(descriptor, name, table, writer.options, _header_metadata, **options))

    writer.write(name, write)
    return written[0]


def share_files(
    saving: _Saving,
    contents: TreeContents,
    table: ChunkTable,
    own: Sequence[int],
    directory: Path,
    token: str,
    locks: ExitStack,
    *,
    durable: bool,
    names: list[str],
) -> tuple[list[WrittenFile], dict[str, FileVersion]]:
    """Share data files of the base that hold chunks of this process with the same bytes.

    Args:
        saving: the save.
        contents: the tree.
        table: its chunks.
        own: those that this process has to write.
        directory: the new checkpoint.
        token: as in `DataWriter`.
        locks: as in `share_file`.
        durable: as in `share_file`.
        names: the names in the new checkpoint are appended to it, each before it is made.

    Returns:
        The files in the new checkpoint, and what tells each from others, by name.
    """
    base = saving.base
    files: list[WrittenFile] = []
    versions: dict[str, FileVersion] = {}
    if base is None:
        return files, versions
    equal = without_damaged(chunks_to_share(contents, table, own, base, saving.limits), base)
    by_file: dict[int, list[int]] = {}
    for chunk, earlier in equal.items():
        by_file.setdefault(base.index.chunk_files[earlier], []).append(chunk)
    for number, chunks in sorted(by_file.items()):
        file, version = base.index.files[number], base.versions[number]
        name = _shared_name(token, contents, base, number)
        names.append(name)
        if version is None or not share_file(base, number, directory / name, locks, durable=durable):
            names.remove(name)
            _check_undeleted(base, table, chunks)
            continue
        versions[name] = version
        places = [equal[chunk] for chunk in chunks]
        offsets = [base.index.chunk_offsets[earlier] for earlier in places]
        checksums = "".join(base.checksums[earlier] for earlier in places)
        files.append(WrittenFile(msgspec.structs.replace(file, name=name, shared=True), chunks, offsets, checksums))
        saving.samples |= {
            chunk: base.samples[earlier] for chunk, earlier in zip(chunks, places) if earlier in base.samples
        }
        advance(sum(table.sizes[chunk] for chunk in chunks))
    return files, versions


def _remote_format(saving: _Saving) -> RemoteFormat:
    def share(
        contents: TreeContents, table: ChunkTable, own: Sequence[int], path: Path, token: str, names: list[str]
    ) -> list[WrittenFile]:
        return share_files(saving, contents, table, own, path, token, ExitStack(), durable=True, names=names)[0]

    def done(index: Index, names: Sequence[str]) -> None:
        saving.index, saving.is_durable = index, True
        saving.versions = dict.fromkeys(names, UNIQUE_NAME)

    return RemoteFormat(LAYOUT, _file_name, _header_metadata, share, done, partial(_sampled, saving))


def _check_undeleted(base: KnownCheckpoint, table: ChunkTable, chunks: Sequence[int]) -> None:
    """Raise a CheckpointError if arrays that were not fetched, since their file was to be shared, are gone."""
    arrays = [source_of(table.arrays[chunk]) for chunk in chunks]
    if any(hasattr(array, "is_deleted") and array.is_deleted() for array in arrays):
        raise CheckpointError(
            f"{base.path}: its data files could not be shared, and arrays that it holds have been donated or deleted "
            "since the save began; save again"
        )


def _shared_name(token: str, contents: TreeContents, base: KnownCheckpoint, number: int) -> str:
    rank = 0 if contents.shared is None else contents.shared.rank
    identity = checksum(f"{token} {rank} {base.index.files[number].header_checksum}".encode())
    return _file_name(f"{identity:016x}", number, len(base.index.files))


def _file_name(token: str, number: int, count: int) -> str:
    return f"data-{number:05}-of-{count:05}{'-' * bool(token)}{token}.safetensors"


def _header_metadata(index: Index) -> Mapping[str, str]:
    # The header identifies its contents, so that an index is never used with the data of another checkpoint.
    return {"format": FORMAT_NAME, "content_id": header_checksum(index.checksums.encode())}


def _listed_files(path: Path) -> list[str]:
    return [file.name for file in read_index(path).files]


def layout_for(saving: _Saving) -> DirectoryLayout:
    """Return the files of the format, as they are written by one save."""
    write, share = partial(_write_data, saving), partial(_write_share, saving)
    return DirectoryLayout(INDEX_NAME, REPLACEABLE_FILES, recognizes, _listed_files, write, share)


LAYOUT = layout_for(_Saving(FileLimits()))
