"""Statistics of the variables of a checkpoint, in bounded memory: read part by part, on a few threads."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from pytreesaver._convert import is_number
from pytreesaver._damage import add_damage, joined_damage
from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io.parallel import run_all
from pytreesaver._leaf_types import is_bytes_of_object, storage_dtype
from pytreesaver._statistics import Statistics, finite_extremes, histogram_edges, histogram_of, joined, sums_of
from pytreesaver.formats import CheckpointReader

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
