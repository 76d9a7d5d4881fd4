"""What a report tells of a run: read from the directory, as plain values."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, VariableNotFoundError
from pytreesaver._inspect.measuring import CheckpointMeasures, measure_after
from pytreesaver._inspect.statistics import Statistics
from pytreesaver._io.paths import PathLike, local_path, named_os_errors
from pytreesaver._progress import Progress, reporting
from pytreesaver._run.history import CheckpointEvent, get_checkpoint_history
from pytreesaver._run.listing import ListedCheckpoint, list_checkpoints
from pytreesaver._tree.kinds import describe, logical_shape
from pytreesaver._tree.select import Selection, as_selection, selected_names
from pytreesaver.formats.protocol import CheckpointReader
from pytreesaver.formats.registry import open_reader


@dataclass(frozen=True)
class Life:
    """A checkpoint that is or was in a run directory.

    Attributes:
        name: its name there.
        saved: when it was saved, in seconds since the epoch.
        step: the step that it was saved for, or None.
        metrics: as they were given to the save.
        deleted: when it was deleted; None if it is there, or nobody has noted that.
        listed: what there is of it; None if it is gone.
    """

    name: str
    saved: float
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    deleted: float | None = None
    listed: ListedCheckpoint | None = None

    @property
    def fate(self) -> str:
        """``"kept"``, ``"will be deleted"``, ``"damaged"``, ``"deleted"`` or ``"gone"``."""
        if self.listed is None:
            return "gone" if self.deleted is None else "deleted"
        if self.listed.problem is not None:
            return "damaged"
        return "kept" if self.listed.keep else "will be deleted"


def lives_of(events: Iterable[CheckpointEvent], listed: Sequence[ListedCheckpoint]) -> list[Life]:
    """All lives in the order of their saves, by a run's history and by what there is now.

    Example:
        >>> events = [CheckpointEvent("saved", "a", 1.0, 10), CheckpointEvent("deleted", "a", 2.0)]
        >>> [(life.name, life.step, life.deleted, life.fate) for life in lives_of(events, [])]
        [('a', 10, 2.0, 'deleted')]
    """
    lives: list[Life] = []
    alive: dict[str, int] = {}
    for event in events:
        at = alive.pop(event.name, None)
        if at is not None:  # a save in the place of another one ends that
            lives[at] = replace(lives[at], deleted=event.time)
        if event.kind == "saved":
            alive[event.name] = len(lives)
            lives.append(Life(event.name, event.time, event.step, event.metrics))
    for each in listed:
        at = alive.get(each.path.name)
        if at is None:
            lives.append(Life(each.path.name, each.time, each.step, each.metrics, listed=each))
        else:
            lives[at] = replace(lives[at], listed=each)
    return sorted(lives, key=lambda life: life.saved)


@dataclass(frozen=True)
class VariableFacts:
    """A variable, as it is in the last checkpoint that has it.

    Attributes:
        name: its name.
        type: what it is, as in messages: ``"float32[784,512]"``.
        size: how many elements it has.
        nbytes: how many bytes it takes.
        statistics: what its elements are like; None if they were not looked at, or it is damaged.
        present: whether the newest checkpoint has it; True if that cannot be read.
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
        time: when this was collected, in seconds since the epoch.
        lives: all checkpoints that are or were there, in the order of their saves.
        measured: the checkpoints that could be read, in that order: the columns of the arrays.
        variables: the rows of the arrays.
        norms: float64[variables, measured]: the norm of each variable; NaN where there is none.
        drifts: float64[variables, measured]: the norm of its change since the column before; likewise.
        not_finite: (row, column, how many NaN, how many Inf) where there are any.
        damaged: the names of damaged variables, by the name of the checkpoint.
        unreadable: what is wrong with the checkpoints that could not be opened, by their names.
        has_values: whether values were looked at.
    """

    directory: Path
    time: float
    lives: list[Life]
    measured: list[Life] = field(default_factory=list)
    variables: list[VariableFacts] = field(default_factory=list)
    norms: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    drifts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    not_finite: list[tuple[int, int, int, int]] = field(default_factory=list)
    damaged: dict[str, list[str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    has_values: bool = True


def collect(directory: PathLike, only: Any, *, values: bool, progress: Progress) -> RunFacts:
    """Read what a report shows: every byte once, and those once more that differ in the checkpoint after.

    Raises:
        CheckpointNotFoundError: there is no run directory, or there is and was no checkpoint in it.
        VariableNotFoundError: `only` selects nothing in any checkpoint.
    """
    where = local_path(directory)
    listed = list_checkpoints(where)
    facts = RunFacts(where, time.time(), lives_of(get_checkpoint_history(where), listed), has_values=values)
    if not facts.lives:
        raise CheckpointNotFoundError(f"{where}: expected a run directory with checkpoints, found none in it")
    selection = None if only is None else as_selection(only)
    there = [life for life in facts.lives if life.listed is not None]
    nbytes = 2 * sum(life.listed.nbytes for life in there if life.listed is not None) if values else 0
    table = _Table(facts)
    refused: VariableNotFoundError | None = None
    with reporting(progress, f"measuring {where}", nbytes):
        for life in there:
            try:
                refused = table.add(life, where / life.name, selection) or refused
            except CheckpointError as error:  # damaged, or deleted since the directory was listed
                facts.unreadable[life.name] = str(error)
    if refused is not None and not facts.variables:
        raise refused
    table.fill_in(newest_is_there=bool(there) and facts.measured[-1:] == there[-1:])
    return facts


class _Table:
    """What is found in one checkpoint after the other: a column for each, a row for each name."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._row_of: dict[str, int] = {}
        self._columns: list[tuple[np.ndarray, np.ndarray]] = []  # norms and drifts of the rows that there were then
        self._before: tuple[Path, CheckpointMeasures] | None = None
        self._newest: set[str] = set()

    def add(self, life: Life, path: Path, selection: Selection | None) -> VariableNotFoundError | None:
        """Add the column of a checkpoint; gives the error if nothing in it is selected.

        Raises:
            CheckpointError: it cannot be read.
        """
        facts, refused = self._facts, None
        with ExitStack() as stack:
            reader = _opened(path, stack)
            names = list(reader.names)
            if selection is not None:
                try:
                    names = selected_names(selection, names, str(path))
                except VariableNotFoundError as error:
                    names, refused = [], error
            measures = CheckpointMeasures({})
            if facts.has_values:
                with named_os_errors("read", path):
                    measures = measure_after(reader, names, self._opened_before(stack))
            self._note_variables(reader, names, measures)
        column = len(facts.measured)
        facts.measured.append(life)
        self._newest = set(names)
        self._before = path, measures
        norms, drifts = (np.full(len(self._row_of), np.nan) for _ in range(2))
        for name, measured in measures.variables.items():
            row, statistics = self._row_of[name], measured.statistics
            norms[row] = np.nan if statistics.norm is None else statistics.norm
            drifts[row] = np.nan if measured.drift is None else measured.drift
            if statistics.nan or statistics.inf:
                facts.not_finite.append((row, column, statistics.nan or 0, statistics.inf or 0))
        self._columns.append((norms, drifts))
        if measures.damaged:
            facts.damaged[life.name] = list(measures.damaged)
        return refused

    def _opened_before(self, stack: ExitStack) -> tuple[CheckpointReader, CheckpointMeasures] | None:
        if self._before is None:
            return None
        try:
            return _opened(self._before[0], stack), self._before[1]
        except CheckpointError:  # it is gone by now
            return None

    def _note_variables(self, reader: CheckpointReader, names: Sequence[str], measures: CheckpointMeasures) -> None:
        position_of = {name: i for i, name in enumerate(reader.names)}
        for name in names:
            i = position_of[name]
            shape = logical_shape(reader.types[i], reader.shapes[i])
            measured = measures.variables.get(name)
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

    def fill_in(self, *, newest_is_there: bool) -> None:
        """Bring the columns into the arrays, and tell which variables the newest checkpoint has."""
        facts = self._facts
        facts.norms, facts.drifts = (np.full((len(self._row_of), len(self._columns)), np.nan) for _ in range(2))
        for c, (norms, drifts) in enumerate(self._columns):
            facts.norms[: norms.size, c] = norms
            facts.drifts[: drifts.size, c] = drifts
        if newest_is_there:
            facts.variables = [replace(each, present=each.name in self._newest) for each in facts.variables]


def _opened(path: Path, stack: ExitStack) -> CheckpointReader:
    reader = open_reader(path)
    stack.callback(reader.close)
    return reader
