"""Every committed attack, opened in every way: the named error, at once, in little memory, and no file left behind."""

import resource
import subprocess  # noqa: F401  # attacks name its classes
import sys
import time
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from attacks.attack import FILES, OUR_FORMAT, TREE
from attacks.write import MAKERS, contents

import pytreesaver as pts

ROOT = FILES.parents[2]
TABLES = {format: tomllib.loads((FILES / f"{format}.toml").read_text()) for format in MAKERS}
CASES = [(format, name) for format, table in TABLES.items() if format not in ("runs", "leases") for name in table]
MEMORY_KIB = 512 << 10
"""How much more memory an attack may take, at most. Most of them take nothing."""


def read_all(path):
    with pts.load_checkpoint(path) as checkpoint:
        return [variable.read() for variable in checkpoint.values()]


def read_slice(path, name):
    with pts.load_checkpoint(path) as checkpoint:
        return checkpoint[name][...]


def ways(path, good, target):
    """Return all ways to read a checkpoint, by name."""
    positional = path.suffix == ".eqx"
    name = "0" if positional else "w"
    like = [TREE["w"], TREE["b"]] if positional else {"w": np.zeros((2, 3), np.float32)}
    return {
        "restore": lambda: pts.restore(path),
        "template": lambda: pts.restore(path, like, unexpected="ignore"),
        "only": lambda: pts.restore(path, only=name),
        "variables": lambda: read_all(path),
        "slice": lambda: read_slice(path, name),
        "mmap": lambda: pts.restore(path, mmap=True),
        "verify": lambda: pts.verify(path),
        "list_variables": lambda: pts.list_variables(path),
        "diff": lambda: pts.diff(path, good),
        "copy_checkpoint": lambda: pts.copy_checkpoint(path, target / "copied", durable=False),
        "convert": lambda: pts.convert(path, target / "converted.safetensors", durable=False),
    }


def outcome_of(way):
    """Return the error of a way to read a checkpoint, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pts.StructureWarning)
        try:
            way()
        except Exception as error:
            return error
    return None


def outcomes(path, good, target):
    """Return the error of each way to read a checkpoint, or None. Failed ways leave nothing behind."""
    found = {}
    for name, way in ways(path, good, target).items():
        before = set(target.iterdir())
        started = time.monotonic()
        found[name] = outcome_of(way)
        assert time.monotonic() - started < 30, name  # of a machine that may be busy
        if found[name] is not None:
            assert set(target.iterdir()) == before, name
    return found


def is_mismatch(way, error):
    """Return whether a variable is not what a template wants: its shape may be a part of the attack."""
    return way == "template" and type(error) is pts.MismatchError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return pts.save(TREE, tmp_path_factory.mktemp("good") / "good")


@pytest.mark.parametrize(("format", "name"), CASES, ids=map("/".join, CASES))
def test_an_attack_is_refused_in_every_way(format, name, good, tmp_path):
    attack = TABLES[format][name]
    path = FILES / format / name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    imported = set(sys.modules)
    found = outcomes(path, good, tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB
    errors = {way: error for way, error in found.items() if error is not None}
    expected = {} if attack.get("works") == ["all"] else {*found} - {*attack.get("works", ())}
    assert {*errors} == {*expected}, errors
    for way, error in errors.items():
        assert isinstance(error, getattr(pts, attack["error"])) or is_mismatch(way, error), (way, error)
        # What cannot be written names its variables, or the place where they do not fit.
        assert path.name in str(error) or isinstance(error, pts.UnsupportedLeafError | pts.CheckpointIOError), way
        str(error).encode()
    if errors:
        assert any(attack.get("message", "") in str(error) for error in errors.values()), errors
    assert not Path("owned").exists()
    assert not {"this", "antigravity"} & (sys.modules.keys() - imported)


def test_all_files_are_those_that_the_script_writes():
    found = {file.relative_to(FILES).as_posix(): file.read_bytes() for file in FILES.rglob("*") if file.is_file()}
    written = contents()
    assert {name for name in found.keys() | written.keys() if found.get(name) != written.get(name)} == set()
    assert sum(map(len, found.values())) < 3 << 19


# The rules.


def normal(text):
    """Return text with single spaces."""
    return " ".join(text.split())


def checked_rules():
    """Return the sentences and table rows of our format that a reader must check."""
    text = (ROOT / OUR_FORMAT).read_text().split("\n## ", 1)[1]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    sentences = [
        sentence
        for paragraph in prose.split("\n\n")
        for sentence in normal(paragraph).replace(". ", ".\n").splitlines()
    ]
    return [each for each in map(normal, [*rows, *sentences]) if "**(check)**" in each]


QUOTED = {
    normal(attack["rule"])
    for table in TABLES.values()
    for attack in table.values()
    if attack.get("source", OUR_FORMAT) == OUR_FORMAT
}


def test_the_rules_are_found():
    assert len(checked_rules()) >= 20


@pytest.mark.parametrize("rule", checked_rules())
def test_every_rule_that_readers_check_has_an_attack(rule):
    assert [quoted for quoted in QUOTED if quoted in rule]


def test_quoted_rules_are_in_the_documentation():
    texts = {OUR_FORMAT, "docs/formats.md"}
    documentation = {name: normal((ROOT / name).read_text()) for name in texts}
    wrong = {
        f"{format}/{name}: {attack['rule']}"
        for format, table in TABLES.items()
        for name, attack in table.items()
        if (source := attack.get("source", OUR_FORMAT)) in texts and normal(attack["rule"]) not in documentation[source]
    }
    assert wrong == set()
