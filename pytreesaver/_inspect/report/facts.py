"""The contents of a report, collected from a run directory."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, VariableNotFoundError
from pytreesaver._inspect.measuring import CheckpointMeasurements, measure_with_drift
from pytreesaver._inspect.statistics import Statistics
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._progress import Progress, reporting
from pytreesaver._run.history import CheckpointEvent, get_checkpoint_history
from pytreesaver._run.listing import ListedCheckpoint, list_checkpoints
from pytreesaver._tree.kinds import describe, logical_shape
from pytreesaver._tree.names.select import Selector, as_selection, selected_names
from pytreesaver.formats.protocol import CheckpointReader
from pytreesaver.formats.registry import open_reader


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
    """

    name: str
    saved: float
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    deleted: float | None = None
    listed: ListedCheckpoint | None = None

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
            lifetimes.append(Lifetime(event.name, event.time, event.step, event.metrics))
    for each in listed:
        at = existing.get(each.path.name)
        if at is None:
            lifetimes.append(Lifetime(each.path.name, each.time, each.step, each.metrics, listed=each))
        else:
            lifetimes[at] = replace(lifetimes[at], listed=each)
    return sorted(lifetimes, key=lambda lifetime: lifetime.saved)


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
    present: bool


@dataclass
class RunFacts:
    """Everything that the report of a run shows.

    Attributes:
        directory: the run directory.
        time: when the facts were collected, in seconds since the epoch.
        lifetimes: all past and present checkpoints, in the order of the saves.
        measured: the readable checkpoints, in the same order. They are the columns of the arrays.
        variables: the selected variables of these checkpoints. They are the rows of the arrays.
        norms: float64[variables, measured], the norm of each variable; NaN if unknown.
        drifts: float64[variables, measured], the norm of the change since the previous column; NaN if unknown.
        not_finite: (row, column, NaN count, Inf count) for each variable and checkpoint with NaN or Inf.
        damaged: the names of damaged variables, by checkpoint name.
        unreadable: the error messages of unreadable checkpoints, by checkpoint name.
        has_values: whether the values were read.
    """

    directory: Path
    time: float
    lifetimes: list[Lifetime]
    measured: list[Lifetime] = field(default_factory=list)
    variables: list[VariableFacts] = field(default_factory=list)
    norms: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    drifts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    not_finite: list[tuple[int, int, int, int]] = field(default_factory=list)
    damaged: dict[str, list[str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    has_values: bool = True


def collect(directory: PathLike, only: Any, *, values: bool, progress: Progress) -> RunFacts:
    """Collect the contents of a report. Each variable is read once, and again if it changes in the next checkpoint.

    Raises:
        CheckpointNotFoundError: if the run directory does not exist, or if neither it nor its history has a checkpoint.
        VariableNotFoundError: if `only` selects nothing in any checkpoint.
    """
    run = local_path(directory)
    listed = list_checkpoints(run)
    facts = RunFacts(run, time.time(), lifetimes_of(get_checkpoint_history(run), listed), has_values=values)
    if not facts.lifetimes:
        raise CheckpointNotFoundError(f"{run} contains no checkpoints")
    selection = None if only is None else as_selection(only)
    present = [lifetime for lifetime in facts.lifetimes if lifetime.listed is not None]
    nbytes = 2 * sum(lifetime.listed.nbytes for lifetime in present if lifetime.listed is not None) if values else 0
    collector = _Collector(facts)
    nothing_selected: VariableNotFoundError | None = None
    with reporting(progress, f"computing statistics of {run}", nbytes):
        for lifetime in present:
            try:
                nothing_selected = collector.add(lifetime, run / lifetime.name, selection) or nothing_selected
            except CheckpointError as error:  # damaged, or deleted since the directory was listed
                facts.unreadable[lifetime.name] = str(error)
    if nothing_selected is not None and not facts.variables:
        raise nothing_selected
    collector.finish(newest_is_readable=bool(present) and facts.measured[-1:] == present[-1:])
    return facts


class _Collector:
    """Collects statistics checkpoint by checkpoint: a column for each checkpoint, a row for each variable name."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._row_of: dict[str, int] = {}
        self._columns: list[tuple[np.ndarray, np.ndarray]] = []  # norms and drifts of the rows known at that time
        self._previous: tuple[Path, CheckpointMeasurements] | None = None
        self._newest: set[str] = set()

    def add(self, lifetime: Lifetime, path: Path, selection: Selector | None) -> VariableNotFoundError | None:
        """Add the column of a checkpoint. Return the error if nothing in it is selected.

        Raises:
            CheckpointError: if the checkpoint cannot be read.
        """
        facts, nothing_selected = self._facts, None
        with ExitStack() as stack:
            reader = _open_reader(path, stack)
            names = list(reader.names)
            if selection is not None:
                try:
                    names = selected_names(selection, names, str(path))
                except VariableNotFoundError as error:
                    names, nothing_selected = [], error
            measurements = CheckpointMeasurements({})
            if facts.has_values:
                with wrap_os_errors("read", path):
                    measurements = measure_with_drift(reader, names, self._open_previous(stack))
            self._record_variables(reader, names, measurements)
        column = len(facts.measured)
        facts.measured.append(lifetime)
        self._newest = set(names)
        self._previous = path, measurements
        norms, drifts = (np.full(len(self._row_of), np.nan) for _ in range(2))
        for name, measured in measurements.variables.items():
            row, statistics = self._row_of[name], measured.statistics
            norms[row] = np.nan if statistics.norm is None else statistics.norm
            drifts[row] = np.nan if measured.drift is None else measured.drift
            if statistics.nan or statistics.inf:
                facts.not_finite.append((row, column, statistics.nan or 0, statistics.inf or 0))
        self._columns.append((norms, drifts))
        if measurements.damaged:
            facts.damaged[lifetime.name] = list(measurements.damaged)
        return nothing_selected

    def _open_previous(self, stack: ExitStack) -> tuple[CheckpointReader, CheckpointMeasurements] | None:
        if self._previous is None:
            return None
        try:
            return _open_reader(self._previous[0], stack), self._previous[1]
        except CheckpointError:  # deleted in the meantime
            return None

    def _record_variables(
        self, reader: CheckpointReader, names: Sequence[str], measurements: CheckpointMeasurements
    ) -> None:
        position_of = {name: i for i, name in enumerate(reader.names)}
        for name in names:
            i = position_of[name]
            shape = logical_shape(reader.types[i], reader.shapes[i])
            measured = measurements.variables.get(name)
            variable = VariableFacts(
                name,
                describe(reader.types[i], shape),
                math.prod(shape),
                reader.nbytes[i],
                None if measured is None else measured.statistics,
                True,
            )
            row = self._row_of.setdefault(name, len(self._row_of))
            self._facts.variables[row : row + 1] = [variable]

    def finish(self, *, newest_is_readable: bool) -> None:
        """Assemble the arrays from the columns, and mark the variables that are not in the newest checkpoint."""
        facts = self._facts
        facts.norms, facts.drifts = (np.full((len(self._row_of), len(self._columns)), np.nan) for _ in range(2))
        for c, (norms, drifts) in enumerate(self._columns):
            facts.norms[: norms.size, c] = norms
            facts.drifts[: drifts.size, c] = drifts
        if newest_is_readable:
            facts.variables = [replace(each, present=each.name in self._newest) for each in facts.variables]


def _open_reader(path: Path, stack: ExitStack) -> CheckpointReader:
    reader = open_reader(path)
    stack.callback(reader.close)
    return reader
