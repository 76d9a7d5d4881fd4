"""Saver: names, steps, what it keeps, what it refuses, and how it goes on in an old directory."""

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal

TREE = {"dense": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.zeros(3)}, "step": 7}


def on_disk(directory="run"):
    return sorted(entry.name for entry in Path(directory).iterdir() if entry.name[0] != "." and entry.is_dir())


@pytest.mark.parametrize("step", [7, np.int32(7), np.array(7), jnp.array(7), jnp.uint8(7)])
def test_a_step_may_be_an_int_or_an_integer_array_without_axes(step):
    path = pts.Saver().save(TREE, "run/model", step)
    assert path == "run/model-7"
    assert pts.load_checkpoint(path).step == 7
    assert_trees_equal(pts.Saver().restore(path), TREE)


@pytest.mark.parametrize(
    ("step", "error"),
    [(1.0, TypeError), (True, TypeError), ("7", TypeError), (np.array([7]), TypeError), (-1, ValueError)],
)
def test_other_steps_are_refused(step, error):
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


def test_saving_a_name_again_replaces_it_and_makes_it_the_newest():
    saver = pts.Saver(max_to_keep=2)
    for step, value in [(1, 10), (2, 20), (1, 30), (3, 40)]:
        saver.save({"w": value}, "run/model", step)
    assert saver.last_checkpoints == ["run/model-1", "run/model-3"]
    assert pts.restore("run/model-1") == {"w": 30}
    assert on_disk() == ["model-1", "model-3"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_to_keep": -1}, ValueError, "max_to_keep: expected None or an int from 0 on, found -1"),
        ({"max_to_keep": 2.5}, TypeError, "max_to_keep: expected an int or None"),
        ({"max_to_keep": True}, TypeError, "max_to_keep: expected an int or None"),
        ({"keep_checkpoint_every_n_hours": -0.5}, ValueError, "expected no negative number of hours"),
        ({"keep_checkpoint_every_n_hours": float("nan")}, ValueError, "expected no negative number of hours"),
        ({"keep_checkpoint_every_n_hours": "1"}, TypeError, "expected a number of hours"),
        ({"var_list": {}}, ValueError, "No variables to save"),
        ({"var_list": {"a": "x", "b": "x"}}, ValueError, "one saved name for each variable"),
        ({"var_list": 3}, TypeError, "expected a glob"),
        ({"reshape": "yes"}, TypeError, "reshape: expected True or False"),
        ({"format": "tar"}, ValueError, "format: expected None"),
        ({"saver_def": {}}, ValueError, "saver_def: expected a SaverDef"),
        ({"saver_def": pts.SaverDef(), "max_to_keep": 3}, ValueError, "in place of the other arguments"),
    ],
)
def test_nonsense_is_refused_by_the_constructor(arguments, error, message):
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
        ({"save_path": "run/"}, "found that of a directory"),
        ({}, "save_path: expected a path"),
    ],
)
def test_nonsense_is_refused_by_save_before_anything_is_written(arguments, message):
    with pytest.raises(ValueError, match=message):
        pts.Saver().save(TREE, **arguments)
    assert not Path("run").exists()


def test_the_order_of_the_arguments_is_that_of_tensorflow():
    saver = pts.Saver(None, True, False, 3, 2.0, "label", True)
    assert saver.as_saver_def() == pts.SaverDef(
        reshape=True, max_to_keep=3, keep_checkpoint_every_n_hours=2.0, name="label", restore_sequentially=True
    )


def test_a_saver_def_is_json_and_makes_the_same_saver():
    saver = pts.Saver({"kernel": "dense/kernel"}, max_to_keep=1, pad_step_number=True, save_relative_paths=False)
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


# Which variables.


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


def test_a_selection_of_nothing_shows_near_names():
    with pytest.raises(pts.VariableNotFoundError, match=r"'dens/\*\*' selects none; did you mean 'dense'"):
        pts.Saver("dens/**").save(TREE, "run/model")
    with pytest.raises(pts.VariableNotFoundError, match="'heads' selects none"):
        pts.Saver(["dense", "heads"]).save(TREE, "run/model")
    with pytest.raises(pts.VariableNotFoundError, match="dense/kernal; did you mean 'dense/kernel'"):
        pts.Saver({"w": "dense/kernal"}).save(TREE, "run/model")
    assert not Path("run").exists()


def test_what_cannot_be_saved_does_not_matter_where_it_is_not_selected():
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


def test_reshape_takes_the_same_number_of_elements():
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
    from pytreesaver.formats._native_reader import NativeReader

    reads, real = [], NativeReader.read

    def read(self, positions, **options):
        reads.append(list(positions))
        return real(self, positions, **options)

    monkeypatch.setattr(NativeReader, "read", read)
    assert_trees_equal(pts.Saver(restore_sequentially=True).restore(path), tree)
    assert reads == [[0], [1], [2], [3], [4]]


def test_restoring_none_says_what_that_means():
    with pytest.raises(ValueError, match="Can't load save_path when it is None"):
        pts.Saver().restore(pts.latest_checkpoint("run"))


def test_its_name_is_in_the_log(caplog):
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
def test_every_no_hours_preserves_all_that_were_saved_after_the_construction(hours):
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


def test_a_new_saver_goes_on_with_what_the_state_file_lists():
    for limit, last in ((4, 6), (2, 7)):
        saver = pts.Saver(max_to_keep=limit)
        for step in range(last - 5 if limit == 4 else last, last + 1):
            saver.save({"w": step}, "run/model", step)
        saver.close()
    assert on_disk() == ["model-6", "model-7"]
    assert saver.last_checkpoints == ["run/model-6", "run/model-7"]


def test_a_new_saver_takes_in_what_a_dead_one_had_not_listed_yet():
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


def test_paths_with_wildcards_in_them_are_paths():
    saver = pts.Saver(max_to_keep=1)
    pts.save(TREE, "run [1]*/model-10")
    for step in (1, 2):
        path = saver.save(TREE, "run [1]*/model", step)
    assert on_disk("run [1]*") == ["model-10", "model-2"]
    assert pts.latest_checkpoint("run [1]*") == Path(path)


def test_seeded_checkpoints_are_evicted_in_their_turn_and_a_lowered_limit_takes_effect():
    for step in range(8):
        pts.save({"w": step}, f"run/model-{step}")
    saver = pts.Saver(max_to_keep=2)
    saver.set_last_checkpoints_with_time([(f"run/model-{step}", 60.0 * step) for step in range(8)])
    saver.save({"w": 8}, "run/model", 8)
    assert on_disk() == ["model-7", "model-8"]


def test_recover_last_checkpoints_takes_those_that_are_there():
    for step in (1, 3):
        pts.save({"w": step}, f"run/model-{step}")
    Path("run/model-2").mkdir()
    saver = pts.Saver(max_to_keep=2)
    saver.recover_last_checkpoints([f"run/model-{step}" for step in (1, 2, 3)])
    assert saver.last_checkpoints == ["run/model-1", "run/model-3"]
    saver.save({"w": 4}, "run/model", 4)
    assert on_disk() == ["model-2", "model-3", "model-4"]


def test_what_was_deleted_by_hand_is_no_trouble():
    saver = pts.Saver(max_to_keep=1)
    saver.save(TREE, "run/model", 1)
    shutil.rmtree("run/model-1")
    saver.save(TREE, "run/model", 2)
    assert on_disk() == ["model-2"]


def test_a_checkpoint_with_foreign_files_in_it_is_not_deleted_and_that_is_said():
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
def test_a_directory_moved_elsewhere_goes_on(tmp_path, relative):
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


def test_another_state_file_is_another_list():
    saver, best = pts.Saver(max_to_keep=1), pts.Saver(max_to_keep=1)
    saver.save(TREE, "run/model", 1)
    best.save(TREE, "run/best", 1, latest_filename="best_checkpoint")
    saver.save(TREE, "run/model", 2)
    assert on_disk() == ["best-1", "model-2"]
    assert pts.latest_checkpoint("run", "best_checkpoint") == Path("run/best-1")
    assert pts.latest_checkpoint("run") == Path("run/model-2")


@pytest.mark.parametrize("operation", ["open_new", "reserve", "write", "sync_file", "rename"])
def test_a_failed_save_changes_nothing_that_was_remembered(monkeypatch, operation):
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


def test_a_state_file_that_cannot_be_written_costs_nothing(monkeypatch):
    from pytreesaver import _run_directory

    saver = pts.Saver(max_to_keep=1)
    saver.save({"w": 1}, "run/model", 1)
    with monkeypatch.context() as patch:
        patch.setattr(_run_directory, "replace_file", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
        with pytest.raises(pts.CheckpointIOError, match="I/O error"):
            saver.save({"w": 2}, "run/model", 2)
    assert on_disk() == ["model-1", "model-2"]
    assert saver.last_checkpoints == ["run/model-1"]
    saver.save({"w": 3}, "run/model", 3)
    assert on_disk() == ["model-3"]


def test_a_closed_saver_saves_no_more():
    with pts.Saver() as saver:
        saver.save(TREE, "run/model", 1)
    with pytest.raises(ValueError, match="closed"):
        saver.save(TREE, "run/model", 2)
