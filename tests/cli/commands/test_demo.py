"""``pytreesaver demo``."""

import re
from pathlib import Path

import pytreesaver as pts


def test_the_demo_kills_resumes_and_compares_a_run(call):
    result = call("demo", "shown")
    assert (result.code, result.err) == (0, "")
    assert "killed, with SIGKILL" in result.out
    first, resumed = map(int, re.findall(r"starting from step (\d+)", result.out))
    assert first == 0
    assert 0 < resumed <= 700
    assert "equal, bit for bit" in result.out
    assert "0 added, 0 removed, 4 changed" in result.out
    assert pts.diff("shown/run", "shown/uninterrupted").equal
    assert "<html" in Path("shown/report.html").read_text()[:200]


def test_the_demo_writes_into_a_new_directory_only(call, tmp_path):
    result = call("demo", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert "expected a new directory, found something there" in result.err
