"""``pytreesaver diff``: compare two checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytreesaver._cli.app import (
    app,
    checkpoint_argument,
    checkpoint_path,
    output_options,
    selection_of,
    selection_options,
    shows_progress,
)
from pytreesaver._cli.output import (
    styled,
    write,
    write_json,
)
from pytreesaver._cli.program import EXIT_FOUND, EXIT_OK
from pytreesaver._inspect.diff import VariableChange
from pytreesaver._inspect.diff import diff as compare
from pytreesaver._text import plural, quoted


@app.command("diff")
@checkpoint_argument("first")
@checkpoint_argument("second")
@selection_options
@output_options
def diff(first: Path, second: Path, only: Sequence[str], regex: Sequence[str], json: bool) -> int:
    """Compare two checkpoints variable by variable, bit by bit. The exit code is 1 if they differ.

    Variables that only the second checkpoint has are marked with +, those that only the first has with -, and those
    that differ in shape, dtype or values with ~. Variables with equal checksums are not read.

    For example:

    \b
      pytreesaver diff runs/a/ckpt-100 runs/a/ckpt-200
      pytreesaver diff runs/a runs/b --only 'params/**'
    """
    paths = checkpoint_path(first), checkpoint_path(second)
    found = compare(*paths, only=selection_of(only, regex), progress=shows_progress(json))
    if json:
        write_json(
            {
                "first": found.first,
                "second": found.second,
                "differs": bool(found),
                "added": {name: found.descriptions[name] for name in found.added},
                "removed": {name: found.descriptions[name] for name in found.removed},
                "changed": {name: _change_as_json(change) for name, change in found.changed.items()},
                "equal": found.equal,
            }
        )
        return EXIT_FOUND if found else EXIT_OK
    for name in found.added:
        write(f"{styled('+', 'bold green')} {styled(quoted(name), 'green')}: {styled(found.descriptions[name], '')}")
    for name in found.removed:
        write(f"{styled('-', 'bold red')} {styled(quoted(name), 'red')}: {styled(found.descriptions[name], '')}")
    for name, change in found.changed.items():
        write(f"{styled('~', 'bold yellow')} {styled(quoted(name), 'yellow')}: {styled(str(change), '')}")
    counts = f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed"
    write(f"{counts}, {plural(len(found.equal), 'variable')} equal")
    return EXIT_FOUND if found else EXIT_OK


def _change_as_json(change: VariableChange) -> dict[str, Any]:
    first, second = change.values or (None, None)
    return {
        "shape": [list(shape) for shape in change.shape],
        "dtype": list(change.dtype),
        "differing": change.differing,
        "max_abs_difference": change.max_abs_difference,
        "mean_abs_difference": change.mean_abs_difference,
        "nan_count": list(change.nan_count),
        "values": None if change.values is None else [first, second],
    }
