"""Which variables of a tree are unchanged since an earlier checkpoint, and which of its data files to share.

An array of JAX that is the same object as before is unchanged. Of others, the bytes are compared through checksums. A
file is shared only while at least half of it is in use, so that no checkpoint takes more than twice its size.
"""

import importlib
import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES, block_checksums
from pytreesaver._io.parallel import run_all, unmetered
from pytreesaver._tree.kinds import ArrayPart, Cells, LeafType, SourceArray, cell_bytes, grid_cells, source_of
from pytreesaver.formats.indexed.data import ALIGNMENT, ChunkTable
from pytreesaver.formats.indexed.index import chunk_counts, first_positions
from pytreesaver.formats.indexed.parts import FileLimits
from pytreesaver.formats.native.known import MIN_COMPARED_NBYTES, KnownCheckpoint, sample_of
from pytreesaver.formats.native.same_tree import bytes_in_use, changed_positions
from pytreesaver.formats.protocol import TreeContents

_MIN_SHARED_NBYTES = 64 << 10
"""A smaller file is written again, so that their number does not grow."""

_MOST_SHARED_FILES = 64


def with_unchanged(contents: TreeContents, base: KnownCheckpoint, limits: FileLimits) -> TreeContents:
    """Return the contents with the variables that are the same arrays as in `base`, if their files can be shared.

    These need not be fetched from an accelerator.
    """
    changed = changed_positions(contents, base, limits) if contents.leaves else None
    if changed is not None:
        in_use = bytes_in_use(base, changed)
        if shareable_files(in_use, base) == in_use.keys():
            rest = set(changed)
            unchanged = {i: i for i in range(len(contents.names)) if i not in rest}
            return contents._replace(unchanged=unchanged, changed=changed)
    same = {i: j for i, j in _same_arrays(contents, base).items() if i not in contents.same_as}
    chunks = {i: _own_chunks(contents, i, base, j) for i, j in same.items()}
    chunks = {i: each for i, each in chunks.items() if each and all(base.trusted[chunk] for chunk in each.values())}
    chunks = _without_repeated_places(chunks, base)
    used = {chunk: _device(contents.cells[i], k) for i, each in chunks.items() for k, chunk in each.items()}
    files, of_chunk = files_to_share(used, base, limits), base.index.chunk_files
    kept = {i: same[i] for i, each in chunks.items() if all(of_chunk[chunk] in files for chunk in each.values())}
    if not kept:
        return contents
    cells = list(contents.cells)
    for i, j in list(kept.items()):
        boundaries = base.index.grids.get(str(j))
        if boundaries != cells[i].boundaries:
            leaf = _referenced(contents.leaves[i])
            if leaf is None or any(isinstance(array, SourceArray) for array in cells[i].arrays):
                del kept[i]  # what is written is not the leaf itself
                continue
            cells[i] = _divided(leaf, contents.types[i], boundaries)
    for position, earlier in contents.same_as.items():
        cells[position] = cells[earlier]
    return contents._replace(cells=cells, unchanged=kept)


def _same_arrays(contents: TreeContents, base: KnownCheckpoint) -> dict[int, int]:
    """Return {position: position in `base`} of the variables that are the same arrays of the same types and names."""
    names, leaves, index = contents.names, contents.leaves, base.index
    if not leaves or index.checksum_block_nbytes != BLOCK_NBYTES:
        return {}
    if names == index.names:
        pairs = [(i, i) for i, is_same in enumerate(map(operator.is_, leaves, base.leaves)) if is_same]
    else:
        found = ((i, base.positions.get(name)) for i, name in enumerate(names))
        pairs = [(i, j) for i, j in found if j is not None and leaves[i] is base.leaves[j]]
    return {i: j for i, j in pairs if leaves[i] is not None and _is_alike(contents, i, base, j)}


def _place(base: KnownCheckpoint, chunk: int) -> tuple[int, int] | None:
    """Return the file and the offset of a chunk; None for one without bytes."""
    return (base.index.chunk_files[chunk], base.index.chunk_offsets[chunk]) if base.sizes[chunk] else None


def _without_repeated_places(chunks: dict[int, dict[int, int]], base: KnownCheckpoint) -> dict[int, dict[int, int]]:
    """Return {variable: {cell: chunk}} without variables whose bytes are stored for an earlier one already.

    In `base`, they were the same array. Now they are two, which have to be stored in two places.
    """
    taken: set[tuple[int, int] | None] = set()
    kept = {}
    for i, each in chunks.items():
        places = {_place(base, chunk) for chunk in each.values()} - {None}
        if not places & taken:
            kept[i] = each
            taken |= places
    return kept


def _is_alike(contents: TreeContents, i: int, base: KnownCheckpoint, j: int) -> bool:
    """Return whether two variables have the same type and shape."""
    index = base.index
    return contents.types[i] == index.types[index.type_of[j]] and tuple(contents.shapes[i]) == index.shapes[j]


def _own_chunks(contents: TreeContents, i: int, base: KnownCheckpoint, j: int) -> dict[int, int]:
    """Return {cell of variable i: chunk of `base`} of those that this process writes; none if the grids differ.

    If this process writes all cells, an array can be divided as it is in `base`.
    """
    first = base.first_chunk[j]
    following = base.first_chunk[j + 1] if j + 1 < len(base.first_chunk) else len(base.sizes)
    cells = contents.cells[i]
    if contents.shared is None:
        return dict(enumerate(range(first, following)))
    if base.index.grids.get(str(j)) != cells.boundaries:
        return {}
    return {k: first + k for k, array in enumerate(cells.arrays) if array is not None and _is_own(contents, i, k)}


def _is_own(contents: TreeContents, i: int, k: int) -> bool:
    """Return whether this process writes a cell: it may also hold a copy of what process 0 writes."""
    return contents.shared is None or i not in contents.shared.copies or contents.shared.rank == 0


def _device(cells: Cells, k: int) -> int:
    return cells.devices[k] if cells.devices and k < len(cells.devices) else 0


def _referenced(reference: "weakref.ref[Any] | None") -> Any:
    return None if reference is None else reference()


def _divided(leaf: Any, leaf_type: LeafType, boundaries: list[list[int]] | None) -> Cells:
    """Return the cells of an array in another grid."""
    if leaf_type.kind == "key":
        leaf = importlib.import_module("jax").random.key_data(leaf)
    if boundaries is None:
        return Cells([leaf])
    boxes = [[slice(a, a + n) for a, n in zip(start, shape, strict=True)] for start, shape in grid_cells(boundaries)]
    return Cells([ArrayPart(leaf, tuple(box)) for box in boxes], boundaries)


def files_to_share(used: Mapping[int, int], base: KnownCheckpoint, limits: FileLimits) -> set[int]:
    """Return the data files of a checkpoint that a later one may share: those of which at least half is in use.

    Args:
        used: {chunk of `base` that is in use: the device that holds it}.
        base: the earlier checkpoint.
        limits: how the later one is spread over files.
    """
    in_use: dict[int, int] = {}
    chunks: dict[int, list[int]] = {}
    for chunk in {_place(base, chunk) or chunk: chunk for chunk in used}.values():
        number = base.index.chunk_files[chunk]
        in_use[number] = in_use.get(number, 0) + base.sizes[chunk]
        chunks.setdefault(number, []).append(chunk)
    files = shareable_files(in_use, base)
    if limits != FileLimits():
        files = {number for number in files if _is_within(limits, number, chunks[number], used, base)}
    return files


def shareable_files(in_use: Mapping[int, int], base: KnownCheckpoint) -> set[int]:
    """Return the data files that a later checkpoint may share, if there are no limits of files.

    Args:
        in_use: {data file: number of its bytes that are in use}.
        base: the earlier checkpoint.
    """
    files = []
    for number, in_use_nbytes in in_use.items():
        if number < 0 or base.versions[number] is None:
            continue
        file = base.index.files[number]
        is_used = in_use_nbytes == file.nbytes - file.header_nbytes or 2 * in_use_nbytes >= file.nbytes - ALIGNMENT
        if is_used and file.nbytes >= _MIN_SHARED_NBYTES:
            files.append(number)
    return set(sorted(files, key=in_use.__getitem__, reverse=True)[:_MOST_SHARED_FILES])


def _is_within(
    limits: FileLimits, number: int, chunks: Sequence[int], used: Mapping[int, int], base: KnownCheckpoint
) -> bool:
    file = base.index.files[number]
    is_small = limits.nbytes is None or file.nbytes - file.header_nbytes <= limits.nbytes or len(chunks) == 1
    return is_small and (not limits.by_device or len({used[chunk] for chunk in chunks}) == 1)


def chunks_to_share(
    contents: TreeContents, table: ChunkTable, own: Iterable[int], base: KnownCheckpoint, limits: FileLimits
) -> dict[int, int]:
    """Return {chunk: chunk of `base` with the same bytes} of the chunks that need not be written.

    Args:
        contents: the tree, with the variables that are known to be unchanged.
        table: its chunks.
        own: the chunks that this process has to write.
        base: the earlier checkpoint. Its chunks need not be trusted.
        limits: how the tree is spread over files.
    """
    if base.index.checksum_block_nbytes != BLOCK_NBYTES:
        return {}
    own, devices = set(own), dict[int, int]()
    shared: dict[int, int] = {}
    to_compare: dict[int, int] = {}
    first = first_positions(chunk_counts(table.unplaced))
    is_in_order = contents.names == base.index.names
    for i, name in enumerate(contents.names):
        j = contents.unchanged.get(i)
        is_unchanged = j is not None
        if j is None:
            j = i if is_in_order else base.positions.get(name)
            if j is None or not _is_alike(contents, i, base, j):
                continue
        if base.index.grids.get(str(j)) != contents.cells[i].boundaries:
            continue
        for k in range(len(contents.cells[i].arrays)):
            chunk, earlier = first[i] + k, base.first_chunk[j] + k
            is_known = base.index.chunk_files[earlier] >= 0 and table.sizes[chunk] == base.sizes[earlier]
            if chunk in own and is_known:
                devices[earlier] = _device(contents.cells[i], k)
                if is_unchanged:
                    shared[chunk] = earlier
                elif table.sizes[chunk] >= MIN_COMPARED_NBYTES:
                    to_compare[chunk] = earlier
    # What is unchanged may not have been fetched, so its files are shared in any case.
    files = {base.index.chunk_files[earlier] for earlier in shared.values()}
    taken = {_place(base, earlier) for earlier in shared.values()}
    for chunk, earlier in _with_equal_bytes(table, to_compare, base).items():
        place = _place(base, earlier)
        if place not in taken:
            shared[chunk] = earlier
            taken.add(place)
    files |= files_to_share({earlier: devices[earlier] for earlier in shared.values()}, base, limits)
    return {chunk: earlier for chunk, earlier in shared.items() if base.index.chunk_files[earlier] in files}


def _with_equal_bytes(table: ChunkTable, chunks: Mapping[int, int], base: KnownCheckpoint) -> dict[int, int]:
    """Return those of {chunk: chunk of `base`} whose bytes have the same checksums."""
    equal: dict[int, int] = {}

    def compare(chunk: int, earlier: int) -> None:
        data = cell_bytes(table.arrays[chunk], table.leaf_types[chunk])
        sample = sample_of(data)
        if base.samples.get(earlier, sample) == sample and _has_checksums(data, base.checksums[earlier]):
            equal[chunk] = earlier

    chunks = {chunk: earlier for chunk, earlier in chunks.items() if _is_in_host_memory(table.arrays[chunk])}
    with unmetered():  # the progress counts what is written
        run_all(
            [partial(compare, chunk, earlier) for chunk, earlier in chunks.items()],
            sum(table.sizes[chunk] for chunk in chunks),
        )
    return {chunk: equal[chunk] for chunk in chunks if chunk in equal}


def _is_in_host_memory(array: Any) -> bool:
    array = source_of(array)
    if not hasattr(array, "sharding"):
        return True
    from pytreesaver.formats.fetching import is_on_cpu

    return is_on_cpu(array)


def _has_checksums(data: np.ndarray, expected: str) -> bool:
    """Return whether uint8[n] has these checksums of its blocks. Compares no more than the first that differs."""
    texts = (expected[begin : begin + 16] for begin in range(0, len(expected), 16))
    return all(each == int(text, 16) for each, text in zip(block_checksums(data), texts, strict=True))
