"""Copies are exact, and a damaged checkpoint is not copied."""

import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import NamedSharding, PartitionSpec

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal, pytrees

TREE = {"params": {"dense": {"kernel": np.ones((3, 4)), "bias": jnp.zeros(4)}}, "step": 7, "name": "text"}


@settings(max_examples=30)
@given(pytrees())
def test_a_copy_restores_the_same_tree(tree):
    path = pts.save(tree, "model", metadata={"note": 1}, overwrite=True)
    copy = pts.copy_checkpoint(path, "copy", overwrite=True)
    assert_trees_equal(pts.restore(copy), pts.restore(path))
    assert not pts.diff(path, copy)
    with pts.load_checkpoint(copy) as checkpoint:
        assert checkpoint.metadata == {"note": 1}


@settings(max_examples=30)
@given(pytrees())
def test_a_partial_copy_has_the_selected_variables(tree):
    path = pts.save(tree, "model", overwrite=True)
    names = [name for name, _ in pts.list_variables(path)]
    for name in names[:3]:
        only = pts.regex(rf"^{re.escape(name)}\Z")
        copy = pts.copy_checkpoint(path, "part", only=only, overwrite=True)
        assert [each for each, _ in pts.list_variables(copy)] == [name]
        assert not pts.diff(path, copy, only=only)


def test_a_partial_copy_keeps_its_structure_and_can_be_renamed():
    path = pts.save(TREE, "model")
    copy = pts.copy_checkpoint(path, "part", only="params/**")
    assert_trees_equal(pts.restore(copy), {"params": TREE["params"]})
    copy = pts.copy_checkpoint(path, "renamed", only="head", rename={"head/": "params/dense/"})
    assert_trees_equal(pts.restore(copy), {"head": TREE["params"]["dense"]})


def test_sharded_arrays_stay_sharded():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    values = jax.device_put(jnp.arange(64.0).reshape(8, 8), NamedSharding(mesh, PartitionSpec("a", "b")))
    path = pts.save({"w": values}, "model")
    copy = pts.copy_checkpoint(path, "copy")
    assert_trees_equal(pts.restore(copy, {"w": values}), {"w": values})
    assert not pts.diff(path, copy)


def test_step_time_and_metrics_are_copied_but_no_saver_tracks_the_copy():
    with pts.CheckpointManager("run", block=True, clock=lambda: 5.0) as manager:
        path = manager.save(3, TREE, metrics={"loss": 0.5})
    copy = pts.copy_checkpoint(path, "elsewhere/copy")
    with pts.load_checkpoint(copy) as checkpoint:
        assert (checkpoint.step, checkpoint.time, checkpoint.metrics) == (3, 5.0, {"loss": 0.5})
    (listed,) = pts.list_checkpoints("elsewhere")
    assert listed.reasons == ("no saver tracks it",)


def test_a_damaged_checkpoint_is_not_copied():
    path = pts.save({"w": np.arange(1000.0), "v": np.ones(3)}, "model")
    (data,) = path.glob("*.safetensors")
    content = bytearray(data.read_bytes())
    content[content.find(np.arange(1000.0).tobytes()) + 99] ^= 1
    data.write_bytes(content)
    before = sorted(os.listdir())
    with pytest.raises(pts.CorruptCheckpointError, match="w"):
        pts.copy_checkpoint(path, "copy")
    assert sorted(os.listdir()) == before
    pts.copy_checkpoint(path, "copy", only="v")
    assert pts.restore("copy")["v"].tolist() == [1, 1, 1]


def test_an_existing_target_is_not_replaced_without_overwrite():
    path = pts.save(TREE, "model")
    pts.save({"w": 1}, "other")
    with pytest.raises(pts.CheckpointExistsError, match="other"):
        pts.copy_checkpoint(path, "other")
    assert pts.restore("other") == {"w": 1}
    pts.copy_checkpoint(path, "other", overwrite=True)
    assert_trees_equal(pts.restore("other"), TREE)
    with pytest.raises(pts.CheckpointNotFoundError, match="nowhere"):
        pts.copy_checkpoint("nowhere", "copy")
    with pytest.raises(pts.VariableNotFoundError, match="parms"):
        pts.copy_checkpoint(path, "copy", only="parms")
    with pytest.raises(pts.VariableNotFoundError, match="stp"):
        pts.copy_checkpoint(path, "copy", rename={"x": "stp"})
    with pytest.raises(pts.DuplicateNameError, match="step"):
        pts.copy_checkpoint(path, "copy", rename={"step": "name"})
    assert not os.path.lexists("copy")


def test_copying_a_checkpoint_onto_itself():
    path = pts.save(TREE, "model")
    with pytest.raises(pts.CheckpointExistsError):
        pts.copy_checkpoint(path, path)
    pts.copy_checkpoint(path, path, overwrite=True)
    assert_trees_equal(pts.restore(path), TREE)


def test_a_copy_does_not_depend_on_the_source():
    path = pts.save({"w": np.arange(100_000.0)}, "model")
    copy = pts.copy_checkpoint(path, "copy", durable=False)
    shutil.rmtree(path)
    pts.verify(copy)
    assert pts.restore(copy)["w"].sum() == np.arange(100_000.0).sum()
