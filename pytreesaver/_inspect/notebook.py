"""A checkpoint as HTML, for notebooks: its facts, and the tree of its variables to unfold. Pure."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pytreesaver._inspect.name_tree import Branch, Summarized, sorted_tree, variable_tree
from pytreesaver._text import printable

_MOST_ROWS = 5000
"""So many variables are drawn; a notebook with more of them is slow."""


def checkpoint_html(title: str, facts: Mapping[str, str], variables: Iterable[Summarized]) -> str:
    """The HTML for a notebook. Treescope draws the tree where it is installed.

    Example:
        >>> text = checkpoint_html("runs/ckpt-1", {"step": "1"}, [])
        >>> "<b>runs/ckpt-1</b>" in text
        True
    """
    whole = sorted_tree(variable_tree(variables), "name")
    tree = _cut(whole, [_MOST_ROWS])
    left_out = whole.variables - _variables_drawn(tree)
    rows = "".join(
        f"<tr><td style='text-align:left;opacity:.6'>{_text(name)}</td>"
        f"<td style='text-align:left'>{_text(value)}</td></tr>"
        for name, value in facts.items()
    )
    more = f"<p>and {left_out:,} more variables</p>" if left_out > 0 else ""
    heading = f"<div><code><b>{_text(title)}</b></code></div><table>{rows}</table>"
    drawn = _drawn_by_treescope(tree) or _details(tree, whole.nbytes)
    return f"<div class='pytreesaver-checkpoint'>{heading}{drawn}{more}</div>"


def _cut(branch: Branch, rows: list[int]) -> Branch:
    """The same tree with so many of its rows, whose totals stay; `rows` holds how many are left to be drawn."""
    children = []
    for child in branch.children:
        if not rows[0]:
            break
        rows[0] -= 1
        children.append(_cut(child, rows))
    return replace(branch, children=children)


def _variables_drawn(branch: Branch) -> int:
    return (branch.type is not None) + sum(map(_variables_drawn, branch.children))


def _text(text: str) -> str:
    return html.escape(printable(text))


def _label(branch: Branch) -> str:
    """What stands behind the name of a branch: ``float32[2], 2 params, 8 bytes``."""
    parts = [branch.type] if branch.type else []
    if branch.type is None or branch.variables > 1:
        parts.append(f"{branch.variables:,} variables")
    return ", ".join([*parts, f"{branch.size:,} params", f"{branch.nbytes:,} bytes"])


def _details(tree: Branch, total: int) -> str:
    return f"<div style='font-family:monospace'>{''.join(_folds(tree, total, 0))}</div>"


def _folds(branch: Branch, total: int, level: int) -> Iterator[str]:
    for child in branch.children:
        share = f" <span style='opacity:.6'>{100 * child.nbytes / total:.1f}&nbsp;%</span>" if total else ""
        line = f"<b>{_text(child.name) or '&#39;&#39;'}</b>: {_text(_label(child))}{share}"
        if not child.children:
            yield f"<div style='margin-left:1.1em'>{line}</div>"
            continue
        yield f"<details style='margin-left:1.1em'{' open' if level == 0 else ''}><summary>{line}</summary>"
        yield from _folds(child, total, level + 1)
        yield "</details>"


def _drawn_by_treescope(tree: Branch) -> str | None:
    try:
        import treescope
    except ImportError:
        return None
    try:
        drawn: str = treescope.render_to_html(_Drawn(tree), ignore_exceptions=False)
    except RecursionError:  # it takes many calls for each level
        return None
    return drawn


class _Drawn:
    """Wraps a branch for Treescope."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from treescope import rendering_parts as parts

        branch = self._branch
        name = parts.custom_style(parts.text(printable(branch.name) or "variables"), "font-weight: bold")
        label = parts.text(f": {printable(_label(branch))}")
        # Treescope puts the path into attributes and style sheets: nothing goes there that means anything in those.
        to_copy = branch.path if re.fullmatch(r"[\w./-]+", branch.path) else None
        if not branch.children:
            return parts.build_one_line_tree_node(parts.siblings(name, label), path=to_copy)
        below = [subtree_renderer(_Drawn(child), path=None) for child in branch.children]
        return parts.build_foldable_tree_node_from_children(
            parts.siblings(name, label, " {"), below, "}", comma_separated=True, path=to_copy
        )
