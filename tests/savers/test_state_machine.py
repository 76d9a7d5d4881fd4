"""A run as a state machine: saves that succeed, fail or are killed, restarts and moves. And real kills."""

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver._run.policies.rules import ManagerRule, manager_decisions
from pytreesaver.testing import assert_trees_equal

CHANGES = (
    "open_new",
    "reserve",
    "write",
    "sync_file",
    "sync_directory",
    "make_directory",
    "remove_directory",
    "rename",
    "remove_file",
    "link",
)


class Killed(BaseException):
    """The simulated end of the process. Clean-up after errors cannot change the disk either."""


class Faults:
    """Fails one call that changes the disk, or that call and all later ones, as if the process had been killed."""

    def __init__(self):
        self.real = {name: getattr(filesystem, name) for name in CHANGES}
        self.left, self.error, self.fatal = None, None, False
        self.happened = False
        for name in CHANGES:
            setattr(filesystem, name, self.wrapped(name))

    def wrapped(self, name):
        def call(*args):
            if self.left is not None:
                self.left -= 1
                if self.left == 0 or (self.fatal and self.left < 0):
                    self.happened = True
                    raise Killed if self.fatal else OSError(self.error, os.strerror(self.error))
            return self.real[name](*args)

        return call

    def arm(self, calls, error=None):
        self.left, self.error, self.fatal, self.happened = calls, error, error is None, False

    def disarm(self):
        self.left = None

    def remove(self):
        for name, function in self.real.items():
            setattr(filesystem, name, function)


ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO)
LIMITS = st.integers(1, 4)
SETTINGS = st.fixed_dictionaries(
    {"max_to_keep": LIMITS},
    optional={"keep_every_n_steps": st.sampled_from([3, 5]), "keep_best": st.just((2, "loss"))},
)


class Run(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.directory = self.root / "run-0"
        self.faults = Faults()
        self.moves = 0
        self.step = 0
        self.now = 1e9
        self.is_settled = True  # the state file lists all checkpoints
        self.known = []  # the checkpoints on disk, in the order of the saves
        self.manager = None

    def teardown(self):
        self.drop()
        self.faults.remove()
        shutil.rmtree(self.root)

    def drop(self):
        """Drop the manager as the end of its process would."""
        if self.manager is not None and self.manager._session.lock is not None:
            self.manager._session.lock.release()
        self.manager = None
        gc.collect()

    def start(self, settings=None):
        self.settings = settings or self.settings
        self.manager = pts.CheckpointManager(self.directory, clock=lambda: self.now, block=True, **self.settings)

    def tree(self, saved):
        return {"w": np.full(50, saved.step), "loss": saved.metrics["loss"]}

    def next_save(self, loss):
        self.step += 1
        self.now += 10
        return pts.SavedCheckpoint(f"ckpt-{self.step}", self.step, self.now, {"loss": loss})

    def save(self, saved):
        return self.manager.save(saved.step, self.tree(saved), metrics=saved.metrics)

    def kept(self, checkpoints):
        with pts.CheckpointManager("unused", **self.settings) as other:
            rule = other._rule
        assert isinstance(rule, ManagerRule)
        decisions = manager_decisions(rule, checkpoints, [], -1.0, self.now).decisions
        return [decision.checkpoint for decision in decisions if decision.keep]

    def on_disk(self):
        return {path.parent.name for path in self.directory.glob("[!.]*/index.json")}

    @initialize(settings=SETTINGS, loss=st.floats(0, 1))
    def first(self, settings, loss):
        self.start(settings)
        self.save_successfully(loss)

    @rule(loss=st.floats(0, 1) | st.just(float("nan")))
    def save_successfully(self, loss):
        saved = self.next_save(loss)
        assert self.save(saved) == self.directory / saved.path
        self.known = self.kept([*self.known, saved])
        assert self.on_disk() == {saved.path for saved in self.known}
        assert not list(self.directory.glob(".*.tmp"))
        self.is_settled = True

    def after_failure(self, saved):
        """The new checkpoint may exist. Those that retention keeps do exist. Those to delete may exist."""
        self.is_settled = False
        existing = self.on_disk()
        before = self.known
        after = [*before, saved]
        self.known = [one for one in after if one.path in existing]
        must_stay = self.kept(after) if saved.path in existing else before
        assert existing == {one.path for one in self.known}
        assert {one.path for one in must_stay} - {saved.path} <= existing

    @rule(loss=st.floats(0, 1), calls=st.integers(1, 30), error=st.sampled_from(ERRORS))
    def fail(self, loss, calls, error):
        saved = self.next_save(loss)
        self.faults.arm(calls, error)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", pts.RetentionWarning)
                self.save(saved)
        except pts.CheckpointIOError as refused:
            assert refused.errno == error  # noqa: PT017
        finally:
            self.faults.disarm()
        self.after_failure(saved)

    @rule(loss=st.floats(0, 1), calls=st.integers(1, 30))
    def kill(self, loss, calls):
        saved = self.next_save(loss)
        self.faults.arm(calls)
        try:
            self.save(saved)
        except Killed:
            pass
        finally:
            self.faults.disarm()
        self.after_failure(saved)
        self.drop()
        self.start()

    @rule()
    def restart(self):
        self.manager.close()
        self.start()

    @rule(settings=SETTINGS)
    def restart_with_other_settings(self, settings):
        self.manager.close()
        self.start(settings)

    @rule()
    def move(self):
        self.manager.close()
        self.moves += 1
        moved = self.root / f"run-{self.moves}"
        self.directory.rename(moved)
        self.directory = moved
        self.start()

    @rule()
    def copy(self):
        self.manager.close()
        self.moves += 1
        copied = self.root / f"run-{self.moves}"
        shutil.copytree(self.directory, copied, symlinks=True)
        self.directory = copied
        self.start()

    def data_file(self, path):
        return next(path.glob("*.safetensors"))

    @precondition(lambda self: len(self.known) > 1)
    @rule()
    def damage_the_newest(self):
        newest = self.known.pop()
        data = self.data_file(self.directory / newest.path)
        content = bytearray(data.read_bytes())
        content[-1] ^= 4
        data.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", pts.RetentionWarning)
                assert self.manager.latest_step() == self.newest().step
                assert_trees_equal(self.manager.restore(), self.tree(self.newest()))
                self.manager.close()
                self.start()
                assert self.manager.latest_step() == self.newest().step
        finally:
            content[-1] ^= 4
            data.write_bytes(content)
            self.known.append(newest)

    def newest(self):
        return self.known[-1]

    @invariant()
    def the_newest_complete_checkpoint_is_the_latest(self):
        if self.manager is None or not self.known:
            return
        assert self.manager.latest_step() == self.newest().step
        assert pts.latest_checkpoint(self.directory) == self.directory / self.newest().path

    @invariant()
    def all_checkpoints_can_be_restored(self):
        for saved in self.known:
            assert_trees_equal(pts.restore(self.directory / saved.path), self.tree(saved))


# `make prove` runs the long version.
LONG = "PYTREESAVER_LONG_TESTS" in os.environ
KILLS = 200 if LONG else 60

Run.TestCase.settings = hypothesis.settings(
    max_examples=500 if LONG else 6, stateful_step_count=30 if LONG else 20, deadline=None
)
TestRun = Run.TestCase


def test_kills_lose_no_checkpoint(tmp_path):
    script = Path(__file__).parent / "kill_and_restart.py"
    result = subprocess.run(
        [sys.executable, script, str(KILLS)], capture_output=True, text=True, check=False, timeout=400
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{KILLS} kills" in result.stdout


OVERWRITE = """
import os, signal, sys, pytreesaver as pts
from pytreesaver._io import filesystem
manager = pts.CheckpointManager("run", block=True)
manager.save(1, {"w": 1}, force=True)
real = filesystem.rename
def rename(source, target):
    if target.name == "index.json":
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
filesystem.rename = rename
manager.save(1, {"w": 2}, force=True)
"""


@pytest.mark.parametrize("kind", ["saver", "manager"])
def test_leftovers_of_a_killed_overwrite_are_removed_by_the_next_writer(kind):
    assert subprocess.run([sys.executable, "-c", OVERWRITE], check=False).returncode == -signal.SIGKILL
    assert len(list(Path("run/ckpt-1").iterdir())) == 4
    if kind == "saver":
        pts.Saver().save({"w": 3}, "run/other", 2)
    else:
        pts.CheckpointManager("run", block=True).save(2, {"w": 3})
    left = sorted(path.name for path in Path("run/ckpt-1").iterdir())
    assert left == ["data-00000-of-00001.safetensors", "index.json"]
    assert pts.restore("run/ckpt-1") == {"w": 1}


def test_one_thread_saves_and_another_one_lists():
    manager = pts.CheckpointManager("run", max_to_keep=2)
    problems = []

    def list_steps():
        try:
            while thread.is_alive():
                step = manager.latest_step()
                steps = manager.all_steps()
                assert step is None or step in range(30)
                assert len(steps) <= 4
                manager.explain()
        except Exception as error:
            problems.append(error)

    def work():
        for step in range(30):
            manager.save(step, {"w": np.full(1000, step)})
        manager.wait_until_finished()

    thread = threading.Thread(target=work)
    reader = threading.Thread(target=list_steps)
    thread.start()
    reader.start()
    thread.join()
    reader.join()
    assert problems == []
    assert manager.all_steps() == [28, 29]
