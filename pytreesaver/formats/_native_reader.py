"""Read a native checkpoint: whole variables in parallel, or the parts of them that are asked for."""

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointNotFoundError, CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums import block_count
from pytreesaver._io.reading import EndOfFileError, Range, read_file, read_fully, read_ranges
from pytreesaver._leaves import LeafType, grid_cells, storage_dtype, stored_array
from pytreesaver._names import shown
from pytreesaver.formats._index import (
    Chunk,
    Index,
    chunk_counts,
    chunk_nbytes,
    decode_checksums,
    decode_index,
    decode_record,
    first_positions,
    header_checksum,
)

INDEX_NAME = "index.json"
_MOST_INDEX_NBYTES = 4 << 30
_WINDOW_NBYTES = 64 << 20  # how many bytes are held beside the result at a time
_MOST_WASTE_NBYTES = 4 << 20  # how many bytes that nobody asked for may be read with a part of an array


def read_index(path: Path) -> Index:
    """The index of the checkpoint directory at `path`. Raises what `NativeReader` raises."""
    return decode_index(_index_bytes(path), str(path / INDEX_NAME))


def read_record(path: Path) -> Any:
    """The record of the checkpoint directory at `path`. Raises what `NativeReader` raises."""
    return decode_record(_index_bytes(path), str(path / INDEX_NAME))


def _index_bytes(path: Path) -> bytes:
    try:
        descriptor = filesystem.open_existing(path / INDEX_NAME)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFoundError(_why_not_found(path)) from None
    try:
        size = filesystem.file_size(descriptor)
        if size > _MOST_INDEX_NBYTES:
            raise CorruptCheckpointError(f"{path / INDEX_NAME}: expected an index, found a file of {size} bytes")
        return read_file(descriptor)
    finally:
        filesystem.close(descriptor)


def _why_not_found(path: Path) -> str:
    if not path.exists():
        return f"{path}: expected a checkpoint, found nothing there"
    if not path.is_dir():
        return f"{path}: expected a checkpoint, which is a directory, found a file"
    inside = sorted(path.glob(f"*/{INDEX_NAME}"), key=lambda index: index.stat().st_mtime)
    names = ", ".join(index.parent.name for index in inside[-3:])
    hint = f"; there are checkpoints in it, the newest last: {names}" if inside else ""
    return (
        f"{path}: expected a checkpoint, found a directory without {INDEX_NAME}: "
        f"it is none, or its save did not finish{hint}"
    )


class NativeReader:
    """An open native checkpoint. See `pytreesaver.formats.CheckpointReader`."""

    def __init__(self, path: Path) -> None:
        index = read_index(path)
        self.path = path
        self.names: Sequence[str] = index.names
        self.types: Sequence[LeafType] = [index.types[i] for i in index.type_of]
        self.shapes: Sequence[tuple[int, ...]] = list(map(tuple, index.shapes))
        self.structure = index.structure
        self.metadata = index.metadata
        self.record = index.record
        self._index = index
        self._descriptors: dict[int, int] = {}
        self._checked: set[int] = set()
        # Closes the files of a checkpoint that nobody closed.
        self._finalizer = weakref.finalize(self, _close_all, self._descriptors)
        self._chunk_nbytes = chunk_nbytes(index)
        self._first_chunk = first_positions(chunk_counts(index))
        self._first_block = first_positions([block_count(n, index.checksum_block_nbytes) for n in self._chunk_nbytes])
        self._checksums = decode_checksums(index.checksums)
        self._open_files()

    def close(self) -> None:
        """Close the data files."""
        self._finalizer()

    def was_replaced(self) -> bool:
        """Whether a save has replaced the checkpoint between the reading of its index and the opening of its data."""
        return len(self._descriptors) < len(self._index.files) and read_index(self.path).files != self._index.files

    def read(self, positions: Sequence[int], *, verify: bool) -> list[np.ndarray]:
        """See `pytreesaver.formats.CheckpointReader.read`."""
        results: dict[int, np.ndarray] = {}
        damaged: dict[str, None] = {}
        whole = [position for position in positions if str(position) not in self._index.grids]
        chunks = [next(self._chunks(position)) for position in whole]
        data = self._read_chunks(whole, chunks, verify, damaged)
        for position, array in zip(whole, data, strict=True):
            results[position] = stored_array(array, self.types[position], self.shapes[position])
        for position in positions:
            if position not in results:
                results[position] = self._read_grid(position, verify, damaged)
        if damaged:
            raise self._corrupt([], damaged)
        return [results[position] for position in positions]

    def _read_grid(self, position: int, verify: bool, damaged: dict[str, None]) -> np.ndarray:
        """A variable of several chunks, put together from a bounded number of them at a time."""
        leaf_type, shape = self.types[position], self.shapes[position]
        nbytes = math.prod(shape) * storage_dtype(leaf_type).itemsize
        whole = stored_array(filesystem.new_memory(nbytes), leaf_type, shape)
        for group in _bounded((position, chunk) for chunk in self._chunks(position)):
            chunks = [chunk for _, chunk in group]
            arrays = self._read_chunks([position] * len(chunks), chunks, verify, damaged)
            for chunk, array in zip(chunks, arrays, strict=True):
                box = tuple(slice(a, a + n) for a, n in zip(chunk.start, chunk.shape, strict=True))
                whole[box] = stored_array(array, leaf_type, chunk.shape)
        return whole

    def read_part(self, position: int, starts: Sequence[int], stops: Sequence[int], *, verify: bool) -> np.ndarray:
        """See `pytreesaver.formats.CheckpointReader.read_part`."""
        dtype = storage_dtype(self.types[position])
        result = np.empty([b - a for a, b in zip(starts, stops, strict=True)], dtype)
        if result.nbytes == 0:
            return result
        for chunk in self._chunks(position):
            low = [max(a, s) for a, s in zip(starts, chunk.start, strict=True)]
            high = [min(b, s + n) for b, s, n in zip(stops, chunk.start, chunk.shape, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            inside = [(a - s, b - s) for a, b, s in zip(low, high, chunk.start, strict=True)]
            into = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, starts, strict=True))
            self._read_box(position, chunk, inside, result[into] if into else result, verify)
        return result

    def check(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.check`."""
        reasons, damaged = self._check_files()
        if reasons:
            raise self._corrupt(reasons, damaged)

    def _check_files(self) -> tuple[list[str], dict[str, None]]:
        damaged: dict[str, None] = {}
        reasons = []
        for file in range(len(self._index.files)):
            try:
                self._check_file(file)
            except CorruptCheckpointError as error:
                reasons.append(str(error).partition("\n")[0])
                damaged |= dict.fromkeys(error.damaged)
        return reasons, damaged

    def verify(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.verify`. Holds a bounded part of the bytes in memory."""
        reasons, damaged = self._check_files()
        for group in _bounded(self._slices()):
            # What a file lacks is counted as damaged already; the rest of it is looked at all the same.
            there = [(i, c) for i, c in group if self._end(c.file) >= c.offset + c.nbytes]
            chunks = [chunk for _, chunk in there]
            for file in {chunk.file for chunk in chunks}:
                mine = [i for i, chunk in enumerate(chunks) if chunk.file == file]
                ranges = [Range(chunks[i].offset, chunks[i].nbytes, self._expected(chunks[i])) for i in mine]
                # The arrays are dropped at once, before the next group is read.
                bad = read_ranges(self._descriptors[file], ranges, self._index.checksum_block_nbytes)[1]
                damaged |= dict.fromkeys(self.names[there[mine[i]][0]] for i in bad)
        if damaged or reasons:
            raise self._corrupt(reasons, damaged)

    def _slices(self) -> Iterator[tuple[int, Chunk]]:
        """Every chunk with its variable, large ones in slices of whole blocks."""
        block = self._index.checksum_block_nbytes
        most = max(_WINDOW_NBYTES // block, 1) * block
        for position in range(len(self.names)):
            for chunk in self._chunks(position):
                for begin in range(0, chunk.nbytes, most):
                    yield (
                        position,
                        chunk._replace(
                            offset=chunk.offset + begin,
                            nbytes=min(most, chunk.nbytes - begin),
                            first_block=chunk.first_block + begin // block,
                        ),
                    )

    def _end(self, file: int) -> int:
        return filesystem.file_size(self._descriptors[file]) if file in self._descriptors else -1

    def _chunks(self, position: int) -> Iterator[Chunk]:
        boundaries = self._index.grids.get(str(position))
        shape = self.shapes[position]
        cells = [((0,) * len(shape), shape)] if boundaries is None else grid_cells(boundaries)
        for i, (start, cell_shape) in enumerate(cells, self._first_chunk[position]):
            yield Chunk(
                start,
                cell_shape,
                self._index.chunk_files[i],
                self._index.chunk_offsets[i],
                self._chunk_nbytes[i],
                self._first_block[i],
            )

    def _expected(self, chunk: Chunk, first: int = 0, stop: int | None = None) -> list[int]:
        blocks = -(-chunk.nbytes // self._index.checksum_block_nbytes)
        return self._checksums[chunk.first_block + first : chunk.first_block + (blocks if stop is None else stop)]

    def _read_chunks(
        self, positions: Sequence[int], chunks: Sequence[Chunk], verify: bool, damaged: dict[str, None]
    ) -> list[np.ndarray]:
        """uint8[n] of every chunk; the names of variables with damaged ones go into `damaged`."""
        data: list[Any] = [None] * len(chunks)
        for file in dict.fromkeys(chunk.file for chunk in chunks):
            mine = [i for i, chunk in enumerate(chunks) if chunk.file == file]
            ranges = [
                Range(chunks[i].offset, chunks[i].nbytes, self._expected(chunks[i]) if verify else None) for i in mine
            ]
            arrays, bad = self._read_ranges(file, ranges)
            for i, array in zip(mine, arrays, strict=True):
                data[i] = array
            damaged |= dict.fromkeys(self.names[positions[mine[i]]] for i in bad)
        return data

    def _read_ranges(self, file: int, ranges: Sequence[Range]) -> tuple[list[np.ndarray], list[int]]:
        descriptor = self._descriptor(file)
        try:
            return read_ranges(descriptor, ranges, self._index.checksum_block_nbytes)
        except EndOfFileError:
            raise self._truncated(file, filesystem.file_size(descriptor)) from None

    def _read_box(
        self, position: int, chunk: Chunk, box: list[tuple[int, int]], result: np.ndarray, verify: bool
    ) -> None:
        """Read a box of one chunk: in one run of bytes where that holds little else, otherwise in halves."""
        itemsize = result.dtype.itemsize
        strides = [math.prod(chunk.shape[axis + 1 :]) * itemsize for axis in range(len(chunk.shape))]
        first = sum(a * stride for (a, _), stride in zip(box, strides, strict=True))
        last = sum((b - 1) * stride for (_, b), stride in zip(box, strides, strict=True)) + itemsize
        wasteful = last - first > _MOST_WASTE_NBYTES + 2 * result.nbytes
        if wasteful or (last - first > _WINDOW_NBYTES and result.size > 1):
            axis = next(i for i, (a, b) in enumerate(box) if b - a > 1)
            a, b = box[axis]
            middle = (a + b) // 2
            before = (slice(None),) * axis
            for low, high in ((a, middle), (middle, b)):
                half = [*box[:axis], (low, high), *box[axis + 1 :]]
                self._read_box(position, chunk, half, result[(*before, slice(low - a, high - a))], verify)
            return
        block = self._index.checksum_block_nbytes
        begin, end = (first // block * block, min(-(-last // block) * block, chunk.nbytes)) if verify else (first, last)
        expected = self._expected(chunk, begin // block, -(-end // block)) if verify else None
        (data,), bad = self._read_ranges(chunk.file, [Range(chunk.offset + begin, end - begin, expected)])
        if bad:
            raise self._corrupt([], [self.names[position]])
        run = data[first - begin : last - begin]
        if run.ctypes.data % result.dtype.alignment:
            run = run.copy()
        result[...] = np.ndarray(result.shape, result.dtype, buffer=run, strides=strides)

    def _open_files(self) -> None:
        try:
            for file, expected in enumerate(self._index.files):
                with suppress(FileNotFoundError):
                    self._descriptors[file] = filesystem.open_existing(self.path / expected.name)
        except BaseException:
            self.close()
            raise

    def _descriptor(self, file: int) -> int:
        if file not in self._checked:
            self._check_file(file)
            self._checked.add(file)
        try:
            return self._descriptors[file]
        except KeyError:
            raise self._closed_error() from None

    def _check_file(self, file: int) -> None:
        """Make sure that a data file is whole and the one that the index was written for."""
        expected = self._index.files[file]
        where = self.path / expected.name
        if not self._finalizer.alive:
            raise self._closed_error()
        if file not in self._descriptors:
            raise self._corrupt([f"{where}: expected a data file, found none"], self._in_file(file, 0))
        descriptor = self._descriptors[file]
        size = filesystem.file_size(descriptor)
        if size != expected.nbytes:
            raise self._truncated(file, size)
        header = np.empty(expected.header_nbytes, np.uint8)
        read_fully(descriptor, header, 0)
        if header_checksum(header.tobytes()) != expected.header_checksum:
            raise CorruptCheckpointError(f"{where}: its header is damaged, or it is the data of another checkpoint")

    def _closed_error(self) -> ValueError:
        return ValueError(f"{self.path}: the checkpoint was closed; open it again to read more")

    def _truncated(self, file: int, size: int) -> CorruptCheckpointError:
        expected = self._index.files[file]
        reason = f"{self.path / expected.name}: expected {expected.nbytes} bytes, found {size}"
        return self._corrupt([reason], self._in_file(file, size))

    def _in_file(self, file: int, size: int) -> list[str]:
        """The names of the variables with bytes of a file at `size` or beyond."""
        return [
            name
            for position, name in enumerate(self.names)
            if any(c.file == file and c.nbytes and c.offset + c.nbytes > size for c in self._chunks(position))
        ]

    def _corrupt(self, reasons: Sequence[str], damaged: Iterable[str]) -> CorruptCheckpointError:
        wanted = set(damaged)
        names = [name for name in self.names if name in wanted]
        lines = list(reasons)
        if names:
            lines.append(f"{self.path}: {len(names)} of {len(self.names)} variables damaged:")
        return CorruptCheckpointError("\n".join([*lines, *(f"  {shown(name)}" for name in names)]), damaged=names)


def _bounded(chunks: Iterable[tuple[int, Chunk]]) -> Iterator[list[tuple[int, Chunk]]]:
    """Chunks and their variables in groups of up to `_WINDOW_NBYTES`, or of a single larger chunk."""
    group: list[tuple[int, Chunk]] = []
    nbytes = 0
    for position, chunk in chunks:
        if group and nbytes + chunk.nbytes > _WINDOW_NBYTES:
            yield group
            group, nbytes = [], 0
        group.append((position, chunk))
        nbytes += chunk.nbytes
    if group:
        yield group


def _close_all(descriptors: dict[int, int]) -> None:
    while descriptors:
        filesystem.close(descriptors.popitem()[1])
