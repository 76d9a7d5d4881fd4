"""The fast way for a tree of which hardly anything has changed: the index of the earlier checkpoint serves again."""

import operator
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES, block_count
from pytreesaver._tree.kinds import OneCellEach
from pytreesaver.formats.indexed.index import DataFile, Index, first_positions
from pytreesaver.formats.indexed.parts import FileLimits, WrittenFile
from pytreesaver.formats.native.known import MIN_COMPARED_NBYTES, KnownCheckpoint
from pytreesaver.formats.protocol import TreeContents

_MOST_CHANGED = 0.1  # of the variables; for more, the general way is as fast


def changed_positions(contents: TreeContents, base: KnownCheckpoint, limits: FileLimits) -> list[int] | None:
    """Return the variables to write, if all others are the same arrays as in `base`.

    Return None if the trees are not alike enough: if names, types or shapes differ, if arrays are in several cells or
    places, if much has changed, or if arrays have to be compared.
    """
    index = base.index
    is_simple = limits == FileLimits() and contents.shared is None and index.checksum_block_nbytes == BLOCK_NBYTES
    if not is_simple or contents.same_as or index.same_as or index.grids or list(contents.names) != index.names:
        return None
    if list(contents.types) != base.types or list(contents.shapes) != index.shapes or not all(base.trusted):
        return None
    is_same = map(operator.is_, contents.leaves, base.leaves)
    changed = [
        i for i, (same, leaf) in enumerate(zip(is_same, contents.leaves, strict=True)) if not same or leaf is None
    ]
    if len(changed) > _MOST_CHANGED * len(index.names) + 1:
        return None
    # Arrays that are in several cells now are in one in `base`.
    are_whole = isinstance(contents.cells, OneCellEach) or not any(each.boundaries for each in contents.cells)
    if not are_whole or any(base.sizes[i] >= MIN_COMPARED_NBYTES for i in changed):
        return None
    return changed


def bytes_in_use(base: KnownCheckpoint, changed: Sequence[int]) -> dict[int, int]:
    """Return {data file: number of its bytes that are in use} if some variables have changed."""
    sizes, files = np.array(base.sizes, np.int64), np.array(base.index.chunk_files, np.int64)
    is_used = np.ones(len(sizes), bool)
    is_used[list(changed)] = False
    in_use = np.bincount(files[is_used], weights=sizes[is_used], minlength=len(base.index.files))
    used = np.bincount(files[is_used], minlength=len(base.index.files)) > 0
    return {number: int(in_use[number]) for number in np.flatnonzero(used).tolist()}


def patched_index(
    base: KnownCheckpoint,
    contents: TreeContents,
    shared: Mapping[int, DataFile],
    changed: Sequence[int],
    written: WrittenFile | None,
) -> Index:
    """Return the index of `base` for a tree with some changed variables.

    Args:
        base: the earlier checkpoint.
        contents: the tree.
        shared: the data files of `base` that are used again, by their numbers there, as they are called now.
        changed: the positions of the changed variables.
        written: the file that has them; None if there are none.
    """
    new_number = np.zeros(len(base.index.files), np.int64)
    new_number[list(shared)] = np.arange(len(shared))
    chunk_files = new_number[np.array(base.index.chunk_files, np.int64)].tolist()
    offsets = list(base.index.chunk_offsets)
    checksums = base.index.checksums
    files = list(shared.values())
    if written is not None:
        pieces, end = [], 0
        first_block = first_positions([block_count(size, BLOCK_NBYTES) for size in base.sizes])
        begin = 0
        for i, offset in zip(changed, written.offsets, strict=True):
            chunk_files[i], offsets[i] = len(files), offset
            stop = begin + 16 * block_count(base.sizes[i], BLOCK_NBYTES)
            pieces += [checksums[end : 16 * first_block[i]], written.checksums[begin:stop]]
            end, begin = 16 * first_block[i] + stop - begin, stop
        checksums = "".join([*pieces, checksums[end:]])
        files.append(written.file)
    return msgspec.structs.replace(
        base.index,
        files=files,
        chunk_files=chunk_files,
        chunk_offsets=offsets,
        checksums=checksums,
        structure=contents.structure,
        metadata=contents.metadata,
        record=contents.record,
        models=contents.models,
    )
