"""Writing of TensorFlow checkpoints."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointExistsError, UnsupportedLeafError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import (
    make_locked_directory,
    new_hidden_path,
    new_locked_file,
    remove_leftovers,
    remove_tree,
    sync_parents,
    temporary_sibling,
)
from pytreesaver._io.checksums.crc32c import crc32c, masked
from pytreesaver._io.files import write_fully
from pytreesaver._io.several_files import HEAD, locked_files, move_in, move_out
from pytreesaver._io.writing import WriteRanges, write_ranges
from pytreesaver._tree.kinds import LeafType, cell_bytes, grid_cells, is_stored_as_bytes, storage_dtype
from pytreesaver.formats.description import described, encode_description
from pytreesaver.formats.indexed.data import WriteOptions, new_index, plan_layout, stored_chunks, taker
from pytreesaver.formats.places import files_beside, index_file
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.tensorflow.bundle import DESCRIPTION_KEY, MOST_SHARDS, decode_bundle, slice_key
from pytreesaver.formats.tensorflow.files import data_file, read_index_file, recognizes, shard_count
from pytreesaver.formats.tensorflow.messages import STRING, Entry, Extent, encode_entry, encode_header, number_of_dtype
from pytreesaver.formats.tensorflow.names import OBJECT_GRAPH
from pytreesaver.formats.tensorflow.strings import encode_strings
from pytreesaver.formats.tensorflow.table import write_table

_SURROGATE = re.compile("[\ud800-\udfff]")


def unsupported(contents: TreeContents) -> Mapping[str, str]:
    """Return the variables with names that TensorFlow cannot have. See `pytreesaver.formats.Format.unsupported`."""
    problems: dict[str, str] = {}
    for name in contents.names:
        if not name:
            problems[name] = "TensorFlow has no variables without a name; name it, or rename it with convert"
        elif name.startswith("\0"):
            problems[name] = "in TensorFlow's files, names that begin with a NUL character are those of slices"
        elif name == OBJECT_GRAPH:
            problems[name] = "TensorFlow keeps its object graph under this name"
        elif _SURROGATE.search(name):
            problems[name] = "names in TensorFlow's files are UTF-8, which has no surrogates"
    return problems


class _Sharding(NamedTuple):
    """How chunks are spread over data files: the largest size of one, and whether each is of a single device."""

    nbytes: int | None
    by_device: bool


class _Chunk(NamedTuple):
    """What is stored together: a variable, or a slice of one.

    `value` is the array, or the bytes of strings; `checksum` is that of the strings, else it is not known yet.
    """

    dtype: int
    shape: tuple[int, ...]
    nbytes: int
    value: Any
    leaf_type: LeafType
    checksum: int | None = None
    device: int = 0


def write(
    path: Path,
    contents: TreeContents,
    *,
    overwrite: bool,
    durable: bool,
    in_background: bool = False,
    shard_nbytes: int | None = None,
    sharded: bool = False,
) -> None:
    """Write a checkpoint. See `pytreesaver.formats.Format.write`.

    Data files are of up to `shard_nbytes` bytes, or of a single larger tensor. If `sharded`, there is at least one for
    each device that holds a shard; what is not sharded is in the first.
    """
    exists = filesystem.exists(path) or filesystem.exists(index_file(path))
    if exists and not overwrite:
        raise CheckpointExistsError(f"{path} exists already; pass overwrite=True to replace a checkpoint")
    if exists and not recognizes(path):
        raise CheckpointExistsError(
            f"{path}: expected the prefix of a TensorFlow checkpoint to overwrite, found something else; "
            "save elsewhere, or remove it if it is not needed"
        )
    options = WriteOptions(durable or exists, in_background)
    with new_hidden_path(path) as (hidden, made), ExitStack() as locks:
        make_locked_directory(hidden, locks)
        remove_leftovers(path.parent)
        files = _write_files(hidden, path, contents, options, locks, _Sharding(shard_nbytes, sharded))
        move_out(hidden, index_file(path), files, overwrite=overwrite, durable=options.durable)
        remove_tree(hidden)
    if options.durable:
        sync_parents(path, made)
    if exists:
        remove_unlisted_files(path)


def remove_unlisted_files(path: Path) -> None:
    """Delete leftovers of overwrites. See `pytreesaver.formats.Format.remove_unlisted_files`."""
    with suppress(OSError, CheckpointError):
        data_files = [file for file in files_beside(path) if shard_count(file) is not None]
        # The locks come first: a writer that has released them has listed its files in the index, or never will.
        with locked_files(data_files) as unused:
            bundle = decode_bundle(read_index_file(path), str(path))
            if bundle.description is None:
                return
            for file in unused:
                if shard_count(file) != bundle.header.num_shards:
                    filesystem.remove_file(file)


def remove(path: Path) -> None:
    """Delete a checkpoint, also its graph. See `pytreesaver.formats.Format.remove`."""
    files = files_beside(path)
    index = index_file(path)
    if index not in files:
        raise FileNotFoundError(f"{path}: expected the prefix of a TensorFlow checkpoint, found none")
    hidden = temporary_sibling(path)
    with ExitStack() as locks:
        make_locked_directory(hidden, locks)
        try:
            move_in(hidden, index, [file for file in files if file != index])
        finally:
            remove_tree(hidden)


def _write_files(
    hidden: Path,
    path: Path,
    contents: TreeContents,
    options: WriteOptions,
    locks: ExitStack,
    sharding: _Sharding,
) -> list[Path]:
    """Write the data files and the index into a hidden directory. Return the final paths of the data files."""
    index = new_index(contents)
    chunks, entry_of = _chunks(contents)
    stored_as = stored_chunks(index) if contents.same_as else list(range(len(chunks)))
    stored = sorted(set(stored_as))
    shards = _shards([chunks[i] for i in stored], sharding)
    # An overwritten checkpoint keeps its data files until the new index replaces the old one.
    taken = {shard_count(file) for file in files_beside(path)}
    count = next(number for number in range(len(shards), len(shards) + len(taken) + 1) if number not in taken)
    if count > MOST_SHARDS:
        raise UnsupportedLeafError(
            f"{path}: expected at most {MOST_SHARDS} data files, found {count}; pass a larger shard_nbytes"
        )
    shards += [[] for _ in range(count - len(shards))]
    places: dict[int, Entry] = {}
    sizes: dict[str, tuple[int, str]] = {}
    files = [data_file(path, shard, count) for shard in range(count)]
    for shard, positions in enumerate(shards):
        numbers = [stored[i] for i in positions]
        with new_locked_file(hidden / files[shard].name, locks) as (descriptor, _):
            entries = _write_data(descriptor, shard, [chunks[i] for i in numbers], options)
            if options.durable:
                filesystem.sync_file(descriptor)
        places |= dict(zip(numbers, entries, strict=True))
        sizes[str(shard)] = sum(entry.nbytes for entry in entries), ""
    table = {key: entry if entry.slices else places[stored_as[number]] for key, entry, number in entry_of}
    description = described(contents, contents.names, [""] * len(contents.names), files=sizes)
    content = write_table(
        [(b"", encode_header(count)), *((key, encode_entry(table[key])) for key in sorted(table))],
        {DESCRIPTION_KEY: encode_description(description)},
    )
    with new_locked_file(hidden / HEAD, locks) as (descriptor, _):
        write_fully(descriptor, [content], 0)
        if options.durable:
            filesystem.sync_file(descriptor)
    return files


def _shards(chunks: Sequence[_Chunk], sharding: _Sharding) -> list[list[int]]:
    """Return the positions of the chunks of each data file."""
    devices = [chunk.device if sharding.by_device else 0 for chunk in chunks]
    groups: list[list[int]] = []
    for device in sorted(set(devices) or {0}):
        groups.append([])
        nbytes = 0
        for position, chunk in enumerate(chunks):
            if devices[position] != device:
                continue
            if sharding.nbytes is not None and groups[-1] and nbytes + chunk.nbytes > sharding.nbytes:
                groups.append([])
                nbytes = 0
            groups[-1].append(position)
            nbytes += chunk.nbytes
    return groups


def _chunks(contents: TreeContents) -> tuple[list[_Chunk], list[tuple[bytes, Entry, int]]]:
    """Return what to store, and for each key of the table the entry without its place, and the number of its chunk."""
    chunks: list[_Chunk] = []
    entry_of: list[tuple[bytes, Entry, int]] = []
    columns = zip(contents.names, contents.types, contents.shapes, contents.cells, strict=True)
    for name, leaf_type, shape, cells in columns:
        key = name.encode()
        if _holds_strings(leaf_type):
            chunks.append(_string_chunk(cells.arrays[0], leaf_type, tuple(shape)))
            entry_of.append((key, _entry(chunks[-1]), len(chunks) - 1))
            continue
        dtype = storage_dtype(leaf_type)
        number = number_of_dtype(dtype.name)
        # What TensorFlow has no dtype for is stored as bytes. The description has the dtype.
        more = () if number is not None else (dtype.itemsize,)
        number = number or number_of_dtype("uint8") or 0
        boxes = [((0,) * len(shape), tuple(shape))] if cells.boundaries is None else list(grid_cells(cells.boundaries))
        slices = []
        devices = cells.devices or [0] * len(boxes)
        for (start, cell_shape), array, device in zip(boxes, cells.arrays, devices, strict=True):
            nbytes = int(np.prod(cell_shape, dtype=np.int64)) * dtype.itemsize
            chunks.append(_Chunk(number, (*cell_shape, *more), nbytes, array, leaf_type, device=device))
            extents = tuple(
                Extent(0, None) if part == whole else Extent(low, part)
                for low, part, whole in zip(
                    (*start, *(0 for _ in more)), (*cell_shape, *more), (*shape, *more), strict=True
                )
            )
            slices.append(extents)
        if len(slices) == 1:
            entry_of.append((key, _entry(chunks[-1]), len(chunks) - 1))
            continue
        entry_of.append((key, Entry(number, (*shape, *more), 0, 0, 0, 0, tuple(slices)), 0))
        first = len(chunks) - len(slices)
        entry_of += [
            (slice_key(key, extents), _entry(chunks[first + i]), first + i) for i, extents in enumerate(slices)
        ]
    return chunks, entry_of


def _entry(chunk: _Chunk) -> Entry:
    return Entry(chunk.dtype, chunk.shape, 0, 0, chunk.nbytes, 0)


def _holds_strings(leaf_type: LeafType) -> bool:
    return is_stored_as_bytes(leaf_type) or storage_dtype(leaf_type).kind in "SU"


def _string_chunk(value: Any, leaf_type: LeafType, shape: tuple[int, ...]) -> _Chunk:
    if is_stored_as_bytes(leaf_type):
        strings, shape = [cell_bytes(value, leaf_type).tobytes()], ()
    else:
        values = np.asarray(value).reshape(-1).tolist()
        strings = [each if isinstance(each, bytes) else each.encode("utf-8", "surrogatepass") for each in values]
    content, checksum = encode_strings(strings)
    return _Chunk(STRING, shape, len(content), np.frombuffer(content, np.uint8), leaf_type, checksum)


def _write_data(descriptor: int, shard: int, chunks: Sequence[_Chunk], options: WriteOptions) -> list[Entry]:
    """Write chunks to a data file. Return their entries."""
    sizes = [chunk.nbytes for chunk in chunks]
    offsets, order = plan_layout(sizes)
    filesystem.reserve(descriptor, sum(sizes))
    checksums = [masked(0) if chunk.checksum is None else chunk.checksum for chunk in chunks]
    take = taker([chunk.value for chunk in chunks], order)

    def load(i: int) -> np.ndarray:
        chunk, value = chunks[i], take(i)
        if chunk.checksum is not None:
            content: np.ndarray = value
            return content
        content = cell_bytes(value, chunk.leaf_type)
        checksums[i] = masked(crc32c(content))
        return content

    write_ranges(descriptor, WriteRanges(offsets, sizes, load), **options._asdict())
    return [
        Entry(chunk.dtype, chunk.shape, shard, offset, chunk.nbytes, checksum)
        for chunk, offset, checksum in zip(chunks, offsets, checksums, strict=True)
    ]
