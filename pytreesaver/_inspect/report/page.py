"""The self-contained HTML page of a report. Pure."""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from pytreesaver._inspect.report import figures as _figures
from pytreesaver._inspect.report.facts import Lifetime, RunFacts, VariableFacts
from pytreesaver._inspect.report.figures import axis_title, label, x_positions
from pytreesaver._text import printable, time_text
from pytreesaver._tree.plain import encode_value
from pytreesaver.formats import places

MARK = "<!-- made by pytreesaver report -->"
"""A mark in the first line of every report, by which `write_report` recognizes reports."""

_MAX_NAMES = 20


def page(facts: RunFacts) -> str:
    """Return the HTML of the page."""
    figures = {
        "lifetimes": _figures.lifetimes(facts),
        "reasons": _figures.reasons(facts) if any(lifetime.listed for lifetime in facts.lifetimes) else None,
        "metrics": _figures.metrics(facts),
        "treemap": _figures.treemap([each for each in facts.variables if each.present]) if facts.variables else None,
    }
    damaged_in: dict[str, list[str]] = {}
    for checkpoint, names in facts.damaged.items():
        for name in names:
            damaged_in.setdefault(name, []).append(printable(checkpoint))
    data = {
        "figures": {name: json.loads(figure.to_json()) for name, figure in figures.items() if figure is not None},
        "templates": _templates(),
        "checkpoints": [_checkpoint_row(lifetime) for lifetime in facts.lifetimes],
        "variables": [_variable_row(each, damaged_in.get(each.name, [])) for each in facts.variables],
        "steps": x_positions(facts.measured),
        "axis": axis_title(facts.measured),
        "columns": [printable(lifetime.name) for lifetime in facts.measured],
        "norms": _as_base64(facts.norms),
        "drifts": _as_base64(facts.drifts),
        "notFinite": facts.not_finite,
        "hasValues": facts.has_values,
    }
    title = f"{printable(facts.directory.absolute().name)}: checkpoints"
    values = {
        "TITLE": html.escape(title),
        "STYLE": _resource("page.css"),
        "HEADING": html.escape(printable(str(facts.directory))),
        "SUMMARY": _summary(facts),
        "NOTICES": _notices(facts),
        "HIDDEN_METRICS": "" if figures["metrics"] is not None else " hidden",
        "HIDDEN_REASONS": "" if figures["reasons"] is not None else " hidden",
        "HIDDEN_VARIABLES": "" if facts.variables else " hidden",
        "HIDDEN_VALUES": "" if facts.has_values and facts.variables else " hidden",
        "DATA": _script_safe(json.dumps(data, allow_nan=False)),
        "PLOTLY": _plotly(),
        "SCRIPT": _resource("page.js"),
    }
    return _fill_template(_resource("page.html"), values)


def _fill_template(text: str, values: Mapping[str, str]) -> str:
    """Replace each placeholder ``{{NAME}}`` in a template. Placeholders in the values are not replaced."""
    first, *rest = text.split("{{")
    parts = [first]
    for part in rest:
        name, _, after = part.partition("}}")
        parts += [values[name], after]
    return "".join(parts)


def _resource(name: str) -> str:
    return resources.files("pytreesaver._inspect.report").joinpath(name).read_text("utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    code: str = get_plotlyjs()
    return code


def _templates() -> dict[str, Any]:
    import plotly.io as pio

    return {name: pio.templates[f"plotly_{name}"].to_plotly_json() for name in ("white", "dark")}


def _script_safe(text: str) -> str:
    """Return JSON escaped so that it cannot end the script element that contains it."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _as_base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()


# Table rows.


def _checkpoint_row(lifetime: Lifetime) -> dict[str, Any]:
    listed = lifetime.listed
    metadata = "" if listed is None else ", ".join(f"{name} = {value!r}" for name, value in listed.metadata.items())
    if listed is None:
        note = "deletion not recorded" if lifetime.deleted is None else f"deleted {time_text(lifetime.deleted)}"
    else:
        note = listed.problem.splitlines()[0] if listed.problem else ", ".join(listed.reasons)
    return {
        "name": printable(lifetime.name),
        "step": lifetime.step,
        "saved": time_text(lifetime.saved).removesuffix(" UTC"),
        "time": lifetime.saved,
        "nbytes": None if listed is None else listed.nbytes,
        "written": None if listed is None else listed.nbytes - listed.shared_nbytes,
        "frees": None if listed is None else listed.freed_nbytes,
        "metrics": {printable(name): _number(value) for name, value in lifetime.metrics.items()},
        "metadata": printable(metadata),
        "status": lifetime.status,
        "note": printable(note),
    }


def _variable_row(variable: VariableFacts, damaged_in: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": printable(variable.name) or "''",
        "label": label(variable.name) or "''",
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
            "min": _number(statistics.min),
            "max": _number(statistics.max),
            "mean": str(mean) if isinstance(mean, complex) else _number(mean),
            "std": _number(statistics.std),
            "nan": statistics.nan,
            "inf": statistics.inf,
            "zeros": statistics.zeros,
        }
    return row


def _number(value: float | int | None) -> float | int | str | None:
    if value is None or isinstance(value, int):
        return value
    return value if math.isfinite(value) else str(value)


# Page header.


def _summary(facts: RunFacts) -> str:
    existing = [lifetime.listed for lifetime in facts.lifetimes if lifetime.listed is not None]
    nbytes = places.nbytes_on_disk(file for each in existing for file in places.stored_files(each.path))
    deleted = len(facts.lifetimes) - len(existing)
    present = [each for each in facts.variables if each.present]
    items = {
        "checkpoints": f"{len(existing):,}",
        "deleted so far": f"{deleted:,}",
        "bytes on disk": f"{nbytes:,}",
        "variables": f"{len(present):,}",
        "params": f"{sum(each.size for each in present):,}",
        "created": time_text(facts.time),
    }
    newest = facts.measured[-1].listed if facts.measured else None
    if newest is not None:
        items["newest" if newest is existing[-1] else "newest readable"] = newest.path.name
        metadata = encode_value(dict(newest.metadata), classes=False)
        items |= {f"metadata/{name}": json.dumps(value) for name, value in metadata.items()}
    cells = (
        f"<div><dt>{html.escape(printable(name))}</dt><dd>{html.escape(printable(value))}</dd></div>"
        for name, value in items.items()
    )
    return "".join(cells)


def _notices(facts: RunFacts) -> str:
    """Return the HTML of the warnings at the top of the page."""
    notices = [f"{name}: {problem.splitlines()[0]}" for name, problem in facts.unreadable.items()]
    for lifetime in facts.lifetimes:
        listed = lifetime.listed
        if listed is not None and listed.problem is not None and lifetime.name not in facts.unreadable:
            notices.append(f"{lifetime.name}: {listed.problem.splitlines()[0]}")
    notices += [f"{name}: damaged: {_names_text(names)}" for name, names in facts.damaged.items()]
    by_column: dict[int, list[str]] = {}
    for row, column, _, _ in facts.not_finite:
        by_column.setdefault(column, []).append(facts.variables[row].name)
    if by_column:
        first = min(by_column)
        notices.append(
            f"NaN or Inf in {len(by_column)} of {len(facts.measured)} checkpoints, first in "
            f"{facts.measured[first].name}: {_names_text(by_column[first])}"
        )
    items = "".join(f"<li>{html.escape(printable(notice))}</li>" for notice in notices)
    return f"<ul class='notices'>{items}</ul>" if items else ""


def _names_text(names: list[str]) -> str:
    more = f", and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(name or "''" for name in names[:_MAX_NAMES]) + more
