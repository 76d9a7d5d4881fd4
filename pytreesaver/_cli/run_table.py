"""The checkpoints of a run, as a table or as JSON."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytreesaver._cli.output import (
    age_text,
    bytes_text,
    columns,
    number_text,
    styled,
    width,
    write,
    write_json,
    write_table,
)
from pytreesaver._io import filesystem
from pytreesaver._run.listing import ListedCheckpoint
from pytreesaver._run.recorded import visible_entries
from pytreesaver._text import plural, printable
from pytreesaver._tree.plain import encode_value
from pytreesaver.formats import places
from pytreesaver.formats.registry import is_checkpoint


def list_run(path: Path, listed: Sequence[ListedCheckpoint], *, json: bool) -> None:
    """Write the checkpoints of a run."""
    if json:
        checkpoints = [listed_as_json(each) for each in listed]
        write_json({"path": str(path), "nbytes": _nbytes_on_disk(listed), "checkpoints": checkpoints})
    else:
        _write_run(path, listed)


def listed_as_json(listed: ListedCheckpoint) -> dict[str, Any]:
    """Convert a listed checkpoint to a dict for `write_json`."""
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


def _write_run(path: Path, listed: Sequence[ListedCheckpoint]) -> None:
    if not listed:
        write(f"{styled(str(path), 'bold')}: no checkpoints")
        for each in _runs_below(path):
            write(f"  but {printable(str(each))} contains checkpoints")
        return
    total = bytes_text(_nbytes_on_disk(listed))
    write(f"{styled(str(path), 'bold')}: {plural(len(listed), 'checkpoint')}, {total}")
    write_run_table(listed, time.time())


def _nbytes_on_disk(listed: Sequence[ListedCheckpoint]) -> int:
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


def write_run_table(listed: Sequence[ListedCheckpoint], now: float, not_kept_text: str = "will be deleted") -> None:
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
    write_table([(heading, side) for heading, side, _ in filled], rows, styles=["bold"])
    if omitted:
        write(styled(f"terminal too narrow for {' and '.join(reversed(omitted))}; see --json", "dim"))


def _pairs(values: Any) -> str:
    return ", ".join(f"{name}={_value_text(value)}" for name, value in values.items())


def _value_text(value: Any) -> str:
    text = number_text(value) if isinstance(value, int | float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def retention_text(listed: ListedCheckpoint, not_kept_text: str) -> str:
    """Return why a checkpoint is kept, what is wrong with it, or `not_kept_text`."""
    if listed.problem is not None:
        problem = listed.problem.splitlines()[0]
        label = "UNREADABLE" if problem.startswith("cannot ") else "DAMAGED"  # what the system refuses may be intact
        return f"{label}: {problem}"
    return f"kept: {', '.join(listed.reasons)}" if listed.keep else not_kept_text
