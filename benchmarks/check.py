"""Compare ratios with the bounds that are kept in bounds.toml: ``make bench-check``."""

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import scratch_directory
from benchmarks.operations import measure_all

_BOUNDS = Path(__file__).with_name("bounds.toml")


def main() -> None:
    """Run from the command line; exits with 1 if a ratio is above its bound twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="where to write; a directory on the disk that is to be measured")
    given = parser.parse_args()
    bounds = tomllib.loads(_BOUNDS.read_text())
    excess = bounds["bound"]
    for attempt in ("first", "second"):  # a slow moment of a shared machine is not a regression
        trees = list(dict.fromkeys(bound["tree"] for bound in excess))
        with scratch_directory(given.directory) as directory:
            rows = measure_all(directory, bounds["scale"], bounds["rounds"], trees, bounds["parts"])["rows"]
        lines, excess = compared(excess, rows)
        print(f"\n{attempt} attempt:", *lines, sep="\n")
        if not excess:
            return
    sys.exit(f"{len(excess)} of {len(bounds['bound'])} ratios are above their bounds")


def compared(bounds: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Any]]:
    """A line for each bound, and those bounds that are exceeded.

    Raises:
        LookupError: there is no result for one of the two that a bound compares.
    """
    medians = {(row["tree"], row["operation"], row["contestant"]): row["median"] for row in rows}
    lines, excess = [], []
    for bound in bounds:
        what = bound["tree"], bound["operation"]
        ours = bound.get("contestant", "pytreesaver")
        ratio = medians[*what, ours] / medians[*what, bound["against"]]
        if ratio > bound["most"]:
            excess.append(bound)
        verdict = "above" if ratio > bound["most"] else "within"
        lines.append(f"  {', '.join(what)}: {ours} / {bound['against']} = {ratio:.3g}, {verdict} {bound['most']}")
    return lines, excess


if __name__ == "__main__":
    main()
