"""``pytreesaver verify``."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._io import filesystem


@pytest.mark.usefixtures("in_runs")
def test_verify_continues_after_an_unreadable_checkpoint(call):
    for name in "abc":
        pts.save({"w": np.ones(3)}, f"newer/{name}")
    index = Path("newer/b/index.json")
    index.write_text(re.sub(r'"version": ?[0-9]+', '"version": 999', index.read_text()))
    result = call("verify", "newer")
    assert result.code == 1
    assert sorted(line.split()[0] for line in result.out.splitlines() if line[0] != " ") == [
        "DAMAGED",
        "intact",
        "intact",
    ]
    found = json.loads(call("verify", "newer", "--json").out)["checkpoints"]
    assert {each["path"]: each["intact"] for each in found} == {"newer/a": True, "newer/b": False, "newer/c": True}
    assert ["999" in each["problem"] for each in found if each["problem"]] == [True]
    shutil.rmtree("newer")


@pytest.mark.usefixtures("in_runs")
def test_verify_continues_after_a_path_that_is_no_checkpoint(call):
    pts.save({"w": np.ones(3)}, "mixed/good")
    Path("mixed/weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n...")
    result = call("verify", "mixed/weights.h5", "mixed/good", "mixed/nowhere")
    assert result.code == 2
    assert result.out.startswith("intact   mixed/good")
    assert "mixed/weights.h5: expected a checkpoint or a directory of checkpoints, found an HDF5 file" in result.err
    assert "mixed/nowhere: expected a checkpoint or a directory of checkpoints, found neither" in result.err
    shutil.rmtree("mixed")


def test_what_the_system_cannot_read_is_not_called_damaged(call, monkeypatch):
    pts.save({"w": np.ones(3)}, "model")

    real = filesystem.open_existing

    def refused(path):
        if path.suffix == ".safetensors":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(filesystem, "open_existing", refused)
    result = call("verify", "model")
    assert result.code == 1
    assert result.out.startswith("UNREADABLE  cannot read model: Input/output error")
    assert '"unreadable": true' in call("verify", "model", "--json").out
