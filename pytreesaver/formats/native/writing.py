"""Write or overwrite a native checkpoint atomically."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pytreesaver._errors import CheckpointIOError
from pytreesaver._io import filesystem
from pytreesaver._io.processes.meeting import Meeting
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver.formats.indexed.data import ChunkTable, WriteOptions, stored_chunks, write_data
from pytreesaver.formats.indexed.directory import DataWriter, DirectoryLayout, write_directory, write_files
from pytreesaver.formats.indexed.index import FORMAT_NAME, DataFile, Index, encode_index, header_checksum
from pytreesaver.formats.indexed.parts import FileLimits, WrittenFile, joined_index, plan_files
from pytreesaver.formats.indexed.remote import RemoteFormat, write_to_store
from pytreesaver.formats.indexed.together import collect_parts, send_part
from pytreesaver.formats.native.files import INDEX_NAME, REPLACEABLE_FILES, read_index, recognizes
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
    """
    limits = FileLimits(shard_nbytes, sharded)
    if is_in_store(path):
        remote = RemoteFormat(LAYOUT, _file_name, _header_metadata)
        return write_to_store(path, contents, remote, limits, overwrite=overwrite, meeting=meeting)
    layout = layout_for(limits)
    return write_directory(
        path, contents, layout, overwrite=overwrite, durable=durable, in_background=in_background, meeting=meeting
    )


def write_into(directory: Path, contents: TreeContents) -> None:
    """Write the files of a checkpoint durably into an existing directory, whose own name is not synced."""
    with ExitStack() as locks:
        writer = DataWriter(directory, "", WriteOptions(durable=True, in_background=True), locks, [], [])
        write_files(writer, LAYOUT, INDEX_NAME, contents)


def _write_data(limits: FileLimits, writer: DataWriter, contents: TreeContents) -> bytes:
    table = ChunkTable.of(contents)
    if writer.meeting is None and limits == FileLimits():
        name = _file_name(writer.token, 0, 1)
        written: list[Index] = []
        writer.write(
            name,
            lambda descriptor: written.append(write_data(descriptor, name, table, writer.options, _header_metadata)),
        )
        return encode_index(written[0])
    files = _write_files(limits, writer, contents, table)
    if writer.meeting is not None:
        own, files = files, collect_parts(writer.meeting, contents, files)
        _check_others(writer, [each.file for each in files if each not in own])
    return encode_index(joined_index(table.unplaced, stored_chunks(table.unplaced), files))


def _write_share(limits: FileLimits, writer: DataWriter, contents: TreeContents) -> None:
    assert writer.meeting is not None
    files = _write_files(limits, writer, contents, ChunkTable.of(contents))
    writer.are_told = True
    send_part(writer.meeting, contents, files)


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


def _write_files(
    limits: FileLimits, writer: DataWriter, contents: TreeContents, table: ChunkTable
) -> list[WrittenFile]:
    """Write the data files of this process."""
    shared = contents.shared
    stored = sorted(set(stored_chunks(table.unplaced)))
    devices = [device for cells in contents.cells for device in cells.devices or [0] * len(cells.arrays)]
    plans = plan_files(stored, table.sizes, None if shared is None else shared.writers, devices, limits)
    files: list[WrittenFile] = []
    for number, plan in enumerate(plans):
        if plan.writer != (0 if shared is None else shared.rank):
            continue
        name = _file_name(writer.token, number, len(plans))

        def write(descriptor: int, name: str = name, chunks: list[int] = plan.chunks) -> None:
            index = write_data(descriptor, name, table, writer.options, _header_metadata, chunks=chunks)
            files.append(WrittenFile(index.files[0], chunks, list(index.chunk_offsets), index.checksums))

        writer.write(name, write)
    return files


def _file_name(token: str, number: int, count: int) -> str:
    return f"data-{number:05}-of-{count:05}{'-' * bool(token)}{token}.safetensors"


def _header_metadata(index: Index) -> Mapping[str, str]:
    # The header identifies its contents, so that an index is never used with the data of another checkpoint.
    return {"format": FORMAT_NAME, "content_id": header_checksum(index.checksums.encode())}


def _listed_files(path: Path) -> list[str]:
    return [file.name for file in read_index(path).files]


def layout_for(limits: FileLimits) -> DirectoryLayout:
    """Return the files of the format, with the tree spread over data files like this."""
    write, share = partial(_write_data, limits), partial(_write_share, limits)
    return DirectoryLayout(INDEX_NAME, REPLACEABLE_FILES, recognizes, _listed_files, write, share)


LAYOUT = layout_for(FileLimits())
