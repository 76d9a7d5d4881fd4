"""Loading of whole tensors: of strings, of numbers of the other byte order, and of slices that form no grid."""

import math
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CorruptCheckpointError, UnsupportedLeafError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.crc32c import crc32c, masked
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver._text import quoted
from pytreesaver._tree.boxes import box_index, box_shape
from pytreesaver._tree.kinds import LeafType, dtype_from_name, storage_dtype, stored_array
from pytreesaver.formats.tensorflow.bundle import Tensor, covers
from pytreesaver.formats.tensorflow.messages import STRING, VARIANT_NAMES, Entry, name_of_dtype
from pytreesaver.formats.tensorflow.strings import decode_strings
from pytreesaver.formats.tensorflow.table import DamagedTableError


class DataFiles:
    """The data files of a checkpoint, opened when they are read first.

    Args:
        path: the checkpoint.
        paths: the files, by shard.
        is_big_endian: whether they were written on a machine of that byte order.
    """

    def __init__(self, path: Path, paths: Sequence[Path], is_big_endian: bool) -> None:
        self.path = path
        self.paths = paths
        self.is_big_endian = is_big_endian
        self._descriptors: dict[int, int] = {}
        self._finalizer = weakref.finalize(self, _release_all, self._descriptors)

    def open(self, shard: int) -> int | None:
        """Open a file, so that it can be read even if another program replaces it. Return None if it does not exist."""
        if shard not in self._descriptors:
            try:
                self._descriptors[shard] = filesystem.open_existing(self.paths[shard])
            except OSError as error:
                if not filesystem.is_absence(error):
                    raise
        return self._descriptors.get(shard)

    def read(self, entry: Entry) -> np.ndarray:
        """Return the bytes of an entry as a uint8[n]. Raises a DamagedTableError if there are fewer."""
        file = self.paths[entry.shard]
        descriptor = self.open(entry.shard)
        if descriptor is None:
            raise DamagedTableError(f"no data file {file}")
        size = filesystem.file_size(descriptor)
        if entry.offset + entry.nbytes > size:
            raise DamagedTableError(f"{file} of {size} bytes, expected {entry.offset + entry.nbytes}")
        memory = filesystem.new_memory(entry.nbytes)
        try:
            read_fully(descriptor, memory, entry.offset)
        except EndOfFileError:
            raise DamagedTableError(f"{file}, which became shorter") from None
        return memory

    def close(self) -> None:
        """Close the files."""
        self._finalizer()


def _release_all(descriptors: dict[int, int]) -> None:
    while descriptors:
        filesystem.release(descriptors.popitem()[1])


def strings_of(data: DataFiles, tensor: Tensor) -> list[bytes]:
    """Return the strings of a tensor. Raises a DamagedTableError if it is damaged."""
    if len(tensor.parts) == 1:
        return _strings(data, tensor.parts[0][1])
    whole = np.empty(tensor.shape, object)
    _check_covered(tensor)
    for box, entry in tensor.parts:
        part = np.empty(math.prod(box_shape(box)), object)
        part[:] = _strings(data, entry)
        whole[box_index(box)] = part.reshape(box_shape(box))
    strings: list[bytes] = whole.reshape(-1).tolist()
    return strings


def unusable(dtype: int) -> str:
    """Return why a tensor of a dtype cannot be read."""
    name = VARIANT_NAMES.get(dtype, f"number {dtype}")
    return f"a tensor of the dtype {name}, which only TensorFlow can use"


def _strings(data: DataFiles, entry: Entry) -> list[bytes]:
    content = data.read(entry).tobytes()
    return decode_strings(content, math.prod(entry.shape), entry.checksum, is_big_endian=data.is_big_endian)


def load_tensor(
    data: DataFiles,
    key: str,
    tensor: Tensor,
    leaf_type: LeafType,
    shape: tuple[int, ...],
    element: tuple[int, Callable[[], list[bytes]]] | None,
) -> np.ndarray:
    """Return a variable as a stored array, verified.

    Args:
        data: the data files.
        key: the key of its tensor.
        tensor: its tensor.
        leaf_type: its type.
        shape: its stored shape.
        element: the number of the string that it is in the tensor, and a function that returns all; None for all.

    Raises:
        CorruptCheckpointError: if it is damaged.
        UnsupportedLeafError: if only TensorFlow can use it.
    """
    try:
        if tensor.dtype == STRING:
            if element is None:
                return _array_of(strings_of(data, tensor), leaf_type, shape)
            number, all_strings = element
            return _array_of(all_strings()[number : number + 1], leaf_type, shape)
        name = name_of_dtype(tensor.dtype)
        if name is None:
            raise UnsupportedLeafError(f"{data.path}: {quoted(key)}: {unusable(tensor.dtype)}; leave it out with only=")
        return _numbers(data, tensor, dtype_from_name(name), leaf_type, shape)
    except DamagedTableError as error:
        raise CorruptCheckpointError(f"{data.path}: {quoted(key)}: expected a tensor, found {error}") from None


def _numbers(
    data: DataFiles, tensor: Tensor, dtype: np.dtype[Any], leaf_type: LeafType, shape: tuple[int, ...]
) -> np.ndarray:
    _check_covered(tensor)
    whole = filesystem.new_memory(math.prod(tensor.shape) * dtype.itemsize).view(dtype).reshape(tensor.shape)
    for box, entry in tensor.parts:
        content = data.read(entry)
        if masked(crc32c(content)) != entry.checksum:
            raise DamagedTableError("a checksum that does not match")
        whole[box_index(box)] = content.view(dtype).reshape(box_shape(box))
    if data.is_big_endian:
        whole = whole.byteswap(inplace=True)
    return stored_array(whole.reshape(-1).view(np.uint8), leaf_type, shape)


def _check_covered(tensor: Tensor) -> None:
    if not covers([box for box, _ in tensor.parts], tensor.shape):
        raise DamagedTableError("slices that do not cover it")


def _array_of(strings: Sequence[bytes], leaf_type: LeafType, shape: tuple[int, ...]) -> np.ndarray:
    """Return strings as the stored array of a str, of bytes, of a large int, or of an array of NumPy strings."""
    dtype = storage_dtype(leaf_type)
    if leaf_type.kind not in ("numpy", "numpy_scalar"):
        if len(strings) != 1:
            raise DamagedTableError(f"{len(strings)} strings, expected one")
        content = np.frombuffer(strings[0], np.uint8)
        if content.shape != shape:
            raise DamagedTableError(f"{content.size} bytes, expected {list(shape)}")
        return content.copy()
    most = max(map(len, strings), default=0)
    if dtype.kind == "S":
        if most > dtype.itemsize or len(strings) != math.prod(shape):
            raise DamagedTableError(f"strings of up to {most} bytes, expected {dtype.itemsize}")
        return np.array(strings, dtype).reshape(shape) if dtype.itemsize else np.ndarray(shape, dtype)
    try:
        texts = [string.decode("utf-8", "surrogatepass") for string in strings]
    except UnicodeDecodeError as error:
        raise DamagedTableError(f"strings that are not UTF-8 ({error})") from None
    if max(map(len, texts), default=0) > dtype.itemsize // 4 or len(texts) != math.prod(shape):
        raise DamagedTableError(f"strings that are longer than {dtype.itemsize // 4}")
    return np.array(texts, dtype).reshape(shape) if dtype.itemsize else np.ndarray(shape, dtype)
