"""``pytreesaver diff``."""

import json

import pytest


@pytest.mark.usefixtures("in_runs")
def test_json_of_a_diff(call):
    result = call("diff", "a/ckpt-40", "a/ckpt-50", "--json")
    found = json.loads(result.out)
    assert result.code == 1
    assert found["differs"]
    assert found["changed"]["params/layer_0/kernel"]["max_abs_difference"] == 5.0
    result = call("diff", "a/ckpt-40", "a/ckpt-50", "--only", "note")
    assert (result.code, result.out) == (0, "0 added, 0 removed, 0 changed, 1 variable equal\n")
