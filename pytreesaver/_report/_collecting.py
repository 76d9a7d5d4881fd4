"""What a report tells of a run: read from the directory, as plain values."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, VariableNotFoundError
from pytreesaver._history import get_checkpoint_history
from pytreesaver._listing import list_checkpoints
from pytreesaver._paths import PathLike, local_path, named_os_errors
from pytreesaver._progress import Progress, reporting
from pytreesaver._report._lives import Life, lives_of
from pytreesaver._select import Selection, as_selection, selected
from pytreesaver._statistics import Statistics
from pytreesaver._trajectory import CheckpointMeasures, measure_after
from pytreesaver._variables import load_checkpoint
from pytreesaver.formats import CheckpointReader


@dataclass(frozen=True)
class VariableFacts:
    """A variable, as it is in the last checkpoint that has it.

    Attributes:
        name: its name.
        type: what it is, as in messages: ``"float32[784,512]"``.
        size: how many elements it has.
        nbytes: how many bytes it takes.
        statistics: what its elements are like; None if they were not looked at, or it is damaged.
        present: whether the newest checkpoint has it.
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
        measured: the checkpoints that could be opened, in that order: the columns of the arrays.
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
    """Read what a report shows. The bytes of a variable are read where they differ from those in the checkpoint before.

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
    columns: list[_Column] = []
    with reporting(progress, f"measuring {where}", nbytes):
        for life in there:
            try:
                column = _column(where / life.name, selection, columns[-1] if columns else None, values=values)
            except VariableNotFoundError:
                if life is there[-1] and not columns:
                    raise
            except CheckpointError as error:  # damaged, or deleted since the directory was listed
                facts.unreadable[life.name] = str(error)
            else:
                columns.append(column)
                facts.measured.append(life)
    _fill_in(facts, columns)
    return facts


@dataclass(frozen=True)
class _Column:
    """What was found in one checkpoint."""

    path: Path
    names: list[str]
    types: dict[str, tuple[str, int, int]]
    measures: CheckpointMeasures


def _column(path: Path, selection: Selection | None, before: _Column | None, *, values: bool) -> _Column:
    with ExitStack() as stack:
        checkpoint = stack.enter_context(load_checkpoint(path))
        names = list(checkpoint)
        if selection is not None:
            flags = selected(selection, names, str(path))
            names = [name for name, flag in zip(names, flags, strict=True) if flag]
        measures = CheckpointMeasures({})
        if values:
            with named_os_errors("read", path):
                old = None if before is None else _opened(before.path, stack)
                measures = measure_after(
                    checkpoint._reader, names, None if old is None or before is None else (old, before.measures)
                )
        types = {name: (checkpoint[name].type, checkpoint[name].size, checkpoint[name].nbytes) for name in names}
        return _Column(path, names, types, measures)


def _opened(path: Path, stack: ExitStack) -> CheckpointReader | None:
    """The reader of the checkpoint before, or None if it is gone by now."""
    try:
        return stack.enter_context(load_checkpoint(path))._reader
    except CheckpointError:
        return None


def _fill_in(facts: RunFacts, columns: Sequence[_Column]) -> None:
    """Bring the columns into arrays, with a row for each name, those of the newest checkpoint first."""
    names = list(dict.fromkeys(name for column in reversed(columns) for name in column.names))
    row_of = {name: row for row, name in enumerate(names)}
    last: dict[str, _Column] = {name: column for column in columns for name in column.names}
    facts.norms = np.full((len(names), len(columns)), np.nan)
    facts.drifts = np.full((len(names), len(columns)), np.nan)
    for c, column in enumerate(columns):
        for name, measured in column.measures.variables.items():
            row, statistics = row_of[name], measured.statistics
            facts.norms[row, c] = np.nan if statistics.norm is None else statistics.norm
            facts.drifts[row, c] = np.nan if measured.drift is None else measured.drift
            if statistics.nan or statistics.inf:
                facts.not_finite.append((row, c, statistics.nan or 0, statistics.inf or 0))
        if column.measures.damaged:
            facts.damaged[column.path.name] = list(column.measures.damaged)
    for name in names:
        column = last[name]
        newest = column.measures.variables.get(name)
        present = column is columns[-1]
        facts.variables.append(
            VariableFacts(name, *column.types[name], None if newest is None else newest.statistics, present)
        )
