"""Collecting the contents of a report from a run directory."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointNotFoundError, MissingPackageError, VariableNotFoundError
from pytreesaver._inspect.measuring import CheckpointMeasurements, measure_with_drift
from pytreesaver._inspect.report.facts import CURVES, RunFacts, VariableFacts, lifetimes_of
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._progress import Progress, reporting
from pytreesaver._run.history import get_checkpoint_history
from pytreesaver._run.listing import list_checkpoints
from pytreesaver._tree.kinds import describe, logical_shape
from pytreesaver._tree.names.select import Selection, Selector, as_selection, selected_names
from pytreesaver.formats import places
from pytreesaver.formats.protocol import CheckpointReader
from pytreesaver.formats.registry import open_reader

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class _Read:
    """What was read from a checkpoint.

    Attributes:
        path: its path.
        fingerprint: what changes when the checkpoint does.
        previous: the fingerprint of the checkpoint that it was compared with; None if there was none.
        variables: the selected variables.
        measurements: their statistics, without those that are damaged.
        nothing_selected: the error if nothing in it is selected.
    """

    path: Path
    fingerprint: Fingerprint
    previous: Fingerprint | None
    variables: list[VariableFacts]
    measurements: CheckpointMeasurements
    nothing_selected: VariableNotFoundError | None = None


@dataclass
class Memory:
    """What the last collection read, by checkpoint name, so that the next one reads only what is new.

    It holds for one selection and one choice of `values`.
    """

    reads: dict[str, _Read] = field(default_factory=dict)


def collect(
    directory: PathLike,
    only: Selection | None = None,
    *,
    values: bool = True,
    progress: Progress = False,
    memory: Memory | None = None,
) -> RunFacts:
    """Collect the contents of a report. Each variable is read once, and again if it changes in the next checkpoint.

    Raises:
        CheckpointNotFoundError: if the run directory does not exist, or if neither it nor its history has a checkpoint.
        VariableNotFoundError: if `only` selects nothing in any checkpoint.
    """
    run = local_path(directory)
    listed = list_checkpoints(run)
    facts = RunFacts(run, lifetimes_of(get_checkpoint_history(run), listed), values)
    if not facts.lifetimes:
        raise CheckpointNotFoundError(f"{run} contains no checkpoints")
    selection = None if only is None else as_selection(only)
    memory = Memory() if memory is None else memory
    present = [lifetime for lifetime in facts.lifetimes if lifetime.listed is not None]
    nbytes = 2 * sum(lifetime.listed.nbytes for lifetime in present if lifetime.listed is not None) if values else 0
    reads: list[_Read] = []
    with reporting(progress, f"computing statistics of {run}", nbytes):
        for lifetime in present:
            known = memory.reads.get(lifetime.name)
            try:
                reads.append(_read(run / lifetime.name, selection, values, reads[-1] if reads else None, known))
            except MissingPackageError:
                raise
            except CheckpointError as error:  # damaged, or deleted since the directory was listed
                facts.unreadable[lifetime.name] = str(error)
            else:
                facts.measured.append(lifetime)
    memory.reads = {read.path.name: read for read in reads}
    _add_curves(facts, reads)
    nothing_selected = [read.nothing_selected for read in reads if read.nothing_selected is not None]
    if nothing_selected and not facts.variables:
        raise nothing_selected[-1]
    if present and facts.measured[-1:] == present[-1:]:
        newest = {variable.name for variable in reads[-1].variables}
        facts.variables = [replace(each, present=each.name in newest) for each in facts.variables]
    return facts


def _read(path: Path, selection: Selector | None, values: bool, previous: _Read | None, known: _Read | None) -> _Read:
    """Read a checkpoint, unless `known` holds what was read from it before.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
    """
    with wrap_os_errors("read", path):
        fingerprint = places.fingerprint(path)
    since = None if previous is None else previous.fingerprint
    if known is not None and known.fingerprint == fingerprint and known.previous == since:
        return known
    if known is not None and known.fingerprint == fingerprint and since is None:
        return replace(known, previous=None, measurements=_without_drift(known.measurements))
    with ExitStack() as stack:
        reader = _open_reader(path, stack)
        names, nothing_selected = list(reader.names), None
        if selection is not None:
            try:
                names = selected_names(selection, names, str(path))
            except VariableNotFoundError as error:
                names, nothing_selected = [], error
        measurements = CheckpointMeasurements({})
        if values:
            with wrap_os_errors("read", path):
                measurements = measure_with_drift(reader, names, _prior(previous, stack))
        variables = _variables(reader, names, measurements)
    return _Read(path, fingerprint, since, variables, measurements, nothing_selected)


def _without_drift(measurements: CheckpointMeasurements) -> CheckpointMeasurements:
    variables = {name: replace(each, drift=None) for name, each in measurements.variables.items()}
    return CheckpointMeasurements(variables, measurements.damaged)


def _prior(previous: _Read | None, stack: ExitStack) -> tuple[CheckpointReader, CheckpointMeasurements] | None:
    if previous is None:
        return None
    try:
        return _open_reader(previous.path, stack), previous.measurements
    except CheckpointError:  # deleted in the meantime
        return None


def _open_reader(path: Path, stack: ExitStack) -> CheckpointReader:
    reader = open_reader(path)
    stack.callback(reader.close)
    return reader


def _variables(
    reader: CheckpointReader, names: Sequence[str], measurements: CheckpointMeasurements
) -> list[VariableFacts]:
    position_of = {name: i for i, name in enumerate(reader.names)}
    variables = []
    for name in names:
        i = position_of[name]
        shape = logical_shape(reader.types[i], reader.shapes[i])
        measured = measurements.variables.get(name)
        statistics = None if measured is None else measured.statistics
        described = describe(reader.types[i], shape)
        variables.append(VariableFacts(name, described, math.prod(shape), reader.nbytes[i], statistics))
    return variables


def _add_curves(facts: RunFacts, reads: Sequence[_Read]) -> None:
    """Assemble the variables, in the order in which they first appear, and the arrays with a column for each read."""
    variables = {variable.name: variable for read in reads for variable in read.variables}
    row_of = {name: row for row, name in enumerate(variables)}
    facts.variables = list(variables.values())
    facts.curves = {name: np.full((len(variables), len(reads)), np.nan) for name in CURVES}
    for column, (lifetime, read) in enumerate(zip(facts.measured, reads, strict=True)):
        for name, measured in read.measurements.variables.items():
            row, statistics = row_of[name], measured.statistics
            for curve, values in facts.curves.items():
                value = measured.drift if curve == "drift" else getattr(statistics, curve)
                if value is not None and not isinstance(value, complex):
                    values[row, column] = value
            if statistics.nan or statistics.inf:
                facts.not_finite.append((row, column, statistics.nan or 0, statistics.inf or 0))
        if read.measurements.damaged:
            facts.damaged[lifetime.name] = list(read.measurements.damaged)
