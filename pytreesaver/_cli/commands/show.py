"""``pytreesaver show``: show the values and statistics of variables."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

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
    bytes_text,
    columns,
    count_text,
    number_text,
    styled,
    write,
    write_json,
    write_table,
)
from pytreesaver._inspect.checkpoint import Checkpoint, load_checkpoint
from pytreesaver._inspect.printing import parse_print_options, values_text
from pytreesaver._inspect.statistics import Statistics, accumulate, finite_extremes, histogram_edges, histogram_of
from pytreesaver._inspect.variable import Variable
from pytreesaver._progress import reporting
from pytreesaver._text import plural, printable

_BINS = 16
_MAX_VALUES = 1000  # the most that NumPy prints in full by default


def _complete_name(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    try:
        with load_checkpoint(checkpoint_path(context.params["path"])) as checkpoint:
            return [name for name in checkpoint if name.startswith(incomplete)]
    except Exception:  # shell completion must not print errors
        return []


@app.command("show")
@checkpoint_argument("path")
@click.argument(
    "name",
    required=False,
    shell_complete=_complete_name,
    help="The variable, or a function. Optional with --stats.",
)
@click.option("--slice", "slice_", metavar="SLICE", help="Show a slice, in NumPy notation: '0:3, :'.")
@click.option("--stats", is_flag=True, help="Show only statistics, of NAME or of all variables.")
@selection_options
@click.option(
    "--printoptions",
    multiple=True,
    metavar="KEY=VALUE",
    help="A NumPy print option, such as precision=3. May be repeated.",
)
@output_options
def show(
    path: Path,
    name: str | None,
    slice_: str | None,
    stats: bool,
    only: Sequence[str],
    regex: Sequence[str],
    printoptions: Sequence[str],
    json: bool,
) -> None:
    """Show the values, statistics and histogram of a variable, the statistics of all variables, or the functions.

    Without NAME, shows the signatures of the functions that are stored in the checkpoint. NAME may be one of them.

    Large variables are read in parts. The statistics cover all elements, but mean, std and norm only the finite ones.

    For example:

    \b
      pytreesaver show runs/a/ckpt-100 params/dense/kernel
      pytreesaver show runs/a/ckpt-100 params/dense/kernel --slice '0:3, :'
      pytreesaver show runs/a --stats
    """
    options = {"linewidth": min(columns(), 100_000), **parse_print_options(printoptions)}
    if name is not None and (only or regex):
        raise click.BadParameter("--only and --regex require --stats without a NAME")
    with load_checkpoint(checkpoint_path(path)) as checkpoint:
        models = checkpoint.models
        if name is None and not stats and not models:
            raise click.BadParameter("expected the NAME of a variable, or --stats for statistics of all variables")
        if (name is None and not stats) or (name in models and name not in checkpoint):
            _show_functions(checkpoint, models if name is None else {name: models[name]}, json=json)
        elif name is None:
            if slice_ is not None:
                raise click.BadParameter("--slice requires the NAME of a variable")
            found = checkpoint.statistics(selection_of(only, regex), progress=shows_progress(json))
            _show_statistics(checkpoint, found, json=json)
        else:
            variable = checkpoint[name]
            # The variable is read once for the statistics and once for the histogram.
            nbytes = 2 * variable.nbytes if slice_ is None else 0
            with reporting(shows_progress(json), f"computing statistics of {variable.name}", nbytes):
                results = _compute(variable, slice_)
            _show_variable(variable, slice_, results, options, json=json, values=not stats)


def _show_functions(checkpoint: Checkpoint, models: dict[str, str], *, json: bool) -> None:
    if json:
        return write_json({"path": str(checkpoint.path), "models": models})
    for name, signature in models.items():
        write(f"{styled(printable(name), 'bold')}{printable(signature)}")
    return None


# All variables.


def _show_statistics(checkpoint: Checkpoint, found: dict[str, Statistics], *, json: bool) -> None:
    if json:
        write_json({"path": str(checkpoint.path), "statistics": {name: vars(each) for name, each in found.items()}})
        return
    headings = ["min", "max", "mean", "std", "NaN", "Inf", "zeros"]
    rows = []
    for name, each in found.items():
        numbers = [each.min, each.max, each.mean, each.std, each.nan or None, each.inf or None, each.zeros]
        rows.append([name or "''", checkpoint[name].type, *map(number_text, numbers)])
    not_finite = {name: each for name, each in found.items() if each.nan or each.inf}
    write_table([("variable", "left"), ("type", "left"), *((each, "right") for each in headings)], rows)
    nan, inf = sum(each.nan or 0 for each in not_finite.values()), sum(each.inf or 0 for each in not_finite.values())
    if not_finite:
        names = ", ".join(map(printable, list(not_finite)[:5])) + (", …" if len(not_finite) > 5 else "")
        where = f"{count_text(len(not_finite))} of {plural(len(found), 'variable')}: "
        write(styled(f"{count_text(nan)} NaN and {count_text(inf)} Inf in {where}", "bold red") + names)
    else:
        write(f"no NaN or Inf in {plural(len(found), 'variable')}")


# One variable.


class _Results(NamedTuple):
    """The results for a variable, or for a slice of it."""

    part: np.ndarray | None
    statistics: Statistics
    histogram: tuple[np.ndarray, np.ndarray] | None


def _compute(variable: Variable, slice_: str | None) -> _Results:
    if slice_ is not None:
        part = variable[parse_slice(slice_)]
        statistics = _statistics_of(variable, part)
        extremes = finite_extremes(part) if _has_finite_reals(statistics) else None
        if extremes is None:
            return _Results(part, statistics, None)
        edges = histogram_edges(*extremes, _BINS)
        return _Results(part, statistics, (histogram_of(part, edges), edges))
    statistics = variable.statistics()
    if not _has_finite_reals(statistics):
        return _Results(None, statistics, None)
    low, high = statistics.min, statistics.max
    extremes = None if statistics.inf or low is None or high is None else (float(low), float(high))
    return _Results(None, statistics, variable.histogram(_BINS, extremes))


def _has_finite_reals(statistics: Statistics) -> bool:
    """Return whether any element is a finite real number."""
    return statistics.mean is not None and not isinstance(statistics.mean, complex)


def _show_variable(
    variable: Variable, slice_: str | None, results: _Results, options: dict[str, Any], *, json: bool, values: bool
) -> None:
    part, statistics, histogram = results
    if json:
        shown = part if part is not None else variable.read() if values and variable.size <= _MAX_VALUES else None
        write_json(
            {
                "name": variable.name,
                "kind": variable.kind,
                "dtype": str(variable.dtype),
                "shape": list(variable.shape),
                "type": variable.type,
                "nbytes": variable.nbytes,
                "slice": slice_,
                "values": None if shown is None or not values else _values_as_json(shown),
                "statistics": vars(statistics),
                "histogram": histogram and {"counts": histogram[0].tolist(), "edges": histogram[1].tolist()},
            }
        )
        return
    label = "" if slice_ is None else f" [{slice_}]"
    head = f"{styled(variable.name + label, 'bold')}: {styled(variable.type, 'cyan')}, {bytes_text(variable.nbytes)}"
    write(f"{head}, saved from {variable.kind}" if variable.kind not in ("jax", "numpy") else head)
    if values:
        write(values_text(variable, part, options))
    numbers = {
        "min": statistics.min,
        "max": statistics.max,
        "mean": statistics.mean,
        "std": statistics.std,
        "norm": statistics.norm,
        "NaN": statistics.nan,
        "Inf": statistics.inf,
        "zeros": statistics.zeros,
        "unique": statistics.unique,
    }
    known = [f"{styled(name, 'dim')} {number_text(value)}" for name, value in numbers.items() if value is not None]
    if known:
        write("  ".join(known))
    if histogram is not None and statistics.min != statistics.max:
        _write_histogram(*histogram)


def _statistics_of(variable: Variable, part: np.ndarray) -> Statistics:
    if variable.kind in ("key", "str", "bytes") or part.dtype.kind in "OSUmM" or part.dtype.names is not None:
        return Statistics(int(part.size))
    return accumulate(np.asarray(part)).result()


def _write_histogram(counts: np.ndarray, edges: np.ndarray) -> None:
    labels = [f"{edge:.4g}" for edge in edges[:-1]]
    label_width = max(map(len, labels))
    count_width = max(len(count_text(int(count))) for count in counts)
    max_length = min(max(columns() - label_width - count_width - 6, 10), 50)
    for label, count in zip(labels, counts.tolist(), strict=True):
        length = math.ceil(count / max(counts) * max_length * 8)
        bar = "█" * (length // 8) + " ▏▎▍▌▋▊▉"[length % 8].strip()
        padded = f"{styled(bar, 'green')}{' ' * (max_length - len(bar))}"
        write(f"{label:>{label_width}}  {padded}  {count_text(count):>{count_width}}")


def _values_as_json(values: np.ndarray) -> Any:
    if values.dtype.kind in "mMSU":
        return values.astype(str).tolist()
    if values.dtype.kind == "O":
        return values.item()
    return values.tolist()


def parse_slice(text: str) -> tuple[Any, ...]:
    """Parse a slice in NumPy notation.

    Raises:
        click.BadParameter: if `text` is not a slice.

    Example:
        >>> parse_slice("0:3, :, -1")
        (slice(0, 3, None), slice(None, None, None), -1)
    """
    parts: list[Any] = []
    for part in text.strip().removeprefix("[").removesuffix("]").split(","):
        try:
            if part.strip() == "...":
                parts.append(...)
            elif ":" in part:
                numbers = [int(number) if number.strip() else None for number in part.split(":")]
                if len(numbers) > 3:
                    raise ValueError
                parts.append(slice(*numbers))
            else:
                parts.append(int(part))
        except ValueError:
            raise click.BadParameter(
                f"--slice: expected integers and slices such as '0:3, :', found {text!r}"
            ) from None
    return tuple(parts)
