"""How variables change from one checkpoint to the next: their statistics, and how far they have moved."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytreesaver._io.metering import advance
from pytreesaver._leaf_types import storage_dtype
from pytreesaver._measuring import has_numbers, map_parts_of_all
from pytreesaver._statistics import Statistics, Sums, joined, norm_of_difference, sums_of
from pytreesaver.formats import CheckpointReader


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
