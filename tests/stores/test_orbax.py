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


def test_one_variable_is_read_without_the_others(store, tmp_path):
    pts.set_store_options("s3://faulty", endpoint=store.url)  # what TensorStore understands
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


def message_of(use, path):
    """Return the message of the error that a call raises, or ""."""
    try:
        use(path)
    except pts.CheckpointError as error:
        return str(error)
    return ""


def test_damage_is_reported_with_the_url(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = pts.save(TREE, "memory://damaged/model", format="orbax")
    saved = {name: objects.content(StorePath(f"{path}/{name}")) for name, _ in objects.objects_under(StorePath(path))}
    for name, content in saved.items():
        for damaged in (b"", content[: len(content) // 2], bytes([content[0] ^ 1]) + content[1:] if content else b"x"):
            objects.put(StorePath(f"{path}/{name}"), damaged)
            messages = [message_of(use, path) for use in (pts.verify, pts.restore)]
            assert all("memory://damaged/model" in message for message in messages if message), (name, messages)
            assert not any(str(tmp_path) in message for message in messages), (name, messages)
        objects.put(StorePath(f"{path}/{name}"), content)
    objects.put(StorePath(f"{path}/{max(saved, key=lambda name: len(saved[name]))}"), b"damaged")
    with pytest.raises(pts.CorruptCheckpointError, match="memory://damaged/model"):
        pts.restore(path)


def fail_at(monkeypatch, number):
    """Let the request that sends an object fail, counted from 1."""
    real, calls = objects.put, []

    def put(path, content, mode="overwrite"):
        calls.append(path)
        if len(calls) == number:
            raise OSError(5, "injected")
        return real(path, content, mode)

    monkeypatch.setattr(objects, "put", put)
    return calls


def test_an_upload_that_fails_leaves_nothing(monkeypatch):
    number = 1
    while True:
        path = f"memory://failing/{number}/model"
        with monkeypatch.context() as patch:
            calls = fail_at(patch, number)
            try:
                pts.save(TREE, path, format="orbax")
            except pts.CheckpointIOError:
                assert objects.objects_under(StorePath(path)) == []
            else:
                break
        pts.save(TREE, path, format="orbax")
        number += 1
    assert number > len(calls) > 8


@pytest.mark.parametrize("format", ["orbax", "tensorflow", "safetensors"])
def test_what_a_killed_upload_has_left_is_replaced(monkeypatch, format):
    for number in range(2, 20):
        with monkeypatch.context() as patch:
            calls = fail_at(patch, number)
            patch.setattr("pytreesaver._io.filesystem.remove_file", lambda path: None)  # the process is gone
            try:
                pts.save(TREE, f"memory://killed/{format}/{number}/m", format=format, **OPTIONS[format])
            except pts.CheckpointIOError:
                pass
            else:
                break
        path = f"memory://killed/{format}/{number}/m"
        assert not pts.checkpoint_exists(path)
        with pytest.raises(pts.CheckpointExistsError, match="objects of a save that was interrupted"):
            pts.save(TREE, path, format=format, **OPTIONS[format])
        pts.save(TREE, path, format=format, overwrite=True, **OPTIONS[format])
        pts.verify(path)
        assert_trees_equal(pts.restore(path), TREE)
    assert number > 2
    assert len(calls) < number


OPTIONS = {"orbax": {}, "tensorflow": {}, "safetensors": {"shard_nbytes": 40}}


def test_a_run_goes_on_after_a_killed_upload(monkeypatch):
    with pts.CheckpointManager("memory://killed/run", format="orbax", block=True) as manager:
        manager.save(1, TREE)
        with monkeypatch.context() as patch:
            fail_at(patch, 6)
            patch.setattr("pytreesaver._io.filesystem.remove_file", lambda path: None)
            with pytest.raises(pts.CheckpointIOError):
                manager.save(2, TREE)
        manager.save(2, TREE)
        assert manager.all_steps() == [1, 2]
    assert_trees_equal(pts.restore("memory://killed/run/ckpt-2"), TREE)


def test_a_fetched_copy_is_deleted_when_the_checkpoint_is_closed(monkeypatch, tmp_path):
    path = pts.save(TREE, "memory://fetched/m", format="orbax")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pts.load_checkpoint(path) as checkpoint:
        assert len(list(tmp_path.iterdir())) == 1
        assert checkpoint["step"].read() == 7
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["npz", "msgpack", "safetensors", "tensorflow", "orbax"])
def test_what_is_no_checkpoint_is_never_replaced(format):
    notes, folder = f"memory://kept/{format}/notes", f"memory://kept/{format}/folder"
    objects.put(StorePath(notes), b"mine")
    objects.put(StorePath(f"{folder}/mine"), b"mine")
    objects.put(StorePath(f"{folder}-of-json/index.json"), b"{}")
    for path in (notes, folder, f"{folder}-of-json"):
        for overwrite in (False, True):
            with pytest.raises(pts.CheckpointExistsError):
                pts.save(TREE, path, format=format, overwrite=overwrite)
    assert objects.content(StorePath(notes)) == objects.content(StorePath(f"{folder}/mine")) == b"mine"
    saved = pts.save({"w": 1}, f"memory://kept/{format}/other")
    for overwrite in (False, True):
        with pytest.raises(pts.CheckpointExistsError):
            pts.save(TREE, saved, format=format, overwrite=overwrite)
    assert pts.restore(saved) == {"w": 1}
