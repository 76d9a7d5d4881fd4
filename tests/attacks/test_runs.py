"""Attacks on run directories: what is damaged there costs an error or a warning, never a checkpoint."""

import fcntl
import os
import shutil
import time
import tomllib
import warnings

import numpy as np
import pytest
from attacks.attack import FILES, TREE

import pytreesaver as pts

TABLE = tomllib.loads((FILES / "runs.toml").read_text())


def save(run):
    """Save a checkpoint into a run, and restore it."""
    with pts.CheckpointManager(run, max_to_keep=5, block=True) as manager:
        manager.save(10**6, {"w": TREE["w"]})
        assert np.array_equal(manager.restore()["w"], TREE["w"])


def locked(run):
    """Save into a run that another process has locked."""
    descriptor = os.open(run / ".pytreesaver.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(pts.ConcurrentWriterError) as caught:
            save(run)
    finally:
        os.close(descriptor)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def listed(run):
    """Raise the problem of a checkpoint, if there is one."""
    for each in pts.list_checkpoints(run):
        if each.problem:
            raise pts.CorruptCheckpointError(each.problem)


def history(run):
    """Look whether the history of a run has nothing but its one good line."""
    found = pts.get_checkpoint_history(run)
    assert [event.name for event in found] == ["ckpt-1"] * (run / ".pytreesaver.history").exists()


WAYS = {
    "state": pts.get_checkpoint_state,
    "latest": pts.latest_checkpoint,
    "list": listed,
    "history": history,
    "prune": lambda run: pts.prune(run, pts.KeepLast(5)),
    "locked": locked,
    "save": save,
}


def outcomes(run):
    """Return the error of each way to use a run, or None, and the messages of all warnings."""
    errors = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", pts.RetentionWarning)
        for name, way in WAYS.items():
            started = time.monotonic()
            try:
                way(run)
            except Exception as error:
                errors[name] = error
            assert time.monotonic() - started < 5, name
    assert all(issubclass(each.category, pts.RetentionWarning) for each in caught)
    return errors, [str(each.message) for each in caught]


@pytest.mark.parametrize("name", TABLE)
def test_an_attack_on_a_run_costs_no_checkpoint(name, tmp_path):
    attack = TABLE[name]
    run = tmp_path / "run"
    shutil.copytree(FILES / "runs" / name, run)
    if "newest" in attack:
        os.utime(run / "checkpoint", (1, 1))  # before all checkpoints
        assert pts.latest_checkpoint(run).name == attack["newest"]
    before = {path.name for path in run.glob("ckpt-*")}
    errors, messages = outcomes(run)
    assert {*WAYS} - {*errors} == {*attack["works"]}, errors
    if errors:
        assert all(type(error).__name__ == attack["error"] for error in errors.values()), errors
        assert any(attack.get("message", "") in str(error) for error in errors.values())
    assert attack.get("message", "") in "\n".join([*map(str, errors.values()), *messages])
    assert before <= {path.name for path in run.glob("ckpt-*")}
    for path in before:
        assert np.array_equal(pts.restore(run / path)["w"], TREE["w"])
