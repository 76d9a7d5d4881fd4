"""Looking into a checkpoint: its variables, one at a time or in part, and whether they are whole."""

import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from pytreesaver._boxes import box_shape
from pytreesaver._damage import value_of_bytes
from pytreesaver._errors import CorruptCheckpointError, VariableNotFoundError
from pytreesaver._indexing import bounding_box
from pytreesaver._leaf_types import describe, is_bytes_of_object, logical_shape, numpy_value, storage_dtype
from pytreesaver._measuring import histogram, measure
from pytreesaver._names import did_you_mean, shown
from pytreesaver._paths import PathLike, local_path, named_os_errors
from pytreesaver._progress import Progress, check_progress, reporting
from pytreesaver._records import decode_record
from pytreesaver._select import as_selection, selected_names
from pytreesaver._statistics import Statistics
from pytreesaver._type_tree import TypeNode, type_tree
from pytreesaver._values import NotPlainError, decode_value, dtype_from_name
from pytreesaver.formats import CheckpointReader, native


def open_reader(path: PathLike) -> CheckpointReader:
    """The reader of the format that the checkpoint at `path` has."""
    source = local_path(path)
    with named_os_errors("read", source):
        return native.open(source)


class Variable:
    """One variable of an open checkpoint: what it is, at once; its values, when they are asked for.

    Attributes:
        name: the variable name.
        shape: its shape.
        dtype: its NumPy dtype; ``object`` for a str, bytes, or an int of more than 64 bits; ``uint32`` for PRNG keys,
            whose values are their key data.
        nbytes: how many bytes it takes in the checkpoint.
        kind: what it was saved from: ``"jax"``, ``"key"``, ``"numpy"``, ``"numpy_scalar"``, ``"int"``, ``"str"``, ...
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
        as_object = is_bytes_of_object(leaf_type)
        self.dtype: np.dtype[Any] = np.dtype(object) if as_object else dtype_from_name(leaf_type.dtype)
        self.shape: tuple[int, ...] = () if as_object else stored_shape

    @property
    def type(self) -> str:
        """What it is, as it stands in messages: ``"float32[784,512]"``, ``"key<fry>[8]"``, ``"str"``."""
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
            raise TypeError(f"{shown(self.name)} is a scalar and has no length")
        return self.shape[0]

    def read(self) -> np.ndarray:
        """All values, checked against their checksums, in a new NumPy array.

        Raises:
            CorruptCheckpointError: the bytes are damaged.
        """
        with named_os_errors("read", self._reader.path):
            (array,) = self._reader.read([self._position], verify=True)
        if self.dtype != object:
            return numpy_value(array, self._leaf_type)
        value = np.empty((), object)
        value[()] = value_of_bytes(self._reader, self._position, array)
        return value

    def __getitem__(self, index: Any) -> np.ndarray:
        """Some values, as NumPy's indexing with integers, slices and ``...`` gives them, in a new array.

        Little more than their bytes is read: it is rounded up to the blocks of 1 MiB that have a checksum, and only
        steps of 1 MiB and more are stepped over.

        Example:
            >>> path = pytreesaver.save({"embed": np.arange(12).reshape(6, 2)}, "embedding")
            >>> load_checkpoint(path)["embed"][1:3]
            array([[2, 3],
                   [4, 5]])
        """
        box, inner = bounding_box(index, self.shape, self.name)
        if self.dtype == object:
            return self.read()
        with named_os_errors("read", self._reader.path):
            part = self._read_box(box, [part.step if isinstance(part, slice) else None for part in inner])
        values = numpy_value(part, self._leaf_type)[(*inner, ...)]
        return values if values.nbytes * 2 > part.nbytes else values.copy()  # the box is not kept for a few values

    def _read_box(self, box: list[tuple[int, int]], steps: list[int | None]) -> np.ndarray:
        """A box of the stored array. What long steps pass over is not read: it is whatever was in memory."""
        itemsize = self.dtype.itemsize
        for axis, ((low, high), step) in enumerate(zip(box, steps, strict=True)):
            stride = math.prod(self.shape[axis + 1 :]) * itemsize
            if step is None or abs(step) * stride < _LONG_STEP_NBYTES or high - low < 2:
                continue
            whole = np.empty([b - a for a, b in box], storage_dtype(self._leaf_type))
            for i in range(low, high)[:: abs(step)]:
                single = [*box[:axis], (i, i + 1), *box[axis + 1 :]]
                into = (*[slice(None)] * axis, slice(i - low, i - low + 1))
                whole[into] = self._read_box(single, steps)
            return whole
        part = np.empty(box_shape(tuple(box)), storage_dtype(self._leaf_type))
        self._reader.read_boxes(self._position, [tuple(box)], [part], verify=True)
        return part

    def statistics(self) -> Statistics:
        """What its elements are like: extremes, mean, NaN, ...; read in bounded memory.

        Raises:
            CorruptCheckpointError: the bytes are damaged.

        Example:
            >>> path = pytreesaver.save({"w": np.array([1.0, 2.0, np.nan])}, "measured-variable")
            >>> statistics = load_checkpoint(path)["w"].statistics()
            >>> statistics.nan, statistics.mean, statistics.max
            (1, 1.5, 2.0)
        """
        with named_os_errors("read", self._reader.path):
            return measure(self._reader, [self._position])[0]

    def histogram(self, bins: int = 20, range: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """How its finite elements lie between the smallest and the largest: counts int64[bins] and edges
        float64[bins + 1], as `numpy.histogram` gives them; read in bounded memory.

        Args:
            bins: how many intervals there are.
            range: the first and the last edge, in place of the smallest and the largest element. What lies outside is
                not counted, and the values are read once and not twice.

        Raises:
            ValueError: it has no finite real numbers, `bins` is less than 1, or `range` does not rise.
            CorruptCheckpointError: the bytes are damaged.

        Example:
            >>> path = pytreesaver.save({"w": np.array([0.0, 1.0, 1.0, 4.0])}, "counted-variable")
            >>> load_checkpoint(path)["w"].histogram(2)
            (array([3, 1]), array([0., 2., 4.]))
        """
        if bins < 1:
            raise ValueError(f"bins: expected a positive number, found {bins!r}")
        if range is not None and not (math.isfinite(range[0]) and math.isfinite(range[1]) and range[0] <= range[1]):
            raise ValueError(f"range: expected two finite numbers that rise, found {range!r}")
        with named_os_errors("read", self._reader.path):
            return histogram(self._reader, self._position, bins, range)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{shown(self.name)} lies in a file: it cannot become an array without a copy")
        array = self.read()
        return array if dtype is None else array.astype(dtype)

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle or copy a Variable of an open Checkpoint; read() it, or pass the path on")

    def __repr__(self) -> str:
        return f"<Variable {shown(self.name)}: {self.type}, {self.nbytes} bytes>"


_LONG_STEP_NBYTES = 1 << 20  # a step over fewer bytes costs more than reading them


class Checkpoint(Mapping[str, Variable]):
    """An open checkpoint: a read-only mapping from variable names to `Variable`, in the order of the tree's leaves.

    Attributes:
        path: where it is.
        format: in which format it lies on disk.
        version: of which version of that format it is.
        metadata: what was given to `save`, as it was given.
        step: the step that a `Saver` or `CheckpointManager` saved it for, or None.
        time: when they saved it, in seconds since the epoch, or None.
        metrics: the metrics that were given to the manager.

    Use it in a ``with`` statement, or call `close` when done.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        self._positions = {name: i for i, name in enumerate(reader.names)}
        self.path = reader.path
        self.format = reader.format_name
        self.version = reader.format_version
        try:
            self.metadata: dict[str, Any] = decode_value(reader.metadata)
        except NotPlainError as error:
            raise CorruptCheckpointError(f"{reader.path}: metadata: {error}") from error
        record = decode_record(reader.record, reader.path)
        self.step = record.step
        self.time = record.time
        self.metrics = dict(record.metrics)

    def __getitem__(self, name: str) -> Variable:
        if name not in self._positions:
            raise VariableNotFoundError(
                f"{self.path} has no variable {name!r}{did_you_mean(str(name), list(self._positions))}"
            )
        return Variable(self._reader, self._positions[name])

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def get(self, name: str, default: Any = None) -> Any:
        """The variable of that name, or `default`."""
        return self[name] if name in self._positions else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def nbytes(self) -> int:
        """How many bytes the values of all variables have."""
        return sum(self._reader.nbytes)

    def type_tree(self) -> TypeNode:
        """The structure of the saved tree, for people: its containers and leaves by their types.

        Raises:
            CorruptCheckpointError: the structure makes no sense.

        Example:
            >>> print(load_checkpoint(pytreesaver.save({"opt": (None, 1), "w": np.zeros(2)}, "typed")).type_tree())
            dict
            ├─ opt: tuple
            │  ├─ 0: None
            │  └─ 1: int
            └─ w: float64[2]
        """
        variables = list(self.values())
        try:
            return type_tree(self._reader.structure, lambda leaf: variables[leaf].type)
        except (NotPlainError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise CorruptCheckpointError(f"{self.path}: its structure is malformed: {error!r}") from error

    def check(self) -> None:
        """Make sure that every file of the checkpoint is there and has its size. Takes no longer than opening it.

        Raises:
            CorruptCheckpointError: naming every file and variable that is not whole.
        """
        with named_os_errors("read", self.path):
            self._reader.check()

    def verify(self, *, progress: Progress = False) -> None:
        """Read every byte of the checkpoint, in bounded memory. `progress` is as in `pytreesaver.save`.

        Raises:
            CorruptCheckpointError: naming every damaged variable.
        """
        check_progress(progress)
        with named_os_errors("read", self.path), reporting(progress, f"verifying {self.path}", self.nbytes):
            self._reader.verify()

    def statistics(self, only: Any = None, *, progress: Progress = False) -> dict[str, Statistics]:
        """What the elements of each variable are like: extremes, mean, NaN, ...; read in bounded memory.

        Args:
            only: which variables, as in `pytreesaver.restore`.
            progress: as in `pytreesaver.save`.

        Raises:
            VariableNotFoundError: `only` selects nothing.
            CorruptCheckpointError: naming every damaged variable.

        Example:
            >>> path = pytreesaver.save({"w": np.ones(3), "b": np.array([1.0, np.inf])}, "measured")
            >>> {name: each.inf for name, each in load_checkpoint(path).statistics().items()}
            {'b': 1, 'w': 0}
        """
        check_progress(progress)
        names = list(self._positions)
        if only is not None:
            names = selected_names(as_selection(only), names, str(self.path))
        positions = [self._positions[name] for name in names]
        nbytes = sum(self._reader.nbytes[i] for i in positions)
        with named_os_errors("read", self.path), reporting(progress, f"measuring {self.path}", nbytes):
            return dict(zip(names, measure(self._reader, positions), strict=True))

    def close(self) -> None:
        """Close the files. Arrays that were read stay as they are."""
        self._reader.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle or copy an open Checkpoint; pass its path on and open it there")

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path}: {len(self)} variables>"

    def _repr_html_(self) -> str:
        """For notebooks: what it is, and its variables as a tree to unfold; drawn by Treescope where that is there."""
        from pytreesaver._notebook import checkpoint_html

        variables = list(self.values())
        facts = {
            "step": "" if self.step is None else str(self.step),
            "variables": f"{len(self):,}",
            "params": f"{sum(each.size for each in variables):,}",
            "bytes": f"{self.nbytes:,}",
            "format": f"{self.format}, version {self.version}",
        }
        facts |= {f"metrics/{name}": str(value) for name, value in self.metrics.items()}
        facts |= {f"metadata/{name}": repr(value) for name, value in self.metadata.items()}
        return checkpoint_html(
            str(self.path),
            {name: value for name, value in facts.items() if value},
            variables,
        )


def load_checkpoint(path: PathLike) -> Checkpoint:
    """Open a checkpoint to look into it. No array is read until it is asked for.

    Raises:
        CheckpointNotFoundError: there is no complete checkpoint at `path`.
        CorruptCheckpointError: its index is damaged.
        UnsupportedVersionError: a newer pytreesaver wrote it.

    Example:
        >>> path = pytreesaver.save({"dense": {"kernel": np.zeros((784, 10), np.float32)}}, "classifier")
        >>> with load_checkpoint(path) as checkpoint:
        ...     checkpoint["dense/kernel"].shape, checkpoint["dense/kernel"].read().sum()
        ((784, 10), np.float32(0.0))
    """
    reader = open_reader(path)
    try:
        with named_os_errors("read", reader.path):
            return Checkpoint(reader)
    except BaseException:
        reader.close()
        raise


def list_variables(path: PathLike) -> list[tuple[str, tuple[int, ...]]]:
    """The (name, shape) of every variable, sorted by name. After `tf.train.list_variables`.

    Raises:
        What `load_checkpoint` raises.

    Example:
        >>> list_variables(pytreesaver.save({"w": np.zeros((2, 3)), "b": np.zeros(3)}, "layer"))
        [('b', (3,)), ('w', (2, 3))]
    """
    with load_checkpoint(path) as checkpoint:
        return sorted((name, variable.shape) for name, variable in checkpoint.items())


def load_variable(path: PathLike, name: str) -> np.ndarray:
    """The values of one variable as a NumPy array. After `tf.train.load_variable`.

    A str, bytes, or an int of more than 64 bits comes in a 0-d array of dtype object.

    Raises:
        VariableNotFoundError: there is none of that name; the message has similar ones.
        What `load_checkpoint` raises.

    Example:
        >>> load_variable(pytreesaver.save({"w": np.arange(3)}, "vector"), "w")
        array([0, 1, 2])
    """
    with load_checkpoint(path) as checkpoint:
        return checkpoint[name].read()


def verify(path: PathLike, *, progress: Progress = False) -> None:
    """Read every byte of a checkpoint and compare it with its checksums, in bounded memory.

    Args:
        path: the checkpoint.
        progress: as in `pytreesaver.save`.

    Raises:
        CorruptCheckpointError: its attribute `damaged` and its message name every damaged variable.
        What `load_checkpoint` raises.

    Example:
        >>> verify(pytreesaver.save({"w": np.arange(3)}, "verified"))
    """
    with load_checkpoint(path) as checkpoint:
        checkpoint.verify(progress=progress)
