"""Saver: names, steps, retention, invalid arguments, and continued runs."""

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._io import atomic, filesystem
from pytreesaver._run import directory as run_directory
from pytreesaver._run import state_file
from pytreesaver.testing import assert_trees_equal

TREE = {"dense": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.zeros(3)}, "step": 7}


def on_disk(directory="run"):
    return sorted(entry.name for entry in Path(directory).iterdir() if entry.name[0] != "." and entry.is_dir())


@pytest.mark.parametrize("step", [7, np.int32(7), np.array(7), jnp.array(7), jnp.uint8(7)])
def test_a_step_may_be_an_int_or_a_0d_integer_array(step):
    path = pts.Saver().save(TREE, "run/model", step)
    assert path == "run/model-7"
    assert pts.load_checkpoint(path).step == 7
    assert_trees_equal(pts.Saver().restore(path), TREE)


@pytest.mark.parametrize(
    ("step", "error"),
    [(1.0, TypeError), (True, TypeError), ("7", TypeError), (np.array([7]), TypeError), (-1, ValueError)],
)
def test_other_steps_are_rejected(step, error):
    with pytest.raises(error, match="step: expected"):
        pts.Saver().save(TREE, "run/model", step)
    assert not Path("run").exists()


def test_names():
    saver = pts.Saver(pad_step_number=True, filename="run/default")
    assert saver.save(TREE, Path("run") / "model", 20) == "run/model-00000020"
    assert saver.save(TREE, "run/model", 123456789) == "run/model-123456789"
    assert saver.save(TREE, "run/model") == "run/model"
    assert saver.save(TREE) == "run/default"
    assert saver.last_checkpoints == ["run/model-00000020", "run/model-123456789", "run/model", "run/default"]


def test_saving_a_name_again_overwrites_it_and_makes_it_the_newest():
    saver = pts.Saver(max_to_keep=2)
    for step, value in [(1, 10), (2, 20), (1, 30), (3, 40)]:
        saver.save({"w": value}, "run/model", step)
    assert saver.last_checkpoints == ["run/model-1", "run/model-3"]
    assert pts.restore("run/model-1") == {"w": 30}
    assert on_disk() == ["model-1", "model-3"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_to_keep": -1}, ValueError, "max_to_keep: expected None or an int of at least 0, found -1"),
        ({"max_to_keep": 2.5}, TypeError, "max_to_keep: expected an int or None"),
        ({"max_to_keep": True}, TypeError, "max_to_keep: expected an int or None"),
        ({"keep_checkpoint_every_n_hours": -0.5}, ValueError, "expected a non-negative number of hours"),
        ({"keep_checkpoint_every_n_hours": float("nan")}, ValueError, "expected a non-negative number of hours"),
        ({"keep_checkpoint_every_n_hours": "1"}, TypeError, "expected a number of hours"),
        ({"var_list": {}}, ValueError, "No variables to save"),
        ({"var_list": {"a": "x", "b": "x"}}, ValueError, "one saved name for each variable"),
        ({"var_list": 3}, TypeError, "expected a glob"),
        ({"reshape": "yes"}, TypeError, "reshape: expected True or False"),
        ({"format": "tar"}, ValueError, "format: expected None"),
        ({"saver_def": {}}, ValueError, "saver_def: expected a SaverDef"),
        (
            {"saver_def": pts.SaverDef(), "max_to_keep": 3},
            ValueError,
            "saver_def: cannot be combined with other arguments",
        ),
    ],
)
def test_the_constructor_rejects_invalid_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        pts.Saver(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_path": "run/model", "latest_filename": "a/b"}, "'latest_filename' must not contain path components"),
        ({"save_path": "run/checkpoint"}, "'latest_filename' collides with 'save_path'"),
        (
            {"save_path": "run/foo", "global_step": 7, "latest_filename": "foo-7"},
            "conflicts with the path of the state",
        ),
        ({"save_path": "run/"}, "found the directory"),
        ({}, "save_path: expected a path"),
    ],
)
def test_save_rejects_invalid_arguments_before_it_writes(arguments, message):
    with pytest.raises(ValueError, match=message):
        pts.Saver().save(TREE, **arguments)
    assert not Path("run").exists()


def test_the_order_of_the_arguments_is_that_of_tensorflow():
    saver = pts.Saver(None, True, False, 3, 2.0, "label", True)
    assert saver.as_saver_def() == pts.SaverDef(
        reshape=True, max_to_keep=3, keep_checkpoint_every_n_hours=2.0, name="label", restore_sequentially=True
    )


def test_a_saver_def_round_trips_through_json():
    saver = pts.Saver(
        {"kernel": "dense/kernel"},
        max_to_keep=np.int64(1),
        reshape=np.bool_(False),
        pad_step_number=True,
        save_relative_paths=False,
    )
    text = json.dumps(dataclasses.asdict(saver.as_saver_def()))
    again = pts.Saver(saver_def=pts.SaverDef(**json.loads(text)))
    assert again.as_saver_def() == saver.as_saver_def()
    path = again.save(TREE, "run/model", 1)
    assert path == "run/model-00000001"
    assert pts.list_variables(path) == [("kernel", (2, 3))]
    with pytest.raises(dataclasses.FrozenInstanceError):
        saver.as_saver_def().max_to_keep = 2
    with pytest.raises(TypeError, match="var_list: expected a str"):
        pts.Saver(lambda name: True).as_saver_def()


# The variable list.


SELECTIONS = {
    "glob": "**/kernel",
    "regex": re.compile("ker"),
    "function": lambda name: name.endswith("kernel"),
    "list": ["dense/kernel"],
    "mask": {"dense": {"kernel": True, "bias": False}, "step": False},
    "joined": pts.glob("dense") & ~pts.regex("bias$"),
}


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_var_list_selects_what_is_saved_and_restored(selection):
    saver = pts.Saver(selection)
    path = saver.save(TREE, "run/part")
    assert_trees_equal(saver.restore(path), {"dense": {"kernel": TREE["dense"]["kernel"]}})
    like = {"dense": {"kernel": np.zeros((2, 3)), "bias": np.ones(3)}, "step": 0}
    restored = saver.restore(path, like)
    assert_trees_equal(restored["dense"]["kernel"], TREE["dense"]["kernel"])
    assert restored["dense"]["bias"] is like["dense"]["bias"]
    whole = pts.save(TREE, "whole")
    assert_trees_equal(saver.restore(whole), {"dense": {"kernel": TREE["dense"]["kernel"]}})
    assert saver.restore(whole, like)["step"] == 0


def test_var_list_as_a_dict_renames():
    saver = pts.Saver({"old/w": "dense/kernel", "count": "step"})
    path = saver.save(TREE, "run/renamed")
    assert pts.list_variables(path) == [("count", ()), ("old/w", (2, 3))]
    assert_trees_equal(saver.restore(path), {"dense": {"kernel": TREE["dense"]["kernel"]}, "step": 7})
    like = {"dense": {"kernel": jnp.zeros((2, 3)), "bias": np.ones(3)}, "step": 0}
    with jax.enable_x64(True):
        like["dense"]["kernel"] = jnp.zeros((2, 3), "float64")
        restored = saver.restore(path, like)
        assert_trees_equal(np.asarray(restored["dense"]["kernel"]), TREE["dense"]["kernel"])
    assert (restored["step"], restored["dense"]["bias"]) == (7, like["dense"]["bias"])


def test_an_empty_selection_suggests_similar_names():
    with pytest.raises(pts.VariableNotFoundError, match=r"'dens/\*\*' selects nothing; did you mean 'dense'"):
        pts.Saver("dens/**").save(TREE, "run/model")
    with pytest.raises(pts.VariableNotFoundError, match="'heads' selects nothing"):
        pts.Saver(["dense", "heads"]).save(TREE, "run/model")
    with pytest.raises(pts.VariableNotFoundError, match="dense/kernal; did you mean 'dense/kernel'"):
        pts.Saver({"w": "dense/kernal"}).save(TREE, "run/model")
    assert not Path("run").exists()


def test_unsupported_leaves_that_are_not_selected_are_ignored():
    tree = {"w": np.ones(2), "function": print, "by": {(1, 2): 3}}
    path = pts.Saver("w").save(tree, "run/model")
    assert_trees_equal(pts.restore(path), {"w": np.ones(2)})
    with pytest.raises(pts.UnsupportedLeafError, match="function"):
        pts.Saver(["w", "function"]).save(tree, "run/model")


def test_parts_of_lists_and_tuples_keep_their_names():
    tree = {"layers": [{"w": 1.0, "b": 2.0}, {"w": 3.0, "b": 4.0}], "pair": (5, 6), "none": None}
    path = pts.Saver(["layers/1/w", "pair"]).save(tree, "run/model")
    assert pts.restore(path) == {"layers": {1: {"w": 3.0}}, "pair": (5, 6)}
    assert [name for name, _ in pts.list_variables(path)] == ["layers/1/w", "pair/0", "pair/1"]


def test_an_empty_tree_needs_allow_empty():
    with pytest.raises(ValueError, match="No variables to save"):
        pts.Saver().save({}, "run/model")
    saver = pts.Saver(allow_empty=True)
    assert saver.restore(saver.save({}, "run/model")) == {}
    saver = pts.Saver("nothing like this", allow_empty=True)
    assert saver.restore(saver.save(TREE, "run/none")) == {}
    with pytest.raises(pts.CheckpointNotFoundError):
        saver.restore("not there")


def test_reshape_requires_the_same_number_of_elements():
    path = pts.save({"w": np.arange(6), "key": jax.random.split(jax.random.key(0), 4)}, "model")
    like = {"w": np.zeros((3, 2), int), "key": jax.random.split(jax.random.key(1), 4).reshape(2, 2)}
    with pytest.raises(pts.MismatchError) as refused:
        pts.Saver().restore(path, like)
    assert refused.value.shape == {"w": ((3, 2), (6,)), "key": ((2, 2), (4,))}
    restored = pts.Saver(reshape=True).restore(path, like)
    assert_trees_equal(restored["w"], np.arange(6).reshape(3, 2))
    assert_trees_equal(restored["key"], jax.random.split(jax.random.key(0), 4).reshape(2, 2))
    with pytest.raises(pts.MismatchError):
        pts.Saver(reshape=True).restore(path, {**like, "w": np.zeros(8, int)})
    with pytest.raises(pts.MismatchError, match="expected int32"):
        pts.Saver(reshape=True).restore(path, {**like, "w": np.zeros(6, np.int32)})


def test_restore_sequentially_reads_one_variable_at_a_time(monkeypatch):
    tree = {str(i): np.full(1000, i) for i in range(5)}
    path = pts.save(tree, "model")
    from pytreesaver.formats.native.reader import NativeReader

    reads, real = [], NativeReader.read

    def read(self, positions, **options):
        reads.append(list(positions))
        return real(self, positions, **options)

    monkeypatch.setattr(NativeReader, "read", read)
    assert_trees_equal(pts.Saver(restore_sequentially=True).restore(path), tree)
    assert reads == [[0], [1], [2], [3], [4]]


def test_restoring_none_is_an_error():
    with pytest.raises(ValueError, match="Can't load save_path when it is None"):
        pts.Saver().restore(pts.latest_checkpoint("run"))


def test_the_name_is_logged(caplog):
    with caplog.at_level(logging.INFO, "pytreesaver"):
        pts.Saver(name="encoder").save(TREE, "run/model", 1)
    assert caplog.messages == ["encoder saved run/model-1"]


# Retention.


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
    with pytest.warns(pts.RetentionWarning, match=r"found notes\.txt in it too"):
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
    with monkeypatch.context() as patch:
        patch.setattr(state_file, "replace_file", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
        with pytest.raises(pts.CheckpointIOError, match="I/O error"):
            saver.save({"w": 2}, "run/model", 2)
    assert on_disk() == ["model-1", "model-2"]
    assert saver.last_checkpoints == ["run/model-1"]
    saver.save({"w": 3}, "run/model", 3)
    assert on_disk() == ["model-3"]


def test_a_closed_saver_cannot_save():
    with pts.Saver() as saver:
        saver.save(TREE, "run/model", 1)
    with pytest.raises(ValueError, match="closed"):
        saver.save(TREE, "run/model", 2)


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


@pytest.mark.parametrize("option", [{"missing": "eror"}, {"unexpected": "drop"}])
def test_a_misspelt_option_is_rejected(option):
    path = pts.save(TREE, "run/ckpt-1")
    for restore in (pts.Saver().restore, pts.restore):
        with pytest.raises(ValueError, match=r'expected "error" or'):
            restore(path, TREE, **option)
    with pytest.raises(ValueError, match=r'expected "error" or'):
        pts.CheckpointManager("run").restore(TREE, **option)
    with pytest.raises(ValueError, match="pass one as like="):
        pts.Saver().restore(path, missing="keep")


def test_reshape_does_not_apply_to_python_numbers():
    path = pts.save({"n": 5, "x": np.ones(1)}, "model")
    with pytest.raises(pts.MismatchError, match=r"n: expected int64\[1\], found int"):
        pts.Saver(reshape=True).restore(path, {"n": np.zeros(1, int), "x": np.ones(1)})
    with pytest.raises(pts.MismatchError, match=r"x: expected float, found float64\[1\]"):
        pts.Saver(reshape=True).restore(path, {"n": 5, "x": 1.0})


def test_restoring_sequentially_names_every_damaged_variable():
    path = pts.save({name: np.full(4096, 1.0) for name in "abc"}, "model")
    data = next(path.glob("*.safetensors"))
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    content[-2 * 4096 * 8 - 1] ^= 1
    data.write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError) as refused:
        pts.Saver(restore_sequentially=True).restore(path)
    assert refused.value.damaged == ["a", "c"]


def test_saved_names_must_be_valid_utf_8():
    with pytest.raises(ValueError, match="var_list: expected names that can be written as UTF-8"):
        pts.Saver({"\ud800": "w"})


def test_a_list_of_thousands_of_names():
    tree = {f"layer_{i}": {"w": i, "b": -i} for i in range(2000)}
    saver = pts.Saver([f"layer_{i}/w" for i in range(2000)])
    restored = saver.restore(saver.save(tree, "run/model"))
    assert restored == {name: {"w": layer["w"]} for name, layer in tree.items()}
    with pytest.raises(pts.VariableNotFoundError) as refused:
        pts.Saver([f"layr_{i}/w" for i in range(2000)]).save(tree, "run/model")
    assert str(refused.value).count("did you mean") == 20


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


def save_unlisted(step, *, name="model", directory="run"):
    """Save as a process that is killed before it lists the checkpoint."""
    state = Path(directory, "checkpoint").read_bytes()
    with pts.Saver(max_to_keep=None) as saver:
        path = Path(saver.save({"w": step}, f"{directory}/{name}", step))
    Path(directory, "checkpoint").write_bytes(state)
    before = (path / "index.json").stat().st_mtime - 1
    os.utime(Path(directory, "checkpoint"), (before, before))


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


def test_two_paths_of_one_checkpoint_count_once():
    Path("real").mkdir()
    Path("link").symlink_to("real")
    saver = pts.Saver(max_to_keep=1)
    for directory in ("real", "link", "real/../link"):
        path = saver.save({"w": directory}, f"{directory}/model", 1)
        assert pts.restore(path) == {"w": directory}
    with pytest.raises(ValueError, match="expected distinct paths"):
        pts.Saver().set_last_checkpoints_with_time([("real/model-1", 1.0), ("link/model-1", 2.0)])


def test_a_checkpoint_whose_deletion_cannot_be_made_durable_still_exists(monkeypatch):
    path = pts.save(TREE, "run/model")

    def refuse(directory):
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "sync_directory", refuse)
        with pytest.raises(pts.CheckpointIOError):
            pts.remove_checkpoint(path)
    assert_trees_equal(pts.restore(path), TREE)
