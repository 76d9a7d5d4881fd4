"""Read a checkpoint through its index: variables in parallel, or parts of them."""

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver._io.parallel import RANGE_NBYTES, SLICE_NBYTES, advance, run_all
from pytreesaver._io.reading import RangeChecks, ReadRanges, read_ranges
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._tree.boxes import (
    Box,
    assign_piece,
    box_index,
    box_shape,
    byte_runs,
    byte_span,
    intersection,
    piece_values,
    pieces_of_run,
    shifted,
    whole_box,
)
from pytreesaver._tree.kinds import LeafType, storage_dtype, stored_array
from pytreesaver.formats.indexed.files import IndexedFiles
from pytreesaver.formats.indexed.index import Chunk, Index
from pytreesaver.formats.indexed.verifying import verify_files

_RESHAPED_NBYTES = 32 << 20  # peak memory of the elements to reshape
_GAP_NBYTES = 64 << 10  # reading this much costs less than another system call


class _Place(NamedTuple):
    """The bytes of a chunk from `begin` to `end`."""

    chunk: Chunk
    begin: int
    end: int


class _Check(NamedTuple):
    """Mapped bytes of a chunk to verify, from the start of a block at `low`."""

    position: int
    chunk: Chunk
    low: int
    data: np.ndarray


class IndexedReader:
    """An open checkpoint with an index. See `pytreesaver.formats.CheckpointReader`.

    Args:
        path: the checkpoint, as messages name it.
        index: its index.
        paths: the data files that the index lists.
        format_name: the name of its format.
        format_version: the version of its format.
        new_checks: as in `IndexedFiles`.
        descriptors: as in `IndexedFiles`.
    """

    def __init__(
        self,
        path: Path,
        index: Index,
        paths: Sequence[Path],
        *,
        format_name: str,
        format_version: int,
        new_checks: Callable[[], RangeChecks] | None = None,
        descriptors: Sequence[int] | None = None,
    ) -> None:
        self._files = IndexedFiles(path, index, paths, new_checks, descriptors)
        self.path = path
        self.format_name = format_name
        self.format_version = format_version
        self.names: Sequence[str] = index.names
        self.types: Sequence[LeafType] = [index.types[i] for i in index.type_of]
        self.shapes: Sequence[tuple[int, ...]] = index.shapes
        self._dtypes = [storage_dtype(leaf_type) for leaf_type in index.types]
        self.nbytes: Sequence[int] = self._files.nbytes
        self._structure = index.structure
        self.metadata = index.metadata
        self.record, self.models = index.record, index.models
        self.same_as: Mapping[int, int] = {int(position): earlier for position, earlier in index.same_as.items()}

    @property
    def structure(self) -> Any:
        """As in `pytreesaver.formats.TreeContents`. The index has it, or a function that returns it, called once."""
        if callable(self._structure):
            self._structure = self._structure()
        return self._structure

    def close(self) -> None:
        """Close the data files. Mapped arrays stay valid."""
        self._files.close()

    @property
    def file_sizes(self) -> dict[str, int]:
        """The expected size of each data file in bytes, by name."""
        return self._files.sizes()

    @property
    def lacks_files(self) -> bool:
        """Whether a data file was missing when the checkpoint was opened."""
        return len(self._files.descriptors) < len(self._files.paths)

    @property
    def file_versions(self) -> list[tuple[int, int, int, int]]:
        """What tells the open files from others of the same names; see `filesystem.version`."""
        return self._files.versions()

    def read(self, positions: Sequence[int], *, verify: bool) -> list[np.ndarray]:
        """See `pytreesaver.formats.CheckpointReader.read`."""
        if self._files.granularity is None and len(set(positions)) < len(positions):  # each is checked once
            distinct = list(dict.fromkeys(positions))
            arrays = dict(zip(distinct, self.read(distinct, verify=verify), strict=True))
            return [arrays[position].copy() for position in positions]
        reasons: list[str] = []
        damaged: dict[str, None] = {}
        verify = verify and self._files.has_checksums
        results = self._read_whole(positions, verify, reasons, damaged)
        if self._files.index.grids:
            for i, position in enumerate(positions):
                if self._files.is_grid(position):
                    results[i] = self._read_grid(position, verify, damaged)
        if damaged:
            raise self._files.corrupt(reasons, damaged)
        return results

    def _read_whole(
        self, positions: Sequence[int], verify: bool, reasons: list[str], damaged: dict[str, None]
    ) -> list[np.ndarray]:
        """Read the variables of one chunk. The results for others are placeholders."""
        results: list[Any] = [None] * len(positions)
        type_of, dtypes = self._files.index.type_of, self._dtypes
        for file, (indices, chunks) in self._files.single_chunks(positions).items():
            try:
                data, bad = self._read_ranges(file, self._files.ranges(chunks, verify))
            except CorruptCheckpointError as error:
                self._files.collect(error, reasons, damaged)
                continue
            for i, array in zip(indices, data, strict=True):
                position = positions[i]
                results[i] = np.ndarray(self.shapes[position], dtypes[type_of[position]], array)
            damaged |= dict.fromkeys(self.names[positions[indices[i]]] for i in bad)
        return results

    def _read_grid(self, position: int, verify: bool, damaged: dict[str, None]) -> np.ndarray:
        """Read a variable of several chunks."""
        leaf_type, shape = self.types[position], self.shapes[position]
        for chunk in self._files.chunks(position):
            self._files.descriptor(chunk.file)  # detects a truncated file before memory is allocated
        whole = stored_array(filesystem.new_memory(self.nbytes[position]), leaf_type, shape)
        if not self._read_boxes(position, [whole_box(shape)], [whole], verify, shape, np.copyto):
            damaged[self.names[position]] = None
        return whole

    def read_boxes(
        self,
        position: int,
        boxes: Sequence[Box],
        outputs: Sequence[np.ndarray],
        *,
        verify: bool,
        shape: tuple[int, ...] | None = None,
        assign: Callable[[np.ndarray, np.ndarray], None] = np.copyto,
    ) -> None:
        """See `pytreesaver.formats.CheckpointReader.read_boxes`."""
        stored_shape = self.shapes[position]
        verify = verify and self._files.has_checksums
        shape = stored_shape if shape is None else shape
        if shape != stored_shape and self._files.is_grid(position):
            self._read_reshaped_grid(position, boxes, outputs, verify, shape, assign)
        elif not self._read_boxes(position, boxes, outputs, verify, shape, assign):
            raise self._files.corrupt([], [self.names[position]])

    def _read_reshaped_grid(
        self,
        position: int,
        boxes: Sequence[Box],
        outputs: Sequence[np.ndarray],
        verify: bool,
        shape: tuple[int, ...],
        assign: Callable[[np.ndarray, np.ndarray], None],
    ) -> None:
        """Read boxes of another shape than the stored one, through runs of consecutive elements."""
        stored_shape, dtype = self.shapes[position], storage_dtype(self.types[position])
        if verify and self._files.granularity is None:  # each step would read whole chunks
            (whole,) = self.read([position], verify=True)
            for box, output in zip(boxes, outputs, strict=True):
                assign(output, whole.reshape(shape)[box_index(box)])
            return
        size = math.prod(shape)
        most = max(_RESHAPED_NBYTES // dtype.itemsize, 1)
        memory = filesystem.new_memory(min(most, size) * dtype.itemsize).view(dtype)
        for begin in range(0, size, most):
            elements = memory[: min(most, size - begin)]
            end = begin + elements.size
            pieces = list(pieces_of_run(stored_shape, begin, end))
            parts = [piece_values(elements, first - begin, box) for first, box in pieces]
            if not self._read_boxes(position, [box for _, box in pieces], parts, verify, stored_shape, np.copyto):
                raise self._files.corrupt([], [self.names[position]])
            for first, box in pieces_of_run(shape, begin, end):
                assign_piece(piece_values(elements, first - begin, box), box, zip(boxes, outputs, strict=True), assign)

    def _read_boxes(
        self,
        position: int,
        boxes: Sequence[Box],
        outputs: Sequence[np.ndarray],
        verify: bool,
        shape: tuple[int, ...],
        assign: Callable[[np.ndarray, np.ndarray], None],
    ) -> bool:
        """Read boxes of a variable window by window. Return False if a checksum does not match."""
        dtype = storage_dtype(self.types[position])
        if dtype.itemsize == 0:
            return True
        checks = self._files.new_checks() if verify else None
        block = (self._files.granularity if verify else None) or _GAP_NBYTES
        bytes_of_items: tuple[int, ...] = ()
        if dtype.itemsize <= 16:  # numbers have no more
            block = math.lcm(block, dtype.itemsize)
        else:  # strings may cross the boundaries of blocks: read them as bytes
            bytes_of_items = (dtype.itemsize,)
            boxes = [(*box, (0, dtype.itemsize)) for box in boxes]
            outputs = [output[..., None].view(np.uint8) for output in outputs]
            dtype, shape = np.dtype(np.uint8), (*shape, *bytes_of_items)
        most = RANGE_NBYTES if is_in_store(self.path) else SLICE_NBYTES
        window_nbytes = max(most // block, 1) * block
        bad: list[Chunk] = []
        local = threading.local()
        tasks: list[Callable[[], None]] = []
        nbytes = 0
        is_grid = self._files.is_grid(position)
        for chunk in self._files.chunks(position):
            chunk_shape = (*chunk.shape, *bytes_of_items) if is_grid else shape
            origin = (*chunk.start, *(0 for _ in bytes_of_items)) if is_grid else (0,) * len(shape)
            here = shifted(whole_box(chunk_shape), [-zero for zero in origin])
            parts = []
            for box, output in zip(boxes, outputs, strict=True):
                shared = intersection(box, here)
                if shared is not None:
                    inside = box_index(shifted(shared, [start for start, _ in box]))
                    parts.append((shifted(shared, origin), output[inside]))
            runs = byte_runs(chunk_shape, dtype.itemsize, [box for box, _ in parts], block)
            if checks is not None and checks.granularity is None:
                runs = [(0, chunk.nbytes)] if parts and chunk.nbytes else []
            for begin, end in runs:
                nbytes += end - begin
                for low in range(begin, end, window_nbytes):
                    run = (low, min(low + window_nbytes, end))
                    tasks.append(
                        partial(self._read_window, chunk, run, chunk_shape, dtype, parts, assign, checks, bad, local)
                    )
        run_all(tasks, nbytes, in_store=is_in_store(self.path))
        return not bad

    def _read_window(
        self,
        chunk: Chunk,
        run: tuple[int, int],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        parts: Sequence[tuple[Box, np.ndarray]],
        assign: Callable[[np.ndarray, np.ndarray], None],
        checks: RangeChecks | None,
        bad: list[Chunk],
        local: threading.local,
    ) -> None:
        begin, end = run
        if getattr(local, "memory", None) is None or local.memory.nbytes < end - begin:
            local.memory = filesystem.new_memory(end - begin)
        data = local.memory[: end - begin]
        descriptor = self._files.descriptor(chunk.file)
        try:
            read_fully(descriptor, data, chunk.offset + begin)
        except EndOfFileError:
            raise self._files.truncated(chunk.file, filesystem.file_size(descriptor)) from None
        if checks is not None and not checks.is_intact(chunk.first_block, begin, data):
            bad.append(chunk)
            return
        elements = data.view(dtype)
        for first, piece in pieces_of_run(shape, begin // dtype.itemsize, end // dtype.itemsize):
            values = piece_values(elements, first - begin // dtype.itemsize, piece)
            assign_piece(values, piece, parts, assign)
        advance(end - begin)

    def map(self, places: Sequence[tuple[int, Box]], *, verify: bool) -> list[np.ndarray | None]:
        """See `pytreesaver.formats.CheckpointReader.map`."""
        results: list[np.ndarray | None] = []
        checks: list[_Check] = []
        reasons: list[str] = []
        damaged: dict[str, None] = {}
        for position, box in places:
            results.append(None)
            place = self._place(position, box)
            if place is None:
                continue
            try:
                file = self._files.mapped(place.chunk.file)
            except CorruptCheckpointError as error:
                self._files.collect(error, reasons, damaged)
                continue
            if file is None:
                continue
            data = file[place.chunk.offset + place.begin : place.chunk.offset + place.end]
            results[-1] = np.ndarray(box_shape(box), self._dtypes[self._files.index.type_of[position]], data)
            if verify and self._files.has_checksums:
                checks += self._checks(position, place, file)
        damaged |= self._damaged(checks)
        if damaged:
            raise self._files.corrupt(list(dict.fromkeys(reasons)), damaged)
        return results

    def _place(self, position: int, box: Box) -> _Place | None:
        """Return where a box is stored if it is contiguous in one chunk, else None."""
        shape = box_shape(box)
        itemsize = self._dtypes[self._files.index.type_of[position]].itemsize
        nbytes = math.prod(shape) * itemsize
        if nbytes == 0:
            return None
        if shape == self.shapes[position] and not self._files.is_grid(position):
            return _Place(next(self._files.chunks(position)), 0, nbytes)
        for chunk in self._files.chunks(position):
            inside = shifted(box, chunk.start)
            if intersection(inside, whole_box(chunk.shape)) == inside:
                begin, end = byte_span(chunk.shape, itemsize, inside)
                return _Place(chunk, begin, end) if end - begin == nbytes else None
        return None

    def _checks(self, position: int, place: _Place, file: np.ndarray) -> Iterator[_Check]:
        """Yield the bytes of a mapped file that have to be checked for some of them, in windows."""
        block, chunk = self._files.granularity or SLICE_NBYTES, place.chunk
        window = max(SLICE_NBYTES // block, 1) * block
        begin, end = self._files.checkable(chunk, place.begin, place.end)
        for low in range(begin, end, window):
            yield _Check(position, chunk, low, file[chunk.offset + low : chunk.offset + min(low + window, end)])

    def _damaged(self, checks: Sequence[_Check]) -> dict[str, None]:
        """Return the names of the variables whose bytes do not match their checksums."""
        damaged: dict[str, None] = {}
        if self._files.granularity is None:  # several boxes of a variable need its bytes once
            checks = list({(each.chunk.first_block, each.low): each for each in checks}.values())
        new_checks = self._files.new_checks()

        def check(some: Sequence[_Check]) -> None:
            for position, chunk, low, data in some:
                if not new_checks.is_intact(chunk.first_block, low, data):
                    damaged[self.names[position]] = None
                advance(data.nbytes)

        ends = np.cumsum([each.data.nbytes for each in checks], dtype=np.int64)
        first = [0, *(np.flatnonzero(np.diff(ends // SLICE_NBYTES)) + 1).tolist(), len(checks)]
        tasks = [partial(check, checks[low:high]) for low, high in itertools.pairwise(first)]
        run_all(tasks, int(ends[-1]) if checks else 0)
        return damaged

    def digest(self, position: int) -> Any:
        """See `pytreesaver.formats.CheckpointReader.digest`."""
        if self._files.digests is None or not self._files.has_checksums:
            return None
        checksums = [self._files.digest(chunk) for chunk in self._files.chunks(position)]
        return self._files.granularity, self._files.index.grids.get(str(position)), checksums

    def check(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.check`."""
        reasons, damaged = self._files.check()
        if reasons:
            raise self._files.corrupt(reasons, damaged)

    def verify(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.verify`. Memory use is bounded."""
        reasons, damaged = verify_files(self._files)
        if damaged or reasons:
            raise self._files.corrupt(reasons, damaged)

    def _read_ranges(self, file: int, ranges: ReadRanges) -> tuple[list[np.ndarray], list[int]]:
        descriptor = self._files.descriptor(file)
        try:
            return read_ranges(descriptor, ranges)
        except EndOfFileError:
            raise self._files.truncated(file, filesystem.file_size(descriptor)) from None
