"""Checkpoints in object stores: everything that works on files."""

import json

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from stores.conftest import FAST

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal, pytrees

WITHOUT_MOTO = pytest.mark.parametrize("root", ["memory", "s3", "gs"], indirect=True)  # moto is slow
TREE = {"w": np.arange(6.0).reshape(2, 3), "b": jax.numpy.ones(3), "name": "digits", "step": 7}


def test_a_tree_is_saved_restored_inspected_and_removed(root):
    path = pts.save(TREE, f"{root}/model", metadata={"loss": 0.5})
    assert str(path) == f"{root}/model"
    assert_trees_equal(pts.restore(path), TREE)
    assert_trees_equal(pts.restore(f"{root}/model", only="w"), {"w": TREE["w"]})
    assert_trees_equal(pts.restore(path, TREE), TREE)
    assert pts.list_variables(path) == [("b", (3,)), ("name", ()), ("step", ()), ("w", (2, 3))]
    np.testing.assert_array_equal(pts.load_variable(path, "w"), TREE["w"])
    with pts.load_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"loss": 0.5}
        np.testing.assert_array_equal(checkpoint["w"][1, 1:], TREE["w"][1, 1:])
    pts.verify(path)
    assert pts.checkpoint_exists(path)
    assert len(pts.get_checkpoint_mtimes([path])) == 1
    assert pts.diff(path, path).equal
    pts.remove_checkpoint(path)
    assert not pts.checkpoint_exists(path)
    with pytest.raises(pts.CheckpointNotFoundError):
        pts.restore(path)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(pytrees())
def test_any_tree_comes_back_as_it_was(tree):
    path = pts.save(tree, "memory://random/tree", overwrite=True)
    assert_trees_equal(pts.restore(path), tree)


def test_an_existing_checkpoint_is_only_replaced_on_request(root):
    pts.save(TREE, f"{root}/model")
    with pytest.raises(pts.CheckpointExistsError, match="pass overwrite=True"):
        pts.save({"w": 1}, f"{root}/model")
    assert_trees_equal(pts.restore(f"{root}/model"), TREE)
    pts.save({"w": 1}, f"{root}/model", overwrite=True)
    assert pts.restore(f"{root}/model") == {"w": 1}
    with pytest.raises(pts.CheckpointExistsError, match="expected nothing there, found objects such as model"):
        pts.save({"w": 1}, root)


def test_large_arrays_travel_in_parts(root, peak_memory):
    tree = {"x": np.arange(8 << 20, dtype=np.float32), "y": jax.numpy.ones((1 << 20,), jax.numpy.bfloat16)}
    path = pts.save(tree, f"{root}/large")
    assert_trees_equal(pts.restore(path), tree)


@WITHOUT_MOTO
def test_a_run_is_managed_and_resumed(root):
    with pts.CheckpointManager(f"{root}/run", max_to_keep=2, keep_best=(1, "loss")) as manager:
        state = manager.restore_or_init({"step": 0, "w": np.zeros(2, int)})
        for step in range(5):
            state = {"step": step, "w": np.full(2, step)}
            manager.save(step, state, metrics={"loss": abs(step - 1.0)})
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 3, 4]
        assert (manager.latest_step(), manager.best_step()) == (4, 1)
        manager.pin(3)
    latest = pts.latest_checkpoint(f"{root}/run")
    assert str(latest) == f"{root}/run/ckpt-4"
    with pts.CheckpointManager(f"{root}/run", max_to_keep=1) as manager:
        assert manager.restore_or_init({"step": 0, "w": np.zeros(2, int)})["step"] == 4
        manager.save(5, state)
        manager.wait_until_finished()
        assert manager.all_steps() == [3, 5]
    listed = pts.list_checkpoints(f"{root}/run")
    assert [each.step for each in listed] == [3, 5]
    kinds = [event.kind for event in pts.get_checkpoint_history(f"{root}/run")]
    assert kinds.count("saved") == 6
    assert [str(path) for path in pts.checkpoints_iterator(f"{root}/run", timeout=0)] == [f"{root}/run/ckpt-5"]
    assert pts.restore(f"{root}/run")["step"] == 4


@WITHOUT_MOTO
def test_a_saver_keeps_the_last(root):
    with pts.Saver(max_to_keep=1) as saver:
        for step in range(3):
            path = saver.save({"w": np.full(2, step)}, f"{root}/s/m", global_step=step)
        assert saver.last_checkpoints == [path] == [f"{root}/s/m-2"]
    assert [each.path.name for each in pts.list_checkpoints(f"{root}/s")] == ["m-2"]
    with pts.Saver(max_to_keep=1) as saver:
        saver.save({"w": np.full(2, 3)}, f"{root}/s/m", global_step=3)
    assert [each.path.name for each in pts.list_checkpoints(f"{root}/s")] == ["m-3"]


def test_checkpoints_are_copied_between_stores_and_disks(root, tmp_path):
    pts.save(TREE, tmp_path / "model")
    pts.copy_checkpoint(tmp_path / "model", f"{root}/copy")
    assert_trees_equal(pts.restore(f"{root}/copy"), TREE)
    pts.copy_checkpoint(f"{root}/copy", tmp_path / "back")
    assert_trees_equal(pts.restore(tmp_path / "back"), TREE)
    assert pts.diff(tmp_path / "back", f"{root}/copy").equal


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.msgpack"])
def test_other_formats_are_written_and_read(root, name):
    tree = {"w": np.arange(5.0), "v": np.ones((2, 2), np.float32)}
    path = pts.save(tree, f"{root}/{name}")
    assert_trees_equal(pts.restore(path), tree)
    with pytest.raises(pts.CheckpointExistsError):
        pts.save(tree, path)
    pts.save({"w": tree["v"]}, path, overwrite=True)
    assert_trees_equal(pts.restore(path), {"w": tree["v"]})
    pts.remove_checkpoint(path)
    assert not pts.checkpoint_exists(path)


def test_sharded_arrays_are_restored_by_the_ranges_that_are_needed(server, environment):
    pts.set_store_options("s3://ranges", endpoint=server.url, **FAST)
    tree = {f"x{i}": np.arange(1 << 20, dtype=np.float32) for i in range(4)}
    path = pts.save(tree, "s3://ranges/model")
    server.requests.clear()
    np.testing.assert_array_equal(pts.restore(path, only="x2")["x2"], tree["x2"])
    gets = [key for method, key, _ in server.requests if method == "GET" and "data-" in key]
    assert len(gets) <= 3


def test_data_without_an_index_is_no_checkpoint(server, environment):
    pts.set_store_options("s3://partial", endpoint=server.url, **FAST)
    pts.save(TREE, "s3://partial/run/m-1")
    del server.objects["partial", "run/m-1/index.json"]
    assert not pts.checkpoint_exists("s3://partial/run/m-1")
    assert pts.latest_checkpoint("s3://partial/run") is None
    with pytest.raises(pts.CheckpointNotFoundError):
        pts.restore("s3://partial/run/m-1")
    pts.save({"w": 1}, "s3://partial/run/m-1")  # replaces what the interrupted save has left
    assert len(server.keys("partial")) == 2


def test_a_read_only_server(server, environment):
    pts.set_store_options("s3://web", endpoint=server.url, **FAST)
    pts.save(TREE, "s3://web/model")
    url = f"{server.url}/web/model"
    assert_trees_equal(pts.restore(url), TREE)
    assert pts.list_variables(url)[0] == ("b", (3,))
    with pytest.raises(pts.CheckpointPermissionError, match="read-only"):
        pts.save(TREE, f"{server.url}/web/other")
    with pytest.raises(pts.CheckpointNotFoundError):
        pts.restore(f"{server.url}/web/nothing")


def test_what_a_damaged_object_contains_is_named(server, environment):
    pts.set_store_options("s3://damaged", endpoint=server.url, **FAST)
    pts.save({"good": np.arange(5), "bad": np.arange(2000)}, "s3://damaged/model")
    (place,) = [each for each in server.objects if "data-" in each[1]]
    content = bytearray(server.objects[place].content)
    content[4096 + 100] ^= 1
    server.put(place, bytes(content))
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.restore("s3://damaged/model")
    assert caught.value.damaged == ["bad"]


def test_the_index_lists_the_objects(root):
    path = pts.save(TREE, f"{root}/model")
    from pytreesaver._io.stores import objects

    names = [name for name, _ in objects.objects_under(path)]
    assert len(names) == 2
    index = json.loads(objects.content(path / "index.json"))
    assert [file["name"] for file in index["files"]] == [name for name in names if name != "index.json"]


@WITHOUT_MOTO
def test_what_is_unchanged_is_copied_within_the_store(root):
    tree = {"w": jax.numpy.arange(80_000.0), "v": jax.numpy.ones(20_000), "step": 1}
    pts.save(tree, f"{root}/first")
    changed = {**tree, "v": tree["v"] + 1, "step": 2}
    pts.save(changed, f"{root}/second", base=f"{root}/first")
    with pts.load_checkpoint(f"{root}/second") as checkpoint:
        assert 400_000 < checkpoint.shared_nbytes < 500_000
    with pts.CheckpointManager(f"{root}/run", max_to_keep=1, incremental=True) as manager:
        for step in range(3):
            manager.save(step, {**changed, "step": step})
    with pts.load_checkpoint(f"{root}/run/ckpt-2") as checkpoint:
        assert checkpoint.shared_nbytes > 400_000
    pts.save(tree, f"{root}/second", base=f"{root}/second", overwrite=True)
    pts.remove_checkpoint(f"{root}/first")
    assert_trees_equal(pts.restore(f"{root}/second"), tree)
    assert_trees_equal(pts.restore(f"{root}/run"), {**changed, "step": 2})
    (listed,) = pts.list_checkpoints(f"{root}/run")
    assert listed.freed_nbytes == listed.nbytes


def test_a_base_in_another_store_is_no_base(root, tmp_path, caplog):
    tree = {"w": jax.numpy.arange(80_000.0)}
    pts.save(tree, tmp_path / "first")
    pts.save(tree, f"{root}/second", base=tmp_path / "first")
    assert "every incremental save there writes everything" in caplog.text
    assert_trees_equal(pts.restore(f"{root}/second"), tree)
