"""Data files that each have a part of a tree: which chunks go where, and one index of all of them. Pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from pytreesaver._errors import CheckpointError
from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES, block_count
from pytreesaver.formats.indexed.index import DataFile, Index, chunk_nbytes


class FileLimits(NamedTuple):
    """How the chunks of a tree are spread over files: at most `nbytes` each, and with `by_device` one per device."""

    nbytes: int | None = None
    by_device: bool = False


class FilePlan(NamedTuple):
    """A data file to write: the number of the process that writes it, and the numbers of its chunks."""

    writer: int
    chunks: list[int]


class WrittenFile(msgspec.Struct, array_like=True):
    """A data file that was written: its entry in the index, and its chunks with their offsets and checksums."""

    file: DataFile
    chunks: list[int]
    offsets: list[int]
    checksums: str


def plan_files(
    chunks: Sequence[int],
    sizes: Sequence[int],
    writers: Sequence[int] | None,
    devices: Sequence[int],
    limits: FileLimits,
) -> list[FilePlan]:
    """Return the data files of a tree.

    Args:
        chunks: the numbers of the chunks to store.
        sizes: the size of every chunk in bytes.
        writers: the process that writes each chunk; None for process 0.
        devices: the device that holds each chunk.
        limits: how to spread them. A chunk that is larger than `limits.nbytes` has a file of its own.

    Example:
        >>> plan_files([0, 1, 2], [4, 4, 4], [1, 0, 1], [0, 0, 0], FileLimits())
        [FilePlan(writer=0, chunks=[1]), FilePlan(writer=1, chunks=[0, 2])]
        >>> len(plan_files([0, 1, 2], [4, 4, 4], None, [0, 0, 0], FileLimits(nbytes=8)))
        2
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for chunk in chunks:
        key = (0 if writers is None else writers[chunk], devices[chunk] if limits.by_device else 0)
        groups.setdefault(key, []).append(chunk)
    files: list[FilePlan] = []
    for writer, device in sorted(groups):
        files.append(FilePlan(writer, []))
        nbytes = 0
        for chunk in groups[writer, device]:
            if limits.nbytes is not None and files[-1].chunks and nbytes + sizes[chunk] > limits.nbytes:
                files.append(FilePlan(writer, []))
                nbytes = 0
            files[-1].chunks.append(chunk)
            nbytes += sizes[chunk]
    return files or [FilePlan(0, [])]


def joined_index(
    index: Index, stored_as: Sequence[int], files: Sequence[WrittenFile], *, is_partial: bool = False
) -> Index:
    """Return the index of a tree whose chunks are in these files.

    Args:
        index: the index without places; see `new_index`.
        stored_as: for each chunk the one whose bytes it has; see `stored_chunks`.
        files: the files, in the order of the index.
        is_partial: whether chunks may be in other files: they are then in the file -1.
    """
    count = len(stored_as)
    chunk_files, offsets = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    sizes = chunk_nbytes(index)
    checksums = ["0" * 16 * block_count(size, BLOCK_NBYTES) for size in sizes] if is_partial else [""] * count
    for number, written in enumerate(files):
        chunk_files[written.chunks] = number
        offsets[written.chunks] = written.offsets
        begin = 0
        for chunk in written.chunks:
            end = begin + 16 * block_count(sizes[chunk], BLOCK_NBYTES)
            checksums[chunk] = written.checksums[begin:end]
            begin = end
    if count and chunk_files[stored_as].min() < 0 and not is_partial:
        raise CheckpointError("a part of the tree was written by no process: this is an error of pytreesaver")
    index.files = [written.file for written in files]
    index.chunk_files = chunk_files[stored_as].tolist()
    index.chunk_offsets = offsets[stored_as].tolist()
    index.checksums = "".join(checksums[chunk] for chunk in stored_as)
    return index
