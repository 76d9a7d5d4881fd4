"""Verification of every byte of the data files of an index, in bounded memory."""

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from pytreesaver._io.files import EndOfFileError
from pytreesaver._io.reading import ReadRanges, read_ranges
from pytreesaver.formats.indexed.files import IndexedFiles
from pytreesaver.formats.indexed.index import Chunk

_WINDOW_NBYTES = 64 << 20  # read together


class _Slice(NamedTuple):
    """The bytes of a chunk from `begin` to `end`, and the variable that it belongs to."""

    position: int
    chunk: Chunk
    begin: int
    end: int


def verify_files(files: IndexedFiles) -> tuple[list[str], dict[str, None]]:
    """Read everything. Return what is wrong with the files, a line each, and the names of the damaged variables.

    Raises:
        CorruptCheckpointError: if another process truncates a file meanwhile.
    """
    reasons, damaged = files.check()
    return reasons, damaged | dict.fromkeys(
        files.index.names[each.position] for each in _damaged(files, _slices(files))
    )


def damaged_chunks(files: IndexedFiles, first_blocks: Container[int]) -> set[int]:
    """Read the chunks with these `first_block`. Return those of damaged ones.

    Raises:
        CorruptCheckpointError: if another process truncates a file meanwhile.
    """
    slices = (each for each in _slices(files) if each.chunk.first_block in first_blocks)
    return {each.chunk.first_block for each in _damaged(files, slices)}


def _damaged(files: IndexedFiles, slices: Iterable[_Slice]) -> Iterator[_Slice]:
    """Read slices of chunks, and yield the damaged ones."""
    checks = files.new_checks() if files.has_checksums else None
    for group in _bounded(slices, _WINDOW_NBYTES):
        # `reasons` covers what a truncated file lacks already; the rest is verified all the same.
        present = [each for each in group if files.size(each.chunk.file) >= each.chunk.offset + each.end]
        for file in {each.chunk.file for each in present}:
            parts = [each for each in present if each.chunk.file == file]
            ranges = ReadRanges(
                [each.chunk.offset + each.begin for each in parts],
                [each.end - each.begin for each in parts],
                [each.chunk.first_block for each in parts],
                checks,
                [each.begin for each in parts],
            )
            # The arrays are released before the next group is read.
            try:
                bad = read_ranges(files.descriptors[file], ranges)[1]
            except EndOfFileError:
                raise files.truncated(file, files.size(file)) from None
            yield from (parts[i] for i in bad)


def _slices(files: IndexedFiles) -> Iterator[_Slice]:
    """Yield every chunk, large ones in slices of blocks."""
    block = files.granularity or _WINDOW_NBYTES
    most = max(_WINDOW_NBYTES // block, 1) * block
    for position in range(len(files.index.names)):
        for chunk in files.chunks(position):
            for begin in range(0, chunk.nbytes, most):
                yield _Slice(position, chunk, begin, min(begin + most, chunk.nbytes))


def _bounded(slices: Iterable[_Slice], most: int) -> Iterator[list[_Slice]]:
    """Yield slices in groups of up to `most` bytes, or of a single larger one."""
    group: list[_Slice] = []
    nbytes = 0
    for each in slices:
        size = each.end - each.begin
        if group and nbytes + size > most:
            yield group
            group, nbytes = [], 0
        group.append(each)
        nbytes += size
    if group:
        yield group
