"""The open files of an index: where each chunk is stored, and checks of the files against the index."""

import errno
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import BlockChecksums, block_count, decode_checksums
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver._io.reading import RangeChecks, ReadRanges
from pytreesaver._text import quoted
from pytreesaver._tree.kinds import grid_cells
from pytreesaver.formats.indexed.index import (
    Chunk,
    Index,
    chunk_counts,
    chunk_nbytes,
    first_positions,
    header_checksum,
)


class IndexedFiles:
    """The index and the open data files of a checkpoint.

    Args:
        path: the checkpoint.
        index: its index.
        paths: the data files that the index lists.
        new_checks: returns checks of the chunks for one reading; by default, those of the checksums in the index. A
            chunk is called by its `first_block`.
        descriptors: of the data files, if they are open; they are closed with the others.

    Attributes:
        path: the checkpoint.
        index: its index.
        paths: the data files that the index lists.
        has_checksums: whether the index has checksums of the data.
        granularity: as in `pytreesaver._io.reading.RangeChecks`.
        digests: the checksums of the blocks of all chunks, in the order of the chunks; None if equal ones do not imply
            equal bytes.
        descriptors: the file descriptors of the data files that exist, by position; not necessarily checked yet.
    """

    def __init__(
        self,
        path: Path,
        index: Index,
        paths: Sequence[Path],
        new_checks: Callable[[], RangeChecks] | None = None,
        descriptors: Sequence[int] | None = None,
    ) -> None:
        self.descriptors: dict[int, int] = dict(enumerate(descriptors or ()))
        self._finalizer = weakref.finalize(self, _close_all, self.descriptors)
        self.path = path
        self.index = index
        self.paths = paths
        self._checked: set[int] = set()
        self._failures: dict[int, tuple[str, list[str]]] = {}  # finding the damaged variables takes time
        self._maps: dict[int, np.ndarray] = {}
        self._chunk_nbytes = chunk_nbytes(index)
        self._first_chunk = first_positions(chunk_counts(index))
        self._first_block = first_positions([block_count(n, index.checksum_block_nbytes) for n in self._chunk_nbytes])
        self.digests: list[int] | None = None
        if new_checks is None:
            self.digests = decode_checksums(index.checksums)
            new_checks = partial(BlockChecksums, self.digests, index.checksum_block_nbytes)
        self.has_checksums = self.digests is None or bool(self.digests) or not any(self._chunk_nbytes)
        self.new_checks = new_checks
        self.granularity = new_checks().granularity if self.has_checksums else None
        if descriptors is None:
            self._open_files()

    def close(self) -> None:
        """Close the data files. Mapped arrays stay valid."""
        self._maps.clear()
        self._finalizer()

    def sizes(self) -> dict[str, int]:
        """Return the expected size of each data file in bytes, by name."""
        return {file.name: file.nbytes for file in self.index.files}

    def versions(self) -> list[tuple[int, int, int, int]]:
        """Return what tells the open files from others of the same names; see `filesystem.version`."""
        return [filesystem.version(descriptor) for _, descriptor in sorted(self.descriptors.items())]

    def is_grid(self, position: int) -> bool:
        """Return whether a variable has several chunks."""
        return bool(self.index.grids) and str(position) in self.index.grids

    def size(self, file: int) -> int:
        """Return the size of a data file in bytes, or -1 if it does not exist."""
        return filesystem.file_size(self.descriptors[file]) if file in self.descriptors else -1

    @property
    def nbytes(self) -> list[int]:
        """The size of every variable in bytes."""
        if not self.index.grids:
            return self._chunk_nbytes
        ends = [*self._first_chunk[1:], len(self._chunk_nbytes)]
        return [sum(self._chunk_nbytes[a:b]) for a, b in zip(self._first_chunk, ends, strict=True)]

    def chunks(self, position: int) -> Iterator[Chunk]:
        """Yield the chunks of a variable, in row-major order."""
        boundaries = self.index.grids.get(str(position))
        if boundaries is None:
            shape = self.index.shapes[position]
            yield self._chunk(self._first_chunk[position], (0,) * len(shape), shape)
            return
        for i, (start, shape) in enumerate(grid_cells(boundaries), self._first_chunk[position]):
            yield self._chunk(i, start, shape)

    def single_chunks(self, positions: Sequence[int]) -> dict[int, tuple[Sequence[int], Sequence[int]]]:
        """Return, for each data file, the indices into `positions` of its variables of one chunk, and their chunks."""
        indices: Sequence[int] = range(len(positions))
        if self.index.grids:
            indices = [i for i in indices if not self.is_grid(positions[i])]
        chunks = [self._first_chunk[positions[i]] for i in indices]
        if len(self.index.files) == 1 and chunks:
            return {0: (indices, chunks)}
        by_file: dict[int, tuple[list[int], list[int]]] = {}
        for i, chunk in zip(indices, chunks, strict=True):
            in_file = by_file.setdefault(self.index.chunk_files[chunk], ([], []))
            in_file[0].append(i)
            in_file[1].append(chunk)
        return dict(by_file)

    def ranges(self, chunks: Sequence[int], verify: bool) -> ReadRanges:
        """Return where chunks are stored in their file, and checks of them if `verify`."""
        return ReadRanges(
            [self.index.chunk_offsets[i] for i in chunks],
            [self._chunk_nbytes[i] for i in chunks],
            [self._first_block[i] for i in chunks],
            self.new_checks() if verify else None,
        )

    def _chunk(self, i: int, start: tuple[int, ...], shape: tuple[int, ...]) -> Chunk:
        index = self.index
        return Chunk(
            start, shape, index.chunk_files[i], index.chunk_offsets[i], self._chunk_nbytes[i], self._first_block[i]
        )

    def digest(self, chunk: Chunk) -> list[int]:
        """Return the checksums of the blocks of a chunk."""
        blocks = block_count(chunk.nbytes, self.index.checksum_block_nbytes)
        return (self.digests or [])[chunk.first_block : chunk.first_block + blocks]

    def checkable(self, chunk: Chunk, begin: int, end: int) -> tuple[int, int]:
        """Return the smallest part of a chunk that can be checked and contains the bytes from `begin` to `end`."""
        if self.granularity is None:
            return 0, chunk.nbytes
        block = self.granularity
        return begin // block * block, min(-(-end // block) * block, chunk.nbytes)

    def mapped(self, file: int) -> np.ndarray | None:
        """Return a data file as uint8[n], or None if its file system cannot map files; see `filesystem.map_file`."""
        descriptor = self.descriptor(file)
        if file not in self._maps:
            if filesystem.file_size(descriptor) < self.index.files[file].nbytes:  # truncated since it was checked
                raise self.truncated(file, filesystem.file_size(descriptor))
            try:
                self._maps[file] = filesystem.map_file(descriptor, self.index.files[file].nbytes)
            except OSError as error:
                if error.errno not in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                return None
        return self._maps[file]

    def check(self) -> tuple[list[str], dict[str, None]]:
        """Return what is wrong with the data files, one line each, and the names of the variables that are missing."""
        damaged: dict[str, None] = {}
        reasons: list[str] = []
        for file in range(len(self.index.files)):
            try:
                self._check_file(file)
            except CorruptCheckpointError as error:
                _note(error, reasons, damaged)
        return reasons, damaged

    def collect(self, error: CorruptCheckpointError, reasons: list[str], damaged: dict[str, None]) -> None:
        """Add an error of one data file to `reasons` and `damaged`.

        Raises:
            CorruptCheckpointError: the error itself if it names no variable: then nothing can be trusted.
        """
        if not error.damaged:
            raise error
        _note(error, reasons, damaged)

    def _open_files(self) -> None:
        try:
            for file, path in enumerate(self.paths):
                with suppress(FileNotFoundError):
                    self.descriptors[file] = filesystem.open_existing(path)
        except BaseException:
            self.close()
            raise

    def descriptor(self, file: int) -> int:
        """Return the file descriptor of a data file, checked on its first use.

        Raises:
            CorruptCheckpointError: if the file is missing, damaged, or belongs to another checkpoint.
            ValueError: if the checkpoint was closed.
        """
        if file in self._failures:
            reason, damaged = self._failures[file]
            raise CorruptCheckpointError(reason, damaged=damaged)
        if file not in self._checked:
            try:
                self._check_file(file)
            except CorruptCheckpointError as error:
                self._failures[file] = str(error), error.damaged
                raise
            self._checked.add(file)
        try:
            return self.descriptors[file]
        except KeyError:
            raise self._closed_error() from None

    def _check_file(self, file: int) -> None:
        """Raise CorruptCheckpointError unless a data file is complete and belongs to the index."""
        expected = self.index.files[file]
        where = self.paths[file]
        if not self._finalizer.alive:
            raise self._closed_error()
        if file not in self.descriptors:
            raise self.corrupt([f"{where}: expected a data file, found none"], self._in_file(file, 0))
        descriptor = self.descriptors[file]
        size = filesystem.file_size(descriptor)
        if size != expected.nbytes:
            raise self.truncated(file, size)
        if not expected.header_checksum:  # it was read when the file was opened
            return
        header = np.empty(expected.header_nbytes, np.uint8)
        try:
            read_fully(descriptor, header, 0)
        except EndOfFileError as error:
            raise CorruptCheckpointError(f"{where}: a part of its header could not be read") from error
        if header_checksum(header.tobytes()) != expected.header_checksum:
            raise CorruptCheckpointError(f"{where}: its header is damaged, or it belongs to another checkpoint")

    def _closed_error(self) -> ValueError:
        return ValueError(f"{self.path}: the checkpoint was closed; open it again to read more")

    def truncated(self, file: int, size: int) -> CorruptCheckpointError:
        """Return the error for a data file of the wrong size."""
        expected = self.index.files[file]
        reason = f"{self.paths[file]}: expected {expected.nbytes} bytes, found {size}"
        return self.corrupt([reason], self._in_file(file, size))

    def _in_file(self, file: int, size: int) -> list[str]:
        """Return the names of the variables with bytes in a file at `size` or beyond."""
        return [
            name
            for position, name in enumerate(self.index.names)
            if any(c.file == file and c.nbytes and c.offset + c.nbytes > size for c in self.chunks(position))
        ]

    def corrupt(self, reasons: Sequence[str], damaged: Iterable[str]) -> CorruptCheckpointError:
        """Return the error that states the reasons and names the damaged variables."""
        wanted = set(damaged)
        names = [name for name in self.index.names if name in wanted]
        lines = list(reasons)
        if names:
            lines.append(f"{self.path}: {len(names)} of {len(self.index.names)} variables damaged:")
        return CorruptCheckpointError("\n".join([*lines, *(f"  {quoted(name)}" for name in names)]), damaged=names)


def _note(error: CorruptCheckpointError, reasons: list[str], damaged: dict[str, None]) -> None:
    reasons.append(str(error).partition("\n")[0])
    damaged |= dict.fromkeys(error.damaged)


def _close_all(descriptors: dict[int, int]) -> None:
    while descriptors:
        filesystem.release(descriptors.popitem()[1])
