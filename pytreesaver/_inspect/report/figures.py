"""The pictures of a report that are drawn once: Plotly figures of plain values, with names escaped for its labels."""

import html
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from pytreesaver._inspect.name_tree import Branch, variable_tree
from pytreesaver._inspect.report.facts import Life, RunFacts, VariableFacts
from pytreesaver._text import printable, time_text

if TYPE_CHECKING:
    import plotly.graph_objects as go


FATES = {
    "kept": ("#2a9d5c", "circle"),
    "will be deleted": ("#e0a000", "circle"),
    "damaged": ("#d62839", "x"),
    "deleted": ("#8a8f98", "circle-open"),
    "gone": ("#8a8f98", "circle-x-open"),
}
"""The colour and the marker of each fate of a checkpoint."""


def label(text: str) -> str:
    """A text that Plotly shows as it is: it takes its labels for HTML."""
    return html.escape(printable(text), quote=False)


def steps_of(lives: Sequence[Life]) -> list[int]:
    """Where each checkpoint stands on an axis of steps; they are numbered if some have no step, or one that falls."""
    steps = [life.step for life in lives]
    known = [step for step in steps if step is not None]
    ascending = len(known) == len(steps) and all(a < b for a, b in pairwise(known))
    return known if ascending else list(range(len(lives)))


def lifetimes(facts: RunFacts) -> "go.Figure":
    """Each checkpoint as a line in time from its save to its deletion, at the height of its step."""
    import plotly.graph_objects as go

    lives = facts.lives
    has_steps = all(life.step is not None for life in lives)
    heights = [life.step if has_steps else i for i, life in enumerate(lives)]
    now = max([facts.time] if len(lives) < 2 else [life.deleted or life.saved for life in lives])
    figure = go.Figure()
    for fate, (colour, symbol) in FATES.items():
        chosen = [i for i, life in enumerate(lives) if life.fate == fate]
        if not chosen:
            continue
        times: list[datetime | None] = []
        lines: list[int | None] = []
        for i in chosen:
            end = lives[i].deleted if lives[i].listed is None else now
            times += [_when(lives[i].saved), _when(lives[i].saved if end is None else end), None]
            lines += [heights[i], heights[i], None]
        shared = {"legendgroup": fate, "name": f"{fate} ({len(chosen)})"}
        figure.add_scatter(
            x=times, y=lines, mode="lines", line={"color": colour, "width": 2}, hoverinfo="skip", showlegend=False,
            legendgroup=fate,
        )  # fmt: skip
        figure.add_scatter(
            x=[_when(lives[i].saved) for i in chosen],
            y=[heights[i] for i in chosen],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8},
            text=[_hover(lives[i]) for i in chosen],
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


def _when(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    except (OverflowError, ValueError, OSError):
        return None


def _hover(life: Life) -> str:
    lines = [f"<b>{label(life.name)}</b>", f"saved {time_text(life.saved)}"]
    if life.step is not None:
        lines.append(f"step {life.step}")
    if life.deleted is not None:
        lines.append(f"deleted {time_text(life.deleted)}")
    elif life.fate == "gone":
        lines.append("not there any more; nobody noted its deletion")
    if life.listed is not None:
        lines += [label(reason) for reason in life.listed.reasons]
        if life.listed.problem:
            lines.append(label(life.listed.problem.splitlines()[0]))
        elif not life.listed.keep:
            lines.append("goes at the next save")
    lines += [f"{label(name)} = {value:.6g}" for name, value in life.metrics.items()]
    return "<br>".join(lines)


def reasons(facts: RunFacts) -> "go.Figure":
    """Which checkpoints that are there are kept for which reason."""
    import plotly.graph_objects as go

    there = [life for life in facts.lives if life.listed is not None]
    places = steps_of(there)
    points: dict[str, list[int]] = {}
    for i, life in enumerate(there):
        listed = life.listed
        why = listed.reasons if listed is not None and listed.keep and listed.problem is None else (life.fate,)
        for reason in why:
            points.setdefault(reason, []).append(i)
    figure = go.Figure()
    for reason, chosen in points.items():
        colour = FATES.get(reason, FATES["kept"])[0]
        figure.add_scatter(
            x=[places[i] for i in chosen],
            y=[label(reason)] * len(chosen),
            mode="markers",
            marker={"color": colour, "symbol": "square", "size": 9},
            text=[_hover(there[i]) for i in chosen],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    figure.update_layout(
        xaxis={"title": {"text": axis_title(there)}},
        yaxis={"automargin": True, "type": "category"},
        height=130 + 34 * len(points),
    )
    return figure


def axis_title(lives: Sequence[Life]) -> str:
    """What an axis of `steps_of` counts."""
    steps = [life.step for life in lives]
    return "step" if steps == steps_of(lives) else "checkpoint"


def metrics(facts: RunFacts) -> "go.Figure | None":
    """A curve of each metric over the steps; of deleted checkpoints too. None if there are no metrics."""
    from plotly.subplots import make_subplots

    lives = facts.lives
    names = list(dict.fromkeys(name for life in lives for name in life.metrics))
    if not names:
        return None
    columns = 1 if len(names) == 1 else 2
    rows = math.ceil(len(names) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=[label(name) for name in names], vertical_spacing=0.25 / rows
    )
    places = steps_of(lives)
    for number, name in enumerate(names):
        chosen = [i for i, life in enumerate(lives) if name in life.metrics]
        markers = [FATES[lives[i].fate] for i in chosen]
        figure.add_scatter(
            x=[places[i] for i in chosen],
            y=[lives[i].metrics[name] for i in chosen],
            mode="lines+markers",
            line={"width": 1.5, "color": "#4c78a8"},
            marker={
                "color": [each[0] for each in markers],
                "symbol": [each[1] for each in markers],
                "size": 7,
            },
            text=[_hover(lives[i]) for i in chosen],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            row=number // columns + 1,
            col=number % columns + 1,
        )
    figure.update_xaxes(title_text=axis_title(lives), row=rows)
    figure.update_layout(height=100 + 240 * rows, margin={"t": 50})
    return figure


_MOST_AREAS = 4000  # so many are drawn at once in a second or two


def treemap(variables: Sequence[VariableFacts]) -> "go.Figure":
    """The bytes of the variables as areas, inside those of what they lie under."""
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
            maxdepth=-1 if len(areas) <= _MOST_AREAS else 4,
            hovertemplate="<b>%{label}</b><br>%{text}<br>%{percentRoot} of all<extra></extra>",
            texttemplate="%{label}<br>%{text}",
            marker={"line": {"width": 1}},
            tiling={"pad": 2},
        )
    )
    figure.update_layout(height=520, margin={"t": 24, "l": 8, "r": 8, "b": 8})
    return figure


def _areas(branch: Branch, own: str, above: str, name: str) -> Iterator[tuple[str, str, str, int, str]]:
    """The id, that of what it lies in, the label, the bytes and the text of a branch and of all below it."""
    yield own, above, name, branch.nbytes, _area_text(branch)
    for number, child in enumerate(branch.children):
        yield from _areas(child, f"{own}/{number}", own, label(child.name) or "''")


def _area_text(branch: Branch) -> str:
    kind = label(branch.type) if branch.type else f"{branch.variables:,} variables"
    return f"{kind}, {branch.nbytes:,} bytes"
