"""Saver and CheckpointManager keep what TensorFlow keeps, in recorded runs under a simulated clock."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver.formats.places import names_in

DATA = Path(__file__).parents[2] / "data"
BASE = 1e9
TREE = {"w": np.zeros(2)}


def traces(name):
    return json.loads((DATA / f"{name}.json").read_text())["traces"]


def identity(trace):
    return f"{trace['schedule']}-{trace['max_to_keep']}-{trace['keep_checkpoint_every_n_hours']}"


@pytest.fixture
def directory():
    """A directory in memory if possible: thousands of saves are faster there, and durability is not tested."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as path:
        yield Path(path)


class Clock:
    def __init__(self):
        self.now = BASE

    def __call__(self):
        return self.now


def on_disk(directory):
    entries = [entry.name for entry in directory.iterdir() if entry.name[0] != "." and entry.name != "checkpoint"]
    return [name for name in names_in(entries) if name != "history.jsonl"]


@pytest.mark.parametrize(("format", "block"), [("native", True), ("native", False), ("tensorflow", True)])
@pytest.mark.parametrize("trace", traces("retention_saver"), ids=identity)
def test_saver_keeps_the_same_checkpoints_as_tensorflow(directory, trace, format, block):
    clock = Clock()
    saver = pts.Saver(
        max_to_keep=trace["max_to_keep"],
        keep_checkpoint_every_n_hours=trace["keep_checkpoint_every_n_hours"],
        format=format,
        clock=clock,
    )
    for row in trace["trace"]:
        clock.now = BASE + row["t"]
        saver.save(TREE, directory / "ckpt", row["step"], block=block)
        saver.wait()
        assert [Path(path).name for path in saver.last_checkpoints] == row["last_checkpoints"]
        assert on_disk(directory) == sorted(row["on_disk"])
        assert saver.next_checkpoint_time - BASE == pytest.approx(row["next_checkpoint_time"], abs=1e-6)
        state = pts.get_checkpoint_state(directory)
        assert Path(state.model_checkpoint_path).name == row["state"]["model_checkpoint_path"]
        assert [Path(p).name for p in state.all_model_checkpoint_paths] == row["state"]["all_model_checkpoint_paths"]
        assert state.all_model_checkpoint_timestamps == []
        assert pts.latest_checkpoint(directory) == directory / row["state"]["model_checkpoint_path"]


@pytest.mark.parametrize(("format", "restart"), [("native", False), ("native", True), ("tensorflow", False)])
@pytest.mark.parametrize("trace", traces("retention_manager"), ids=identity)
def test_manager_keeps_the_same_checkpoints_as_tensorflow(directory, trace, format, restart):
    clock = Clock()

    def new_manager():
        return pts.CheckpointManager(
            directory,
            max_to_keep=trace["max_to_keep"],
            keep_checkpoint_every_n_hours=trace["keep_checkpoint_every_n_hours"],
            format=format,
            clock=clock,
        )

    manager = new_manager()
    for row in trace["trace"]:
        clock.now = BASE + row["t"]
        assert manager.save(row["step"], TREE) == directory / f"ckpt-{row['step']}"
        manager.wait_until_finished()
        state = pts.get_checkpoint_state(directory)
        expected = row["state"]
        assert on_disk(directory) == sorted(row["on_disk"])
        assert manager.all_steps() == sorted(int(name.removeprefix("ckpt-")) for name in row["on_disk"])
        assert Path(state.model_checkpoint_path).name == expected["model_checkpoint_path"]
        assert [Path(path).name for path in state.all_model_checkpoint_paths] == row["checkpoints"]
        times = [time - BASE for time in state.all_model_checkpoint_timestamps]
        assert times == pytest.approx(expected["all_model_checkpoint_timestamps"], abs=1e-6)
        assert state.last_preserved_timestamp - BASE == pytest.approx(row["last_preserved_timestamp"], abs=1e-6)
        assert manager.latest_step() == row["step"]
        if restart:
            manager.close()
            manager = new_manager()
