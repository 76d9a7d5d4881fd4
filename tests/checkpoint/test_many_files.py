"""Checkpoints of more files than a process may have open by default."""

import subprocess
import sys

PROGRAM = """
import resource
from pathlib import Path

import numpy as np

import pytreesaver as pts

soft, hard = 120, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
tree = {f"v{i}": np.full(100, i) for i in range(200)}
for format in ("native", "safetensors"):
    pts.save(tree, format, shard_nbytes=800, format=format)
    assert len(list(Path(format).iterdir())) > 200
    found = pts.restore(format)
    assert all((found[name] == tree[name]).all() for name in tree)
assert soft < resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 65536
"""


def test_a_process_asks_for_more_open_files_when_it_needs_them():
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
