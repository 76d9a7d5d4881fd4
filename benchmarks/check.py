"""Check that ratios stay within the bounds in bounds.toml: ``make bench-check``."""

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
    """Run the command line. Exits with status 1 if a ratio exceeds its bound in both attempts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="scratch directory, on the disk to measure")
    given = parser.parse_args()
    bounds = tomllib.loads(_BOUNDS.read_text())
    excess = bounds["bound"]
    for attempt in ("first", "second"):  # one slow moment on a shared machine is not a regression
        trees = list(dict.fromkeys(bound["tree"] for bound in excess))
        with scratch_directory(given.directory) as directory:
            rows = measure_all(directory, bounds["scale"], bounds["rounds"], trees, bounds["parts"])["rows"]
        lines, excess = compared(excess, rows)
        print(f"\n{attempt} attempt:", *lines, sep="\n")
        if not excess:
            return
    sys.exit(f"{len(excess)} of {len(bounds['bound'])} ratios exceed their bounds")


def compared(bounds: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Any]]:
    """Return a line for each bound, and the bounds that are exceeded.

    Raises:
        LookupError: if one of the two results that a bound compares is missing.
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
