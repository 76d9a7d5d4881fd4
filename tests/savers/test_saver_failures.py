"""Saver after failed saves, interrupted deletions and kills."""

import errno
import shutil
import threading
from pathlib import Path

import pytest
from savers.saving import TREE, on_disk, save_unlisted

import pytreesaver as pts
from pytreesaver._io import atomic, filesystem
from pytreesaver._run import directory as run_directory
from pytreesaver._run import state_file
from pytreesaver.testing import assert_trees_equal


@pytest.mark.parametrize("operation", ["open_new", "reserve", "write", "sync_file", "rename"])
def test_a_failed_save_changes_no_state(monkeypatch, operation):
    saver = pts.Saver(max_to_keep=1)
    saver.save({"w": 1}, "run/model", 1)
    before = (saver.last_checkpoints, saver.next_checkpoint_time, Path("run/checkpoint").read_bytes())

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, operation, refuse)
        with pytest.raises(pts.CheckpointIOError, match="No space left"):
            saver.save({"w": 2}, "run/model", 2)
    assert (saver.last_checkpoints, saver.next_checkpoint_time, Path("run/checkpoint").read_bytes()) == before
    assert pts.restore(pts.latest_checkpoint("run")) == {"w": 1}
    saver.save({"w": 3}, "run/model", 3)
    assert on_disk() == ["model-3"]
    assert [entry.name for entry in Path("run").iterdir() if entry.suffix == ".tmp"] == []


def test_failing_to_write_the_state_file_loses_nothing(monkeypatch):
    saver = pts.Saver(max_to_keep=1)
    saver.save({"w": 1}, "run/model", 1)

    def refuse(*args):
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(state_file, "replace_file", refuse)
        with pytest.raises(pts.CheckpointIOError, match="I/O error"):
            saver.save({"w": 2}, "run/model", 2)
    assert on_disk() == ["model-1", "model-2"]
    assert saver.last_checkpoints == ["run/model-1"]
    saver.save({"w": 3}, "run/model", 3)
    assert on_disk() == ["model-3"]


def test_an_interrupted_deletion_loses_nothing_newer(monkeypatch):
    saver = pts.Saver(max_to_keep=3)
    for step in (1, 2, 3):
        saver.save({"w": step}, "run/model", step)

    def interrupt(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "delete_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            saver.save({"w": 4}, "run/model", 4)
    assert saver.last_checkpoints == [f"run/model-{step}" for step in (1, 2, 3, 4)]
    saver.save({"w": 5}, "run/model", 5)
    assert on_disk() == ["model-3", "model-4", "model-5"]


def test_a_deletion_warning_that_is_an_error_loses_nothing_newer():
    saver = pts.Saver(max_to_keep=1)
    path = saver.save({"w": 1}, "run/model", 1)
    (Path(path) / "notes.txt").write_text("mine")
    with pytest.raises(pts.RetentionWarning):  # warnings are errors here
        saver.save({"w": 2}, "run/model", 2)
    (Path(path) / "notes.txt").unlink()
    saver.save({"w": 3}, "run/model", 3)
    assert on_disk() == ["model-3"]


def test_an_error_in_a_with_block_is_raised_with_the_save_error_as_a_note(monkeypatch, caplog):
    with pytest.raises(KeyError) as raised, pts.Saver() as saver, monkeypatch.context() as patch:  # noqa: PT012
        patch.setattr(filesystem, "reserve", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        saver.save(TREE, "run/model", 1, block=False)
        saver.pending.settle()
        raise KeyError("mine")
    assert any("No space left" in note for note in raised.value.__notes__)
    assert any("No space left" in message for message in caplog.messages)


def test_close_times_out_while_another_thread_saves(monkeypatch):
    saver = pts.Saver()
    opened, begun = threading.Event(), threading.Event()
    real = filesystem.reserve

    def reserve(*args):
        begun.set()
        assert opened.wait(20)
        return real(*args)

    monkeypatch.setattr(filesystem, "reserve", reserve)
    thread = threading.Thread(target=saver.save, args=(TREE, "run/model", 1))
    thread.start()
    assert begun.wait(20)
    with pytest.raises(pts.SaveTimeoutError, match=r"waited 0\.1 s for another thread's save"):
        saver.close(0.1)
    opened.set()
    thread.join()
    saver.close()
    assert on_disk() == ["model-1"]


def test_a_copy_of_another_runs_checkpoint_is_not_the_newest_one():
    with pts.Saver() as saver:
        for step in range(10):
            saver.save({"w": "a"}, "a/model", step)
    with pts.Saver(max_to_keep=2) as saver:
        for step in range(3):
            saver.save({"w": "b"}, "b/model", step)
    shutil.copytree("a/model-9", "b/model-9")
    shutil.copytree("a/model-8", "b/pretrained")
    assert pts.latest_checkpoint("b") == Path("b/model-2")
    with pts.Saver(max_to_keep=2) as saver:
        saver.save({"w": "b"}, "b/model", 3)
    assert on_disk("b") == ["model-2", "model-3", "model-9", "pretrained"]


def test_one_saver_for_two_names_that_is_killed_before_it_lists():
    with pts.Saver() as saver:
        saver.save({"w": 1}, "run/best", 1)
        for step in range(2, 7):
            saver.save({"w": step}, "run/last", step)
    save_unlisted(7, name="best")
    assert pts.latest_checkpoint("run") == Path("run/best-7")


def test_a_step_that_is_saved_again_but_not_listed_is_the_newest():
    with pts.Saver() as saver:
        for step in range(1, 6):
            saver.save({"w": step}, "run/model", step)
    save_unlisted(3)
    assert pts.latest_checkpoint("run") == Path("run/model-3")
    with pts.Saver(max_to_keep=2) as saver:
        saver.save({"w": 6}, "run/model", 6)
    assert on_disk() == ["model-3", "model-6"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_an_error_right_after_the_state_file_is_written_loses_nothing_newer(monkeypatch, error):
    saver = pts.Saver(max_to_keep=3)
    for step in (1, 2, 3):
        saver.save({"w": step}, "run/model", step)
    real = atomic.replace_file

    def replace_file(*args):
        real(*args)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(state_file, "replace_file", replace_file)
        with pytest.raises((KeyboardInterrupt, pts.CheckpointIOError)):
            saver.save({"w": 4}, "run/model", 4)
    saver.save({"w": 5}, "run/model", 5)
    assert on_disk() == ["model-3", "model-4", "model-5"]


def test_a_checkpoint_whose_deletion_cannot_be_made_durable_still_exists(monkeypatch):
    path = pts.save(TREE, "run/model")

    def refuse(directory):
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "sync_directory", refuse)
        with pytest.raises(pts.CheckpointIOError):
            pts.remove_checkpoint(path)
    assert_trees_equal(pts.restore(path), TREE)
