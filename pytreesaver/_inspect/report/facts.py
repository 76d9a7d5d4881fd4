"""The contents of a report: the past and present checkpoints of a run, and the variables in them. Pure."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from pytreesaver._inspect.statistics import Statistics
from pytreesaver._run.history import CheckpointEvent, SaveTimings
from pytreesaver._run.listing import ListedCheckpoint

CURVES = ("norm", "drift", "min", "max", "mean", "std")
"""What is known of each variable in each checkpoint: statistics, and the norm of the change since the previous one."""


@dataclass(frozen=True)
class Lifetime:
    """A checkpoint that exists or has existed in a run directory.

    Attributes:
        name: its file name.
        saved: when it was saved, in seconds since the epoch.
        step: the step for which it was saved, or None.
        metrics: the metrics passed to the save.
        deleted: when it was deleted; None if it exists or the deletion was not recorded.
        listed: its result from `list_checkpoints`; None if it no longer exists.
        timings: how long the save took; None if this was not recorded.
    """

    name: str
    saved: float
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    deleted: float | None = None
    listed: ListedCheckpoint | None = None
    timings: SaveTimings | None = None

    @property
    def status(self) -> str:
        """``"kept"``, ``"will be deleted"``, ``"damaged"``, ``"deleted"``, or ``"missing"`` (deletion not recorded)."""
        if self.listed is None:
            return "missing" if self.deleted is None else "deleted"
        if self.listed.problem is not None:
            return "damaged"
        return "kept" if self.listed.keep else "will be deleted"


def lifetimes_of(events: Iterable[CheckpointEvent], listed: Sequence[ListedCheckpoint]) -> list[Lifetime]:
    """Return the past and present checkpoints of a run, in the order of the saves.

    Example:
        >>> events = [CheckpointEvent("saved", "a", 1.0, 10), CheckpointEvent("deleted", "a", 2.0)]
        >>> [(lifetime.name, lifetime.step, lifetime.deleted, lifetime.status) for lifetime in lifetimes_of(events, [])]
        [('a', 10, 2.0, 'deleted')]
    """
    lifetimes: list[Lifetime] = []
    existing: dict[str, int] = {}
    for event in events:
        at = existing.pop(event.name, None)
        if at is not None:  # an overwrite also ends the lifetime of the previous checkpoint
            lifetimes[at] = replace(lifetimes[at], deleted=event.time)
        if event.kind == "saved":
            existing[event.name] = len(lifetimes)
            lifetimes.append(Lifetime(event.name, event.time, event.step, event.metrics, timings=event.timings))
    for each in listed:
        at = existing.get(each.path.name)
        if at is None:
            lifetimes.append(Lifetime(each.path.name, each.time, each.step, each.metrics, listed=each))
        else:
            lifetimes[at] = replace(lifetimes[at], listed=each)
    return sorted(lifetimes, key=lambda lifetime: lifetime.saved)


def x_positions(lifetimes: Sequence[Lifetime]) -> list[int]:
    """Return x positions of checkpoints: their steps, or 0, 1, ... if one is missing or they do not increase."""
    steps = [lifetime.step for lifetime in lifetimes]
    known = [step for step in steps if step is not None]
    ascending = len(known) == len(steps) and all(a < b for a, b in pairwise(known))
    return known if ascending else list(range(len(lifetimes)))


def has_steps(lifetimes: Sequence[Lifetime]) -> bool:
    """Return whether `x_positions` are steps."""
    return [lifetime.step for lifetime in lifetimes] == x_positions(lifetimes)


@dataclass(frozen=True)
class VariableFacts:
    """A variable as stored in the last checkpoint that contains it.

    Attributes:
        name: its name.
        type: its type as it appears in messages: ``"float32[784,512]"``.
        size: its number of elements.
        nbytes: its size in bytes.
        statistics: the statistics of its elements; None if it was not read, holds no numbers, or is damaged.
        present: whether the newest checkpoint contains it; True if that checkpoint cannot be read.
    """

    name: str
    type: str
    size: int
    nbytes: int
    statistics: Statistics | None
    present: bool = True


def _no_curves() -> dict[str, np.ndarray]:
    return {name: np.zeros((0, 0)) for name in CURVES}


@dataclass
class RunFacts:
    """Everything that the report of a run shows.

    Attributes:
        directory: the run directory.
        lifetimes: all past and present checkpoints, in the order of the saves.
        has_values: whether the values were read.
        time: when the facts were collected, in seconds since the epoch.
        measured: the readable checkpoints, in the same order. They are the columns of the arrays.
        variables: the selected variables of these checkpoints. They are the rows of the arrays.
        curves: float64[variables, measured] for each of `CURVES`; NaN if unknown.
        not_finite: (row, column, NaN count, Inf count) for each variable and checkpoint with NaN or Inf.
        damaged: the names of damaged variables, by checkpoint name.
        unreadable: the error messages of unreadable checkpoints, by checkpoint name.
    """

    directory: Path
    lifetimes: list[Lifetime]
    has_values: bool
    time: float = field(default_factory=time.time)
    measured: list[Lifetime] = field(default_factory=list)
    variables: list[VariableFacts] = field(default_factory=list)
    curves: dict[str, np.ndarray] = field(default_factory=_no_curves)
    not_finite: list[tuple[int, int, int, int]] = field(default_factory=list)
    damaged: dict[str, list[str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TypeDifference:
    """A variable whose type differs between two checkpoints, or that one of them lacks.

    Attributes:
        name: its name.
        first: its type in the first, such as ``"float32[784,512]"``; None if the first has no such variable.
        second: its type in the second, likewise.
    """

    name: str
    first: str | None
    second: str | None


def type_differences(first: RunFacts, second: RunFacts) -> list[TypeDifference]:
    """Return the differences in names, shapes and dtypes between the newest readable checkpoints of two runs.

    Example:
        >>> one, other = (RunFacts(Path(name), [], True) for name in "ab")
        >>> one.variables = [VariableFacts("w", "float32[2]", 2, 8, None), VariableFacts("b", "int", 1, 8, None)]
        >>> other.variables = [VariableFacts("w", "bfloat16[2]", 2, 4, None), VariableFacts("b", "int", 1, 8, None)]
        >>> type_differences(one, other)
        [TypeDifference(name='w', first='float32[2]', second='bfloat16[2]')]
    """
    types = [{each.name: each.type for each in facts.variables if each.present} for facts in (first, second)]
    pairs = [TypeDifference(name, types[0].get(name), types[1].get(name)) for name in types[0] | types[1]]
    return [pair for pair in pairs if pair.first != pair.second]
