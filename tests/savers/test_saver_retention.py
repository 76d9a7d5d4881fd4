"""Retention of Saver: what it lists, keeps and deletes."""

import os
import shutil
from pathlib import Path

import pytest
from savers.saving import TREE, on_disk

import pytreesaver as pts


def test_the_default_keeps_the_last_five():
    saver = pts.Saver()
    for step in range(8):
        saver.save({"w": step}, "run/model", step)
    assert on_disk() == [f"model-{step}" for step in range(3, 8)]
    assert pts.latest_checkpoint("run") == Path("run/model-7")


@pytest.mark.parametrize("none", [None, 0])
def test_max_to_keep_none_keeps_all_and_lists_the_newest(none):
    saver = pts.Saver(max_to_keep=none)
    for step in range(7):
        saver.save({"w": step}, "run/model", step)
    assert len(on_disk()) == 7
    assert saver.last_checkpoints == []
    assert pts.get_checkpoint_state("run") == pts.CheckpointState("run/model-6", ["run/model-6"])


@pytest.mark.parametrize("hours", [None, 0])
def test_zero_or_none_hours_preserve_all_saves_after_the_construction(hours):
    clock = iter([0.0, *map(float, range(10))])
    saver = pts.Saver(max_to_keep=1, keep_checkpoint_every_n_hours=hours, clock=lambda: next(clock))
    for step in range(4):
        saver.save({"w": step}, "run/model", step)
    assert on_disk() == ["model-1", "model-2", "model-3"]


def test_write_state_false_neither_lists_nor_deletes():
    saver = pts.Saver(max_to_keep=1)
    saver.save(TREE, "run/model", 1)
    saver.save(TREE, "run/model", 2, write_state=False)
    assert pts.latest_checkpoint("run") == Path("run/model-1")
    saver.save(TREE, "run/model", 3)
    assert on_disk() == ["model-2", "model-3"]
    assert saver.last_checkpoints == ["run/model-3"]


def test_a_new_saver_tracks_the_listed_checkpoints():
    for limit, last in ((4, 6), (2, 7)):
        saver = pts.Saver(max_to_keep=limit)
        for step in range(last - 5 if limit == 4 else last, last + 1):
            saver.save({"w": step}, "run/model", step)
        saver.close()
    assert on_disk() == ["model-6", "model-7"]
    assert saver.last_checkpoints == ["run/model-6", "run/model-7"]


def test_a_new_saver_tracks_checkpoints_that_a_killed_one_did_not_list():
    with pts.Saver(max_to_keep=2) as saver:
        for step in (1, 2):
            saver.save({"w": step}, "run/model", step)
    state = Path("run/checkpoint").read_bytes()
    with pts.Saver(max_to_keep=5) as saver:
        saver.save({"w": 3}, "run/model", 3)
    Path("run/checkpoint").write_bytes(state)
    before = Path("run/model-3/index.json").stat().st_mtime - 1
    os.utime("run/checkpoint", (before, before))
    assert pts.latest_checkpoint("run") == Path("run/model-3")
    with pts.Saver(max_to_keep=2) as saver:
        saver.save({"w": 4}, "run/model", 4)
    assert on_disk() == ["model-3", "model-4"]


def test_other_checkpoints_in_the_directory_are_left_alone():
    pts.save(TREE, "run/best")
    pts.save(TREE, "run/model-1")
    saver = pts.Saver(max_to_keep=1)
    for step in (2, 3):
        saver.save(TREE, "run/model", step)
    assert on_disk() == ["best", "model-1", "model-3"]


def test_wildcards_in_paths_are_literal():
    saver = pts.Saver(max_to_keep=1)
    pts.save(TREE, "run [1]*/model-10")
    for step in (1, 2):
        path = saver.save(TREE, "run [1]*/model", step)
    assert on_disk("run [1]*") == ["model-10", "model-2"]
    assert pts.latest_checkpoint("run [1]*") == Path(path)


def test_last_checkpoints_that_were_set_are_deleted_down_to_the_limit():
    for step in range(8):
        pts.save({"w": step}, f"run/model-{step}")
    saver = pts.Saver(max_to_keep=2)
    saver.set_last_checkpoints_with_time([(f"run/model-{step}", 60.0 * step) for step in range(8)])
    saver.save({"w": 8}, "run/model", 8)
    assert on_disk() == ["model-7", "model-8"]


def test_recover_last_checkpoints_skips_missing_ones():
    for step in (1, 3):
        pts.save({"w": step}, f"run/model-{step}")
    Path("run/model-2").mkdir()
    saver = pts.Saver(max_to_keep=2)
    saver.recover_last_checkpoints([f"run/model-{step}" for step in (1, 2, 3)])
    assert saver.last_checkpoints == ["run/model-1", "run/model-3"]
    saver.save({"w": 4}, "run/model", 4)
    assert on_disk() == ["model-2", "model-3", "model-4"]


def test_manually_deleted_checkpoints_are_ignored():
    saver = pts.Saver(max_to_keep=1)
    saver.save(TREE, "run/model", 1)
    shutil.rmtree("run/model-1")
    saver.save(TREE, "run/model", 2)
    assert on_disk() == ["model-2"]


def test_a_checkpoint_with_other_files_in_it_is_kept_with_a_warning():
    saver = pts.Saver(max_to_keep=1)
    path = saver.save(TREE, "run/model", 1)
    (Path(path) / "notes.txt").write_text("the best one")
    with pytest.warns(pts.RetentionWarning, match=r"contains other files: notes\.txt"):
        saver.save(TREE, "run/model", 2)
    assert (Path(path) / "notes.txt").read_text() == "the best one"
    assert saver.last_checkpoints == ["run/model-1", "run/model-2"]
    (Path(path) / "notes.txt").unlink()
    saver.save(TREE, "run/model", 3)
    assert on_disk() == ["model-3"]


def test_paths_in_the_state_file(tmp_path):
    pts.Saver().save(TREE, "run/model", 1)
    assert 'model_checkpoint_path: "model-1"' in Path("run/checkpoint").read_text()
    pts.Saver().save(TREE, tmp_path / "absolute" / "model", 1)
    assert 'model_checkpoint_path: "model-1"' in Path("absolute/checkpoint").read_text()
    pts.Saver(save_relative_paths=False).save(TREE, tmp_path / "fixed" / "model", 1)
    assert f'model_checkpoint_path: "{tmp_path}/fixed/model-1"' in Path("fixed/checkpoint").read_text()


@pytest.mark.parametrize("relative", [True, False])
def test_a_moved_or_copied_directory_continues(tmp_path, relative):
    start = "run/model" if relative else tmp_path / "run" / "model"
    with pts.Saver(max_to_keep=2) as saver:
        for step in (1, 2):
            saver.save({"w": step}, start, step)
    shutil.copytree("run", "copy")
    Path("run").rename("moved")
    for directory in ("moved", "copy"):
        assert pts.latest_checkpoint(directory) == Path(directory) / "model-2"
        with pts.Saver(max_to_keep=2) as saver:
            saver.save({"w": 3}, f"{directory}/model", 3)
        assert on_disk(directory) == ["model-2", "model-3"]


def test_a_second_saver_leaves_the_checkpoints_of_the_first_alone():
    saver, best = pts.Saver(max_to_keep=3), pts.Saver(max_to_keep=1)
    for step in range(3):
        saver.save(TREE, "run/model", step)
    for step in range(2):
        best.save(TREE, "run/model-best", step)
    saver.save(TREE, "run/model", 3)
    assert on_disk() == ["model-1", "model-2", "model-3", "model-best-1"]


def test_state_files_are_independent():
    saver, best = pts.Saver(max_to_keep=1), pts.Saver(max_to_keep=1)
    saver.save(TREE, "run/model", 1)
    best.save(TREE, "run/best", 1, latest_filename="best_checkpoint")
    saver.save(TREE, "run/model", 2)
    assert on_disk() == ["best-1", "model-2"]
    assert pts.latest_checkpoint("run", "best_checkpoint") == Path("run/best-1")
    assert pts.latest_checkpoint("run") == Path("run/model-2")


def test_dot_dot_in_a_path_is_resolved():
    Path("scripts").mkdir()
    os.chdir("scripts")
    for step in range(4):
        with pts.Saver(max_to_keep=2) as saver:
            saver.save({"w": step}, "../run/model", step)
    assert on_disk("../run") == ["model-2", "model-3"]


def test_a_relative_path_in_two_working_directories_is_two_checkpoints():
    saver = pts.Saver(max_to_keep=1)
    for place in ("a", "b"):
        Path(place).mkdir()
        os.chdir(place)
        saver.save({"w": place}, "run/model", 1)
        os.chdir("..")
    assert not Path("a/run/model-1").exists()
    assert pts.restore("b/run/model-1") == {"w": "b"}


def test_a_pinned_checkpoint_is_not_deleted():
    with pts.CheckpointManager("run", block=True) as manager:
        for step in (1, 2):
            manager.save(step, TREE)
        manager.pin(1)
    saver = pts.Saver(max_to_keep=1)
    for step in (3, 4):
        saver.save(TREE, "run/ckpt", step)
    assert on_disk() == ["ckpt-1", "ckpt-4"]
    assert saver.last_checkpoints == ["run/ckpt-1", "run/ckpt-4"]


def test_two_paths_of_one_checkpoint_count_once():
    Path("real").mkdir()
    Path("link").symlink_to("real")
    saver = pts.Saver(max_to_keep=1)
    for directory in ("real", "link", "real/../link"):
        path = saver.save({"w": directory}, f"{directory}/model", 1)
        assert pts.restore(path) == {"w": directory}
    with pytest.raises(ValueError, match="expected distinct paths"):
        pts.Saver().set_last_checkpoints_with_time([("real/model-1", 1.0), ("link/model-1", 2.0)])
