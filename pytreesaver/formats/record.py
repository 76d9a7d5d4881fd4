"""What a run directory records with each of its checkpoints: step, time and metrics, as JSON data and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._tree.kinds import NotPlainError
from pytreesaver._tree.plain import decode_value, encode_value


@dataclass(frozen=True)
class Record:
    """What was recorded with a checkpoint.

    Attributes:
        step: the step that it was saved for.
        time: when it was saved, in seconds since the epoch.
        metrics: as they were given to the save.
        state_file: the name of the state file in which it is, or was about to be, listed.
        serial: how many checkpoints had been saved for that state file, this one included.
        name: the name of the checkpoint's own directory.
        predecessor: the name of the newest checkpoint at that time.
        retention: the rule of the saver, as `pytreesaver._recorded_rules` encodes it, so that others can tell what it
            will keep; None if it was not recorded.
    """

    step: int | None = None
    time: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    state_file: str | None = None
    serial: int = 0
    name: str = ""
    predecessor: str | None = None
    retention: Any = None


def encode_record(record: Record) -> Any:
    """A record as JSON data.

    Example:
        >>> encode_record(Record(100, 1.5, {"loss": 0.25}, "checkpoint", 7, "m-100", "m-90"))
        {'step': 100, 'time': 1.5, 'metrics': {'loss': 0.25}, 'state_file': 'checkpoint', 'serial': 7, 'name': 'm-100',
            'predecessor': 'm-90', 'retention': None}
    """
    fields = {
        "step": record.step,
        "time": record.time,
        "metrics": dict(record.metrics),
        "state_file": record.state_file,
        "serial": record.serial,
        "name": record.name,
        "predecessor": record.predecessor,
        "retention": record.retention,
    }
    return encode_value(fields, classes=False)


_FIELDS = ("step", "time", "metrics", "state_file", "serial", "name", "predecessor")


def decode_record(encoded: Any, where: Path) -> Record:
    """The record that `encode_record` encoded, or an empty one for None.

    Raises:
        CorruptCheckpointError: it is none; `where` is the checkpoint that it is of.
    """
    if encoded is None:
        return Record()
    try:
        fields = decode_value(encoded)
        record = Record(**{name: fields[name] for name in _FIELDS}, retention=fields.get("retention"))
        well_formed = (
            (record.step is None or type(record.step) is int)
            and (record.time is None or (type(record.time) is float and math.isfinite(record.time)))
            and all(type(k) is str and type(v) is float for k, v in record.metrics.items())
            and (record.state_file is None or type(record.state_file) is str)
            and type(record.serial) is int
            and type(record.name) is str
            and (record.predecessor is None or type(record.predecessor) is str)
        )
    except (NotPlainError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{where}: its record is malformed: {error!r}") from error
    if not well_formed:
        raise CorruptCheckpointError(f"{where}: its record is malformed: {fields!r}")
    return record


def as_step(step: Any) -> int:
    """A step as an int.

    Raises:
        TypeError: it is neither an int nor an integer array without axes.
        ValueError: it is negative.

    Example:
        >>> as_step(np.int64(100)), as_step(np.array(100))
        (100, 100)
    """
    is_array = hasattr(step, "dtype") and hasattr(step, "shape")
    is_integer = is_array and step.shape == () and np.issubdtype(step.dtype, np.integer)
    if not is_integer and (isinstance(step, bool) or not isinstance(step, int)):
        raise TypeError(f"step: expected an int or an integer array without axes, found {step!r}")
    if step < 0:
        raise ValueError(f"step: expected a number from 0 on, found {int(step)}")
    return int(step)


def checked_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as floats by name.

    Raises:
        TypeError: one is no number.

    Example:
        >>> checked_metrics({"loss": np.float32(0.5), "epoch": 2})
        {'loss': 0.5, 'epoch': 2.0}
    """
    given: object = metrics  # whatever its annotation says
    if metrics is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"metrics: expected a dict of numbers by name, found {metrics!r}")
    checked = {}
    for name, value in metrics.items():
        is_array = hasattr(value, "dtype") and hasattr(value, "shape") and value.shape == ()
        is_number = is_array or (isinstance(value, int | float) and not isinstance(value, bool))
        if not is_number or type(name) is not str:
            raise TypeError(f"metrics: expected a number by its name, found {name!r}: {value!r}")
        try:
            checked[name] = float(value)
        except OverflowError:
            raise ValueError(f"metrics: expected a number that a float can hold, found {name!r}: an int") from None
    return checked
