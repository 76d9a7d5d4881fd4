"""``pytreesaver ls``: list the checkpoints of a run, or the variables of a checkpoint."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pytreesaver._cli.app import Debug, Json, Only, Regex, app, path_or_url, selection_of
from pytreesaver._cli.output import (
    age_text,
    bytes_text,
    columns,
    count_text,
    number_text,
    plural,
    styled,
    table,
    width,
    write,
    write_json,
    write_table,
)
from pytreesaver._cli.program import EXIT_FOUND, EXIT_OK
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
from pytreesaver._io import filesystem
from pytreesaver._run.recorded import modified_time, visible_entries
from pytreesaver._text import printable
from pytreesaver._tree.names.select import Selector, selected_names
from pytreesaver.formats import places
from pytreesaver.formats.registry import is_checkpoint

if TYPE_CHECKING:
    from pytreesaver._run.listing import ListedCheckpoint


@app.command("ls")
def list_path(
    path: Annotated[
        Path, typer.Argument(parser=path_or_url, metavar="PATH", help="A run directory or a checkpoint.")
    ] = Path(),
    depth: Annotated[int | None, typer.Option(min=1, metavar="N", help="Show N levels of the tree.")] = None,
    only: Only = None,
    regex: Regex = None,
    sort: Annotated[Literal["name", "size"], typer.Option(help="Sort by name, or by size, largest first.")] = "name",
    fold: Annotated[bool, typer.Option("--fold", help="Fold repeated layers into one: layer_{0..47}.")] = False,
    flat: Annotated[bool, typer.Option("--flat", help="List full names instead of a tree.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """List the checkpoints of a run directory, or the variables of a checkpoint.

    For a run, shows the step, age, size, metrics and metadata of each checkpoint, and why retention keeps it or that it
    will be deleted; after incremental saves also how much each wrote, and how much deleting it would free. For a
    checkpoint, shows the functions that are stored in it, and the tree of its variables with types, sizes and shares,
    and the totals of each branch. The exit code is 1 if a file is missing or has the wrong size. Use verify to check
    the contents.

    For example:

    ```
    pytreesaver ls runs/a
    pytreesaver ls runs/a/ckpt-100 --depth 2 --sort size
    pytreesaver ls runs/a/ckpt-100 --only 'params/**/kernel' --fold
    ```
    """
    if (fold or depth) and (flat or json):
        raise typer.BadParameter("--depth and --fold cannot be combined with --flat or --json")
    if is_checkpoint(path):
        with load_checkpoint(path) as checkpoint:
            summaries = _summaries(checkpoint, selection_of(only, regex))
            if json:
                write_json(_checkpoint_as_json(checkpoint, summaries, sort))
            else:
                _write_checkpoint(checkpoint, summaries, depth, sort, fold=fold, flat=flat)
            checkpoint.check()
        return EXIT_OK
    from pytreesaver._run.listing import list_checkpoints

    listed = list_checkpoints(path)
    if depth or only or regex or fold or flat or sort != "name":
        newest = f"; the newest one is {listed[-1].path}" if listed else ""
        raise typer.BadParameter(f"{path} is a run directory, but these options require a checkpoint{newest}")
    if json:
        checkpoints = [listed_as_json(each) for each in listed]
        write_json({"path": str(path), "nbytes": _nbytes_on_disk(listed), "checkpoints": checkpoints})
    else:
        _write_run(path, listed)
    return EXIT_FOUND if any(each.problem for each in listed) else EXIT_OK


# A run.


def listed_as_json(listed: "ListedCheckpoint") -> dict[str, Any]:
    """Convert a listed checkpoint to a dict for `write_json`."""
    from pytreesaver._tree.plain import encode_value

    return {
        "path": str(listed.path),
        "step": listed.step,
        "time": listed.time,
        "nbytes": listed.nbytes,
        "written_nbytes": listed.nbytes - listed.shared_nbytes,
        "freed_nbytes": listed.freed_nbytes,
        "metrics": dict(listed.metrics),
        "metadata": encode_value(dict(listed.metadata), classes=False),
        "keep": listed.keep,
        "reasons": list(listed.reasons),
        "problem": listed.problem,
    }


def _write_run(path: Path, listed: "Sequence[ListedCheckpoint]") -> None:
    if not listed:
        write(f"{styled(str(path), 'bold')}: no checkpoints")
        for each in _runs_below(path):
            write(f"  but {printable(str(each))} contains checkpoints")
        return
    total = bytes_text(_nbytes_on_disk(listed))
    write(f"{styled(str(path), 'bold')}: {plural(len(listed), 'checkpoint')}, {total}")
    write_run_table(listed, time.time())


def _nbytes_on_disk(listed: "Sequence[ListedCheckpoint]") -> int:
    """Return the size of some checkpoints. Files that they share count once."""
    return places.nbytes_on_disk(file for each in listed for file in places.stored_files(each.path))


def _runs_below(path: Path) -> list[Path]:
    """Return up to 20 subdirectories that contain checkpoints."""
    return list(itertools.islice(filter(_contains_checkpoints, visible_entries(path)), 20))


def _contains_checkpoints(path: Path) -> bool:
    try:
        if filesystem.is_link(path) or not filesystem.is_directory(path):
            return False
        return any(is_checkpoint(entry) for entry in visible_entries(path))
    except OSError:  # the list is only a hint
        return False


def write_run_table(listed: "Sequence[ListedCheckpoint]", now: float, not_kept_text: str = "will be deleted") -> None:
    """Write the checkpoints of a run as a table, without empty columns.

    If the terminal is too narrow, metadata and, if necessary, metrics are omitted, and a note says so.
    """
    shares = any(each.shared_nbytes or each.freed_nbytes != each.nbytes for each in listed)
    all_columns = [
        ("checkpoint", "left", [each.path.name for each in listed]),
        ("step", "right", ["" if each.step is None else str(each.step) for each in listed]),
        ("age", "right", [age_text(now - each.time) for each in listed]),
        ("size", "right", [bytes_text(each.nbytes) for each in listed]),
        ("written", "right", [bytes_text(each.nbytes - each.shared_nbytes) if shares else "" for each in listed]),
        ("frees", "right", [bytes_text(each.freed_nbytes) if shares else "" for each in listed]),
        ("metrics", "left", [_pairs(each.metrics) for each in listed]),
        ("metadata", "left", [_pairs(each.metadata) for each in listed]),
        ("retention", "left", [retention_text(each, not_kept_text) for each in listed]),
    ]
    filled = [column for column in all_columns if any(column[2])]
    omitted = []
    for heading in ("metadata", "metrics"):
        needed = sum(max(map(width, [name, *map(printable, cells)])) + 2 for name, _, cells in filled)
        if needed > columns() + 2 and any(name == heading for name, *_ in filled):
            filled = [column for column in filled if column[0] != heading]
            omitted.append(heading)
    rows = zip(*(cells for _, _, cells in filled), strict=True)
    write_table(table([(heading, side) for heading, side, _ in filled], rows, styles=["bold"]))
    if omitted:
        write(styled(f"terminal too narrow for {' and '.join(reversed(omitted))}; see --json", "dim"))


def _pairs(values: Any) -> str:
    return ", ".join(f"{name}={_value_text(value)}" for name, value in values.items())


def _value_text(value: Any) -> str:
    text = number_text(value) if isinstance(value, int | float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def retention_text(listed: "ListedCheckpoint", not_kept_text: str) -> str:
    """Return why a checkpoint is kept, what is wrong with it, or `not_kept_text`."""
    if listed.problem is not None:
        return f"DAMAGED: {listed.problem.splitlines()[0]}"
    return f"kept: {', '.join(listed.reasons)}" if listed.keep else not_kept_text


# A checkpoint.


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
