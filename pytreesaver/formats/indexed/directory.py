"""Write or overwrite a checkpoint that is a directory of data files and an index, atomically."""

import errno
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from pytreesaver._errors import CheckpointError, CheckpointExistsError, CheckpointIOError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import (
    make_locked_directory,
    new_hidden_path,
    new_locked_file,
    remove_leftovers,
    sync_parents,
)
from pytreesaver._io.files import write_fully
from pytreesaver._io.processes.meeting import Meeting
from pytreesaver.formats.indexed.data import WriteOptions
from pytreesaver.formats.indexed.together import Begin
from pytreesaver.formats.protocol import TreeContents


@dataclass
class DataWriter:
    """The files that are being written in a directory.

    Attributes:
        directory: where.
        token: makes the names of new files different from those that are there; empty in a new directory.
        options: how to write.
        locks: keeps the files locked.
        names: the files so far.
        descriptors: the descriptors of their locks.
        meeting: the other processes that write into the directory; None if there are none.
        are_told: whether process 0 has been told of the files of another process.
        versions: for each file that was written, what tells it from others; see `filesystem.version`.
        shared: the versions of files that were there before, under other names.
    """

    directory: Path
    token: str
    options: WriteOptions
    locks: ExitStack
    names: list[str]
    descriptors: list[int]
    meeting: Meeting | None = None
    are_told: bool = False
    versions: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    shared: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)

    def write(self, name: str, write: Callable[[int], object]) -> None:
        """Create a file, and let `write` write to its descriptor."""
        self.names.append(name)
        with new_locked_file(self.directory / name, self.locks) as (descriptor, lock):
            self.descriptors.append(lock)
            write(descriptor)
            if self.options.durable:
                filesystem.sync_file(descriptor)
        self.versions[name] = filesystem.version(lock)

    def lacks_files(self) -> bool:
        """Return whether another process has removed a file that was written or shared."""
        found = {name: filesystem.status(self.directory / name) for name in self.shared}
        is_replaced = any(
            status is None or (status.st_dev, status.st_ino) != self.shared[name][:2] for name, status in found.items()
        )
        return is_replaced or not all(map(filesystem.is_linked, self.descriptors))


def remove_written(writer: DataWriter) -> None:
    """Delete the files that were written, after an error."""
    for name in reversed(writer.names):
        with suppress(OSError):
            filesystem.remove_file(writer.directory / name)


class DirectoryLayout(NamedTuple):
    """The files of a format.

    Attributes:
        index_name: the name of the index, which is written last.
        replaceable: the names of all other files that a save may write.
        recognizes: returns whether a path is a checkpoint of the format.
        listed_files: returns the data files that the index of a checkpoint lists. Raises a CheckpointError if it is
            damaged or missing.
        write_data: writes the data files, and returns the text of the index; with a meeting, once the other processes
            have written theirs.
        write_share: writes the data files of a process that does not write the index, and tells process 0; None if the
            format cannot be written by several processes.
    """

    index_name: str
    replaceable: re.Pattern[str]
    recognizes: Callable[[Path], bool]
    listed_files: Callable[[Path], list[str]]
    write_data: Callable[[DataWriter, TreeContents], bytes]
    write_share: Callable[[DataWriter, TreeContents], None] | None = None


def write_directory(
    path: Path,
    contents: TreeContents,
    layout: DirectoryLayout,
    *,
    overwrite: bool,
    durable: bool,
    in_background: bool = False,
    meeting: Meeting | None = None,
) -> None:
    """Write a checkpoint directory. See `pytreesaver.formats.Format.write`."""
    if meeting is None:
        return _write_alone(path, contents, layout, overwrite, WriteOptions(durable, in_background), None)
    if not meeting.is_first:
        return _write_share(path, contents, layout, in_background, meeting)
    _write_alone(path, contents, layout, overwrite, WriteOptions(durable, in_background), meeting)
    return meeting.publish("end", b"")


def _write_share(
    path: Path, contents: TreeContents, layout: DirectoryLayout, in_background: bool, meeting: Meeting
) -> None:
    """Write the data files of this process, and wait until process 0 has completed the checkpoint."""
    begin = msgspec.msgpack.decode(meeting.hear("begin", "begin"), type=Begin)
    directory = path.with_name(begin.hidden) if begin.hidden else path
    assert layout.write_share is not None
    with ExitStack() as locks:
        options = WriteOptions(begin.durable, in_background)
        writer = DataWriter(directory, begin.token, options, locks, [], [], meeting)
        try:
            meeting.raise_failure()  # this process may be late
            layout.write_share(writer, contents)
            meeting.hear("end", "complete the checkpoint")
        except BaseException as error:
            if not writer.are_told or (meeting.has_failed_first and not _may_be_listed(path, writer, layout)):
                remove_written(writer)
            if isinstance(error, FileNotFoundError) and not writer.descriptors:
                raise CheckpointIOError(
                    f"{directory}: expected the directory that process 0 has made, found none; the processes need a "
                    "file system that all of them share",
                    error.errno,
                ) from error
            raise


def _may_be_listed(path: Path, writer: DataWriter, layout: DirectoryLayout) -> bool:
    """Return whether process 0 may have completed a checkpoint with the files of which it was told, before it failed.

    A new directory has another name then.
    """
    try:
        return bool(writer.token) and bool(set(writer.names) & set(layout.listed_files(path)))
    except (CheckpointError, OSError):
        return True


def _write_alone(
    path: Path,
    contents: TreeContents,
    layout: DirectoryLayout,
    overwrite: bool,
    options: WriteOptions,
    meeting: Meeting | None,
) -> None:
    if not filesystem.exists(path):
        try:
            return _create(path, contents, layout, options, meeting)
        except CheckpointExistsError:  # another process created it first
            if not overwrite or meeting is not None:
                raise
    if not overwrite:
        raise CheckpointExistsError(f"{path} exists already; pass overwrite=True to replace a checkpoint")
    _refuse_foreign(path, layout)
    return _replace(path, contents, layout, options._replace(durable=True), meeting)


def _refuse_foreign(path: Path, layout: DirectoryLayout) -> None:
    if not filesystem.is_directory(path):
        found = "a broken link" if filesystem.status(path) is None else "a file"
        raise CheckpointExistsError(f"{path}: expected a checkpoint to overwrite, found {found}; remove it first")
    entries = filesystem.list_directory(path)
    if entries and not layout.recognizes(path):
        raise CheckpointExistsError(
            f"{path}: expected a checkpoint to overwrite, found a directory with {', '.join(entries[:3])} in it; "
            "save elsewhere, or remove it if it is not needed"
        )


def _create(
    path: Path, contents: TreeContents, layout: DirectoryLayout, options: WriteOptions, meeting: Meeting | None
) -> None:
    with new_hidden_path(path) as (temporary, made), ExitStack() as locks:
        # The lock protects the directory from the removal of leftovers until it has its final name.
        make_locked_directory(temporary, locks)
        remove_leftovers(path.parent)
        writer = DataWriter(temporary, "", options, locks, [], [], meeting)
        write_files(writer, layout, layout.index_name, contents)
        if meeting is not None:
            meeting.raise_failure()
        try:
            filesystem.rename(temporary, path)
        except OSError as error:
            if filesystem.may_exist(path):
                raise CheckpointExistsError(f"{path} was created by another process during the save") from error
            raise
    if options.durable:
        sync_parents(path, made)


def _replace(
    path: Path, contents: TreeContents, layout: DirectoryLayout, options: WriteOptions, meeting: Meeting | None
) -> None:
    # A single rename replaces the old index. The new data file has a new name, so readers of the old index never read
    # new data. Every step is synced before the next, also without `durable`: a power failure could otherwise cost both
    # checkpoints.
    remove_leftovers(path.parent)
    replaced = _listed_files(path, layout)
    token = os.urandom(8).hex()
    index_name = f".index-{token}.tmp"
    with ExitStack() as locks:
        writer = DataWriter(path, token, options, locks, [], [], meeting)
        renaming = False
        try:
            write_files(writer, layout, index_name, contents)
            if writer.lacks_files():
                raise OSError(errno.ENOENT, "Another process removed the new files during the save", str(path))
            if meeting is not None:
                meeting.raise_failure()
            renaming = True
            filesystem.rename(path / index_name, path / layout.index_name)
        except BaseException:
            # After an interrupt, the new index may be in place already: its data must stay.
            if not renaming or _is_known_to_exist(path / index_name):
                remove_written(writer)
            raise
    filesystem.sync_directory(path)
    sync_parents(path)
    with suppress(OSError, CheckpointError):  # the next save tries again
        remove_unlisted(path, replaced, layout)


def _listed_files(path: Path, layout: DirectoryLayout) -> list[str]:
    """Return the data files that the index at `path` lists, or none if it is damaged or missing."""
    try:
        return layout.listed_files(path)
    except CheckpointError:
        return []


def remove_unlisted(path: Path, replaced: Sequence[str], layout: DirectoryLayout) -> None:
    """Delete the data files of the replaced checkpoint and leftovers of interrupted saves.

    Raises:
        CheckpointError: if the index cannot be read. No further files are deleted then.
    """
    for entry in filesystem.list_directory(path):
        if not layout.replaceable.fullmatch(entry):
            continue
        with suppress(FileNotFoundError):
            descriptor = filesystem.open_to_lock(path / entry)
            try:
                # The lock comes first: a writer that has released it has listed the file in the index, or never will.
                unused = filesystem.try_lock(descriptor) or entry in replaced
                unused = unused and filesystem.is_linked(descriptor)
                if unused and entry not in layout.listed_files(path):
                    filesystem.remove_file(path / entry)
            finally:
                filesystem.release(descriptor)


def _is_known_to_exist(path: Path) -> bool:
    try:
        return filesystem.exists(path)
    except OSError:
        return False


def write_files(writer: DataWriter, layout: DirectoryLayout, index_name: str, contents: TreeContents) -> None:
    """Write the data files and the index."""
    if writer.meeting is not None:
        hidden = "" if writer.token else writer.directory.name
        begin = Begin(hidden, writer.token, writer.options.durable)
        writer.meeting.publish("begin", msgspec.msgpack.encode(begin))
    index = layout.write_data(writer, contents)
    writer.write(index_name, lambda descriptor: write_fully(descriptor, [index], 0))
    if writer.options.durable:
        filesystem.sync_directory(writer.directory)
