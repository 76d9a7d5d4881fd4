"""Compare two checkpoints variable by variable, in bounded memory."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pytreesaver._inspect.checkpoint import Checkpoint
from pytreesaver._io.paths import PathLike, wrap_os_errors
from pytreesaver._progress import Progress, check_progress, reporting
from pytreesaver._run.directory import open_checkpoint
from pytreesaver._text import quoted
from pytreesaver._tree.boxes import Box, box_shape, split_box, whole_box
from pytreesaver._tree.kinds import (
    PYTHON_KINDS,
    describe,
    describe_dtype,
    is_castable,
    logical_shape,
    storage_dtype,
)
from pytreesaver._tree.names.select import Selection, as_selection, selected_names
from pytreesaver.formats.damage import value_of_bytes
from pytreesaver.formats.protocol import CheckpointReader


@dataclass(frozen=True)
class VariableChange:
    """The difference between two variables of the same name. Pairs are (first, second).

    Attributes:
        name: the name of the variable.
        shape: both shapes.
        dtype: both dtypes as they appear in messages, such as ``"float32"``, ``"int"`` or ``"key<fry>"``.
        differing: the number of elements that differ, compared bit by bit, or by value if the dtypes differ; None if
            the elements cannot be compared, for example because the shapes differ.
        max_abs_difference: the largest \\|first - second\\| over the elements that are NaN in neither; None if there
            are no such elements, or if the variables are not numeric arrays of the same shape.
        mean_abs_difference: the mean of \\|first - second\\| over the same elements.
        nan_count: the number of NaN elements in each.
        values: both values if they are Python values, otherwise None.
    """

    name: str
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: tuple[str, str]
    differing: int | None = None
    max_abs_difference: float | None = None
    mean_abs_difference: float | None = None
    nan_count: tuple[int, int] = (0, 0)
    values: tuple[Any, Any] | None = None

    def __str__(self) -> str:
        return _change_text(self)


@dataclass(frozen=True)
class Diff:
    """The differences between two checkpoints. It is true in a boolean context if there are any.

    Attributes:
        first: the path of the first checkpoint.
        second: the path of the second checkpoint.
        added: the names of variables that only the second has.
        removed: the names of variables that only the first has.
        changed: the changes of variables that differ in shape, dtype or any bit of their values, by name.
        equal: the names of all other variables.
    """

    first: str
    second: str
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: dict[str, VariableChange] = field(default_factory=dict)
    equal: list[str] = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict, repr=False)
    """The types of the added and removed variables by name, such as ``"float32[2,3]"``."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __repr__(self) -> str:
        counts = f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed"
        lines = [f"<Diff {self.first} -> {self.second}: {counts}, {len(self.equal)} equal>"]
        lines += _truncated([f"  + {quoted(name)}: {self.descriptions[name]}" for name in self.added])
        lines += _truncated([f"  - {quoted(name)}: {self.descriptions[name]}" for name in self.removed])
        lines += _truncated([f"  ~ {quoted(name)}: {change}" for name, change in self.changed.items()])
        return "\n".join(lines)


_MAX_LINES = 100


def _truncated(lines: Sequence[str]) -> list[str]:
    if len(lines) <= _MAX_LINES:
        return list(lines)
    return [*lines[:_MAX_LINES], f"  ... and {len(lines) - _MAX_LINES} more"]


def _change_text(change: VariableChange) -> str:
    if change.values is not None:
        first, second = (_short_repr(value) for value in change.values)
        return f"{change.dtype[0]} {first} -> {change.dtype[1] + ' ' if len(set(change.dtype)) == 2 else ''}{second}"
    types = [
        dtype if dtype in PYTHON_KINDS and not shape else f"{dtype}[{','.join(map(str, shape))}]"
        for dtype, shape in zip(change.dtype, change.shape, strict=True)
    ]
    parts = [" -> ".join(dict.fromkeys(types))]
    if change.differing is not None:
        size = int(np.prod(change.shape[0], dtype=np.int64))
        parts.append(f"{change.differing} of {size} element{'s' * (size != 1)} differ{'s' * (size == 1)}")
    if change.max_abs_difference is not None:
        parts.append(f"max |a-b| {change.max_abs_difference:.3g}, mean {change.mean_abs_difference:.3g}")
    if any(change.nan_count):
        parts.append(f"NaN {change.nan_count[0]} -> {change.nan_count[1]}")
    return ", ".join(parts)


def _short_repr(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else f"of {value.bit_length()} bits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def diff(
    first: PathLike | Checkpoint,
    second: PathLike | Checkpoint,
    *,
    only: Selection | None = None,
    progress: Progress = False,
) -> Diff:
    """Compare the variables of two checkpoints, matched by name.

    Values are compared bit by bit: 0.0 and -0.0 differ, and a NaN equals a NaN with the same bits. Variables with
    equal checksums are not read. JAX and NumPy arrays of the same dtype, shape and values are equal.

    Args:
        first: a path or an open `Checkpoint`.
        second: a path or an open `Checkpoint`.
        only: the variables to compare, selected as in `pytreesaver.restore`.
        progress: as in `pytreesaver.save`.

    Raises:
        VariableNotFoundError: if `only` selects nothing in either checkpoint.
        CorruptCheckpointError: if data that must be read is damaged, or if a file is missing or has the wrong size.
        The errors of `load_checkpoint`.

    Example:
        >>> a = pytreesaver.save({"w": np.array([1.0, 2.0]), "b": np.zeros(3), "step": 1}, "a")
        >>> b = pytreesaver.save({"w": np.array([1.0, 2.5]), "b": np.zeros(3), "head": 0.5, "step": 2}, "b")
        >>> diff(a, b)
        <Diff a -> b: 1 added, 0 removed, 2 changed, 1 equal>
          + head: float
          ~ step: int 1 -> 2
          ~ w: float64[2], 1 of 2 elements differ, max |a-b| 0.5, mean 0.25
        >>> bool(diff(a, a))
        False
    """
    check_progress(progress)
    with _open_reader(first) as one, _open_reader(second) as other:
        one.check()
        other.check()
        names = list(dict.fromkeys([*one.names, *other.names]))
        if only is not None:
            names = selected_names(as_selection(only), names, f"{one.path} and {other.path}")
        of_one, of_other = ({name: i for i, name in enumerate(reader.names)} for reader in (one, other))
        result = Diff(str(one.path), str(other.path))
        pairs: dict[str, tuple[int, int]] = {}
        for name in names:
            if name not in of_other:
                result.removed.append(name)
                result.descriptions[name] = _description(one, of_one[name])
            elif name not in of_one:
                result.added.append(name)
                result.descriptions[name] = _description(other, of_other[name])
            else:
                pairs[name] = of_one[name], of_other[name]
        nbytes = sum(
            one.nbytes[i] + other.nbytes[j] for i, j in pairs.values() if not _has_same_checksums(one, i, other, j)
        )
        with reporting(progress, f"comparing {one.path} with {other.path}", nbytes):
            for name, (i, j) in pairs.items():
                change = _compare(name, one, i, other, j)
                if change is None:
                    result.equal.append(name)
                else:
                    result.changed[name] = change
    return result


@contextmanager
def _open_reader(given: PathLike | Checkpoint) -> Iterator[CheckpointReader]:
    reader = given._reader if isinstance(given, Checkpoint) else open_checkpoint(given)
    try:
        with wrap_os_errors("read", reader.path):
            yield reader
    finally:
        if not isinstance(given, Checkpoint):
            reader.close()


def _description(reader: CheckpointReader, position: int) -> str:
    return describe(reader.types[position], logical_shape(reader.types[position], reader.shapes[position]))


def _compare(name: str, one: CheckpointReader, i: int, other: CheckpointReader, j: int) -> VariableChange | None:
    types = one.types[i], other.types[j]
    shapes = one.shapes[i], other.shapes[j]
    is_python = [leaf_type.kind in PYTHON_KINDS for leaf_type in types]
    dtypes = describe_dtype(types[0]), describe_dtype(types[1])
    change = VariableChange(name, (logical_shape(types[0], shapes[0]), logical_shape(types[1], shapes[1])), dtypes)
    if _has_same_checksums(one, i, other, j):
        return None
    same = dtypes[0] == dtypes[1] and shapes[0] == shapes[1]
    if all(is_python):
        values = [value_of_bytes(reader, k, reader.read([k], verify=True)[0]) for reader, k in ((one, i), (other, j))]
        return None if _is_same_value(*values) else replace(change, values=(values[0], values[1]))
    is_number = is_castable(*types)
    if any(is_python) or shapes[0] != shapes[1] or (dtypes[0] != dtypes[1] and not is_number):
        return change
    differences = _DifferenceStatistics(is_number=is_number)
    max_elements = _PART_NBYTES // max(_element_nbytes(one, i), _element_nbytes(other, j), 1)
    for box in split_box(whole_box(change.shape[0]), max_elements):
        differences.add(_read_part(one, i, box), _read_part(other, j, box))
    return None if same and not differences.differing else replace(change, **differences.results())


def _has_same_checksums(one: CheckpointReader, i: int, other: CheckpointReader, j: int) -> bool:
    """Return whether dtypes, shapes and checksums are equal, without reading values."""
    if one.shapes[i] != other.shapes[j] or describe_dtype(one.types[i]) != describe_dtype(other.types[j]):
        return False
    digest = one.digest(i)
    return digest is not None and bool(digest == other.digest(j))


def _is_same_value(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    # 0.0 == -0.0 although their bits differ, and NaN != NaN although their bits may be equal.
    return repr(a) == repr(b) if isinstance(a, float | complex) else bool(a == b)


_PART_NBYTES = 4 << 20


def _element_nbytes(reader: CheckpointReader, position: int) -> int:
    leaf_type, shape = reader.types[position], reader.shapes[position]
    words = shape[len(logical_shape(leaf_type, shape)) :]
    return storage_dtype(leaf_type).itemsize * math.prod(words)


def _read_part(reader: CheckpointReader, position: int, box: Box) -> np.ndarray:
    """Read a box of a variable. Each PRNG key becomes a single opaque element."""
    words = reader.shapes[position][len(box) :]
    part = np.empty((*box_shape(box), *words), storage_dtype(reader.types[position]))
    reader.read_boxes(position, [(*box, *whole_box(words))], [part], verify=True)
    return part.view(f"V{words[0] * part.itemsize}")[..., 0] if words else part


class _DifferenceStatistics:
    """Running statistics of the differences between two arrays, which are added part by part."""

    def __init__(self, *, is_number: bool) -> None:
        self._is_number = is_number
        self.differing = 0
        self._compared = 0
        self._total = 0.0
        self._largest = 0.0
        self._nan_counts = [0, 0]

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Compare two corresponding parts."""
        with np.errstate(all="ignore"):
            nans = [np.isnan(values) if self._is_number else np.zeros(values.shape, bool) for values in (a, b)]
        self.differing += _count_differing(a, b, nans)
        if not self._is_number:
            return
        self._nan_counts = [count + int(is_nan.sum()) for count, is_nan in zip(self._nan_counts, nans, strict=True)]
        numbers = ~(nans[0] | nans[1])
        distances = _distances(a[numbers], b[numbers])
        if distances.size:
            self._compared += distances.size
            self._total += float(distances.sum())
            self._largest = max(self._largest, float(distances.max()))

    def results(self) -> dict[str, Any]:
        """Return the results as fields of `VariableChange`."""
        distance = (
            {"max_abs_difference": self._largest, "mean_abs_difference": self._total / self._compared}
            if self._compared
            else {}
        )
        return {"differing": self.differing, "nan_count": (self._nan_counts[0], self._nan_counts[1]), **distance}


def _count_differing(a: np.ndarray, b: np.ndarray, nans: Sequence[np.ndarray]) -> int:
    if a.dtype != b.dtype:
        with np.errstate(all="ignore"):
            return int(np.count_nonzero((_widened(a) != _widened(b)) & ~(nans[0] & nans[1])))
    if a.nbytes == 0:
        return 0
    if a.dtype.itemsize in (1, 2, 4, 8):
        unsigned = f"u{a.dtype.itemsize}"
        return int(np.count_nonzero(a.view(unsigned) != b.view(unsigned)))
    bytes_of_each = [np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(a.size, -1) for x in (a, b)]
    return int(np.count_nonzero((bytes_of_each[0] != bytes_of_each[1]).any(axis=1)))


def _widened(values: np.ndarray) -> np.ndarray:
    """Return numbers in a builtin NumPy dtype that represents them exactly."""
    if values.dtype.isbuiltin == 1 and values.dtype.kind in "iufc":
        return values
    return values.astype(np.int64 if values.dtype == bool or values.dtype.name[:3] in ("int", "uin") else np.float64)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return |a - b| in float64. It is 0 for equal elements, including infinities."""
    a, b = _widened(a), _widened(b)
    with np.errstate(all="ignore"):
        if a.dtype.kind in "iu" and a.dtype == b.dtype:
            # The signed difference may overflow, but its bits read as an unsigned integer are the distance.
            unsigned = np.dtype(f"u{a.dtype.itemsize}")
            return np.asarray(np.where(a > b, (a - b).astype(unsigned), (b - a).astype(unsigned)), np.float64)
        kind = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
        a, b = a.astype(kind), b.astype(kind)
        # Subtract real and imaginary parts separately, so that inf - inf in one of them counts as 0, not as NaN.
        parts = [np.where(x == y, 0.0, np.abs(x - y)) for x, y in ((np.real(a), np.real(b)), (np.imag(a), np.imag(b)))]
        distances: np.ndarray = np.hypot(*parts)
        return distances
