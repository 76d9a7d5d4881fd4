"""Measure everything and write docs/benchmarks.md: ``make bench``."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from benchmarks.operations import measure_all
from benchmarks.report import write_report


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="make every tree smaller by this factor")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant takes its turn")
    parser.add_argument("--trees", nargs="*", help="only these trees")
    parser.add_argument("--directory", type=Path, help="where to write; a directory on the disk that is to be measured")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"), help="where the results go")
    parser.add_argument("--no-report", action="store_true", help="leave docs/benchmarks.md as it is")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="pytreesaver-bench-", dir=given.directory))
    try:
        results = measure_all(directory, given.trees, given.scale, given.rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    given.json.write_text(json.dumps(results, indent=1))
    if not given.no_report:
        write_report(results, Path("docs"))


if __name__ == "__main__":
    main()
