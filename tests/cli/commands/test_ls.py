"""``pytreesaver ls``."""

import json
import re
from pathlib import Path

import pytest

import pytreesaver as pts


@pytest.mark.usefixtures("in_runs")
def test_json_of_a_run(call):
    found = json.loads(call("ls", "a", "--json").out)
    assert found["path"] == "a"
    last = found["checkpoints"][-1]
    sizes = ["nbytes", "written_nbytes", "freed_nbytes"]
    assert list(last) == ["path", "step", "time", *sizes, "metrics", "metadata", "keep", "reasons", "problem"]
    assert (last["step"], last["metadata"], last["keep"]) == (50, {"git": "abc"}, True)
    assert (last["metrics"], last["reasons"], last["problem"]) == ({"loss": 1 / 51}, ["newest", "last 4"], None)
    assert json.loads(call("prune", "a", "--keep-last", "1", "--json").out)["deleted"] is False


@pytest.mark.usefixtures("in_runs")
def test_json_of_a_checkpoint(call):
    found = json.loads(call("ls", "a/ckpt-50", "--only", "**/kernel", "--json").out)
    assert (found["step"], found["size"], found["nbytes"]) == (50, 96, 384)
    assert found["variables"][0] == {
        "name": "params/layer_0/kernel", "kind": "jax", "dtype": "float32", "shape": [4, 8], "type": "float32[4,8]",
        "size": 32, "nbytes": 128,
    }  # fmt: skip
    found = json.loads(call("info", "a", "--json").out)
    assert (found["format"], found["version"], found["variables"]) == ("pytreesaver", 1, 8)
    assert found["structure"]["type"] == "dict"
    assert [child["key"] for child in found["structure"]["children"]] == ["params", "count", "note"]


@pytest.mark.usefixtures("in_runs")
def test_options_of_ls(call):
    lines = call("ls", "a/ckpt-50", "--depth", "1", "--sort", "size").out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["params", "note", "count"]
    assert "6 variables…" in lines[2]
    out = call("ls", "a/ckpt-50", "--fold").out
    assert "layer_{0..2}" in out
    assert re.search(r"kernel +3 × float32\[4,8\] +96 +384 B", out)
    lines = call("ls", "a/ckpt-50", "--flat", "--regex", "kernel$").out.splitlines()
    assert "3 of 8 variables" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == [f"params/layer_{i}/kernel" for i in range(3)]


def test_folded_names_keep_zero_padding(call):
    pts.save({f"v{i:03}": 1 for i in range(8, 12)}, "model")
    assert "v{008..011}" in call("ls", "model", "--fold").out


def test_ls_of_a_parent_directory_lists_the_runs_in_it(call):
    pts.save({"w": 1}, "runs/a/model")
    Path("runs/empty").mkdir()
    result = call("ls", "runs")
    assert (result.code, result.out.splitlines()) == (0, ["runs: no checkpoints", "  but runs/a contains checkpoints"])
