"""Retention of CheckpointManager: what it keeps and deletes."""

import errno
import math
import time
from pathlib import Path

import pytest
from savers.saving import flip, on_disk, refuse_to_remove, saved, tree

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver._run import directory as run_directory
from pytreesaver._run import state_file
from pytreesaver.testing import assert_trees_equal


def test_every_n_steps_are_kept():
    manager = saved(range(0, 100, 10), max_to_keep=2, keep_every_n_steps=40)
    assert manager.all_steps() == [0, 40, 80, 90]


def test_one_checkpoint_is_kept_for_every_n_steps_wherever_saves_fall():
    with pts.CheckpointManager("run", save_interval_steps=100, keep_every_n_steps=1000, max_to_keep=2) as manager:
        for step in range(1, 3502):
            if manager.should_save(step):
                manager.save(step, tree(step))
    assert manager.all_steps() == [1, 1001, 2001, 3001, 3401, 3501]


@pytest.mark.parametrize("restart", [False, True])
def test_one_checkpoint_is_kept_for_every_n_steps_after_a_forced_save(restart):
    settings = {"save_interval_steps": 100, "keep_every_n_steps": 500, "max_to_keep": 1}
    manager = pts.CheckpointManager("run", **settings)
    for step in range(0, 1600):
        manager.save(step, tree(step), force=step == 337)
        if restart and step % 250 == 0:
            manager.close()
            manager = pts.CheckpointManager("run", **settings)
    manager.close()
    assert manager.all_steps() == [0, 537, 1037, 1537]


LOSSES = [0.5, math.nan, 0.2, 0.4, 0.1, math.nan, 0.3, 0.6]


@pytest.mark.parametrize("restart", [False, True])
def test_the_best_and_the_newest_are_kept(restart):
    expected = [[0], [0, 1], [0, 2], [2, 3], [2, 4], [2, 4, 5], [2, 4, 6], [2, 4, 7]]
    manager = pts.CheckpointManager("run", max_to_keep=1, keep_best=(2, "loss"))
    for step, loss in enumerate(LOSSES):
        manager.save(step, tree(step), metrics={"loss": loss})
        manager.wait_until_finished()
        assert manager.all_steps() == expected[step]
        if restart:
            manager.close()
            manager = pts.CheckpointManager("run", max_to_keep=1, keep_best=pts.KeepBest(2, "loss"))
    assert manager.best_step() == 4
    assert manager.best_step("loss", "max") == 7
    assert manager.best_step("accuracy") is None


def test_checkpoints_without_the_metric_are_never_ranked_best():
    manager = saved(range(4), max_to_keep=1, keep_best=(1, "loss", "max"), metrics=[{}, {"loss": -5}, {}, {}])
    assert manager.all_steps() == [1, 3]
    manager = saved(range(4), directory="none", max_to_keep=1, keep_best=(1, "loss"))
    assert manager.all_steps() == [3]
    with pytest.raises(ValueError, match="best_step: expected the name of a metric"):
        pts.CheckpointManager("none").best_step()


def test_policies():
    now = [0.0]
    policy = pts.KeepLast(1) | pts.KeepSteps([3]) | pts.KeepYoungerThan(25) | pts.KeepBest(1, "loss")
    manager = pts.CheckpointManager("run", policy=policy, clock=lambda: now[0], block=True)
    for step in range(10):
        now[0] = step * 10.0
        manager.save(step, tree(step), metrics={"loss": abs(step - 1)})
    assert manager.all_steps() == [1, 3, 7, 8, 9]
    now[0] = 105.0
    assert [str(decision) for decision in manager.explain()] == [
        "ckpt-1 (step 1): kept: best 1 by loss (min)",
        "ckpt-3 (step 3): kept: named step",
        "ckpt-7 (step 7): will be deleted",
        "ckpt-8 (step 8): will be deleted",
        "ckpt-9 (step 9): kept: newest, last 1, younger than 25 s",
    ]
    manager.save(10, tree(10))
    assert manager.all_steps() == [1, 3, 9, 10]
    assert manager.best_step() == 1


def test_pinned_checkpoints_stay_until_they_are_unpinned():
    manager = saved(range(3), max_to_keep=3, close=False)
    manager.wait_until_finished()
    manager.pin(0)
    for step in (3, 4):
        manager.save(step, tree(step))
    manager.close()
    manager = pts.CheckpointManager("run", max_to_keep=1, block=True)
    assert "ckpt-0 (step 0): kept: pinned" in map(str, manager.explain())
    manager.save(5, tree(5))
    assert manager.all_steps() == [0, 5]
    assert_trees_equal(manager.restore(step=0), tree(0))
    pts.verify("run/ckpt-0")
    manager.unpin(0)
    manager.save(6, tree(6))
    assert manager.all_steps() == [6]
    with pytest.raises(pts.CheckpointNotFoundError, match=r"a checkpoint of step 0, found the steps \[6\]"):
        manager.pin(0)


def test_a_lowered_limit_takes_effect_with_the_next_save():
    saved(range(8), max_to_keep=8)
    assert saved([8], max_to_keep=2).all_steps() == [7, 8]


def test_checkpoints_of_a_saver_are_kept_and_found():
    saver = pts.Saver(max_to_keep=3)
    for step in range(4):
        saver.save(tree(step), "run/ckpt", step)
    saver.close()
    manager = pts.CheckpointManager("run", max_to_keep=1)
    assert manager.latest_step() == 3
    manager.save(4, tree(4))
    manager.save(5, tree(5))
    manager.close()
    assert manager.all_steps() == [1, 2, 3, 5]
    assert "ckpt-1 (step 1): kept: preserved: no longer tracked" in map(str, manager.explain())


def test_other_names_in_the_directory_are_left_alone():
    for name in ("best", "ckpt-1x", "ckpt", "ckpt-01", "other-7"):
        pts.save(tree(0), Path("run") / name)
    Path("run/ckpt-99").mkdir()
    manager = saved(range(3), max_to_keep=1)
    assert manager.all_steps() == [2]
    assert on_disk() == ["best", "ckpt", "ckpt-01", "ckpt-1x", "ckpt-2", "ckpt-99", "other-7"]


def test_the_newest_is_kept_if_the_clock_was_set_back():
    now = [1000.0]
    arguments = {"max_to_keep": 2, "keep_checkpoint_every_n_hours": 0.01, "clock": lambda: now[0], "block": True}
    manager = pts.CheckpointManager("run", **arguments)
    for step, time_ in enumerate([1000, 2000, 3000, 500, 600, 700]):
        now[0] = float(time_)
        manager.save(step, tree(step))
        assert manager.latest_step() == step
    manager.close()
    now[0] = 100.0
    manager = pts.CheckpointManager("run", **arguments)
    with pytest.warns(pts.RetentionWarning, match="the clock is 2900 s behind"):
        assert manager.latest_step() == 5
    with pytest.warns(pts.RetentionWarning, match="behind"):
        manager.save(6, tree(6))
    assert {4, 5, 6} <= set(manager.all_steps())
    assert manager.latest_step() == 6


def test_after_a_restart_checkpoints_before_the_last_preserved_one_are_preserved():
    """As in TensorFlow, whose manager then tracks only those with `min(timestamp, now) > last_preserved_timestamp`."""
    now = [0.0]
    arguments = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1.0, "clock": lambda: now[0]}
    with pts.CheckpointManager("run", **arguments) as manager:
        now[0] = 20_000.0
        for step in (4, 5, 6):
            manager.save(step, tree(step))
    assert pts.get_checkpoint_state("run").last_preserved_timestamp == 20_000.0
    assert on_disk() == ["ckpt-4", "ckpt-6"]
    saved([7], **arguments)
    assert on_disk() == ["ckpt-4", "ckpt-6", "ckpt-7"]


def test_pin_waits_for_the_pending_save(monkeypatch):
    manager = saved([1], max_to_keep=1, close=False)
    manager.wait_until_finished()
    real = filesystem.reserve
    monkeypatch.setattr(filesystem, "reserve", lambda *args: time.sleep(0.3) or real(*args))
    manager.save(2, tree(2))
    manager.pin(2)
    manager.save(3, tree(3))
    manager.close()
    assert manager.all_steps() == [2, 3]


def test_switching_the_padding_overwrites_and_does_not_duplicate():
    saved([3, 4, 5], max_to_keep=3)
    manager = pts.CheckpointManager("run", max_to_keep=3, pad_step_number=True, block=True)
    manager.save(5, {"again": 5}, force=True)
    assert manager.all_steps() == [3, 4, 5]
    assert manager.restore() == {"again": 5}
    manager.save(6, tree(6))
    assert on_disk() == ["ckpt-00000006", "ckpt-4", "ckpt-5"]


def test_a_clock_set_back_deletes_nothing_under_any_rule():
    now = [10_000.0]
    arguments = {"max_to_keep": 2, "keep_best": (1, "loss"), "clock": lambda: now[0], "block": True}
    saved(range(3), metrics=[{"loss": 1}] * 3, **arguments)
    before = on_disk()
    now[0] = 1_000.0
    manager = pts.CheckpointManager("run", **arguments)
    with pytest.warns(pts.RetentionWarning, match="the existing checkpoints will not be deleted"):
        manager.save(3, tree(3))
    for step in (4, 5):
        manager.save(step, tree(step))
    assert set(before) <= set(on_disk())


def test_failed_deletions_are_tried_again_after_a_restart():
    now = [0.0]
    arguments = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1.0, "clock": lambda: now[0], "block": True}
    manager = pts.CheckpointManager("run", **arguments)
    manager.save(1, tree(1))
    (Path("run/ckpt-1") / "notes").write_text("mine")
    for step in (2, 3, 4):
        now[0] = step * 4000.0
        with pytest.warns(pts.RetentionWarning, match="contains other files: notes"):
            manager.save(step, tree(step))
    manager.close()
    (Path("run/ckpt-1") / "notes").unlink()
    saved([5], **arguments)
    assert 1 not in pts.CheckpointManager("run").all_steps()


def test_an_unpinned_checkpoint_is_subject_to_retention_after_a_restart():
    now = [0.0]
    arguments = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1.0, "clock": lambda: now[0], "block": True}
    manager = pts.CheckpointManager("run", **arguments)
    manager.save(1, tree(1))
    manager.pin(1)
    for step in (2, 3):
        now[0] = step * 4000.0
        manager.save(step, tree(step))
    manager.close()
    manager = pts.CheckpointManager("run", **arguments)
    manager.save(4, tree(4))
    assert 1 in manager.all_steps()
    manager.unpin(1)
    manager.save(5, tree(5))
    assert 1 not in manager.all_steps()


@pytest.mark.parametrize("restart", [False, True])
def test_first_saves_that_could_not_be_listed_are_deleted_later(monkeypatch, restart):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    manager = pts.CheckpointManager("run", max_to_keep=1, block=True)
    with monkeypatch.context() as patch:
        patch.setattr(state_file, "replace_file", refuse)
        for step in (1, 2):
            with pytest.raises(pts.CheckpointIOError):
                manager.save(step, tree(step))
    assert manager.latest_step() == 2
    if restart:
        manager.close()
        manager = pts.CheckpointManager("run", max_to_keep=1, block=True)
    manager.save(3, tree(3))
    assert on_disk() == ["ckpt-3"]


def test_a_checkpoint_that_cannot_be_deleted_stays_listed_in_order(monkeypatch):
    losses = [{"loss": loss} for loss in (0.0, 1.0, 0.5)]
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "delete_checkpoint", refuse_to_remove)
        manager = pts.CheckpointManager("run", max_to_keep=1, keep_best=(1, "loss"), block=True)
        manager.save(1, tree(1), metrics=losses[0])
        manager.save(2, tree(2), metrics=losses[1])
        with pytest.warns(pts.RetentionWarning, match="ckpt-2: busy; the next save tries again"):
            manager.save(3, tree(3), metrics=losses[2])
        manager.close()
    paths = pts.get_checkpoint_state("run").all_model_checkpoint_paths
    assert [Path(path).name for path in paths] == ["ckpt-1", "ckpt-2", "ckpt-3"]
    assert saved([4], max_to_keep=3).all_steps() == [2, 3, 4]


def test_a_pinned_checkpoint_with_a_damaged_index_is_kept():
    manager = saved(range(2), max_to_keep=2, block=True, close=False)
    manager.pin(0)
    flip(0, file="index.json", offset=100)
    for step in (2, 3):
        manager.save(step, tree(step))
    assert on_disk() == ["ckpt-0", "ckpt-2", "ckpt-3"]


def test_a_step_of_a_run_that_is_not_continued_is_not_skipped_without_a_word():
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(0, {"w": 1})
    with pts.CheckpointManager("run", block=True) as manager:
        with pytest.warns(
            pts.RetentionWarning, match="run: step 0 exists already, and was not saved again: call restore"
        ):
            assert manager.save(0, {"w": 2}) is None
        assert manager.save(0, {"w": 2}) is None  # said once
    with pts.CheckpointManager("run", block=True) as manager:
        assert manager.restore_or_init({"w": 0}) == {"w": 1}
        assert manager.save(0, {"w": 1}) is None


def test_the_best_by_a_metric_of_which_more_is_better():
    with pytest.warns(
        pts.RetentionWarning, match=r'keeps the checkpoints with the lowest val/accuracy; pass \(1, "val'
    ):
        pts.CheckpointManager("run", keep_best=(1, "val/accuracy"))
    for chosen in ((1, "accuracy", "max"), (1, "accuracy", "min"), (1, "loss"), (1, "recalled")):
        pts.CheckpointManager("run", keep_best=chosen)


def test_a_metric_that_is_not_among_those_of_a_save_is_named_once():
    with pts.CheckpointManager("run", keep_best=(1, "val_loss"), block=True) as manager:
        manager.save(0, {"w": 1})
        with pytest.warns(pts.RetentionWarning, match="by the metric val_loss, but step 1 has only loss"):
            manager.save(1, {"w": 1}, metrics={"loss": 1.0})
        manager.save(2, {"w": 1}, metrics={"loss": 1.0})
