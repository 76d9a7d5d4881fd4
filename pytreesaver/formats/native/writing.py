"""Write or overwrite a native checkpoint atomically."""

import errno
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

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
from pytreesaver._io.checksums import BLOCK_NBYTES, block_count
from pytreesaver._io.files import write_fully
from pytreesaver._io.writing import WriteRanges, write_ranges
from pytreesaver._tree.kinds import cell_bytes, grid_cells, storage_dtype
from pytreesaver.formats.native.files import INDEX_NAME, REPLACEABLE_FILES, read_index, recognizes
from pytreesaver.formats.native.header import Tensor, encode_header
from pytreesaver.formats.native.index import (
    FORMAT_NAME,
    DataFile,
    Index,
    chunk_counts,
    chunk_nbytes,
    encode_checksums,
    encode_index,
    first_positions,
    header_checksum,
)
from pytreesaver.formats.protocol import TreeContents

T = TypeVar("T")
_DATA_NAME = "data-00000-of-00001"
_ALIGNMENT = 4096


class _WriteOptions(NamedTuple):
    """Arguments of `write_ranges`."""

    durable: bool
    in_background: bool


def write(path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False) -> None:
    """Write a checkpoint directory. See `pytreesaver.formats.Format.write`."""
    if not filesystem.exists(path):
        try:
            return _create(path, contents, _WriteOptions(durable, in_background))
        except CheckpointExistsError:  # another process created it first
            if not overwrite:
                raise
    if not overwrite:
        raise CheckpointExistsError(f"{path} exists already; pass overwrite=True to replace a checkpoint")
    _refuse_foreign(path)
    return _replace(path, contents, _WriteOptions(durable=True, in_background=in_background))


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


def _create(path: Path, contents: TreeContents, options: _WriteOptions) -> None:
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


def _replace(path: Path, contents: TreeContents, options: _WriteOptions) -> None:
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
    options: _WriteOptions,
    locks: ExitStack,
) -> tuple[int, int]:
    """Write the data and its index. Return the descriptors of their locks, which end when `locks` is closed."""
    with new_locked_file(directory / data_name, locks) as (descriptor, data_lock):
        index = _write_data(descriptor, data_name, contents, options)
        if options.durable:
            filesystem.sync_file(descriptor)
    with new_locked_file(directory / index_name, locks) as (descriptor, index_lock):
        write_fully(descriptor, [encode_index(index)], 0)
        if options.durable:
            filesystem.sync_file(descriptor)
    if options.durable:
        filesystem.sync_directory(directory)
    return data_lock, index_lock


def _write_data(descriptor: int, data_name: str, contents: TreeContents, options: _WriteOptions) -> Index:
    types = list(dict.fromkeys(contents.types))
    type_positions = {leaf_type: i for i, leaf_type in enumerate(types)}
    index = Index(
        names=list(contents.names),
        types=types,
        type_of=[type_positions[leaf_type] for leaf_type in contents.types],
        shapes=list(contents.shapes),
        grids={str(i): c.boundaries for i, c in enumerate(contents.cells) if c.boundaries is not None},
        files=[],
        chunk_files=[],
        chunk_offsets=[],
        checksum_block_nbytes=BLOCK_NBYTES,
        checksums="",
        structure=contents.structure,
        metadata=contents.metadata,
        record=contents.record,
    )
    index.same_as = {str(position): earlier for position, earlier in contents.same_as.items()}
    stored_as = _stored_chunks(index)
    stored = np.unique(stored_as).tolist() if index.same_as else range(len(stored_as))
    sizes = _at(chunk_nbytes(index), stored)
    offsets, order = plan_layout(sizes)
    header = _header(_at(_tensors(index), stored), sizes, offsets, order)
    nbytes = len(header) + sum(sizes)
    filesystem.reserve(descriptor, nbytes)

    leaf_types = _at(
        [leaf_type for leaf_type, cells in zip(contents.types, contents.cells, strict=True) for _ in cells.arrays],
        stored,
    )
    take = _taker(_at([array for cells in contents.cells for array in cells.arrays], stored), order)
    ranges = WriteRanges(
        [len(header) + offset for offset in offsets], sizes, lambda i: cell_bytes(take(i), leaf_types[i])
    )
    checksums = write_ranges(descriptor, ranges, **options._asdict())
    places = list(ranges.offsets)
    if index.same_as:
        where = np.searchsorted(stored, stored_as)
        counts = [block_count(size, BLOCK_NBYTES) for size in sizes]
        parts = np.split(checksums, np.cumsum(counts)[:-1])
        checksums = np.concatenate([parts[i] for i in where])
        places = [places[i] for i in where]
    index.checksums = encode_checksums(checksums)

    # The header identifies its contents, so that an index is never used with the data of another checkpoint.
    content_id = header_checksum(index.checksums.encode())
    header = header.replace(_NO_CONTENT_ID.encode(), content_id.encode(), 1)
    write_fully(descriptor, [header], 0)
    index.files = [DataFile(data_name, nbytes, len(header), header_checksum(header))]
    index.chunk_files = [0] * len(places)
    index.chunk_offsets = places
    return index


def _stored_chunks(index: Index) -> list[int]:
    """Return for each chunk the one whose bytes it has: itself, or one of the variable that its own is the same as."""
    counts = chunk_counts(index)
    result = list(range(sum(counts)))
    first = first_positions(counts)
    for position, earlier in index.same_as.items():
        here, there = first[int(position)], first[earlier]
        result[here : here + counts[earlier]] = range(there, there + counts[earlier])
    return result


def _at(values: Sequence[T], positions: Sequence[int]) -> Sequence[T]:
    return values if len(positions) == len(values) else [values[i] for i in positions]


def _taker(arrays: Sequence[Any], order: Sequence[int]) -> Callable[[int], Any]:
    """Return a function that returns each array once. Arrays on an accelerator are fetched ahead."""
    if "jax" not in sys.modules:
        return arrays.__getitem__
    from pytreesaver.formats.fetching import FetchedAhead

    return FetchedAhead(arrays, order).take


def plan_layout(sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return aligned offsets for chunks of these sizes without gaps, and the order of the chunks.

    safetensors allows no gaps, so alignment follows from the order: first the sizes that are multiples of 4096 bytes,
    then of 2048, and so on. Each group starts at a multiple of its own alignment.

    Example:
        >>> plan_layout([10, 4096, 64])
        ([4160, 0, 4096], [1, 2, 0])
    """
    size = np.array(sizes, np.int64)
    alignment = np.minimum(size & -size, _ALIGNMENT)
    alignment[size == 0] = _ALIGNMENT
    order = np.argsort(-alignment, kind="stable")
    offsets = np.zeros(len(size), np.int64)
    offsets[order] = np.cumsum(size[order]) - size[order]
    return offsets.tolist(), order.tolist()


_NO_CONTENT_ID = "content_id to be"  # a placeholder with the length of a checksum in hexadecimal digits


_Named = tuple[str, np.dtype[Any], Sequence[int]]


def _tensors(index: Index) -> list[_Named]:
    """Return the name, dtype and shape of each chunk."""
    tensors: list[_Named] = []
    dtypes = [storage_dtype(leaf_type) for leaf_type in index.types]
    for i, (name, type_of, shape) in enumerate(zip(index.names, index.type_of, index.shapes, strict=True)):
        boundaries = index.grids.get(str(i)) if index.grids else None
        if boundaries is None:
            tensors.append((name, dtypes[type_of], shape))
            continue
        for start, cell_shape in grid_cells(boundaries):
            box = ", ".join(f"{a}:{a + n}" for a, n in zip(start, cell_shape, strict=True))
            tensors.append((f"{name}[{box}]", dtypes[type_of], cell_shape))
    return tensors


def _header(tensors: Sequence[_Named], sizes: Sequence[int], offsets: Sequence[int], order: Sequence[int]) -> bytes:
    metadata = {"format": FORMAT_NAME, "content_id": _NO_CONTENT_ID}
    return encode_header([Tensor(*tensors[i], offsets[i], sizes[i]) for i in order], metadata, _ALIGNMENT)
