"""Saver: names, steps, invalid arguments, and the variables that it saves and restores."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from savers.saving import TREE, on_disk

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


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
    from pytreesaver.formats.indexed.reader import IndexedReader

    reads, real = [], IndexedReader.read

    def read(self, positions, **options):
        reads.append(list(positions))
        return real(self, positions, **options)

    monkeypatch.setattr(IndexedReader, "read", read)
    assert_trees_equal(pts.Saver(restore_sequentially=True).restore(path), tree)
    assert reads == [[0], [1], [2], [3], [4]]


def test_restoring_none_is_an_error():
    with pytest.raises(ValueError, match="Can't load save_path when it is None"):
        pts.Saver().restore(pts.latest_checkpoint("run"))


def test_the_name_is_logged(caplog):
    with caplog.at_level(logging.INFO, "pytreesaver"):
        pts.Saver(name="encoder").save(TREE, "run/model", 1)
    assert caplog.messages == ["encoder saved run/model-1"]


def test_a_closed_saver_cannot_save():
    with pts.Saver() as saver:
        saver.save(TREE, "run/model", 1)
    with pytest.raises(ValueError, match="closed"):
        saver.save(TREE, "run/model", 2)


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
