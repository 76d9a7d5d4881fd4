"""The variables of a checkpoint, as a tree, a flat list or JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pytreesaver._cli.output import (
    bytes_text,
    columns,
    count_text,
    styled,
    width,
    write,
    write_json,
)
from pytreesaver._inspect.checkpoint import Checkpoint, load_checkpoint
from pytreesaver._inspect.name_tree import (
    Row,
    VariableSummary,
    folded_tree,
    natural_sort_key,
    sorted_tree,
    tree_rows,
    variable_tree,
)
from pytreesaver._run.recorded import modified_time
from pytreesaver._text import plural, printable
from pytreesaver._tree.names.select import Selector, selected_names


def list_variables(
    path: Path,
    only: Selector | None,
    *,
    depth: int | None,
    sort: Literal["name", "size"],
    fold: bool,
    flat: bool,
    json: bool,
) -> None:
    """Write the variables of the checkpoint at `path`. Raises an error if a file is missing or has the wrong size."""
    with load_checkpoint(path) as checkpoint:
        summaries = _summaries(checkpoint, only)
        if json:
            write_json(_checkpoint_as_json(checkpoint, summaries, sort))
        else:
            _write_checkpoint(checkpoint, summaries, depth, sort, fold=fold, flat=flat)
        checkpoint.check()


def _summaries(checkpoint: Checkpoint, only: Selector | None) -> list[VariableSummary]:
    names = list(checkpoint)
    if only is not None:
        names = selected_names(only, names, str(checkpoint.path))
    variables = [checkpoint[name] for name in names]
    return [VariableSummary(each.name, each.type, each.size, each.nbytes) for each in variables]


def _sorted(summaries: Sequence[VariableSummary], sort: str) -> list[VariableSummary]:
    by_name = sorted(summaries, key=lambda each: [natural_sort_key(part) for part in each.name.split("/")])
    return by_name if sort == "name" else sorted(by_name, key=lambda each: -each.nbytes)


def _checkpoint_as_json(checkpoint: Checkpoint, summaries: Sequence[VariableSummary], sort: str) -> dict[str, Any]:
    variables = []
    for each in _sorted(summaries, sort):
        variable = checkpoint[each.name]
        variables.append(
            {
                "name": each.name,
                "kind": variable.kind,
                "dtype": str(variable.dtype),
                "shape": list(variable.shape),
                "type": each.type,
                "size": each.size,
                "nbytes": each.nbytes,
            }
        )
    return {
        "path": str(checkpoint.path),
        "step": checkpoint.step,
        "time": modified_time(checkpoint.path) if checkpoint.time is None else checkpoint.time,
        "nbytes": sum(each.nbytes for each in summaries),
        "size": sum(each.size for each in summaries),
        "models": checkpoint.models,
        "variables": variables,
    }


def _write_checkpoint(
    checkpoint: Checkpoint,
    summaries: Sequence[VariableSummary],
    depth: int | None,
    sort: Literal["name", "size"],
    *,
    fold: bool,
    flat: bool,
) -> None:
    nbytes, size = sum(each.nbytes for each in summaries), sum(each.size for each in summaries)
    parts = [plural(len(summaries), "variable"), f"{count_text(size)} params", bytes_text(nbytes)]
    if len(summaries) < len(checkpoint):
        parts[0] = f"{count_text(len(summaries))} of {plural(len(checkpoint), 'variable')}"
    if checkpoint.step is not None:
        parts.insert(0, f"step {checkpoint.step}")
    write(f"{styled(str(checkpoint.path), 'bold')}: {', '.join(parts)}")
    for name, signature in checkpoint.models.items():
        write(f"  {styled('function', 'dim')} {styled(printable(name), 'bold')}{printable(signature)}")
    if flat:
        lines = [
            ("", printable(each.name) or "''", printable(each.type), count_text(each.size), each.nbytes)
            for each in _sorted(summaries, sort)
        ]
    else:
        tree = variable_tree(summaries)
        tree = sorted_tree(folded_tree(tree) if fold else tree, sort)
        lines = [_cells(row) for row in tree_rows(tree, depth)]
    _write_lines(lines, nbytes)


_Cells = tuple[str, str, str, str, int]
"""A line of the tree: guide, name, type, number of elements, number of bytes."""


def _cells(row: Row) -> _Cells:
    branch = row.branch
    kind = branch.type or ""
    if kind and branch.count > 1:
        kind = f"{branch.count} × {kind}"
    if row.hidden:
        kind = f"{kind}{', ' if kind else ''}{plural(row.hidden, 'variable')}…"
    return row.guide, printable(branch.name) or "''", printable(kind), count_text(branch.size), branch.nbytes


def _write_lines(lines: Sequence[_Cells], total: int) -> None:
    """Write lines in columns. A name that is too long for its column gets its own line."""
    if not lines:
        return
    sizes = [bytes_text(nbytes) for *_, nbytes in lines]
    shares = [f"{100 * nbytes / total:.1f} %" if total else "" for *_, nbytes in lines]
    type_width = max(4, *(len(kind) for _, _, kind, _, _ in lines))
    count_width = max(6, *(len(count) for *_, count, _ in lines))
    size_width, share_width = max(5, *map(len, sizes)), max(5, *map(len, shares))
    rest = 2 + type_width + 2 + count_width + 2 + size_width + 2 + share_width
    name_width = max(len(guide) + width(name) for guide, name, *_ in lines)
    name_width = min(name_width, max(columns() - rest, 16))
    dim, bold, cyan, plain = _escapes("dim"), _escapes("bold"), _escapes("cyan"), ("", "")
    heading = f"{'name':<{name_width}}  {'type':<{type_width}}  {'params':>{count_width}}  {'bytes':>{size_width}}"
    out = [f"{dim[0]}{heading}  {'share':>{share_width}}{dim[1]}"]
    for (guide, name, kind, count, _), nbytes, share in zip(lines, sizes, shares, strict=True):
        style = plain if kind else bold
        label = f"{dim[0]}{guide}{dim[1]}{style[0]}{name}{style[1]}"
        blanks = name_width - len(guide) - width(name)
        if blanks < 0:
            out.append(label)
            label, blanks = "", name_width
        numbers = f"{count:>{count_width}}  {nbytes:>{size_width}}  {dim[0]}{share:>{share_width}}{dim[1]}"
        out.append(f"{label}{' ' * blanks}  {cyan[0]}{kind:<{type_width}}{cyan[1]}  {numbers}")
    write("\n".join(out))


def _escapes(style: str) -> tuple[str, str]:
    """Return the escape sequences that begin and end a style."""
    before, _, after = styled("|", style).partition("|")
    return before, after
