"""Write or overwrite a native checkpoint atomically."""

import errno
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from pytreesaver._errors import CheckpointError, CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import (
    make_directories,
    make_locked_directory,
    new_locked_file,
    remove_leftovers,
    remove_tree,
    sync_parents,
    temporary_sibling,
)
from pytreesaver._io.files import write_fully
from pytreesaver.formats.indexed.data import WriteOptions, write_data
from pytreesaver.formats.indexed.index import FORMAT_NAME, Index, encode_index, header_checksum
from pytreesaver.formats.native.files import INDEX_NAME, REPLACEABLE_FILES, read_index, recognizes
from pytreesaver.formats.protocol import TreeContents

_DATA_NAME = "data-00000-of-00001"


def write(path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False) -> None:
    """Write a checkpoint directory. See `pytreesaver.formats.Format.write`."""
    if not filesystem.exists(path):
        try:
            return _create(path, contents, WriteOptions(durable, in_background))
        except CheckpointExistsError:  # another process created it first
            if not overwrite:
                raise
    if not overwrite:
        raise CheckpointExistsError(f"{path} exists already; pass overwrite=True to replace a checkpoint")
    _refuse_foreign(path)
    return _replace(path, contents, WriteOptions(durable=True, in_background=in_background))


def _refuse_foreign(path: Path) -> None:
    if not filesystem.is_directory(path):
        found = "a broken link" if filesystem.status(path) is None else "a file"
        raise CheckpointExistsError(f"{path}: expected a checkpoint to overwrite, found {found}; remove it first")
    entries = filesystem.list_directory(path)
    if entries and not recognizes(path):
        raise CheckpointExistsError(
            f"{path}: expected a checkpoint to overwrite, found a directory with {', '.join(entries[:3])} in it; "
            "remove it first, or save elsewhere"
        )


def _create(path: Path, contents: TreeContents, options: WriteOptions) -> None:
    made: list[Path] = []
    temporary = temporary_sibling(path)
    try:
        make_directories(path.parent, made)
        with ExitStack() as locks:
            # The lock protects the directory from the removal of leftovers until it has its final name.
            make_locked_directory(temporary, locks)
            remove_leftovers(path.parent)
            _write_files(temporary, f"{_DATA_NAME}.safetensors", INDEX_NAME, contents, options, locks)
            try:
                filesystem.rename(temporary, path)
            except OSError as error:
                if filesystem.may_exist(path):
                    raise CheckpointExistsError(f"{path} was created by another process during the save") from error
                raise
    except BaseException:
        remove_tree(temporary)
        with suppress(OSError):
            for directory in reversed(made):
                filesystem.remove_directory(directory)
        raise
    if options.durable:
        sync_parents(path, made)


def _replace(path: Path, contents: TreeContents, options: WriteOptions) -> None:
    # A single rename replaces the old index. The new data file has a new name, so readers of the old index never read
    # new data. Every step is synced before the next, also without `durable`: a power failure could otherwise cost both
    # checkpoints.
    remove_leftovers(path.parent)
    replaced = _listed_files(path)
    token = secrets.token_hex(8)
    data_name, index_name = f"{_DATA_NAME}-{token}.safetensors", f".index-{token}.tmp"
    with ExitStack() as locks:
        renaming = False
        try:
            locked = _write_files(path, data_name, index_name, contents, options, locks)
            if not all(map(filesystem.is_linked, locked)):
                raise OSError(errno.ENOENT, "Another process removed the new files during the save", str(path))
            renaming = True
            filesystem.rename(path / index_name, path / INDEX_NAME)
        except BaseException:
            # After an interrupt, the new index may be in place already: its data must stay.
            if not renaming or _is_known_to_exist(path / index_name):
                for leftover in (index_name, data_name):
                    with suppress(OSError):
                        filesystem.remove_file(path / leftover)
            raise
    filesystem.sync_directory(path)
    sync_parents(path)
    with suppress(OSError, CheckpointError):  # the next save tries again
        remove_unlisted(path, replaced)


def _listed_files(path: Path) -> list[str]:
    """Return the data files that the index at `path` lists, or none if it is damaged or missing."""
    try:
        return [file.name for file in read_index(path).files]
    except CheckpointError:
        return []


def remove_unlisted(path: Path, replaced: Sequence[str]) -> None:
    """Delete the data files of the replaced checkpoint and leftovers of interrupted saves.

    Raises:
        CheckpointError: if the index cannot be read. No further files are deleted then.
    """
    for entry in filesystem.list_directory(path):
        if not REPLACEABLE_FILES.fullmatch(entry):
            continue
        with suppress(FileNotFoundError):
            descriptor = filesystem.open_to_lock(path / entry)
            try:
                # The lock comes first: a writer that has released it has listed the file in the index, or never will.
                unused = filesystem.try_lock(descriptor) or entry in replaced
                unused = unused and filesystem.is_linked(descriptor)
                if unused and entry not in [file.name for file in read_index(path).files]:
                    filesystem.remove_file(path / entry)
            finally:
                filesystem.release(descriptor)


def _is_known_to_exist(path: Path) -> bool:
    try:
        return filesystem.exists(path)
    except OSError:
        return False


def _write_files(
    directory: Path,
    data_name: str,
    index_name: str,
    contents: TreeContents,
    options: WriteOptions,
    locks: ExitStack,
) -> tuple[int, int]:
    """Write the data and its index. Return the descriptors of their locks, which end when `locks` is closed."""
    with new_locked_file(directory / data_name, locks) as (descriptor, data_lock):
        index = write_data(descriptor, data_name, contents, options, _header_metadata)
        if options.durable:
            filesystem.sync_file(descriptor)
    with new_locked_file(directory / index_name, locks) as (descriptor, index_lock):
        write_fully(descriptor, [encode_index(index)], 0)
        if options.durable:
            filesystem.sync_file(descriptor)
    if options.durable:
        filesystem.sync_directory(directory)
    return data_lock, index_lock


def _header_metadata(index: Index) -> Mapping[str, str]:
    # The header identifies its contents, so that an index is never used with the data of another checkpoint.
    return {"format": FORMAT_NAME, "content_id": header_checksum(index.checksums.encode())}
