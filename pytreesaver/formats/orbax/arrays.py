"""The arrays of an Orbax checkpoint, through TensorStore."""

import errno
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import ChecksumOfParts
from pytreesaver._io.parallel import advance
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._tree.boxes import Box, box_index, box_shape, whole_box
from pytreesaver.formats.orbax.in_stores import key_value_store
from pytreesaver.formats.orbax.layout import MANIFEST
from pytreesaver.formats.orbax.tree import array_directory

WINDOW_NBYTES = 512 << 20
"""The maximum size of arrays that are decompressed at a time, in parallel."""

_SLAB_NBYTES = 64 << 20
"""The maximum size of a part of a single array that is read at a time."""


_RETRIES = {f"{store}_request_retries": {"max_retries": 6} for store in ("gcs", "s3")}
"""With pauses of 1, 2, 4, … seconds, a store that cannot be reached is an error after a minute or two."""


class ArrayStore:
    """The arrays in the directory of one tree.

    Args:
        directory: the directory.
        zarr3: whether the arrays have version 3 of zarr; None if that is not known.
        is_complete: whether every chunk was written. Otherwise a missing chunk has the fill value.
    """

    def __init__(self, directory: Path, *, zarr3: bool | None, is_complete: bool) -> None:
        import tensorstore as ts

        self._directory = directory
        base: Any = key_value_store(directory) if is_in_store(directory) else None
        if base is None:
            base = {"driver": "file", "path": f"{path_for_store(directory)}/"}
            _refuse_special_files(directory)
        self.is_ocdbt = filesystem.exists(directory / MANIFEST)
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, **_RETRIES})
        spec = {"driver": "ocdbt", "base": base} if self.is_ocdbt else base
        try:
            self._store = ts.KvStore.open(spec, context=self._context).result()
        except Exception as error:  # TensorStore raises ValueError and others
            raise self._not_listed(error) from None
        self._zarr3 = zarr3
        self._is_complete = is_complete

    def keys(self) -> dict[str, bool]:
        """Return the keys of all arrays, and whether each has version 3 of zarr.

        Raises:
            CorruptCheckpointError: if the index of the arrays is damaged.
        """
        found = {}
        try:
            listed = self._store.list().result()
        except Exception as error:
            raise self._not_listed(error) from None
        for key in listed:
            array, _, file = key.rpartition(b"/")
            if file in (b".zarray", b"zarr.json"):
                try:
                    found[array.decode()] = file == b"zarr.json"
                except UnicodeDecodeError:
                    raise CorruptCheckpointError(
                        f"{self._directory}: expected names of arrays in UTF-8, found {array[:60]!r}"
                    ) from None
        return found

    def _not_listed(self, error: Exception) -> Exception:
        refused = as_os_error(error, self._directory)
        if refused is not None:
            return refused
        return CorruptCheckpointError(f"{self._directory}: the arrays cannot be listed: {error}")

    def open(self, keys: Sequence[str]) -> list[Any]:
        """Return an open array, or the error, for each key. Reads their shapes and dtypes only."""
        import tensorstore as ts

        versions: Mapping[str, bool] = {}
        if self._zarr3 is None:
            versions = {array_directory(key): zarr3 for key, zarr3 in self.keys().items()}
        specs = {zarr3: self._spec(zarr3) for zarr3 in (False, True)}
        with ts.Batch() as batch:
            futures = [
                ts.open(
                    specs[bool(versions.get(array_directory(key), self._zarr3))],
                    kvstore=self._store / array_directory(key),
                    open=True,
                    context=self._context,
                    batch=batch,
                )
                for key in keys
            ]
        return [_result(future) for future in futures]

    def _spec(self, zarr3: bool) -> Any:
        import tensorstore as ts

        driver = "zarr3" if zarr3 else "zarr"
        return ts.Spec({"driver": driver, "fill_missing_data_reads": not self._is_complete})


def _refuse_special_files(directory: Path) -> None:
    """Raise a CorruptCheckpointError if there is a pipe or a device in a directory. TensorStore would wait for it.

    Directories behind links are not looked at: a few links can make endlessly many paths.
    """
    for name in filesystem.list_directory(directory):
        path = directory / name
        status = filesystem.status(path, follow_links=False)
        if status is not None and stat.S_ISDIR(status.st_mode):
            _refuse_special_files(path)
            continue
        if status is not None and stat.S_ISLNK(status.st_mode):
            status = filesystem.status(path)
        if status is not None and not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise CorruptCheckpointError(f"{path}: expected a file, found a pipe, a socket or a device")


def path_for_store(directory: Path) -> str:
    """Return a path as TensorStore takes it: absolute, without links and without ``..``.

    Raises:
        OSError: if it is not in UTF-8.
    """
    path = str(filesystem.resolved(directory))
    try:
        path.encode()
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, "TensorStore, with which Orbax stores arrays, takes only paths in UTF-8") from None
    return path


class StoreError(Exception):
    """An error of TensorStore: an array is damaged or missing."""


def _result(future: Any) -> Any:
    """Return the result of a future, or a StoreError."""
    try:
        return future.result()
    except Exception as error:  # TensorStore raises ValueError and others
        return StoreError(str(error))


def _result_or_raise(future: Any) -> Any:
    result = _result(future)
    if isinstance(result, StoreError):
        raise result
    return result


def as_os_error(error: Exception, path: Path) -> OSError | None:
    """Return what the system refused, if an error of TensorStore says so."""
    text = str(error)
    if text.startswith("PERMISSION_DENIED") or "PERMISSION_DENIED:" in text:
        return PermissionError(errno.EACCES, "Permission denied", str(path))
    found = _OS_ERROR.search(text)
    if text.startswith(_UNREACHABLE):
        return OSError(errno.EIO, text.partition("\n")[0][:300], str(path))
    error_of_system = None if found is None else OSError(int(found[1]), os.strerror(int(found[1])), str(path))
    if error_of_system is None or filesystem.is_absence(error_of_system):
        return None  # what is missing is damage
    return error_of_system


_UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "ABORTED")  # what stores answer
_OS_ERROR = re.compile(r"os_error_code='([0-9]{1,4})'")


def read_arrays(arrays: Sequence[Any]) -> list[Any]:
    """Read open arrays, many at a time. Return each as a NumPy array, or the error."""
    results: list[Any] = []
    begin = 0
    while begin < len(arrays):
        end, nbytes = begin, 0
        while end < len(arrays) and (end == begin or nbytes + _nbytes(arrays[end]) <= WINDOW_NBYTES):
            if end > begin and _excess_of(arrays[end]):
                break
            nbytes += _nbytes(arrays[end])
            end += 1
        results += _read_together(arrays[begin:end])
        advance(nbytes)
        begin = end
    return results


def _read_together(arrays: Sequence[Any]) -> list[Any]:
    import tensorstore as ts

    if len(arrays) == 1 and (problem := _excess_of(arrays[0])):
        return [StoreError(problem)]
    with ts.Batch() as batch:
        reads = [_started(array, batch) for array in arrays]
    return [_finished(*read) for read in reads]


class ReadAhead:
    """Reads of arrays that are needed soon, one after the other: as many as fit are decompressed in parallel.

    Args:
        arrays: the open arrays by position, in the order in which they are needed.
    """

    def __init__(self, arrays: Mapping[int, Any]) -> None:
        self._waiting = dict(arrays)
        self._reads: dict[int, tuple[np.ndarray | None, Any]] = {}
        self._nbytes = {position: _nbytes(array) for position, array in arrays.items()}
        self._free: dict[int, list[np.ndarray]] = {}  # memory that was read into before, by its size

    def __contains__(self, position: int) -> bool:
        return position in self._waiting or position in self._reads

    def take(self, position: int) -> Any:
        """Return an array, or the error. Each is returned once."""
        if position not in self._reads:
            self._start(position)
        for following in list(self._waiting):
            if sum(self._nbytes[each] for each in self._reads) + self._nbytes[following] > _AHEAD_NBYTES:
                break
            self._start(following)
        return _finished(*self._reads.pop(position))

    def give_back(self, values: np.ndarray) -> None:
        """Let the memory of an array that was taken be used again: memory that is new to the process is slow."""
        if values.nbytes >= _OWN_MEMORY_NBYTES and self._waiting:
            self._free.setdefault(values.nbytes, []).append(values.reshape(-1).view(np.uint8))

    def _start(self, position: int) -> None:
        array = self._waiting.pop(position)
        problem = _excess_of(array)
        free = self._free.get(self._nbytes[position])
        memory = free.pop() if free else None
        self._reads[position] = _started(array, None, memory) if problem is None else (None, StoreError(problem))


_AHEAD_NBYTES = 96 << 20


_OWN_MEMORY_NBYTES = 1 << 20


def _started(array: Any, batch: Any, memory: np.ndarray | None = None) -> tuple[np.ndarray | None, Any]:
    """Start to read an array: a large one into aligned memory, which JAX uses without a copy."""
    import tensorstore as ts

    if _nbytes(array) < _OWN_MEMORY_NBYTES:
        return None, array.read(order="C", batch=batch)
    memory = filesystem.new_memory(_nbytes(array)) if memory is None else memory
    output = memory.view(array.dtype.numpy_dtype).reshape(array.shape)
    return output, ts.array(output, copy=False).write(array, batch=batch)


def _finished(output: np.ndarray | None, future: Any) -> Any:
    """Return the array of a read that was started, or the error."""
    result = future if isinstance(future, StoreError) else _result(future)
    return result if output is None or isinstance(result, StoreError) else output


_MAX_CHUNKS = 1 << 18
_MAX_CHUNKS_IN_PARTS = 1 << 22
_MAX_CHUNKS_OF_SHAPE = 1 << 24  # 64 TiB in chunks of 4 MiB; an array of more only claims to be large


def _excess_of(array: Any) -> str | None:
    """Return why an array cannot be read as a whole, or None."""
    if excess := _excess_of_chunks(array, whole_box(tuple(array.shape)), _MAX_CHUNKS):
        return excess
    if not _fits_memory(_nbytes(array)):
        return f"an array of {_nbytes(array)} bytes does not fit into memory"
    return None


def _excess_of_chunks(array: Any, box: Box, limit: int) -> str | None:
    """Return why a box cannot be read, even in parts, or None. It may touch up to `limit` chunks."""
    touched, chunks = chunks_touched(array, [box])
    if touched > limit or chunks > _MAX_CHUNKS_OF_SHAPE:
        return f"expected at most {limit} chunks, found {chunks} by its shape {list(array.shape)}"
    layout = array.chunk_layout
    most = max(math.prod(each.shape or ()) for each in (layout.read_chunk, layout.write_chunk))
    nbytes = most * int(array.dtype.numpy_dtype.itemsize)
    if nbytes > max(_nbytes(array), _SLAB_NBYTES) and not _fits_memory(nbytes):
        return f"a chunk of {nbytes} bytes does not fit into memory"
    return None


def _fits_memory(nbytes: int) -> bool:
    """Return whether so much memory can be had. TensorStore would end the process if not."""
    try:
        np.empty(nbytes, np.uint8)
    except (MemoryError, ValueError):
        return False
    return True


def _nbytes(array: Any) -> int:
    return int(array.size) * int(array.dtype.numpy_dtype.itemsize)


def read_box(array: Any, box: Box, output: np.ndarray, assign: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Read a box of an open array into an output, in slabs along its first axis."""
    for part, values in _slabs(array, box):
        start = part[0][0] - box[0][0] if box else 0
        assign(output[start : start + len(values)] if box else output, values)
        advance(values.nbytes)


def _slabs(array: Any, box: Box) -> Iterator[tuple[Box, np.ndarray]]:
    """Read a box of an array in parts along its first axis. Yield each part and its values, in C order."""
    excess = _excess_of_chunks(array, box, _MAX_CHUNKS_IN_PARTS)
    if excess is not None:
        raise StoreError(excess)
    if not box:
        yield box, np.asarray(_result_or_raise(array.read()))
        return
    if 0 in box_shape(box):
        return
    (low, high), *others = box
    row_nbytes = max(1, int(np.prod(box_shape(tuple(others)), dtype=np.int64)) * array.dtype.numpy_dtype.itemsize)
    rows = max(1, _SLAB_NBYTES // row_nbytes)
    chunk = array.chunk_layout.read_chunk.shape
    if chunk and rows > chunk[0]:
        rows -= rows % chunk[0]  # so that no chunk is read twice
    elif chunk:
        rows = chunk[0]
    begin = low
    while begin < high:
        end = min(high, begin - begin % rows + rows)
        part: Box = ((begin, end), *others)
        if not _fits_memory((end - begin) * row_nbytes):
            raise StoreError(f"{(end - begin) * row_nbytes} bytes of it do not fit into memory")
        yield part, np.asarray(_result_or_raise(array[box_index(part)].read(order="C")))
        begin = end


def chunks_touched(array: Any, boxes: Sequence[Box]) -> tuple[int, int]:
    """Return how often chunks would be read for some boxes, one after the other, and how many chunks there are."""
    chunk = array.chunk_layout.read_chunk.shape or tuple(array.shape)
    lengths = [max(1, each) for each in chunk]
    touched = sum(
        math.prod(-(-high // length) - low // length for (low, high), length in zip(box, lengths, strict=False))
        for box in boxes
    )
    return touched, math.prod(-(-size // length) for size, length in zip(array.shape, lengths, strict=False))


def read_boxes_with_checksum(
    array: Any, boxes: Sequence[Box], outputs: Sequence[np.ndarray], assign: Callable[[np.ndarray, np.ndarray], None]
) -> int:
    """Read boxes of an open array into outputs, and all of it for its checksum, which is returned."""
    hasher = ChecksumOfParts()
    whole = whole_box(tuple(array.shape))
    for part, values in _slabs(array, whole):
        hasher.update(values)
        advance(values.nbytes)
        for box, output in zip(boxes, outputs, strict=True):
            if not box:
                assign(output, values)
                continue
            low, high = max(part[0][0], box[0][0]), min(part[0][1], box[0][1])
            if low < high:
                inside = box_index(((low - part[0][0], high - part[0][0]), *box[1:]))
                assign(output[low - box[0][0] : high - box[0][0]], values[inside])
    return hasher.result
