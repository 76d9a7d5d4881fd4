"""The drawings of the explanations: what they show comes from the library itself. Run by ``make docs``."""

import html
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

import pytreesaver as pts
from pytreesaver._io import filesystem

IMAGES = Path(__file__).parent / "images"
INK, PALE, OLD, NEW, GONE = "#24292f", "#d0d7de", "#0969da", "#1a7f37", "#cf222e"


def svg(width: int, height: int, parts: list[str], title: str) -> str:
    """Return a drawing: the parts, on white, which is legible on any page."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="ui-sans-serif, system-ui, sans-serif" font-size="13" fill="{INK}">'
    )
    back = f'<rect width="{width}" height="{height}" rx="8" fill="white"/>'
    return "\n".join([head, f"<title>{html.escape(title)}</title>", back, *parts, "</svg>\n"])


def text(x: float, y: float, content: str, **attributes: Any) -> str:
    """Return a text."""
    given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:g}" y="{y:g}"{given}>{html.escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, color: str = PALE, width: float = 1.5) -> str:
    """Return a line."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" stroke-width="{width:g}"/>'


def box(x: float, y: float, width: float, height: float, fill: str, **attributes: Any) -> str:
    """Return a box with round corners."""
    given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}"{given}/>'


# How a tree becomes names.

TREE: dict[str, Any] = {
    "params": {"dense": {"kernel": np.ones((3, 2)), "bias": np.zeros(2)}},
    "history": (1, [0.5]),
    "step": 7,
}


def names_drawing() -> str:
    """Draw a tree, and the names of its leaves as `list_variables` gives them."""
    with tempfile.TemporaryDirectory() as directory:
        names = [name for name, _ in pts.list_variables(pts.save(TREE, Path(directory) / "model"))]
    leaves, _ = jax.tree.flatten_with_path(TREE)
    paths = [[str(getattr(key, "key", getattr(key, "idx", ""))) for key in path] for path, _ in leaves]
    rows = {"/".join(path): 70 + 44 * i for i, path in enumerate(paths)}
    assert sorted(rows) == sorted(names)
    levels = [40, 150, 260, 370]
    parts = [text(40, 32, "the tree", font_weight="600"), text(520, 32, "its variables", font_weight="600")]
    places: dict[tuple[str, ...], float] = {}
    for depth in range(max(map(len, paths)), -1, -1):
        for prefix in dict.fromkeys(tuple(path[:depth]) for path in paths if len(path) >= depth):
            under = [y for name, y in rows.items() if tuple(name.split("/")[:depth]) == prefix]
            places[prefix] = sum(under) / len(under)
    for prefix, y in places.items():
        if prefix:
            parent = places[prefix[:-1]]
            x = levels[len(prefix)]
            end = levels[len(prefix) - 1] + (7.5 * len(prefix[-2]) + 6 if len(prefix) > 1 else 14)
            parts.append(line(end, parent, x - 6, y))
            is_leaf = "/".join(prefix) in rows
            parts.append(text(x, y + 4, prefix[-1], font_weight="600" if is_leaf else "400"))
            if is_leaf:
                parts.append(line(x + 8 * len(prefix[-1]) + 6, y, 510, y, PALE, 1))
    parts.append(f'<circle cx="46" cy="{places[()]:g}" r="6" fill="{INK}"/>')
    for name, y in rows.items():
        parts.append(box(514, y - 15, 190, 30, "#f6f8fa", stroke=PALE))
        parts.append(text(526, y + 5, name, font_family="ui-monospace, monospace", fill=OLD))
    return svg(730, 44 * len(rows) + 66, parts, "How the leaves of a tree become variable names")


# How retention thins a run.

STEPS = list(range(0, 2001, 100))
POLICY = pts.KeepLast(3) | pts.KeepEverySteps(500) | pts.KeepBest(1, "loss")


def loss(step: int) -> float:
    """Return the metric of the drawing: it is lowest at step 1300."""
    return 0.2 + ((step - 1300) / 1300) ** 2


def retention_drawing() -> str:
    """Draw which checkpoints exist after each save of a run, by what a manager keeps."""
    rows: list[tuple[int, dict[int, str]]] = []
    with tempfile.TemporaryDirectory() as directory:
        now = 0.0
        with pts.CheckpointManager(directory, policy=POLICY, block=True, clock=lambda: now) as manager:
            for step in STEPS:
                now += 600
                manager.save(step, {"w": np.zeros(1)}, metrics={"loss": loss(step)})
                kept = {each.checkpoint.step: ", ".join(each.reasons) for each in manager.explain() if each.keep}
                rows.append((step, {number: why for number, why in kept.items() if number is not None}))
    left, top, cell = 130, 78, 26
    parts = [
        text(24, 30, 'KeepLast(3) | KeepEverySteps(500) | KeepBest(1, "loss")', font_family="ui-monospace, monospace"),
        text(left - 14, top - 14, "after the save of", text_anchor="end", font_size="11"),
    ]
    for column, step in enumerate(STEPS):
        if step % 500 == 0:
            parts.append(text(left + cell * column + 10, top - 14, str(step), text_anchor="middle", font_size="11"))
    for row, (step, kept) in enumerate(rows):
        y = top + 18 * row
        parts.append(text(left - 14, y + 11, f"step {step}", text_anchor="end", font_size="11"))
        for column, each in enumerate(STEPS[: row + 1]):
            fill = _color_of(kept[each]) if each in kept else "#f6f8fa"
            parts.append(box(left + cell * column, y, 20, 13, fill))
    y = top + 18 * len(rows) + 22
    legend = [
        (NEW, "one of the last three"),
        (OLD, "a multiple of 500 steps"),
        ("#9a6700", "the best"),
        ("#f6f8fa", "deleted"),
    ]
    for i, (color, what) in enumerate(legend):
        parts += [
            box(24 + 185 * i, y - 10, 20, 13, color, stroke=PALE),
            text(50 + 185 * i, y + 1, what, font_size="12"),
        ]
    return svg(left + cell * len(STEPS) + 24, y + 24, parts, "How retention thins a run")


def _color_of(reasons: str) -> str:
    if "best" in reasons:
        return "#9a6700"
    return OLD if "every" in reasons else NEW


# What happens at a crash.

_WHAT = {
    "write": "write the data and the index",
    "sync_file": "sync them to the disk",
    "rename": "rename: the new index replaces the old one",
    "sync_directory": "sync the directory",
    "remove_file": "delete the old data",
}


@contextmanager
def recorded(calls: list[str]) -> Iterator[None]:
    """Record the calls that change a disk."""
    originals = {name: getattr(filesystem, name) for name in _WHAT}

    def recording(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*arguments, **options)

        return call

    for name, function in originals.items():
        setattr(filesystem, name, recording(name, function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(filesystem, name, function)


def crash_drawing() -> str:
    """Draw what an overwrite does, in order, and what a crash at each moment leaves."""
    calls: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        pts.save({"w": np.zeros(3)}, Path(directory) / "model")
        with recorded(calls):
            pts.save({"w": np.ones(3)}, Path(directory) / "model", overwrite=True)
    # Of each kind of call the first counts, but for the sync after the rename, which makes it durable.
    rename = calls.index("rename")
    order = [*dict.fromkeys(calls[:rename]), "rename", *dict.fromkeys(calls[rename + 1 :])]
    steps = [name for i, name in enumerate(order) if name != "sync_directory" or i > order.index("rename")]
    width, top, height = 150, 96, 62
    parts = [text(24, 34, "save(tree, path, overwrite=True)", font_family="ui-monospace, monospace", font_size="14")]
    for i, name in enumerate(steps):
        x = 24 + (width + 12) * i
        is_commit = name == "rename"
        parts.append(
            box(x, top - 34, width, height, "#ddf4ff" if is_commit else "#f6f8fa", stroke=OLD if is_commit else PALE)
        )
        words, lines = _WHAT[name].split(), [""]
        for word in words:
            if len(lines[-1]) + len(word) > 18:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        for number, words_of_line in enumerate(lines):
            y = top - 3 + 16 * number - 8 * (len(lines) - 1)
            parts.append(text(x + width / 2, y + 4, words_of_line, text_anchor="middle"))
    edge = 24 + (width + 12) * (steps.index("rename") + 1) - 6
    durable = 24 + (width + 12) * (steps.index("sync_directory") + 1) - 6
    end = 24 + (width + 12) * len(steps) - 12
    y = top + 62
    parts += [
        box(24, y, edge - 24, 26, OLD),
        text(
            24 + (edge - 24) / 2, y + 18, "a crash leaves the old checkpoint, whole", fill="white", text_anchor="middle"
        ),
        box(edge, y, end - edge, 26, NEW),
        text(edge + (end - edge) / 2, y + 18, "the new one, whole", fill="white", text_anchor="middle"),
        line(durable, y + 30, durable, y + 46, INK),
        text(
            durable,
            y + 62,
            "from here, a power failure does too; save returns after it",
            text_anchor="middle",
            font_size="12",
        ),
    ]
    return svg(end + 24, y + 84, parts, "What a crash leaves at each step of an overwrite")


DRAWINGS: dict[str, Callable[[], str]] = {
    "names": names_drawing,
    "retention": retention_drawing,
    "crash": crash_drawing,
}


def main() -> None:
    """Write all drawings."""
    for name, draw in DRAWINGS.items():
        (IMAGES / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
