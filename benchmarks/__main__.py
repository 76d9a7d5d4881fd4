"""Run the benchmarks and write docs/benchmarks.md: ``make bench``."""

import argparse
import json
from pathlib import Path

from benchmarks.measure import scratch_directory
from benchmarks.operations import PARTS, measure_all
from benchmarks.report import write_report
from benchmarks.trees import TREES


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="scale the size of every tree by this factor")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which each contestant is measured")
    parser.add_argument(
        "--trees", nargs="+", choices=tuple(TREES), default=tuple(TREES), help="measure only these trees"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="run only these parts")
    parser.add_argument("--directory", type=Path, help="scratch directory, on the disk to measure")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"), help="file for the results")
    parser.add_argument("--no-report", action="store_true", help="do not write docs/benchmarks.md")
    parser.add_argument("--report-only", action="store_true", help="write the page from existing results")
    given = parser.parse_args()
    if not given.report_only:
        with scratch_directory(given.directory) as directory:
            results = measure_all(directory, given.scale, given.rounds, given.trees, given.parts)
        given.json.write_text(json.dumps(results, indent=1))
    if not given.no_report:
        write_report(json.loads(given.json.read_text()), Path("docs"))


if __name__ == "__main__":
    main()
