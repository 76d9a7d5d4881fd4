"""``pytreesaver cp``."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from cli.running import command, save_run

import pytreesaver as pts


def test_cp_selects_and_renames(call):
    save_run()
    result = call("cp", "run", "copy", "--only", "new", "--rename", "b/=new/")
    assert (result.code, result.out) == (0, "copied run/ckpt-4 to copy: 1 variable, 8 B\n")
    assert pts.restore("copy") == {"new": {"c": 1.0}}
    Path("shelf").mkdir()
    for target in ("shelf", "new-shelf/"):
        assert call("cp", "run/ckpt-2", target).code == 0
        assert pts.restore(Path(target) / "ckpt-2")["w"].tolist() == [2, 2, 2]
    assert call("cp", "run/ckpt-3", "copy").code == 2
    found = json.loads(call("cp", "run/ckpt-3", "copy", "--overwrite", "--json").out)
    assert found == {"source": "run/ckpt-3", "target": "copy", "variables": 2, "nbytes": 32}
    assert pts.restore("copy")["w"].tolist() == [3, 3, 3]


def test_a_name_with_an_equals_sign_can_be_renamed(call):
    pts.save({"a=b": 1, "c": 2}, "model")
    assert call("cp", "model", "copy", "--rename", r"a\=b=d\=e").code == 0
    assert pts.restore("copy") == {"d=e": 1, "c": 2}


def test_an_interrupted_copy_leaves_no_files_behind():
    pts.save({"w": np.zeros(96 << 20, np.uint8)}, "model", durable=False)
    before = sorted(os.listdir())
    process = subprocess.Popen(command("cp", "model", "copy"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while sorted(os.listdir()) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it had already finished
        assert sorted(os.listdir()) == sorted([*before, "copy"])
    else:
        assert (process.returncode, out, err) == (130, b"", b"interrupted\n")
        assert [name for name in os.listdir() if name not in (*before, "copy")] == []
        assert not os.path.lexists("copy") or pts.verify("copy") is None
