"""Statistics of the variables of a checkpoint, in bounded memory: read part by part, on a few threads."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._inspect.statistics import (
    Statistics,
    Sums,
    finite_extremes,
    histogram_edges,
    histogram_of,
    joined,
    norm_of_difference,
    sums_of,
)
from pytreesaver._io.parallel import advance, run_all
from pytreesaver._tree.kinds import is_bytes_of_object, is_number, storage_dtype
from pytreesaver.formats.damage import add_damage, joined_damage
from pytreesaver.formats.protocol import CheckpointReader

T = TypeVar("T")

_PART_NBYTES = 2 << 20
"""A variable of up to this many bytes is read together with others, a larger one in parts of this size."""

_WINDOW_NBYTES = 32 << 20
_MOST_PARTS = _WINDOW_NBYTES // _PART_NBYTES  # so many results are held until they are joined


def measure(reader: CheckpointReader, positions: Sequence[int]) -> list[Statistics]:
    """The statistics of each of these variables.

    Raises:
        CorruptCheckpointError: naming every damaged variable.
    """
    sums = map_parts(reader, [i for i in positions if has_numbers(reader, i)], sums_of, joined)
    return [sums[i].result() if i in sums else Statistics(_size(reader, i)) for i in positions]


def _size(reader: CheckpointReader, position: int) -> int:
    return 1 if is_bytes_of_object(reader.types[position]) else math.prod(reader.shapes[position])


def histogram(
    reader: CheckpointReader, position: int, bins: int, extremes: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How many finite elements of a variable lie between each edge and the next: int64[bins], float64[bins + 1].

    With `extremes`, the first and the last edge, it is read once and not twice.

    Raises:
        CorruptCheckpointError: it is damaged.
        ValueError: it has no finite numbers, or complex ones.
    """
    numbers = has_numbers(reader, position) and storage_dtype(reader.types[position]).kind != "c"
    if numbers and extremes is None:
        extremes = map_parts(reader, [position], finite_extremes, _outermost)[position]
    if extremes is None:
        raise ValueError(f"{reader.names[position]}: expected real numbers that are finite, found none")
    edges = histogram_edges(*extremes, bins)
    return map_parts(reader, [position], partial(histogram_of, edges=edges), _total)[position], edges


def _outermost(extremes: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    found = [each for each in extremes if each is not None]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def _total(counts: Sequence[np.ndarray]) -> np.ndarray:
    total: np.ndarray = np.sum(counts, axis=0)
    return total


def has_numbers(reader: CheckpointReader, position: int) -> bool:
    """Whether a variable holds numbers or bools, of at most 64 bits if they are Python's."""
    leaf_type = reader.types[position]
    return is_number(leaf_type) and not is_bytes_of_object(leaf_type)


def map_parts(
    reader: CheckpointReader,
    positions: Sequence[int],
    function: Callable[[np.ndarray], T],
    join: Callable[[Sequence[T]], T],
) -> dict[int, T]:
    """What a function of stored values gives for each variable: joined from what it gives for parts, in their order.

    It is called in several threads, with arrays of one axis that it may not keep.

    Raises:
        CorruptCheckpointError: naming every damaged variable.
    """
    results, damage = map_parts_of_all([(reader, positions)], function, join)
    if damage:
        raise joined_damage(reader, damage)
    return results


def map_parts_of_all(
    sources: Sequence[tuple[CheckpointReader, Sequence[int]]],
    function: Callable[..., T],
    join: Callable[[Sequence[T]], T],
) -> tuple[dict[int, T], list[CorruptCheckpointError]]:
    """The same for a function of the same parts of variables in several checkpoints, in which they have one dtype and
    shape. Gives the results by the positions in the first one, and what was found of damage, which has none."""
    results: dict[int, T] = {}
    damage: list[CorruptCheckpointError] = []
    reader = sources[0][0]
    rows = list(zip(*(positions for _, positions in sources), strict=True))
    readers = [each for each, _ in sources]
    for group in _windows(reader, [row for row in rows if reader.nbytes[row[0]] <= _PART_NBYTES]):
        arrays = [
            _read(each, positions, damage) for each, positions in zip(readers, zip(*group, strict=True), strict=True)
        ]
        whole = [row for row in group if all(i in found for i, found in zip(row, arrays, strict=True))]
        calls = {row[0]: _Call(function, [found[i] for i, found in zip(row, arrays, strict=True)]) for row in whole}
        run_all(list(calls.values()), sum(reader.nbytes[row[0]] for row in group))
        results |= {i: call.result for i, call in calls.items()}
    for row in rows:
        i = row[0]
        if reader.nbytes[i] > _PART_NBYTES:
            begins = range(0, math.prod(reader.shapes[i]), _most(reader, i))
            joined_so_far: list[T] = []
            for first in range(0, len(begins), _MOST_PARTS):
                parts = [_Part(readers, row, begin, function) for begin in begins[first : first + _MOST_PARTS]]
                try:
                    run_all(parts, len(parts) * _PART_NBYTES)
                except CorruptCheckpointError as error:
                    add_damage(damage, error)
                    break
                joined_so_far = [join([*joined_so_far, *(part.result for part in parts)])]
            else:
                results[i] = joined_so_far[0]
    return results, damage


def _most(reader: CheckpointReader, position: int) -> int:
    """How many elements a part has."""
    return _PART_NBYTES // storage_dtype(reader.types[position]).itemsize


class _Call(Generic[T]):
    """A call of a function, to be made in another thread."""

    result: T

    def __init__(self, function: Callable[..., T], arrays: Sequence[np.ndarray]) -> None:
        self._function = function
        self._arrays = arrays

    def __call__(self) -> None:
        self.result = self._function(*(values.reshape(-1) for values in self._arrays))


class _Part(Generic[T]):
    """The same for some elements of a variable that are read for it."""

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
        end = min(self._begin + _most(reader, position), size)
        values = np.empty(end - self._begin, storage_dtype(reader.types[position]))
        reader.read_boxes(position, [((self._begin, end),)], [values], verify=True, shape=(size,))
        return values


def _windows(reader: CheckpointReader, rows: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    group: list[tuple[int, ...]] = []
    nbytes = 0
    for row in rows:
        if group and nbytes + reader.nbytes[row[0]] > _WINDOW_NBYTES:
            yield group
            group, nbytes = [], 0
        group.append(row)
        nbytes += reader.nbytes[row[0]]
    if group:
        yield group


def _read(
    reader: CheckpointReader, positions: Sequence[int], damage: list[CorruptCheckpointError]
) -> dict[int, np.ndarray]:
    """The stored arrays of what is not damaged."""
    try:
        return dict(zip(positions, reader.read(positions, verify=True), strict=True))
    except CorruptCheckpointError as error:
        add_damage(damage, error)
        intact = [i for i in positions if reader.names[i] not in error.damaged]
        return dict(zip(intact, reader.read(intact, verify=True), strict=True)) if intact else {}


@dataclass(frozen=True)
class Measured:
    """A variable in a checkpoint.

    Attributes:
        statistics: what its elements are like.
        drift: the norm of what has been added to it since the checkpoint before; None if that has none of its dtype and
            shape, or it is damaged there.
    """

    statistics: Statistics
    drift: float | None


@dataclass(frozen=True)
class CheckpointMeasures:
    """What was measured in a checkpoint: the variables by name, without those of no numbers; and the damaged ones."""

    variables: Mapping[str, Measured]
    damaged: Sequence[str] = ()


def measure_after(
    reader: CheckpointReader,
    names: Sequence[str],
    before: tuple[CheckpointReader, CheckpointMeasures] | None = None,
) -> CheckpointMeasures:
    """Measure these variables of a checkpoint, in bounded memory, and compare them with the checkpoint before it.

    What has the checksums that it had there is read all the same, because it may be damaged. Progress counts all bytes
    twice.
    """
    position_of = {name: i for i, name in enumerate(reader.names)}
    positions = [position_of[name] for name in names if has_numbers(reader, position_of[name])]
    unchanged: dict[int, Measured] = {}
    alone: list[int] = []
    pairs: list[tuple[int, int]] = []
    old_position_of = {} if before is None else {name: i for i, name in enumerate(before[0].names)}
    for i in positions:
        name = reader.names[i]
        j = old_position_of.get(name)
        if before is None or j is None or name not in before[1].variables or not _are_alike(reader, i, before[0], j):
            alone.append(i)
        elif reader.digest(i) is not None and reader.digest(i) == before[0].digest(j):
            unchanged[i] = Measured(before[1].variables[name].statistics, 0.0)
        else:
            pairs.append((i, j))
    to_read = sum(reader.nbytes[i] for i in [*alone, *unchanged]) + 2 * sum(reader.nbytes[i] for i, _ in pairs)
    advance(2 * sum(reader.nbytes[position_of[name]] for name in names) - to_read)
    read, damage = map_parts_of_all([(reader, list(unchanged))], _nothing, _nothing)
    found = {reader.names[i]: unchanged[i] for i in read}
    sums, more = map_parts_of_all([(reader, alone)], sums_of, joined)
    damage += more
    found |= {reader.names[i]: Measured(each.result(), None) for i, each in sums.items()}
    if before is not None:
        sources = [(reader, [i for i, _ in pairs]), (before[0], [j for _, j in pairs])]
        both, more = map_parts_of_all(sources, _sums_and_drift, _joined)
        damage += more
        found |= {reader.names[i]: Measured(of_values.result(), drift) for i, (of_values, drift) in both.items()}
    damaged = {name for error in damage for name in error.damaged}
    return CheckpointMeasures(found, [name for name in names if name in damaged])


def _are_alike(one: CheckpointReader, i: int, other: CheckpointReader, j: int) -> bool:
    same_dtype = storage_dtype(one.types[i]) == storage_dtype(other.types[j])
    return same_dtype and one.shapes[i] == other.shapes[j] and has_numbers(other, j)


def _nothing(_: object) -> None:
    return None


def _joined(parts: Sequence[tuple[Sums, float]]) -> tuple[Sums, float]:
    return joined(of_values for of_values, _ in parts), math.hypot(*(drift for _, drift in parts))


def _sums_and_drift(values: np.ndarray, before: np.ndarray) -> tuple[Sums, float]:
    return sums_of(values), norm_of_difference(values, before)
