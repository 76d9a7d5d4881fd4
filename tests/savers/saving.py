"""Saves, and damage to them, for the tests of the savers."""

import errno
import os
from pathlib import Path

import numpy as np

import pytreesaver as pts

TREE = {"dense": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.zeros(3)}, "step": 7}


def on_disk(directory="run"):
    return sorted(entry.name for entry in Path(directory).iterdir() if entry.name[0] != "." and entry.is_dir())


def tree(step):
    return {"w": np.full(100, step), "step": step}


def saved(steps, *, directory="run", metrics=None, close=True, **arguments):
    manager = pts.CheckpointManager(directory, **arguments)
    for i, step in enumerate(steps):
        manager.save(step, tree(step), metrics=metrics and metrics[i])
    if close:
        manager.close()
    return manager


def flip(step, *, file="*.safetensors", offset=-1):
    path = next(Path(f"run/ckpt-{step}").glob(file))
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def refuse_to_remove(path):
    raise pts.CheckpointIOError(f"{path.name}: busy", errno.EBUSY)


def save_unlisted(step, *, name="model", directory="run"):
    """Save as a process that is killed before it lists the checkpoint."""
    state = Path(directory, "checkpoint").read_bytes()
    with pts.Saver(max_to_keep=None) as saver:
        path = Path(saver.save({"w": step}, f"{directory}/{name}", step))
    Path(directory, "checkpoint").write_bytes(state)
    before = (path / "index.json").stat().st_mtime - 1
    os.utime(Path(directory, "checkpoint"), (before, before))
