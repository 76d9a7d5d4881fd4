"""The self-contained HTML page of a report. Pure."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from pytreesaver._inspect.report.facts import RunFacts
from pytreesaver._inspect.report.rows import page_data
from pytreesaver._text import printable, time_text
from pytreesaver._tree.plain import encode_value
from pytreesaver.formats import places

MARK = "<!-- made by pytreesaver report -->"
"""A mark in the first line of every report, by which `write_report` recognizes reports."""

_LIBRARIES = ("vendored/d3.min.js", "vendored/plot.umd.min.js")
_LICENSES = ("vendored/LICENSE-d3.txt", "vendored/LICENSE-plot.txt")
_SCRIPTS = (
    "text.js",
    "data.js",
    "chart.js",
    "pointer.js",
    "runs.js",
    "variables.js",
    "treemap.js",
    "table.js",
    "page.js",
)
_MAX_NAMES = 20


def page(runs: Sequence[RunFacts], version: str | None = None) -> str:
    """Return the HTML of the page about a run, or about a run and the one it is shown against.

    With a `version`, the page is served by `ReportServer`, which it asks for newer versions.
    """
    facts = runs[0]
    script = "".join(map(_resource, _SCRIPTS))
    scripts = [*map(_resource, _LIBRARIES), f'"use strict";\n(() => {{\n{script}}})();\n']
    values = {
        "POLICY": content_security_policy(scripts, is_served=version is not None),
        "TITLE": html.escape(f"{printable(facts.directory.absolute().name)}: checkpoints"),
        "VERSION": "" if version is None else f' data-version="{html.escape(version)}"',
        "STYLE": _resource("page.css"),
        "HEADING": html.escape(printable(str(facts.directory))),
        "AGAINST": html.escape("".join(f"against {printable(str(other.directory))}" for other in runs[1:])),
        "SUMMARY": _summary(facts),
        "NOTICES": _notices(runs),
        "LICENSES": "\n\n".join(map(_resource, _LICENSES)),
        "DATA": _script_safe(json.dumps(page_data(runs), allow_nan=False)),
        "SCRIPTS": "\n".join(f"<script>{each}</script>" for each in scripts),
    }
    return _fill_template(_resource("page.html"), values)


def content_security_policy(scripts: Sequence[str], *, is_served: bool) -> str:
    """Return the policy that runs only these scripts, and that loads nothing but newer versions of a served page."""
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    sources = " ".join(f"'sha256-{each}'" for each in hashes)
    connections = "connect-src 'self'; " if is_served else ""
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; {connections}"
        "base-uri 'none'; form-action 'none'"
    )


def _fill_template(text: str, values: Mapping[str, str]) -> str:
    """Replace each placeholder ``{{NAME}}`` in a template. Placeholders in the values are not replaced."""
    first, *rest = text.split("{{")
    parts = [first]
    for part in rest:
        name, _, after = part.partition("}}")
        parts += [values[name], after]
    return "".join(parts)


def _resource(name: str) -> str:
    return resources.files("pytreesaver._inspect.report").joinpath("web", *name.split("/")).read_text("utf-8")


def _script_safe(text: str) -> str:
    """Return JSON escaped so that it cannot end the script element that contains it."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _summary(facts: RunFacts) -> str:
    existing = [lifetime.listed for lifetime in facts.lifetimes if lifetime.listed is not None]
    nbytes = places.nbytes_on_disk(file for each in existing for file in places.stored_files(each.path))
    present = [each for each in facts.variables if each.present]
    items = {
        "checkpoints": f"{len(existing):,}",
        "deleted so far": f"{len(facts.lifetimes) - len(existing):,}",
        "on disk": nbytes,
        "variables": f"{len(present):,}",
        "params": f"{sum(each.size for each in present):,}",
        "created": time_text(facts.time),
    }
    newest = facts.measured[-1].listed if facts.measured else None
    if newest is not None:
        items["newest" if newest is existing[-1] else "newest readable"] = newest.path.name
        metadata = encode_value(dict(newest.metadata), classes=False)
        items |= {f"metadata/{name}": json.dumps(value) for name, value in metadata.items()}
    return "".join(
        f"<div><dt>{html.escape(printable(name))}</dt><dd>{_value_html(value)}</dd></div>"
        for name, value in items.items()
    )


def _value_html(value: Any) -> str:
    if isinstance(value, int):  # a number of bytes, which the script shows with a prefix
        return f'<data class="bytes" value="{value}">{value:,} bytes</data>'
    return html.escape(printable(value))


def _notices(runs: Sequence[RunFacts]) -> str:
    """Return the HTML of the warnings at the top of the page."""
    found = [(f"{facts.directory}: " if facts is not runs[0] else "", facts) for facts in runs]
    notices = [f"{prefix}{notice}" for prefix, facts in found for notice in _notices_of(facts)]
    items = "".join(f"<li>{html.escape(printable(notice))}</li>" for notice in notices)
    return f"<ul class='notices'>{items}</ul>" if items else ""


def _notices_of(facts: RunFacts) -> list[str]:
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
    return notices


def _names_text(names: Sequence[str]) -> str:
    more = f", and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(name or "''" for name in names[:_MAX_NAMES]) + more
