"""HTML for notebooks: properties of a checkpoint and a foldable tree of its variables. Pure."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pytreesaver._inspect.name_tree import Branch, Summarized, sorted_tree, variable_tree
from pytreesaver._text import plural, printable

_MAX_ROWS = 5000
"""The maximum number of rows. More would slow the notebook down."""


def checkpoint_html(title: str, facts: Mapping[str, str], variables: Iterable[Summarized]) -> str:
    """Return HTML for a notebook. Treescope renders the tree if it is installed.

    Example:
        >>> text = checkpoint_html("runs/ckpt-1", {"step": "1"}, [])
        >>> "<b>runs/ckpt-1</b>" in text
        True
    """
    full_tree = sorted_tree(variable_tree(variables), "name")
    tree = _truncate(full_tree, [_MAX_ROWS])
    omitted = full_tree.variables - _count_variables(tree)
    rows = "".join(
        f"<tr><td style='text-align:left;opacity:.6'>{_escaped(name)}</td>"
        f"<td style='text-align:left'>{_escaped(value)}</td></tr>"
        for name, value in facts.items()
    )
    omission = f"<p>and {omitted:,} more variables</p>" if omitted > 0 else ""
    heading = f"<div><code><b>{_escaped(title)}</b></code></div><table>{rows}</table>"
    rendered = _treescope_html(tree) or _details_html(tree, full_tree.nbytes)
    return f"<div class='pytreesaver-checkpoint'>{heading}{rendered}{omission}</div>"


def _truncate(branch: Branch, budget: list[int]) -> Branch:
    """Return a copy with at most `budget[0]` branches and unchanged totals. Each branch decrements `budget[0]`."""
    children = []
    for child in branch.children:
        if not budget[0]:
            break
        budget[0] -= 1
        children.append(_truncate(child, budget))
    return replace(branch, children=children)


def _count_variables(branch: Branch) -> int:
    return (branch.type is not None) + sum(map(_count_variables, branch.children))


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _label(branch: Branch) -> str:
    """Return the text after the name of a branch: ``float32[2], 2 params, 8 bytes``."""
    parts = [branch.type] if branch.type else []
    if branch.type is None or branch.variables > 1:
        parts.append(plural(branch.variables, "variable"))
    return ", ".join([*parts, plural(branch.size, "param"), plural(branch.nbytes, "byte")])


def _details_html(tree: Branch, total: int) -> str:
    return f"<div style='font-family:monospace'>{''.join(_details_parts(tree, total, 0))}</div>"


def _details_parts(branch: Branch, total: int, level: int) -> Iterator[str]:
    for child in branch.children:
        share = f" <span style='opacity:.6'>{100 * child.nbytes / total:.1f}&nbsp;%</span>" if total else ""
        line = f"<b>{_escaped(child.name) or '&#39;&#39;'}</b>: {_escaped(_label(child))}{share}"
        if not child.children:
            yield f"<div style='margin-left:1.1em'>{line}</div>"
            continue
        yield f"<details style='margin-left:1.1em'{' open' if level == 0 else ''}><summary>{line}</summary>"
        yield from _details_parts(child, total, level + 1)
        yield "</details>"


def _treescope_html(tree: Branch) -> str | None:
    try:
        import treescope
    except ImportError:
        return None
    try:
        rendered: str = treescope.render_to_html(_TreescopeNode(tree), ignore_exceptions=False)
    except RecursionError:  # Treescope recurses several calls per level
        return None
    return rendered


class _TreescopeNode:
    """A branch that Treescope can render."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        from treescope import rendering_parts as parts

        branch = self._branch
        name = parts.custom_style(parts.text(printable(branch.name) or "variables"), "font-weight: bold")
        label = parts.text(f": {printable(_label(branch))}")
        # Treescope inserts the path into attributes and style sheets, so pass only harmless characters.
        to_copy = branch.path if re.fullmatch(r"[\w./-]+", branch.path) else None
        if not branch.children:
            return parts.build_one_line_tree_node(parts.siblings(name, label), path=to_copy)
        children = [subtree_renderer(_TreescopeNode(child), path=None) for child in branch.children]
        return parts.build_foldable_tree_node_from_children(
            parts.siblings(name, label, " {"), children, "}", comma_separated=True, path=to_copy
        )
