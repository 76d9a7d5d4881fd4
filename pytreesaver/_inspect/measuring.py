"""Statistics of the variables of a checkpoint, computed by several threads in bounded memory."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._inspect.statistics import (
    PartialStatistics,
    Statistics,
    accumulate,
    finite_extremes,
    histogram_edges,
    histogram_of,
    merge,
    norm_of_difference,
)
from pytreesaver._io.parallel import advance, run_all
from pytreesaver._tree.kinds import is_number, is_stored_as_bytes, storage_dtype
from pytreesaver.formats.damage import add_damage, joined_damage
from pytreesaver.formats.protocol import CheckpointReader

T = TypeVar("T")

_PART_NBYTES = 2 << 20
"""Variables of at most this size are read in batches; larger ones are read in parts of this size."""

_BATCH_NBYTES = 32 << 20
_MAX_PARTS = _BATCH_NBYTES // _PART_NBYTES  # the number of partial results held before they are merged


def measure(reader: CheckpointReader, positions: Sequence[int]) -> list[Statistics]:
    """Return the statistics of the variables at `positions`.

    Raises:
        CorruptCheckpointError: if variables are damaged; names every damaged variable.
    """
    partials = map_parts(reader, [i for i in positions if has_numbers(reader, i)], accumulate, merge)
    return [partials[i].result() if i in partials else Statistics(_size(reader, i)) for i in positions]


def _size(reader: CheckpointReader, position: int) -> int:
    return 1 if is_stored_as_bytes(reader.types[position]) else math.prod(reader.shapes[position])


def histogram(
    reader: CheckpointReader, position: int, bins: int, extremes: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return a histogram of the finite elements of a variable: int64[bins] counts and float64[bins + 1] edges.

    `extremes` are the first and the last edge. If they are not given, the variable is read twice.

    Raises:
        CorruptCheckpointError: if the variable is damaged.
        ValueError: if the variable has no finite real numbers.
    """
    numbers = has_numbers(reader, position) and storage_dtype(reader.types[position]).kind != "c"
    if numbers and extremes is None:
        extremes = map_parts(reader, [position], finite_extremes, _merge_extremes)[position]
    if extremes is None:
        raise ValueError(f"{reader.names[position]}: expected finite real numbers, found none")
    edges = histogram_edges(*extremes, bins)
    return map_parts(reader, [position], partial(histogram_of, edges=edges), _merge_counts)[position], edges


def _merge_extremes(extremes: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    found = [each for each in extremes if each is not None]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def _merge_counts(counts: Sequence[np.ndarray]) -> np.ndarray:
    total: np.ndarray = np.sum(counts, axis=0)
    return total


def has_numbers(reader: CheckpointReader, position: int) -> bool:
    """Return whether a variable holds bools or numbers. Python ints of more than 64 bits do not count."""
    leaf_type = reader.types[position]
    return is_number(leaf_type) and not is_stored_as_bytes(leaf_type)


def map_parts(
    reader: CheckpointReader,
    positions: Sequence[int],
    function: Callable[[np.ndarray], T],
    merge_parts: Callable[[Sequence[T]], T],
) -> dict[int, T]:
    """Apply `function` to each variable in parts, and merge the results of the parts in order with `merge_parts`.

    `function` is called in several threads with one-dimensional arrays, which it must not keep.

    Raises:
        CorruptCheckpointError: if variables are damaged; names every damaged variable.
    """
    results, damage = map_aligned_parts([(reader, positions)], function, merge_parts)
    if damage:
        raise joined_damage(reader, damage)
    return results


def map_aligned_parts(
    sources: Sequence[tuple[CheckpointReader, Sequence[int]]],
    function: Callable[..., T],
    merge_parts: Callable[[Sequence[T]], T],
) -> tuple[dict[int, T], list[CorruptCheckpointError]]:
    """Apply `function` to corresponding parts of variables with the same dtype and shape in several checkpoints.

    Returns the results of undamaged variables by their position in the first checkpoint, and the errors of the others.
    """
    results: dict[int, T] = {}
    damage: list[CorruptCheckpointError] = []
    reader = sources[0][0]
    rows = list(zip(*(positions for _, positions in sources), strict=True))
    readers = [each for each, _ in sources]
    for group in _batches(reader, [row for row in rows if reader.nbytes[row[0]] <= _PART_NBYTES]):
        arrays = [
            _read_intact(each, positions, damage)
            for each, positions in zip(readers, zip(*group, strict=True), strict=True)
        ]
        intact = [row for row in group if all(i in found for i, found in zip(row, arrays, strict=True))]
        calls = {row[0]: _Call(function, [found[i] for i, found in zip(row, arrays, strict=True)]) for row in intact}
        run_all(list(calls.values()), sum(reader.nbytes[row[0]] for row in group))
        results |= {i: call.result for i, call in calls.items()}
    for row in rows:
        i = row[0]
        if reader.nbytes[i] > _PART_NBYTES:
            begins = range(0, math.prod(reader.shapes[i]), _part_length(reader, i))
            merged: list[T] = []
            for first in range(0, len(begins), _MAX_PARTS):
                parts = [_ReadCall(readers, row, begin, function) for begin in begins[first : first + _MAX_PARTS]]
                try:
                    run_all(parts, len(parts) * _PART_NBYTES)
                except CorruptCheckpointError as error:
                    add_damage(damage, error)
                    break
                merged = [merge_parts([*merged, *(part.result for part in parts)])]
            else:
                results[i] = merged[0]
    return results, damage


def _part_length(reader: CheckpointReader, position: int) -> int:
    """Return the number of elements in a part."""
    return _PART_NBYTES // storage_dtype(reader.types[position]).itemsize


class _Call(Generic[T]):
    """A deferred call of a function with arrays that have been read."""

    result: T

    def __init__(self, function: Callable[..., T], arrays: Sequence[np.ndarray]) -> None:
        self._function = function
        self._arrays = arrays

    def __call__(self) -> None:
        self.result = self._function(*(values.reshape(-1) for values in self._arrays))


class _ReadCall(Generic[T]):
    """A deferred call of a function with parts of variables, which are read first."""

    result: T

    def __init__(
        self, readers: Sequence[CheckpointReader], positions: Sequence[int], begin: int, function: Callable[..., T]
    ) -> None:
        self._readers = readers
        self._positions = positions
        self._begin = begin
        self._function = function

    def __call__(self) -> None:
        pairs = zip(self._readers, self._positions, strict=True)
        self.result = self._function(*(self._values(reader, position) for reader, position in pairs))

    def _values(self, reader: CheckpointReader, position: int) -> np.ndarray:
        size = math.prod(reader.shapes[position])
        end = min(self._begin + _part_length(reader, position), size)
        values = np.empty(end - self._begin, storage_dtype(reader.types[position]))
        reader.read_boxes(position, [((self._begin, end),)], [values], verify=True, shape=(size,))
        return values


def _batches(reader: CheckpointReader, rows: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    group: list[tuple[int, ...]] = []
    nbytes = 0
    for row in rows:
        if group and nbytes + reader.nbytes[row[0]] > _BATCH_NBYTES:
            yield group
            group, nbytes = [], 0
        group.append(row)
        nbytes += reader.nbytes[row[0]]
    if group:
        yield group


def _read_intact(
    reader: CheckpointReader, positions: Sequence[int], damage: list[CorruptCheckpointError]
) -> dict[int, np.ndarray]:
    """Return the intact stored arrays by position, and append the errors of the damaged ones to `damage`."""
    try:
        return dict(zip(positions, reader.read(positions, verify=True), strict=True))
    except CorruptCheckpointError as error:
        add_damage(damage, error)
        intact = [i for i in positions if reader.names[i] not in error.damaged]
        return dict(zip(intact, reader.read(intact, verify=True), strict=True)) if intact else {}


@dataclass(frozen=True)
class VariableMeasurements:
    """Statistics of a variable in one checkpoint.

    Attributes:
        statistics: the statistics of its elements.
        drift: the norm of its change since the previous checkpoint; None if that checkpoint has no variable of this
            name, dtype and shape, or if it is damaged there.
    """

    statistics: Statistics
    drift: float | None


@dataclass(frozen=True)
class CheckpointMeasurements:
    """Statistics of the numeric variables of a checkpoint by name, and the names of damaged variables."""

    variables: Mapping[str, VariableMeasurements]
    damaged: Sequence[str] = ()


def measure_with_drift(
    reader: CheckpointReader,
    names: Sequence[str],
    prior: tuple[CheckpointReader, CheckpointMeasurements] | None = None,
) -> CheckpointMeasurements:
    """Compute statistics of a checkpoint's variables, and their drift since `prior`, the one before it.

    Variables with unchanged checksums are also read, because they may be damaged. The progress report counts every byte
    twice, because a variable that has changed is read together with its previous value. Memory is bounded.
    """
    position_of = {name: i for i, name in enumerate(reader.names)}
    positions = [position_of[name] for name in names if has_numbers(reader, position_of[name])]
    unchanged: dict[int, VariableMeasurements] = {}
    unmatched: list[int] = []
    pairs: list[tuple[int, int]] = []
    prior_position_of = {} if prior is None else {name: i for i, name in enumerate(prior[0].names)}
    for i in positions:
        name = reader.names[i]
        j = prior_position_of.get(name)
        if prior is None or j is None or name not in prior[1].variables or not _same_type(reader, i, prior[0], j):
            unmatched.append(i)
        elif reader.digest(i) is not None and reader.digest(i) == prior[0].digest(j):
            unchanged[i] = VariableMeasurements(prior[1].variables[name].statistics, 0.0)
        else:
            pairs.append((i, j))
    to_read = sum(reader.nbytes[i] for i in [*unmatched, *unchanged]) + 2 * sum(reader.nbytes[i] for i, _ in pairs)
    advance(2 * sum(reader.nbytes[position_of[name]] for name in names) - to_read)
    read, damage = map_aligned_parts([(reader, list(unchanged))], _discard, _discard)
    found = {reader.names[i]: unchanged[i] for i in read}
    partials, errors = map_aligned_parts([(reader, unmatched)], accumulate, merge)
    damage += errors
    found |= {reader.names[i]: VariableMeasurements(each.result(), None) for i, each in partials.items()}
    if prior is not None:
        sources = [(reader, [i for i, _ in pairs]), (prior[0], [j for _, j in pairs])]
        both, errors = map_aligned_parts(sources, _accumulate_with_drift, _merge_with_drift)
        damage += errors
        found |= {reader.names[i]: VariableMeasurements(each.result(), drift) for i, (each, drift) in both.items()}
    damaged = {name for error in damage for name in error.damaged}
    return CheckpointMeasurements(found, [name for name in names if name in damaged])


def _same_type(one: CheckpointReader, i: int, other: CheckpointReader, j: int) -> bool:
    same_dtype = storage_dtype(one.types[i]) == storage_dtype(other.types[j])
    return same_dtype and one.shapes[i] == other.shapes[j] and has_numbers(other, j)


def _discard(_: object) -> None:
    return None


def _merge_with_drift(parts: Sequence[tuple[PartialStatistics, float]]) -> tuple[PartialStatistics, float]:
    return merge(each for each, _ in parts), math.hypot(*(drift for _, drift in parts))


def _accumulate_with_drift(values: np.ndarray, previous: np.ndarray) -> tuple[PartialStatistics, float]:
    return accumulate(values), norm_of_difference(values, previous)
