"""Writing of a data file: the arrays of a tree in a safetensors file, and the index that says where they are."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from pytreesaver._errors import UnsupportedLeafError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES, block_count, encode_checksums
from pytreesaver._io.files import write_fully
from pytreesaver._io.memory import collection_paused
from pytreesaver._io.writing import WriteRanges, write_ranges
from pytreesaver._tree.kinds import Cells, LeafType, OneCellEach, cell_bytes, grid_cells, storage_dtype
from pytreesaver.formats.indexed.header import LENGTH_NBYTES, MAX_HEADER_NBYTES, Tensor, encode_entries, encode_header
from pytreesaver.formats.indexed.index import (
    DataFile,
    Index,
    chunk_counts,
    chunk_nbytes,
    first_positions,
    header_checksum,
)
from pytreesaver.formats.protocol import TreeContents

T = TypeVar("T")
ALIGNMENT = 4096
"""Data starts at a multiple of this in its file, so that it can be mapped, and read directly."""


class WriteOptions(NamedTuple):
    """Arguments of `write_ranges`."""

    durable: bool
    in_background: bool


def new_index(contents: TreeContents) -> Index:
    """Return the index of a tree that is not in any data file yet."""
    types, type_of = _type_columns(contents.types)
    return Index(
        names=list(contents.names),
        types=types,
        type_of=type_of,
        shapes=list(contents.shapes),
        grids=_grids(contents.cells),
        files=[],
        chunk_files=[],
        chunk_offsets=[],
        checksum_block_nbytes=BLOCK_NBYTES,
        checksums="",
        structure=contents.structure,
        metadata=contents.metadata,
        record=contents.record,
        models=contents.models,
        same_as={str(position): earlier for position, earlier in contents.same_as.items()},
    )


def _grids(cells: Sequence[Cells]) -> dict[str, list[list[int]]]:
    if isinstance(cells, OneCellEach):
        return {}
    return {str(i): each.boundaries for i, each in enumerate(cells) if each.boundaries is not None}


def _type_columns(leaf_types: Sequence[LeafType]) -> tuple[list[LeafType], list[int]]:
    """Return the distinct types, and the position of each type among them. Most are the same few objects."""
    positions: dict[LeafType, int] = {}
    by_identity = {id(each): each for each in leaf_types}
    position_of = {identity: positions.setdefault(each, len(positions)) for identity, each in by_identity.items()}
    return list(positions), [position_of[id(each)] for each in leaf_types]


class ChunkTable(NamedTuple):
    """The chunks of a tree in columns. `unplaced` is the index of the tree, without files."""

    unplaced: Index
    sizes: Sequence[int]
    tensors: Sequence["_Named"]
    arrays: Sequence[Any]
    leaf_types: Sequence[LeafType]

    @classmethod
    @collection_paused()
    def of(cls, contents: TreeContents) -> "ChunkTable":
        """Return the chunks of a tree that is not in any data file yet."""
        index = new_index(contents)
        if not index.grids:
            sizes, tensors = _last_columns.of(index)
            cells = contents.cells
            arrays = cells.leaves if isinstance(cells, OneCellEach) else [each.arrays[0] for each in cells]
            return cls(index, sizes, tensors, arrays, contents.types)
        columns = list(zip(contents.types, contents.cells, strict=True))
        return cls(
            index,
            chunk_nbytes(index),
            _tensors(index),
            [array for _, cells in columns for array in cells.arrays],
            [leaf_type for leaf_type, cells in columns for _ in cells.arrays],
        )


def write_data(
    descriptor: int,
    name: str,
    table: ChunkTable,
    options: WriteOptions,
    metadata_of: Callable[[Index], Mapping[str, str]],
    *,
    alignment: int = ALIGNMENT,
    share: bool = True,
    chunks: Sequence[int] | None = None,
    with_float8: bool = False,
    seal: Callable[[bytes], bytes] = bytes,
    sampled: Callable[[int, np.ndarray], None] | None = None,
) -> Index:
    """Write the arrays of a tree to a new file.

    Args:
        descriptor: the file.
        name: its name in the index.
        table: the chunks of the tree.
        options: how to write.
        metadata_of: returns the metadata of the header for an index whose offsets count from the end of the header. It
            is called twice, first without the checksums, and has to return texts of the same lengths.
        alignment: the size of the header is a multiple of it.
        with_float8: as in `encode_entries`.
        share: store an array of several variables once. Otherwise each variable is a tensor of its own.
        chunks: the numbers of the chunks to write; None for all. Other files have the others. The chunks of the result
            are then these only.
        seal: changes the text of the header at last, but not its length.
        sampled: called with the number of each chunk and its bytes, from several threads. Chunks of at most
            `MAX_JOINED_NBYTES` may be left out.

    Returns:
        The index of the tree.

    Raises:
        UnsupportedLeafError: if the header would be larger than readers of safetensors accept.
    """
    index = msgspec.structs.replace(table.unplaced)
    share = share and bool(index.same_as) and chunks is None
    stored_as = stored_chunks(index) if share else range(sum(chunk_counts(index))) if chunks is None else chunks
    stored = np.unique(stored_as).tolist() if share else stored_as
    where = np.searchsorted(stored, stored_as).tolist() if share else range(len(stored))
    sizes = _at(table.sizes, stored)
    offsets, order, entries = _last_layout.of(_at(table.tensors, stored), sizes, with_float8)

    blocks = [block_count(size, BLOCK_NBYTES) for size in sizes]
    index.checksums = _NO_CHECKSUM * sum(blocks[i] for i in where)
    index.files = [DataFile(name, sum(sizes), 0, "")]
    index.chunk_files = [0] * len(where)
    index.chunk_offsets = [offsets[i] for i in where] if share else list(offsets)
    header = encode_header(entries, metadata_of(index), alignment)
    if len(header) > MAX_HEADER_NBYTES + 8:
        raise UnsupportedLeafError(
            f"expected names, shapes and metadata of at most {MAX_HEADER_NBYTES} bytes, which is what readers of "
            f"safetensors accept, found {len(header)} bytes; save fewer variables in one file"
        )
    nbytes = len(header) + sum(sizes)
    filesystem.reserve(descriptor, nbytes)

    leaf_types = _at(table.leaf_types, stored)
    take = taker(_at(table.arrays, stored), order)

    def load(i: int) -> np.ndarray:
        return cell_bytes(take(i), leaf_types[i])

    def load_and_sample(i: int) -> np.ndarray:
        data = load(i)
        assert sampled is not None
        sampled(stored[i], data)
        return data

    places = [offset + len(header) for offset in offsets]
    joined = partial(_joined_bytes, take, leaf_types, _buffer_types(leaf_types))
    ranges = WriteRanges(places, sizes, load if sampled is None else load_and_sample, joined)
    checksums = write_ranges(descriptor, ranges, **options._asdict())
    if share:
        parts = np.split(checksums, np.cumsum(blocks)[:-1])
        checksums = np.concatenate([parts[i] for i in where])
    index.checksums = encode_checksums(checksums)

    header = encode_header(entries, metadata_of(index), alignment)
    header = header[:LENGTH_NBYTES] + seal(header[LENGTH_NBYTES:])
    write_fully(descriptor, [header], 0)
    index.files = [DataFile(name, nbytes, len(header), header_checksum(header))]
    index.chunk_offsets = [places[i] for i in where] if share else places
    return index


def _buffer_types(leaf_types: Sequence[LeafType]) -> set[int]:
    """Return the ids of the types of JAX arrays that have a buffer in host memory, as Python understands it."""
    distinct = {id(each): each for each in leaf_types}
    return {key for key, each in distinct.items() if each.kind == "jax" and storage_dtype(each).isbuiltin == 1}


def _joined_bytes(
    take: Callable[[int], Any], leaf_types: Sequence[LeafType], buffer_types: set[int], chunks: Sequence[int]
) -> bytes:
    """Return the bytes of some chunks in one piece. Each is taken once.

    To join the buffers of many small arrays takes a third of the time of `numpy.asarray` of each.
    """
    taken: list[Any] = [
        take(i) if id(leaf_types[i]) in buffer_types else cell_bytes(take(i), leaf_types[i]) for i in chunks
    ]
    try:
        return b"".join(taken)
    except TypeError:  # an array in another memory layout, a part of one, or a deleted one
        pairs = zip(taken, chunks, strict=True)
        views: list[Any] = [
            cell_bytes(each, leaf_types[i]) if id(leaf_types[i]) in buffer_types else each for each, i in pairs
        ]
        return b"".join(views)


class _LastColumns:
    """Remembers the sizes and tensors of the last tree: the next one is often alike."""

    def __init__(self) -> None:
        self._known: tuple[Index, tuple[list[int], list[_Named]]] | None = None

    def of(self, index: Index) -> tuple[list[int], list["_Named"]]:
        """Return the size of each variable, none of which is in several chunks, and its tensor."""
        known = self._known
        compared = ("names", "shapes", "type_of", "types")
        if known is not None and all(getattr(index, name) == getattr(known[0], name) for name in compared):
            return known[1]
        columns = chunk_nbytes(index), _tensors(index)
        if len(index.names) <= _MOST_REMEMBERED_CHUNKS:
            # Only what is compared is kept.
            plain = msgspec.structs.replace(index, structure=None, metadata=None, record=None, models=None)
            self._known = plain, columns
        return columns


class _LastLayout:
    """Remembers where the last tree was put in its file, and its header: the next one is often alike."""

    def __init__(self) -> None:
        self._known: tuple[Any, tuple[list[int], list[int], bytes]] | None = None

    @collection_paused()
    def of(
        self, tensors: Sequence["_Named"], sizes: Sequence[int], with_float8: bool
    ) -> tuple[list[int], list[int], bytes]:
        """Return the offset of each chunk, their order, and their entries in the header."""
        key, known = (tensors, sizes, with_float8), self._known  # which nobody changes
        if known is not None and known[0] == key:
            return known[1]
        offsets, order = plan_layout(sizes)
        entries = encode_entries([Tensor(*tensors[i], offsets[i], sizes[i]) for i in order], with_float8=with_float8)
        layout = offsets, order, entries
        if len(sizes) <= _MOST_REMEMBERED_CHUNKS:
            self._known = key, layout
        return layout


_MOST_REMEMBERED_CHUNKS = 100_000
_last_columns = _LastColumns()
_last_layout = _LastLayout()


_NO_CHECKSUM = "0" * 16


def stored_chunks(index: Index) -> list[int]:
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


def taker(arrays: Sequence[Any], order: Sequence[int]) -> Callable[[int], Any]:
    """Return a function that returns each array once. Arrays on an accelerator are fetched ahead."""
    if "jax" not in sys.modules:
        return arrays.__getitem__
    from pytreesaver.formats.fetching import FetchedAhead

    ahead = FetchedAhead(arrays, order)
    return ahead.take if ahead.has_any else arrays.__getitem__


def plan_layout(sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return aligned offsets for chunks of these sizes without gaps, and the order of the chunks.

    safetensors allows no gaps, so alignment follows from the order: first the sizes that are multiples of 4096 bytes,
    then of 2048, and so on. Each group starts at a multiple of its own alignment.

    Example:
        >>> plan_layout([10, 4096, 64])
        ([4160, 0, 4096], [1, 2, 0])
    """
    size = np.array(sizes, np.int64)
    alignment = np.minimum(size & -size, ALIGNMENT)
    alignment[size == 0] = ALIGNMENT
    order = np.argsort(-alignment, kind="stable")
    offsets = np.zeros(len(size), np.int64)
    offsets[order] = np.cumsum(size[order]) - size[order]
    return offsets.tolist(), order.tolist()


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
