"""The static Plotly figures of a report. Plotly interprets labels as HTML, so names are escaped."""

import html
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from pytreesaver._inspect.name_tree import Branch, variable_tree
from pytreesaver._inspect.report.facts import Lifetime, RunFacts, VariableFacts
from pytreesaver._text import printable, time_text

if TYPE_CHECKING:
    import plotly.graph_objects as go


STATUS_STYLES = {
    "kept": ("#2a9d5c", "circle"),
    "will be deleted": ("#e0a000", "circle"),
    "damaged": ("#d62839", "x"),
    "deleted": ("#8a8f98", "circle-open"),
    "missing": ("#8a8f98", "circle-x-open"),
}
"""The colour and marker symbol for each status of a checkpoint."""


def label(text: str) -> str:
    """Return text escaped for use as a Plotly label."""
    return html.escape(printable(text), quote=False)


def x_positions(lifetimes: Sequence[Lifetime]) -> list[int]:
    """Return x positions of checkpoints: their steps, or 0, 1, ... if one is missing or they do not increase."""
    steps = [lifetime.step for lifetime in lifetimes]
    known = [step for step in steps if step is not None]
    ascending = len(known) == len(steps) and all(a < b for a, b in pairwise(known))
    return known if ascending else list(range(len(lifetimes)))


def lifetimes(facts: RunFacts) -> "go.Figure":
    """Draw each checkpoint as a line from its save to its deletion, at the height of its step."""
    import plotly.graph_objects as go

    lifetimes = facts.lifetimes
    has_steps = all(lifetime.step is not None for lifetime in lifetimes)
    heights = [lifetime.step if has_steps else i for i, lifetime in enumerate(lifetimes)]
    now = max([facts.time] if len(lifetimes) < 2 else [lifetime.deleted or lifetime.saved for lifetime in lifetimes])
    figure = go.Figure()
    for status, (colour, symbol) in STATUS_STYLES.items():
        chosen = [i for i, lifetime in enumerate(lifetimes) if lifetime.status == status]
        if not chosen:
            continue
        times: list[datetime | None] = []
        lines: list[int | None] = []
        for i in chosen:
            end = lifetimes[i].deleted if lifetimes[i].listed is None else now
            times += [_as_datetime(lifetimes[i].saved), _as_datetime(lifetimes[i].saved if end is None else end), None]
            lines += [heights[i], heights[i], None]
        shared = {"legendgroup": status, "name": f"{status} ({len(chosen)})"}
        figure.add_scatter(
            x=times, y=lines, mode="lines", line={"color": colour, "width": 2}, hoverinfo="skip", showlegend=False,
            legendgroup=status,
        )  # fmt: skip
        figure.add_scatter(
            x=[_as_datetime(lifetimes[i].saved) for i in chosen],
            y=[heights[i] for i in chosen],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8},
            text=[_hover_text(lifetimes[i]) for i in chosen],
            hovertemplate="%{text}<extra></extra>",
            **shared,
        )
    figure.update_layout(
        xaxis={"title": {"text": "time (UTC)"}, "type": "date"},
        yaxis={"title": {"text": "step" if has_steps else "save"}},
        legend={"orientation": "h", "y": 1.08},
        height=420,
    )
    return figure


def _as_datetime(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    except (OverflowError, ValueError, OSError):
        return None


def _hover_text(lifetime: Lifetime) -> str:
    lines = [f"<b>{label(lifetime.name)}</b>", f"saved {time_text(lifetime.saved)}"]
    if lifetime.step is not None:
        lines.append(f"step {lifetime.step}")
    if lifetime.deleted is not None:
        lines.append(f"deleted {time_text(lifetime.deleted)}")
    elif lifetime.status == "missing":
        lines.append("missing, deletion not recorded")
    if lifetime.listed is not None:
        lines += [label(reason) for reason in lifetime.listed.reasons]
        if lifetime.listed.problem:
            lines.append(label(lifetime.listed.problem.splitlines()[0]))
        elif not lifetime.listed.keep:
            lines.append("will be deleted at the next save")
    lines += [f"{label(name)} = {value:.6g}" for name, value in lifetime.metrics.items()]
    return "<br>".join(lines)


def reasons(facts: RunFacts) -> "go.Figure":
    """Draw which existing checkpoints are kept, with a row for each reason."""
    import plotly.graph_objects as go

    existing = [lifetime for lifetime in facts.lifetimes if lifetime.listed is not None]
    positions = x_positions(existing)
    points: dict[str, list[int]] = {}
    for i, lifetime in enumerate(existing):
        listed = lifetime.listed
        why = listed.reasons if listed is not None and listed.keep and listed.problem is None else (lifetime.status,)
        for reason in why:
            points.setdefault(reason, []).append(i)
    figure = go.Figure()
    for reason, chosen in points.items():
        colour = STATUS_STYLES.get(reason, STATUS_STYLES["kept"])[0]
        figure.add_scatter(
            x=[positions[i] for i in chosen],
            y=[label(reason)] * len(chosen),
            mode="markers",
            marker={"color": colour, "symbol": "square", "size": 9},
            text=[_hover_text(existing[i]) for i in chosen],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    figure.update_layout(
        xaxis={"title": {"text": axis_title(existing)}},
        yaxis={"automargin": True, "type": "category"},
        height=130 + 34 * len(points),
    )
    return figure


def axis_title(lifetimes: Sequence[Lifetime]) -> str:
    """Return the axis title for `x_positions`."""
    steps = [lifetime.step for lifetime in lifetimes]
    return "step" if steps == x_positions(lifetimes) else "checkpoint"


def metrics(facts: RunFacts) -> "go.Figure | None":
    """Draw a curve for each metric, including deleted checkpoints. Return None if there are no metrics."""
    from plotly.subplots import make_subplots

    lifetimes = facts.lifetimes
    names = list(dict.fromkeys(name for lifetime in lifetimes for name in lifetime.metrics))
    if not names:
        return None
    columns = 1 if len(names) == 1 else 2
    rows = math.ceil(len(names) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=[label(name) for name in names], vertical_spacing=0.25 / rows
    )
    positions = x_positions(lifetimes)
    for number, name in enumerate(names):
        chosen = [i for i, lifetime in enumerate(lifetimes) if name in lifetime.metrics]
        markers = [STATUS_STYLES[lifetimes[i].status] for i in chosen]
        figure.add_scatter(
            x=[positions[i] for i in chosen],
            y=[lifetimes[i].metrics[name] for i in chosen],
            mode="lines+markers",
            line={"width": 1.5, "color": "#4c78a8"},
            marker={
                "color": [each[0] for each in markers],
                "symbol": [each[1] for each in markers],
                "size": 7,
            },
            text=[_hover_text(lifetimes[i]) for i in chosen],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            row=number // columns + 1,
            col=number % columns + 1,
        )
    figure.update_xaxes(title_text=axis_title(lifetimes), row=rows)
    figure.update_layout(height=100 + 240 * rows, margin={"t": 50})
    return figure


_MAX_AREAS = 4000  # drawing this many takes one or two seconds


def treemap(variables: Sequence[VariableFacts]) -> "go.Figure":
    """Draw the sizes of the variables as a treemap."""
    import plotly.graph_objects as go

    root = variable_tree(variables)
    areas = list(_areas(root, "0", "", "all variables"))
    ids, parents, labels, values, texts = zip(*areas, strict=True)
    figure = go.Figure(
        go.Treemap(
            ids=ids,
            parents=parents,
            labels=labels,
            values=values,
            text=texts,
            branchvalues="total",
            maxdepth=-1 if len(areas) <= _MAX_AREAS else 4,
            hovertemplate="<b>%{label}</b><br>%{text}<br>%{percentRoot} of all<extra></extra>",
            texttemplate="%{label}<br>%{text}",
            marker={"line": {"width": 1}},
            tiling={"pad": 2},
        )
    )
    figure.update_layout(height=520, margin={"t": 24, "l": 8, "r": 8, "b": 8})
    return figure


def _areas(branch: Branch, area_id: str, parent_id: str, name: str) -> Iterator[tuple[str, str, str, int, str]]:
    """Yield (id, parent id, label, bytes, text) for a branch and for every branch below it."""
    yield area_id, parent_id, name, branch.nbytes, _area_text(branch)
    for number, child in enumerate(branch.children):
        yield from _areas(child, f"{area_id}/{number}", area_id, label(child.name) or "''")


def _area_text(branch: Branch) -> str:
    kind = label(branch.type) if branch.type else f"{branch.variables:,} variables"
    return f"{kind}, {branch.nbytes:,} bytes"
