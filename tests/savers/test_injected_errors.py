"""Every system call of every public function fails once: only CheckpointErrors get out, and no file stays open."""

import errno
import gc
import os
import random
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import pytreesaver as pts
from tests.injection import FailingCall, open_files_below

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TREE = {"w": np.arange(6.0), "step": 3}
RUN = Path("site/run")
NEWEST = RUN / "ckpt-3"


def save_managed(step):
    with pts.CheckpointManager(RUN, max_to_keep=2) as manager:
        manager.save(step, {"w": np.full(6, float(step)), "step": step})


def save_with_saver(step):
    with pts.Saver(max_to_keep=2) as saver:
        saver.save({"w": np.full(6, float(step)), "step": step}, RUN / "ckpt", step)


def save_over(name):
    pts.save({"w": 1.0}, RUN / name, overwrite=True)
    try:
        pts.save(TREE, RUN / name, overwrite=True)
    finally:
        assert pts.restore(RUN / name).keys() in ({"w"}, TREE.keys())


def load():
    with pts.load_checkpoint(NEWEST) as reader:
        return reader["w"]


def managed(use):
    def call():
        with pts.CheckpointManager(RUN, max_to_keep=2) as manager:
            return use(manager)

    return call


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return a function that makes the run directory anew, with the checkpoints 2 and 3."""
    monkeypatch.chdir(tmp_path)
    for step in (1, 2, 3):
        save_managed(step)
    shutil.copytree("site", "original")

    def renew():
        shutil.rmtree("site")
        shutil.copytree("original", "site")

    return renew


READS = {
    "restore": lambda: pts.restore(NEWEST),
    "restore with a template": lambda: pts.restore(NEWEST, TREE),
    "load_checkpoint": load,
    "verify": lambda: pts.verify(NEWEST),
    "latest_checkpoint": lambda: pts.latest_checkpoint(RUN),
    "checkpoint_exists": lambda: pts.checkpoint_exists(NEWEST),
    "get_checkpoint_state": lambda: pts.get_checkpoint_state(RUN),
    "get_checkpoint_mtimes": lambda: pts.get_checkpoint_mtimes([NEWEST]),
    "get_checkpoint_history": lambda: pts.get_checkpoint_history(RUN),
    "list_checkpoints": lambda: pts.list_checkpoints(RUN),
    "CheckpointManager.restore": managed(lambda manager: manager.restore()),
    "CheckpointManager.latest_step": managed(lambda manager: manager.latest_step()),
    "CheckpointManager.explain": managed(lambda manager: manager.explain()),
}
WRITES = {
    "save": lambda: pts.save(TREE, RUN / "other"),
    "save over a checkpoint": lambda: pts.save(TREE, NEWEST, overwrite=True),
    "save without sync": lambda: pts.save(TREE, RUN / "other", durable=False),
    "save a safetensors file": lambda: pts.save(TREE, RUN / "other.safetensors"),
    "save over a safetensors file": lambda: save_over("other.safetensors"),
    "save shards": lambda: pts.save(TREE, RUN / "other", format="safetensors", shard_nbytes=40),
    "save an archive": lambda: pts.save(TREE, RUN / "other.npz"),
    "save over an archive": lambda: save_over("other.npz"),
    "convert": lambda: pts.convert(NEWEST, RUN / "other.safetensors"),
    "save_async": lambda: pts.save_async(TREE, RUN / "other").result(),
    "Saver.save": lambda: save_with_saver(4),
    "CheckpointManager.save": lambda: save_managed(4),
    "CheckpointManager.pin": managed(lambda manager: manager.pin(3)),
    "prune": lambda: pts.prune(RUN, pts.KeepLast(1)),
    "remove_checkpoint": lambda: pts.remove_checkpoint(RUN / "ckpt-2", update_state=True),
    "update_checkpoint_state": lambda: pts.update_checkpoint_state(RUN, NEWEST),
}


def outcome_of(call, failing, code):
    """Return the CheckpointError of a call in which one system call failed, or None."""
    failure = FailingCall("site", failing, code)
    with failure.injected(), warnings.catch_warnings():
        warnings.simplefilter("ignore", pts.RetentionWarning)
        try:
            call()
        except pts.CheckpointError as error:
            return failure, error
    return failure, None


def fail_every_call(call, code, renew, check, stride=1):
    for failing in range(random.randint(1, stride), 10_000, stride):
        renew()
        failure, error = outcome_of(call, failing, code)
        if failure.failed is None:
            assert failing > 3
            return
        del error
        if open_files_below("site"):
            gc.collect()
            assert open_files_below("site") == [], failure.failed
        check(failure.failed)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", READS)
def test_a_failing_system_call_of_a_read_gives_a_checkpoint_error_or_the_right_answer(name, code, site):
    def check(failed):
        assert sorted(path.name for path in RUN.glob("ckpt-*")) == ["ckpt-2", "ckpt-3"], failed

    fail_every_call(READS[name], code, lambda: None, check)


@pytest.mark.parametrize("code", [errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", WRITES)
def test_after_a_failing_system_call_of_a_write_the_next_save_works(name, code, site):
    def check(failed):
        (save_with_saver if name == "Saver.save" else save_managed)(9)
        assert pts.restore(pts.latest_checkpoint(RUN))["step"] == 9, failed
        kept = {path.name for path in RUN.glob("ckpt-*")}
        assert "ckpt-9" in kept, failed
        assert len(kept - {"ckpt-3"}) <= 2, (failed, kept)
        assert list(RUN.glob("*.tmp")) == [], failed

    # The long version fails every call, the short one every fourth, with a random beginning.
    fail_every_call(WRITES[name], code, site, check, stride=1 if os.environ.get("PYTREESAVER_LONG_TESTS") else 4)
