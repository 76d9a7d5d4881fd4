"""Variables of an open checkpoint: their properties, and reading their values in full or in part."""

import math
from typing import Any, NoReturn

import numpy as np

from pytreesaver._inspect.measuring import histogram, measure
from pytreesaver._inspect.statistics import Statistics
from pytreesaver._io.paths import wrap_os_errors
from pytreesaver._text import quoted
from pytreesaver._tree.boxes import box_shape
from pytreesaver._tree.kinds import (
    describe,
    dtype_from_name,
    is_stored_as_bytes,
    logical_shape,
    numpy_value,
    storage_dtype,
)
from pytreesaver.formats.damage import value_of_bytes
from pytreesaver.formats.protocol import CheckpointReader


def bounding_box(
    index: Any, shape: tuple[int, ...], name: str
) -> tuple[list[tuple[int, int]], tuple[slice | int, ...]]:
    """Return the smallest box that contains the elements of a basic index, and the index into that box.

    Raises:
        IndexError: if the index is out of bounds, or not a basic index. The message starts with `name`.

    Example:
        >>> bounding_box((slice(6, 2, -2), -1), (10, 4), "w")
        ([(4, 7), (3, 4)], (slice(None, None, -2), 0))
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if sum(part is ... for part in parts) > 1:
        raise IndexError(f"{quoted(name)}: expected at most one ... in an index, found several")
    parts = [part if isinstance(part, slice) or part is ... else _as_int(part, name) for part in parts]
    given = sum(part is not ... for part in parts)
    if given > len(shape):
        raise IndexError(f"{quoted(name)}: expected at most {len(shape)} indices for shape {shape}, found {given}")
    fill: list[Any] = [slice(None)] * (len(shape) - given)
    at = next((i for i, part in enumerate(parts) if part is ...), None)
    parts = parts + fill if at is None else parts[:at] + fill + parts[at + 1 :]
    box: list[tuple[int, int]] = []
    inner: list[slice | int] = []
    for axis, (part, length) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            wanted = range(*part.indices(length))
            low, high = (min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]) + 1) if wanted else (0, 0)
            inner.append(slice(None, None, wanted.step) if wanted else slice(None))
        else:
            if not -length <= part < length:
                raise IndexError(f"{quoted(name)}: index {part} is out of bounds for axis {axis} of length {length}")
            low, high = part % length, part % length + 1
            inner.append(0)
        box.append((low, high))
    return box, tuple(inner)


def _as_int(part: Any, name: str) -> int:
    if isinstance(part, bool | np.bool_) or not hasattr(part, "__index__"):
        raise IndexError(f"{quoted(name)}: expected an index of integers, slices and ..., found {part!r}; {_ANY_INDEX}")
    try:
        return int(part.__index__())
    except TypeError:
        raise IndexError(f"{quoted(name)}: expected integers, slices and ..., found {part!r}; {_ANY_INDEX}") from None


_ANY_INDEX = "read() returns an array that supports any index"


class Variable:
    """A variable of an open checkpoint. Its values are read on request.

    Attributes:
        name: the variable name.
        shape: its shape.
        dtype: its NumPy dtype; ``object`` for a str, a bytes object or an int of more than 64 bits; ``uint32`` for PRNG
            keys, whose values are their key data.
        nbytes: its size in the checkpoint, in bytes.
        kind: the kind of saved leaf: ``"jax"``, ``"key"``, ``"numpy"``, ``"numpy_scalar"``, ``"int"``, ``"str"``, ...
    """

    __slots__ = ("_leaf_type", "_position", "_reader", "dtype", "kind", "name", "nbytes", "shape")

    def __init__(self, reader: CheckpointReader, position: int) -> None:
        self._reader = reader
        self._position = position
        self._leaf_type = leaf_type = reader.types[position]
        stored_shape = reader.shapes[position]
        self.name: str = reader.names[position]
        self.kind: str = leaf_type.kind
        self.nbytes: int = reader.nbytes[position]
        as_object = is_stored_as_bytes(leaf_type)
        self.dtype: np.dtype[Any] = np.dtype(object) if as_object else dtype_from_name(leaf_type.dtype)
        self.shape: tuple[int, ...] = () if as_object else stored_shape

    @property
    def type(self) -> str:
        """The type as it appears in messages: ``"float32[784,512]"``, ``"key<fry>[8]"``, ``"str"``."""
        return describe(self._leaf_type, logical_shape(self._leaf_type, self._reader.shapes[self._position]))

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"{quoted(self.name)} is a scalar and has no length")
        return self.shape[0]

    def read(self) -> np.ndarray:
        """Read all values into a new NumPy array, and verify their checksums.

        Raises:
            CorruptCheckpointError: if the stored bytes are damaged.
        """
        with wrap_os_errors("read", self._reader.path):
            (array,) = self._reader.read([self._position], verify=True)
        if self.dtype != object:
            return numpy_value(array, self._leaf_type)
        value = np.empty((), object)
        value[()] = value_of_bytes(self._reader, self._position, array)
        return value

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read the values at a NumPy index of integers, slices and ``...`` into a new array, and verify them.

        Reads complete blocks of 1 MiB, the unit of the checksums, so little more than the selected bytes. A slice step
        skips data only if it spans at least 1 MiB.

        Example:
            >>> path = pytreesaver.save({"embed": np.arange(12).reshape(6, 2)}, "embedding")
            >>> pytreesaver.load_checkpoint(path)["embed"][1:3]
            array([[2, 3],
                   [4, 5]])
        """
        box, inner = bounding_box(index, self.shape, self.name)
        if self.dtype == object:
            return self.read()
        with wrap_os_errors("read", self._reader.path):
            part = self._read_box(box, [part.step if isinstance(part, slice) else None for part in inner])
        values = numpy_value(part, self._leaf_type)[(*inner, ...)]
        return values if values.nbytes * 2 > part.nbytes else values.copy()  # a view would keep the box in memory

    def _read_box(self, box: list[tuple[int, int]], steps: list[int | None]) -> np.ndarray:
        """Read a box of the stored array. Elements that long steps skip are left uninitialized."""
        itemsize = self.dtype.itemsize
        for axis, ((low, high), step) in enumerate(zip(box, steps, strict=True)):
            stride = math.prod(self.shape[axis + 1 :]) * itemsize
            if step is None or abs(step) * stride < _LONG_STEP_NBYTES or high - low < 2:
                continue
            result = np.empty([b - a for a, b in box], storage_dtype(self._leaf_type))
            for i in range(low, high)[:: abs(step)]:
                single = [*box[:axis], (i, i + 1), *box[axis + 1 :]]
                into = (*[slice(None)] * axis, slice(i - low, i - low + 1))
                result[into] = self._read_box(single, steps)
            return result
        part = np.empty(box_shape(tuple(box)), storage_dtype(self._leaf_type))
        self._reader.read_boxes(self._position, [tuple(box)], [part], verify=True)
        return part

    def statistics(self) -> Statistics:
        """Return statistics of the elements, such as extremes, mean and NaN count, computed in bounded memory.

        Raises:
            CorruptCheckpointError: if the stored bytes are damaged.

        Example:
            >>> path = pytreesaver.save({"w": np.array([1.0, 2.0, np.nan])}, "measured-variable")
            >>> statistics = pytreesaver.load_checkpoint(path)["w"].statistics()
            >>> statistics.nan, statistics.mean, statistics.max
            (1, 1.5, 2.0)
        """
        with wrap_os_errors("read", self._reader.path):
            return measure(self._reader, [self._position])[0]

    def histogram(self, bins: int = 20, range: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return a histogram of the finite elements, like `numpy.histogram`, computed in bounded memory.

        Args:
            bins: the number of intervals.
            range: the first and the last edge; by default the smallest and the largest finite element. Elements outside
                are not counted. With a range, the values are read once instead of twice.

        Returns:
            The counts, int64[bins], and the edges, float64[bins + 1].

        Raises:
            ValueError: if there are no finite real numbers, `bins` is less than 1, or `range` is invalid.
            CorruptCheckpointError: if the stored bytes are damaged.

        Example:
            >>> path = pytreesaver.save({"w": np.array([0.0, 1.0, 1.0, 4.0])}, "counted-variable")
            >>> pytreesaver.load_checkpoint(path)["w"].histogram(2)
            (array([3, 1]), array([0., 2., 4.]))
        """
        if bins < 1:
            raise ValueError(f"bins: expected a positive number, found {bins!r}")
        if range is not None and not (math.isfinite(range[0]) and math.isfinite(range[1]) and range[0] <= range[1]):
            raise ValueError(f"range: expected two finite numbers in ascending order, found {range!r}")
        with wrap_os_errors("read", self._reader.path):
            return histogram(self._reader, self._position, bins, range)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{quoted(self.name)} is stored in a file and cannot become an array without a copy")
        array = self.read()
        return array if dtype is None else array.astype(dtype)

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle or copy a Variable of an open Checkpoint; call read(), or pass the path")

    def __repr__(self) -> str:
        return f"<Variable {quoted(self.name)}: {self.type}, {self.nbytes} bytes>"


_LONG_STEP_NBYTES = 1 << 20  # skipping fewer bytes is slower than reading them
