"""CheckpointManager after failed saves, damage, kills and clocks that were set back."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from savers.saving import flip, saved, tree

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal

DAMAGE = {
    "a flipped bit": lambda: flip(4),
    "a damaged index": lambda: flip(4, file="index.json", offset=100),
    "an empty index": lambda: Path("run/ckpt-4/index.json").write_text(""),
    "a truncated data file": lambda: os.truncate(next(Path("run/ckpt-4").glob("*.safetensors")), 100),
    "a missing data file": lambda: next(Path("run/ckpt-4").glob("*.safetensors")).unlink(),
    "a missing index": lambda: Path("run/ckpt-4/index.json").unlink(),
}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(damage, fresh):
    manager = saved(range(5), close=False)
    manager.wait_until_finished()
    damage()
    if fresh:
        manager.close()
        manager = pts.CheckpointManager("run")
    with pytest.warns(pts.RetentionWarning, match="run/ckpt-4"):
        assert manager.latest_step() == 3
    with pytest.warns(pts.RetentionWarning, match="run/ckpt-4"):
        assert_trees_equal(manager.restore(), tree(3))
    with pytest.raises((pts.CorruptCheckpointError, pts.CheckpointNotFoundError)):
        manager.restore(step=4)
    assert manager.save(4, tree(4)) == Path("run/ckpt-4")
    manager.wait_until_finished()
    assert manager.latest_step() == 4


def test_a_run_of_damaged_checkpoints_does_not_start_over():
    saved(range(2))
    for step in range(2):
        flip(step)
    manager = pts.CheckpointManager("run")
    with pytest.warns(pts.RetentionWarning, match="using instead: nothing"):
        assert manager.latest_step() is None
    with pytest.raises(pts.CorruptCheckpointError, match="no checkpoint can be restored"):
        manager.restore_or_init(tree(0))


def test_a_run_of_damaged_checkpoints_without_a_state_file_does_not_start_over():
    saved(range(2))
    for step in range(2):
        flip(step, file="index.json", offset=100)
    Path("run/checkpoint").unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="no checkpoint can be restored"):
        pts.CheckpointManager("run").restore_or_init(tree(0))


def test_latest_step_reads_a_checkpoint_once(monkeypatch):
    manager = saved(range(2), close=False)
    manager.wait_until_finished()
    from pytreesaver.formats.indexed.reader import IndexedReader

    verified = []
    verify = IndexedReader.verify
    monkeypatch.setattr(IndexedReader, "verify", lambda self: verified.append(self.path.name) or verify(self))
    manager.latest_step()
    assert verified == []
    other = pts.CheckpointManager("run")
    for _ in range(3):
        assert other.latest_step() == 1
        assert other.latest_step(verify=False) == 1
    assert verified == ["ckpt-1"]


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("operation", ["open_new", "reserve", "write", "sync_file", "sync_directory", "rename"])
def test_a_failed_save_changes_no_state(monkeypatch, operation, block):
    manager = saved([0], max_to_keep=1, block=block, close=False)
    manager.wait_until_finished()

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, operation, refuse)
        if block:
            with pytest.raises(pts.CheckpointIOError, match="No space left"):
                manager.save(1, tree(1))
        else:
            manager.save(1, tree(1))
            with pytest.raises(pts.CheckpointIOError, match="No space left"):
                manager.wait_until_finished()
    assert manager.latest_step() in ((0, 1) if operation == "sync_directory" else (0,))
    assert pts.CheckpointManager("run").latest_step() == manager.latest_step()
    assert manager.save(1, tree(1)) == Path("run/ckpt-1")
    manager.close()
    assert manager.all_steps() == [1]
    assert not list(Path("run").glob(".*.tmp"))


def test_a_background_error_is_raised_even_by_a_save_that_is_not_due(monkeypatch):
    manager = pts.CheckpointManager("run", save_interval_steps=10)
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "reserve", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        manager.save(0, tree(0))
        manager._session.queue.settle()
    with pytest.raises(pts.CheckpointIOError, match="No space left"):
        manager.save(1, tree(1))
    assert manager.save(2, tree(2)) == Path("run/ckpt-2")
    manager.close()


def test_a_run_continues_after_a_damaged_state_file():
    saved(range(3), max_to_keep=2)
    Path("run/checkpoint").write_text("???")
    manager = pts.CheckpointManager("run", max_to_keep=2, block=True)
    with pytest.warns(pts.RetentionWarning, match="will not be deleted"):
        assert manager.latest_step() == 2
    with pytest.warns(pts.RetentionWarning, match="will not be deleted"):
        manager.save(3, tree(3))
    assert manager.all_steps() == [1, 2, 3]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-3").absolute() or pts.latest_checkpoint("run") == Path(
        "run/ckpt-3"
    )


def test_a_checkpoint_that_a_killed_process_did_not_list_counts():
    saved(range(2))
    state = Path("run/checkpoint").read_bytes()
    saved([2])
    Path("run/checkpoint").write_bytes(state)
    before = Path("run/ckpt-2/index.json").stat().st_mtime - 1
    os.utime("run/checkpoint", (before, before))
    manager = pts.CheckpointManager("run", max_to_keep=2, block=True)
    assert manager.latest_step() == 2
    manager.save(3, tree(3))
    assert manager.all_steps() == [2, 3]


@pytest.mark.parametrize("call", ["open_existing", "fingerprint"])
def test_a_temporary_disk_error_loses_no_checkpoint(monkeypatch, call):
    manager = saved(
        range(5), max_to_keep=3, keep_best=(1, "loss"), metrics=[{"loss": i} for i in range(5)], close=False
    )
    manager.wait_until_finished()
    manager.pin(2)
    manager.close()
    manager = pts.CheckpointManager("run", max_to_keep=1, keep_best=(1, "loss"), block=True)
    real = getattr(filesystem, call)

    def failing(path, *args):
        if "ckpt-0" in str(path) or "ckpt-2" in str(path):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, call, failing)
        manager.all_steps()
        manager.save(5, tree(5))
    manager.save(6, tree(6))
    assert manager.all_steps() == [0, 2, 6]


def test_correcting_a_clock_that_was_ahead_does_not_roll_the_run_back():
    now = [10_000.0]
    arguments = {"max_to_keep": 5, "block": True, "clock": lambda: now[0]}
    with pts.CheckpointManager("run", **arguments) as manager:
        for step in (10, 20):
            manager.save(step, tree(step))
    for step in (10, 20):
        for file in Path(f"run/ckpt-{step}").iterdir():
            os.utime(file, (time.time() + 3600, time.time() + 3600))
    now[0] = 6_400.0
    manager = pts.CheckpointManager("run", **arguments)
    with pytest.warns(pts.RetentionWarning, match="the clock is"):
        manager.save(30, tree(30))
    manager.save(40, tree(40))
    manager.close()
    assert pts.latest_checkpoint("run") == Path("run/ckpt-40")
    again = pts.CheckpointManager("run", **arguments)
    assert again.latest_step() == 40
    assert again.restore()["step"] == 40


def test_without_a_state_file_the_order_of_the_saves_counts_and_not_the_clock():
    now = [1000.0]
    with pts.CheckpointManager("run", clock=lambda: now[0], block=True) as manager:
        for step in range(3):
            now[0] -= 100
            manager.save(step, tree(step))
    Path("run/checkpoint").unlink()
    assert pts.latest_checkpoint("run") == Path("run/ckpt-2")
    assert pts.CheckpointManager("run").latest_step() == 2


def test_a_clock_set_back_does_not_stop_the_saves():
    now = [100_000.0]
    manager = pts.CheckpointManager("run", save_interval_secs=60, clock=lambda: now[0], block=True)
    manager.save(0, tree(0))
    now[0] = 90_000.0
    assert manager.should_save(1)


def test_checkpoints_with_disk_errors_are_skipped_but_other_errors_are_raised(monkeypatch):
    saved(range(2))
    real = filesystem.read_into

    def failing(number):
        def read_into(descriptor, buffer, offset):
            if "ckpt-1" in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(number, os.strerror(number))
            return real(descriptor, buffer, offset)

        return read_into

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_into", failing(errno.EIO))
        manager = pts.CheckpointManager("run")
        with pytest.warns(pts.RetentionWarning, match="Input/output error"):
            assert_trees_equal(manager.restore(), tree(0))
        with pytest.warns(pts.RetentionWarning, match="Input/output error"):
            assert manager.latest_step() == 0
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_into", failing(errno.EMFILE))
        with pytest.raises(pts.CheckpointIOError, match="Too many open files"):
            pts.CheckpointManager("run").restore()


def test_a_save_succeeds_if_no_thread_can_be_started(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    manager = pts.CheckpointManager("run")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert manager.save(1, tree(1)) == Path("run/ckpt-1")
    manager.close()
    assert manager.all_steps() == [1]


def test_a_copy_of_another_runs_checkpoint_is_not_restored():
    saved(range(10), directory="a")
    saved(range(3), directory="b", max_to_keep=2)
    shutil.copytree("a/ckpt-9", "b/ckpt-9")
    manager = pts.CheckpointManager("b", max_to_keep=1)
    assert manager.latest_step() == 2
    assert manager.restore()["step"] == 2


def test_a_warning_that_is_an_error_keeps_the_state_consistent():
    manager = saved([1], max_to_keep=1, block=True, close=False)
    (Path("run/ckpt-1") / "notes").write_text("mine")
    with pytest.raises(pts.RetentionWarning):  # warnings are errors here
        manager.save(2, tree(2))
    assert not manager.should_save(2)
    assert manager.save(2, tree(2)) is None
