"""The arrays of an Orbax checkpoint, through TensorStore."""

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.parallel import advance
from pytreesaver._tree.boxes import Box, box_index, box_shape
from pytreesaver.formats.orbax.layout import MANIFEST
from pytreesaver.formats.orbax.plain_tree import array_directory

_WINDOW_NBYTES = 256 << 20
"""The maximum number of bytes that are being read at a time."""

_ALIGNMENT = 64


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
        base = {"driver": "file", "path": f"{directory.absolute()}/"}
        self.is_ocdbt = filesystem.exists(directory / MANIFEST)
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
        spec = {"driver": "ocdbt", "base": base} if self.is_ocdbt else base
        self._store = ts.KvStore.open(spec, context=self._context).result()
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
        except Exception as error:  # TensorStore raises ValueError and others
            refused = as_os_error(error, self._directory)
            if refused is not None:
                raise refused from None
            raise CorruptCheckpointError(f"{self._directory}: the arrays cannot be listed: {error}") from None
        for key in listed:
            array, _, file = key.decode().rpartition("/")
            if file in (".zarray", "zarr.json"):
                found[array] = file == "zarr.json"
        return found

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


def _result(future: Any) -> Any:
    try:
        return future.result()
    except Exception as error:  # TensorStore raises ValueError and others
        return error


def as_os_error(error: Exception, path: Path) -> OSError | None:
    """Return what the system refused, if an error of TensorStore says so."""
    text = str(error)
    if text.startswith("PERMISSION_DENIED") or "PERMISSION_DENIED:" in text:
        return PermissionError(errno.EACCES, "Permission denied", str(path))
    return None


def read_arrays(arrays: Sequence[Any]) -> list[Any]:
    """Read open arrays, many at a time. Return each as a NumPy array, or the error."""
    results: list[Any] = []
    begin = 0
    while begin < len(arrays):
        end, nbytes = begin, 0
        while end < len(arrays) and (end == begin or nbytes + _nbytes(arrays[end]) <= _WINDOW_NBYTES):
            nbytes += _nbytes(arrays[end])
            end += 1
        results += _read_together(arrays[begin:end])
        advance(nbytes)
        begin = end
    return results


def _read_together(arrays: Sequence[Any]) -> list[Any]:
    import tensorstore as ts

    with ts.Batch() as batch:
        futures = [array.read(order="C", batch=batch) for array in arrays]
    return [_aligned(_result(future)) for future in futures]


def _aligned(values: Any) -> Any:
    """Return an array in aligned memory, which JAX uses without a copy."""
    if not isinstance(values, np.ndarray) or values.nbytes < 1 << 20 or values.ctypes.data % _ALIGNMENT == 0:
        return values
    memory = filesystem.new_memory(values.nbytes)
    memory[:] = values.reshape(-1).view(np.uint8)
    return memory.view(values.dtype).reshape(values.shape)


def _nbytes(array: Any) -> int:
    return int(array.size) * int(array.dtype.numpy_dtype.itemsize)


def read_box(array: Any, box: Box, output: np.ndarray, assign: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Read a box of an open array into an output, in slabs along its first axis."""
    if not box:
        assign(output, np.asarray(array.read().result()))
        return
    if 0 in box_shape(box):
        return
    (low, high), *others = box
    row_nbytes = max(1, int(np.prod(box_shape(tuple(others)), dtype=np.int64)) * array.dtype.numpy_dtype.itemsize)
    rows = max(1, (_WINDOW_NBYTES // 4) // row_nbytes)
    chunk = array.chunk_layout.read_chunk.shape
    if chunk and rows > chunk[0]:
        rows -= rows % chunk[0]  # so that no chunk is read twice
    elif chunk:
        rows = chunk[0]
    begin = low
    while begin < high:
        end = min(high, begin - begin % rows + rows)
        part: Box = ((begin, end), *others)
        values = np.asarray(array[box_index(part)].read(order="C").result())
        assign(output[begin - low : end - low], values)
        advance(values.nbytes)
        begin = end
