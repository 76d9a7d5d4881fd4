"""``pytreesaver show``."""

import json

import jax
import numpy as np
import pytest

import pytreesaver as pts


@pytest.mark.usefixtures("in_runs")
def test_json_of_values(call):
    found = json.loads(call("show", "a", "params/layer_1/bias", "--slice", "1:4", "--json").out)
    assert found["values"] == ["nan", 1.0, 1.0]
    assert (found["statistics"]["nan"], found["statistics"]["max"]) == (1, 1.0)
    assert sum(found["histogram"]["counts"]) == 2
    assert json.loads(call("show", "a", "note", "--json").out)["values"] == "words"
    found = json.loads(call("show", "a", "--stats", "--json").out)["statistics"]
    assert found["count"]["min"] == 50
    assert found["note"]["min"] is None


def test_json_of_unusual_values(call):
    tree = {"least": np.int64(-(2**63)), "most": np.uint64(2**64 - 1), "big": 2**64, "bytes": b"a\xff"}
    pts.save(tree, "model")
    found = {name: json.loads(call("show", "model", name, "--json").out)["values"] for name in tree}
    assert found == {"least": -(2**63), "most": 2**64 - 1, "big": str(2**64), "bytes": "a\xff"}
    pts.save({**tree, "bytes": b"b\xfe"}, "other")
    changed = json.loads(call("diff", "model", "other", "--json").out)["changed"]
    assert changed["bytes"]["values"] == ["a\xff", "b\xfe"]


@pytest.mark.usefixtures("in_runs")
def test_print_options_and_slices(call):
    out = call("show", "a", "params/layer_2/kernel", "--slice", "0:2, 1", "--printoptions", "sign=+").out
    assert "[+27. +27.]" in out
    assert "params/layer_2/kernel [0:2, 1]" in out


def test_a_histogram_counts_every_value(call):
    pts.save({"w": np.random.default_rng(0).normal(size=5000)}, "model")
    out = call("show", "model", "w").out
    bars = out.splitlines()[-16:]
    assert sum(int(line.split()[-1].replace(",", "")) for line in bars) == 5000
    assert max(bars, key=lambda line: line.count("█")) == max(
        bars, key=lambda line: int(line.split()[-1].replace(",", ""))
    )


def test_a_slice_of_an_array_of_float0(call):
    pts.save({"g": np.zeros(3, jax.dtypes.float0)}, "model")
    assert call("show", "model", "g", "--slice", "0:2").code == 0
    assert call("show", "model", "g", "--slice", "0:2", "--json").code == 0
