"""The data of a report's page, which its script draws: what can be encoded as JSON. Pure."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pytreesaver._inspect.report.facts import (
    Lifetime,
    RunFacts,
    VariableFacts,
    has_steps,
    type_differences,
    x_positions,
)
from pytreesaver._text import printable, time_text


def page_data(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """Return the data of a page about a run, or about a run and the one it is shown against."""
    return {
        "runs": [_run(facts) for facts in runs],
        "hasValues": runs[0].has_values,
        "differences": [
            {"name": _name(each.name), "first": _printable(each.first), "second": _printable(each.second)}
            for each in (type_differences(*runs) if len(runs) == 2 else [])
        ],
    }


def _run(facts: RunFacts) -> dict[str, Any]:
    damaged_in: dict[str, list[str]] = {}
    for checkpoint, names in facts.damaged.items():
        for name in names:
            damaged_in.setdefault(name, []).append(printable(checkpoint))
    times: list[float | None] = [None, *(lifetime.saved for lifetime in facts.lifetimes)]
    return {
        "label": printable(str(facts.directory)),
        "time": facts.time,
        "hasSteps": has_steps(facts.lifetimes),
        "checkpoints": [
            _checkpoint_row(lifetime, x, previous)
            for lifetime, x, previous in zip(facts.lifetimes, x_positions(facts.lifetimes), times, strict=False)
        ],
        "measured": {
            "hasSteps": has_steps(facts.measured),
            "x": x_positions(facts.measured),
            "names": [printable(lifetime.name) for lifetime in facts.measured],
        },
        "variables": [_variable_row(each, damaged_in.get(each.name, [])) for each in facts.variables],
        "curves": {name: _encoded(values) for name, values in facts.curves.items()},
        "notFinite": facts.not_finite,
    }


def _encoded(values: np.ndarray) -> list[str]:
    """Return the dtype of little-endian floats, and their bytes in base64: float32, if that holds them all."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    fits = not sizes.size or (sizes.min() > 1e-37 and sizes.max() < 1e38)
    dtype = "f4" if fits else "f8"
    return [dtype, base64.b64encode(np.ascontiguousarray(values, f"<{dtype}").tobytes()).decode()]


def _checkpoint_row(lifetime: Lifetime, x: int, previous: float | None) -> dict[str, Any]:
    listed, timings = lifetime.listed, lifetime.timings
    metadata = "" if listed is None else ", ".join(f"{name} = {value!r}" for name, value in listed.metadata.items())
    reasons = [] if listed is None or listed.problem else [printable(reason) for reason in listed.reasons]
    if listed is None:
        note = "deletion not recorded" if lifetime.deleted is None else f"deleted {time_text(lifetime.deleted)}"
    else:
        note = listed.problem.splitlines()[0] if listed.problem else ", ".join(listed.reasons)
    row: dict[str, Any] = {
        "name": printable(lifetime.name),
        "step": lifetime.step,
        "x": x,
        "saved": time_text(lifetime.saved).removesuffix(" UTC"),
        "time": lifetime.saved,
        "deleted": lifetime.deleted,
        "sincePrevious": None if previous is None else lifetime.saved - previous,
        "exists": listed is not None,
        "reasons": reasons,
        "metrics": [[printable(name), number(value)] for name, value in lifetime.metrics.items()],
        "metadata": printable(metadata),
        "status": lifetime.status,
        "note": printable(note),
    }
    if listed is not None:
        row |= {"nbytes": listed.nbytes, "written": listed.nbytes - listed.shared_nbytes, "frees": listed.freed_nbytes}
    if timings is not None:
        row = {"nbytes": timings.nbytes} | row
        row |= {"wrote": timings.wrote_secs, "blocked": timings.blocked_secs, "waited": timings.waited_secs}
    return {key: number(value) if isinstance(value, float) else value for key, value in row.items()}


def _variable_row(variable: VariableFacts, damaged_in: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": _name(variable.name),
        "type": printable(variable.type),
        "size": variable.size,
        "nbytes": variable.nbytes,
        "present": variable.present,
        "damaged": ", ".join(damaged_in),
    }
    statistics = variable.statistics
    if statistics is not None:
        mean = statistics.mean
        row |= {
            "min": number(statistics.min),
            "max": number(statistics.max),
            "mean": str(mean) if isinstance(mean, complex) else number(mean),
            "std": number(statistics.std),
            "nan": statistics.nan,
            "inf": statistics.inf,
            "zeros": statistics.zeros,
        }
    return row


def _name(name: str) -> str:
    return printable(name) or "''"


def _printable(text: str | None) -> str | None:
    return None if text is None else printable(text)


def number(value: float | int | None) -> float | int | str | None:
    """Return a number as JSON can hold it: NaN and infinities as text."""
    if value is None or isinstance(value, int):
        return value
    return value if math.isfinite(value) else str(value)
