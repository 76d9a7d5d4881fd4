"""What a run directory records with each of its checkpoints: step, time, metrics and retention rule, as JSON data."""

import math
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import msgspec
import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._run.state_text import state_file_name
from pytreesaver._tree.kinds import NotPlainError
from pytreesaver._tree.plain import decode_as, encode_value


class Record(msgspec.Struct, frozen=True):
    """What was recorded with a checkpoint.

    Attributes:
        step: the step that was saved.
        time: the time of the save, in seconds since the epoch.
        metrics: the metrics that were passed to the save.
        state_file: the name of the state file that lists the checkpoint, or was about to list it.
        serial: the number of saves for that state file so far, including this one.
        name: the name of the checkpoint's directory.
        predecessor: the name of the newest checkpoint before this one.
        retention: the rule of the saver, as `pytreesaver._run.policies.recording` encodes it; None if unknown.
    """

    step: int | None = None
    time: float | None = None
    metrics: dict[str, float] = {}
    state_file: str | None = None
    serial: int = 0
    name: str = ""
    predecessor: str | None = None
    retention: Any = None


_REQUIRED = ("step", "time", "metrics", "state_file", "serial", "name", "predecessor")
"""The fields of every record. Fields that were added later are optional, so that older checkpoints stay readable."""


def encode_record(record: Record) -> Any:
    """Return a record as JSON data.

    Example:
        >>> encode_record(Record(100, 1.5, {"loss": 0.25}, "checkpoint", 7, "m-100", "m-90"))
        {'step': 100, 'time': 1.5, 'metrics': {'loss': 0.25}, 'state_file': 'checkpoint', 'serial': 7, 'name': 'm-100',
            'predecessor': 'm-90', 'retention': None}
    """
    return encode_value(msgspec.structs.asdict(record), classes=False)


def decode_record(encoded: Any, where: Path) -> Record:
    """Return the record that `encode_record` encoded, or an empty one for None.

    Args:
        encoded: the JSON data.
        where: the checkpoint, for messages.

    Raises:
        CorruptCheckpointError: if the record is malformed.
    """
    if encoded is None:
        return Record()
    try:
        record: Record = decode_as(encoded, Record)
    except NotPlainError as error:
        raise CorruptCheckpointError(f"{where}: its record is malformed: {error}") from error
    missing = [name for name in _REQUIRED if name not in encoded]
    if missing:
        raise CorruptCheckpointError(f"{where}: its record is malformed: it lacks {', '.join(missing)}")
    if record.time is not None and not math.isfinite(record.time):
        raise CorruptCheckpointError(f"{where}: its record is malformed: expected a finite time, found {record.time}")
    if record.state_file is not None:
        try:
            state_file_name(record.state_file)
        except ValueError as error:
            found = f"expected the name of a state file, found {record.state_file!r}"
            raise CorruptCheckpointError(f"{where}: its record is malformed: {found}") from error
    return record


def as_step(step: SupportsIndex) -> int:
    """Return a step as an int.

    Raises:
        TypeError: if it is neither an int nor a 0-d integer array.
        ValueError: if it is negative.

    Example:
        >>> as_step(np.int64(100)), as_step(np.array(100))
        (100, 100)
    """
    try:
        number = operator.index(step)
    except TypeError:
        number = None
    if number is None or isinstance(step, bool | np.bool_):
        raise TypeError(f"step: expected an int or a 0-d integer array, found {step!r}")
    if number < 0:
        raise ValueError(f"step: expected a non-negative int, found {number}")
    return number


def checked_metrics(metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Return metrics as floats, by name.

    Raises:
        TypeError: if a metric is not a number.
        ValueError: if a metric is too large for a float.

    Example:
        >>> checked_metrics({"loss": np.float32(0.5), "epoch": 2})
        {'loss': 0.5, 'epoch': 2.0}
    """
    given: object = metrics  # regardless of its annotation
    if metrics is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"metrics: expected a dict that maps names to numbers, found {metrics!r}")
    checked = {}
    for name, value in metrics.items():
        is_array = hasattr(value, "dtype") and getattr(value, "shape", None) == ()
        is_number = is_array or (isinstance(value, int | float) and not isinstance(value, bool))
        if not is_number or type(name) is not str:
            raise TypeError(f"metrics: expected a str and a number, found {name!r}: {value!r}")
        try:
            checked[name] = float(value)
        except OverflowError:
            raise ValueError(f"metrics: the value of {name!r} is too large for a float") from None
        except (TypeError, ValueError):
            raise TypeError(f"metrics: expected a number, found {name!r}: {value!r}") from None
    return checked
