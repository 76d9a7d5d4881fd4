"""Fuzz parsers, guided by their coverage.

    python -m tests.fuzz TARGET|all --seconds N [--executions N]

Needs atheris. One line of JSON for each target says what came of it. Inputs that do what no input may do are written
into `tests/fuzz/crashes/`, and those that reach new lines of the library into `tests/fuzz/corpus/`.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.by_name import NAMES, target_named
from fuzz.coverage import smallest_inputs
from fuzz.targets.workspace import PARENT

from tests.prove import report

HERE = Path(__file__).parent
CORPUS, CRASHES = HERE / "corpus", HERE / "crashes"
MOST_CORPUS_NBYTES = 60_000
"""The maximum size of the corpus of one target."""

_PROGRESS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+)")


def main():
    """Fuzz the named targets."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz parsers.")
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="how long to fuzz each target")
    parser.add_argument("--executions", type=int, default=-1, help="at most so many inputs for each target")
    arguments = parser.parse_args()
    logging.getLogger("pytreesaver").setLevel(logging.CRITICAL + 1)
    names = list(NAMES) if arguments.target == "all" else [arguments.target]
    results = [_fuzzed(name, arguments.seconds, arguments.executions) for name in names]
    if arguments.target == "all":
        tried, errors = (sum(result[key] for result in results) for key in ("executions", "errors"))
        found = {"tried": tried, "held": tried - errors, "seconds": arguments.seconds}
        print(report.write("fuzzing", report.heading() | found))
    sys.exit(1 if any(result["errors"] for result in results) else 0)


def _fuzzed(name, seconds, executions):
    """Fuzz a target, print the result, and return it."""
    started = time.monotonic()
    done, coverage, kills = 0, [], 0
    with tempfile.TemporaryDirectory(dir=PARENT) as directory:
        for folder in ("reached", "seeds"):
            (Path(directory) / folder).mkdir()
        for file in (CORPUS / name).glob("*"):
            (Path(directory) / "seeds" / file.name).write_bytes(file.read_bytes())
        while (left := seconds - (time.monotonic() - started)) > 1 and done != executions:
            count, covered, is_killed = _worker(name, int(left), executions, directory)
            done += count
            coverage += covered
            if not is_killed:
                break
            kills += 1
        errors = _keep_bad(name, Path(directory), kills)
        _keep_reached(name, Path(directory) / "reached")
    result = {
        "target": name,
        "executions": done,
        "seconds": round(time.monotonic() - started),
        "errors": errors,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "coverage": [coverage[0], max(coverage)] if coverage else [],
    }
    print(json.dumps(result), flush=True)
    return result


def _worker(name, seconds, executions, directory):
    """Run a worker. Return the number of executions, the coverage in the course of them, and whether it was killed."""
    command = [sys.executable, str(HERE / "worker.py"), name, str(seconds), str(executions), directory]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment, check=False)
    progress = [(int(count), int(covered)) for count, covered in _PROGRESS.findall(result.stderr)]
    if not progress:
        raise SystemExit(f"{name}: the worker did not start\n{result.stderr[-3000:]}")
    is_killed = "DONE" not in result.stderr
    if is_killed:
        print(f"{name}: the worker was killed\n{result.stderr[-1000:]}", file=sys.stderr)
    return progress[-1][0], [covered for _, covered in progress], is_killed


def _keep_bad(name, directory, kills):
    """Copy bad inputs to the crashes. Return how many errors there are."""
    killers = list(directory.glob("killed-*"))
    bad = [file for file in directory.glob("bad-*") if file.suffix != ".json"]
    for file in [*bad, *killers]:
        content = file.read_bytes()
        CRASHES.mkdir(exist_ok=True)
        kept = CRASHES / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"
        kept.write_bytes(content)
        problem = file.with_suffix(".json")
        text = json.loads(problem.read_text()) if problem.exists() else "the process was killed"
        print(f"{kept.relative_to(HERE.parent.parent)}: {text}", file=sys.stderr)
    return len(bad) + max(kills, len(killers))


def _keep_reached(name, directory):
    """Copy the smallest inputs that reach more lines of the library than the others to the corpus."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    known = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    left = MOST_CORPUS_NBYTES - sum(map(len, known.values()))
    target = target_named(name)
    reached = [file.read_bytes() for file in directory.iterdir()]
    for content in smallest_inputs(target, [*target.seeds, *known.values()], reached):
        if len(content) <= left:
            left -= len(content)
            (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


if __name__ == "__main__":
    main()
