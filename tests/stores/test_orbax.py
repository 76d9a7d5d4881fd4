"""Orbax checkpoints in object stores."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import pytreesaver as pts
from pytreesaver._io.stores import objects
from pytreesaver._io.stores.paths import StorePath
from pytreesaver.formats.orbax.in_stores import key_value_store
from pytreesaver.testing import assert_trees_equal

TREE = {"a": {"w": np.arange(6.0).reshape(2, 3)}, "b": jax.numpy.ones(3), "t": (1, 2.5), "step": 7}


SOME = pytest.mark.parametrize("root", ["memory", "s3", "gs"], indirect=True)


@SOME
def test_a_tree_is_saved_for_orbax_restored_and_removed(root):
    path = pts.save(TREE, f"{root}/model", format="orbax", metadata={"loss": 0.5})
    assert_trees_equal(pts.restore(path), TREE)
    assert_trees_equal(pts.restore(path, TREE), TREE)
    with pts.load_checkpoint(path) as checkpoint:
        assert checkpoint.format == "orbax"
        assert checkpoint.metadata == {"loss": 0.5}
        np.testing.assert_array_equal(checkpoint["a/w"][1, 1:], TREE["a"]["w"][1, 1:])
    pts.verify(path)
    for overwrite in (False, True):
        with pytest.raises(pts.CheckpointExistsError):
            pts.save(TREE, path, format="orbax", overwrite=overwrite)
    pts.remove_checkpoint(path)
    assert not pts.checkpoint_exists(path)
    assert objects.objects_under(StorePath(path)) == []


@pytest.mark.parametrize("root", ["s3", "gs"], indirect=True)
def test_a_run_for_orbax(root):
    with pts.CheckpointManager(f"{root}/run", max_to_keep=1, format="orbax", block=True) as manager:
        for step in (2, 3):
            manager.save(step, TREE | {"step": step}, metrics={"loss": 1.0 / step})
    assert [each.step for each in pts.list_checkpoints(f"{root}/run")] == [3]
    assert pts.restore(f"{root}/run", only="step") == {"step": 3}


def send(directory, url):
    """Copy what Orbax has written into a store, as gsutil would."""
    for file in sorted(directory.rglob("*")):
        if file.is_file():
            objects.put(StorePath(f"{url}/{file.relative_to(directory)}"), file.read_bytes())


@pytest.mark.parametrize("root", ["memory", "s3"], indirect=True)
def test_what_orbax_has_written_is_read_where_it_is(root, tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        items = {"params": ocp.args.StandardSave(TREE["a"]), "config": ocp.args.JsonSave({"layers": 2})}
        manager.save(5, args=ocp.args.Composite(**items))
    send(tmp_path / "run", f"{root}/run")
    assert pts.latest_checkpoint(f"{root}/run") == StorePath(f"{root}/run/5")
    assert pts.list_variables(f"{root}/run") == [("params/w", (2, 3))]
    np.testing.assert_array_equal(pts.restore(f"{root}/run", as_numpy=True)["params"]["w"], TREE["a"]["w"])
    assert pts.load_checkpoint(f"{root}/run/5").metadata == {"config": {"layers": 2}}


def test_one_variable_is_read_without_the_others(store, tmp_path, monkeypatch):
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(tmp_path / "m", {"small": np.ones(4), "large": np.random.default_rng(0).random(100_000)})
    send(tmp_path / "m", "s3://faulty/m")
    store.requests.clear()
    assert pts.load_variable("s3://faulty/m", "small").tolist() == [1, 1, 1, 1]
    assert not any(key.startswith("m/large/0") for _, key, _ in store.requests)


def test_the_place_of_a_checkpoint_in_google_cloud_storage_is_one_of_tensorstore():
    import tensorstore

    spec = tensorstore.KvStore.Spec(key_value_store(StorePath("gs://own/run/7")))
    assert spec.url == "gs://own/run/7/"


@SOME
def test_damage_is_reported_with_the_url(root):
    path = pts.save(TREE, f"{root}/model", format="orbax")
    name = next(name for name, _ in objects.objects_under(StorePath(path)) if "/d/" in f"/{name}")
    objects.put(StorePath(f"{path}/{name}"), b"damaged")
    with pytest.raises(pts.CorruptCheckpointError, match=str(root)):
        pts.restore(path)
