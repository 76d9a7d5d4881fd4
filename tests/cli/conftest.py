"""Fixtures for the commands."""

import time

import numpy as np
import pytest
from cli.running import HOSTILE, Result, layers

import pytreesaver as pts
from pytreesaver._cli import main, output


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Checkpoints that tests must not modify: `a` has four, `damaged` a flipped bit, `hostile` hostile names."""
    root = tmp_path_factory.mktemp("runs")
    days_ago = time.time() - 3.5 * 86400
    with pts.CheckpointManager(root / "a", max_to_keep=4, block=True, clock=lambda: days_ago) as manager:
        for step in range(0, 60, 10):
            tree = {"params": layers(3, 0.5 * step), "count": np.int32(step), "note": "words"}
            if step == 50:
                tree["params"]["layer_1"]["bias"] = np.where(np.arange(8) < 2, np.nan, 1.0)
            manager.save(step, tree, metrics={"loss": 1 / (step + 1)}, metadata={"git": "abc"})
    damaged = pts.save({"w": np.arange(100.0), "v": np.ones(3)}, root / "damaged")
    (data,) = damaged.glob("*.safetensors")
    content = bytearray(data.read_bytes())
    content[content.find(np.arange(100.0).tobytes()) + 77] ^= 1
    data.write_bytes(content)
    with pts.CheckpointManager(root / "hostile", block=True) as manager:
        for step in (1, 2):
            tree = {HOSTILE: {HOSTILE: np.full(3, step), "text": HOSTILE}, "words": np.array([HOSTILE] * 2)}
            manager.save(step, tree, metrics={HOSTILE: 1.0}, metadata={HOSTILE: HOSTILE})
    pts.save({f"layer_{i}/w{j}": np.zeros(3, np.float32) for i in range(500) for j in range(10)}, root / "many")
    return root


@pytest.fixture
def in_runs(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    output.columns.cache_clear()

    def call(*arguments):
        code = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call
