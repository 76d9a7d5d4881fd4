"""Mutations of the modules that write and check bytes: each changes one operator or constant, and a test has to fail.

``python -m tests.prove.mutation --seconds 3600`` tries a random sample for an hour, in a copy of the project, and lists
the survivors. cosmic-ray makes the mutations; the tests that run are those that execute the line.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PLACES = ("pytreesaver/_io", "pytreesaver/formats/native", "pytreesaver/formats/indexed")
SKIPPED = ("pytreesaver/_io/stores/",)
TESTS = (
    *("tests/io", "tests/formats/test_native.py", "tests/formats/indexed", "tests/checkpoint", "tests/run"),
    *("tests/savers", "tests/attacks", "tests/processes/test_meeting.py", "tests/prove/test_sample.py"),
)
MOST_TESTS = 60
TIMEOUT = 240
"""Seconds after which a mutant that hangs counts as caught."""


OPERATORS = tuple(
    f"core/{name}"
    for name in (
        *("NumberReplacer", "AddNot", "ReplaceUnaryOperator_Delete_Not", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
        *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ExceptionReplacer", "ZeroIterationForLoop"),
        *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add", "ReplaceBinaryOperator_Mul_FloorDiv"),
        *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq", "ReplaceBreakWithContinue"),
        *("ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt", "ReplaceContinueWithBreak"),
        *("ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt", "ReplaceComparisonOperator_Is_IsNot"),
    )
)
DELETE_CALL = "a call is left out"


class Mutant(NamedTuple):
    """One change: of a file, the occurrence of what an operator changes, and the line."""

    file: str
    operator: str
    occurrence: int
    line: int


def mutants(root: Path) -> Iterator[Mutant]:
    """Yield all mutations of the modules."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator

    files = sorted(file for place in PLACES for file in (root / place).rglob("*.py"))
    for file in files:
        name = file.relative_to(root).as_posix()
        if name.startswith(SKIPPED):
            continue
        tree = get_ast_from_path(file)
        for occurrence, call in enumerate(_calls(file.read_text())):
            yield Mutant(name, DELETE_CALL, occurrence, call.lineno)
        for operator in OPERATORS:
            kind = get_operator(operator)
            places = [place for node in ast_nodes(tree) for place in kind().mutation_positions(node)]
            for occurrence, ((line, _), _) in enumerate(places):
                yield Mutant(name, operator, occurrence, line)


def _calls(code: str) -> list[ast.Expr]:
    """Return the statements that only call something."""
    nodes = ast.walk(ast.parse(code))
    return [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]


def mutated(code: str, mutant: Mutant) -> str | None:
    """Return the code with one mutation."""
    if mutant.operator != DELETE_CALL:
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        changed: str | None = mutate_code(code, get_operator(mutant.operator)(), mutant.occurrence)
        return changed
    call = _calls(code)[mutant.occurrence]
    lines = code.splitlines(keepends=True)
    first = lines[call.lineno - 1]
    lines[call.lineno - 1 : call.end_lineno] = [f"{first[: call.col_offset]}pass\n"]
    return "".join(lines)


def _run(root: Path, arguments: Sequence[str], seconds: float) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return 1
    return done.returncode


def covering_tests(root: Path) -> dict[tuple[str, int], list[str]]:
    """Run the tests once. Return which of them execute each line."""
    from coverage import CoverageData

    places = [f"--cov={place}" for place in PLACES]
    existing = [each for each in TESTS if (root / each).exists()]
    _run(root, ["-n", "2", *places, "--cov-context=test", "--cov-report=", *existing], 3600)
    data = CoverageData(str(root / ".coverage"))
    data.read()
    found: dict[tuple[str, int], list[str]] = {}
    for file in data.measured_files():
        name = Path(file).relative_to(root).as_posix()
        for line, contexts in data.contexts_by_lineno(file).items():
            found[name, line] = sorted({each.partition("|")[0] for each in contexts if each})
    return found


def outcome(root: Path, mutant: Mutant, covering: Sequence[str]) -> str:
    """Return whether a mutant is caught: "caught", "survived", "not executed", or "same" if the code is the same."""
    file = root / mutant.file
    code = file.read_text()
    changed = mutated(code, mutant)
    if changed is None or changed == code:
        return "same"
    if not covering:
        return "not executed"
    chosen = random.Random(0).sample(list(covering), min(MOST_TESTS, len(covering)))
    file.write_text(changed)
    try:
        code_of_tests = _run(root, ["-n", "0", "-x", *chosen], TIMEOUT)
    finally:
        file.write_text(code)
    return "survived" if code_of_tests == 0 else "caught"


def main() -> None:
    """Try mutants for some time, and write what became of each."""
    parser = argparse.ArgumentParser("python -m tests.prove.mutation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "copy"
        skipped = shutil.ignore_patterns(".git", ".venv*", ".*cache", "build", ".hypothesis")
        shutil.copytree(ROOT, root, ignore=skipped, symlinks=True)
        covering = covering_tests(root)
        chosen = list(mutants(root))
        random.Random(arguments.seed).shuffle(chosen)
        print(f"{len(chosen)} mutants", flush=True)
        started, counts = time.monotonic(), Counter[str]()
        for mutant in chosen:
            if time.monotonic() - started > arguments.seconds:
                break
            found = outcome(root, mutant, covering.get((mutant.file, mutant.line), []))
            counts[found] += 1
            with arguments.output.open("a") as file:
                file.write(json.dumps({"outcome": found, **mutant._asdict()}) + "\n")
            if found in ("survived", "not executed"):
                print(f"{found}: {mutant.file}:{mutant.line}: {mutant.operator}", flush=True)
        print(dict(counts))


if __name__ == "__main__":
    main()
