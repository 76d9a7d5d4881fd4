"""Orbax checkpoints that are damaged, hostile, replaced, or mixed with the files of others."""

import json
import os
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import args, v1

import pytreesaver as pts
import pytreesaver.orbax
from pytreesaver._io import filesystem
from pytreesaver.formats.orbax import arrays
from pytreesaver.testing import assert_trees_equal


def tree():
    return {"w": np.arange(6.0).reshape(3, 2), "n": 3}


def by_orbax(path, tree, **options):
    ocp.PyTreeCheckpointer(**options).save(Path(path).absolute(), tree)
    return path


def by_loss():
    return ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])


# What is a checkpoint, and which files belong to it.


def test_a_directory_called_default_does_not_make_a_checkpoint():
    Path("project/default").mkdir(parents=True)
    Path("project/default/thesis.txt").write_text("x")
    with pytest.raises(pts.CheckpointError):
        pts.remove_checkpoint("project")
    assert Path("project/default/thesis.txt").exists()
    with pts.CheckpointManager("project", block=True) as manager:
        manager.save(1, tree())
    assert [each.step for each in pts.list_checkpoints("project")] == [1]
    pts.save(tree(), "runs/default")
    pts.save(tree(), "runs/default-orbax", format="orbax")
    Path("runs/default-orbax").rename("runs/default2")
    copied = pts.copy_checkpoint("runs/default", "runs/new")
    assert_trees_equal(pts.restore(copied), tree())


OTHERS = ("_notes.md", "d/thesis.tex", "stuff/metrics", "stuff/figure.png", "descriptor.txt", "array_metadatas/x.txt")


@pytest.mark.parametrize("other", OTHERS)
def test_files_of_others_are_never_deleted(other):
    by_orbax("foreign", {"w": jnp.ones(2)})
    pts.save(tree(), "ours", format="orbax")
    for path in (Path("foreign"), Path("ours")):
        (path / other).parent.mkdir(exist_ok=True)
        (path / other).write_text("x")
        with pytest.raises(pts.CheckpointExistsError, match=other.split("/")[-1]):
            pts.remove_checkpoint(path)
        assert (path / other).exists()
    with pytest.raises(pts.CheckpointExistsError):
        pts.save(tree(), "ours", format="orbax", overwrite=True)
    assert (Path("ours") / other).exists()


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_checkpoints_of_orbax_are_removed_with_files_of_the_system(use_ocdbt):
    by_orbax("tree", {"a": {"b": jnp.ones((3, 2))}, "n": 3}, use_ocdbt=use_ocdbt)
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        items = {"x": args.StandardSave({"w": jnp.ones(2)}), "config": args.JsonSave({"a": 1})}
        manager.save(1, args=args.Composite(**items), metrics={"loss": 1.0})
        manager.save(2, args=args.Composite(ours=pts.orbax.SaveArgs(tree())))
    pts.save(tree(), "ours", format="orbax")
    for path in ("tree", "run/1", "run/2", "ours"):
        Path(path, ".DS_Store").touch()
        pts.remove_checkpoint(path)
        assert not Path(path).exists()


def test_overwriting_keeps_the_pin_and_follows_a_link():
    pts.save(tree(), "real", format="orbax")
    Path("real/pinned").touch()
    Path("link").symlink_to("real")
    pts.save({"w": 1.5}, "link", format="orbax", overwrite=True)
    assert Path("link").is_symlink()
    assert Path("real/pinned").exists()
    assert pts.restore("real") == {"w": 1.5}
    pts.verify("real")


def test_paths_are_resolved():
    Path("x").mkdir()
    pts.save(tree(), "x/../model", format="orbax")
    assert_trees_equal(pts.restore("x/../model"), tree())
    odd = os.fsdecode(b"not-\xff-utf-8")
    with pytest.raises(pts.CheckpointIOError, match="UTF-8"):
        pts.save(tree(), odd, format="orbax")
    shutil.copytree("model", odd)
    with pytest.raises(pts.CheckpointIOError, match="UTF-8"):
        pts.restore(odd)


# Damage.


def test_slices_casts_and_sharded_restores_are_verified():
    values = np.random.default_rng(0).normal(size=(4096, 16)).astype(np.float32)
    path = Path(pts.save({"w": values, "n": 1}, "model", format="orbax"))
    spread = jax.NamedSharding(jax.make_mesh((8,), ("x",)), jax.P("x"))
    sharded = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=spread)
    wide = {"w": np.zeros(values.shape), "n": 0}
    assert pts.load_checkpoint(path)["w"][7:9].tolist() == values[7:9].tolist()
    assert np.asarray(pts.restore(path, {"w": sharded, "n": 0})["w"]).tobytes() == values.tobytes()
    assert pts.restore(path, wide, cast=True)["w"].sum() == values.astype(np.float64).sum()
    file = max((each for each in path.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    for read in (
        lambda: pts.restore(path),
        lambda: pts.restore(path, {"w": sharded, "n": 0}),
        lambda: pts.restore(path, wide, cast=True),
        lambda: pts.load_checkpoint(path)["w"][:10],
        lambda: pts.verify(path),
    ):
        with pytest.raises(pts.CorruptCheckpointError, match="w"):
            read()


@pytest.mark.parametrize("change", [{"shape": [2**46, 2]}, {"shape": [10**6, 400], "chunks": [1, 1]}])
def test_an_array_that_claims_to_be_huge_is_refused(change):
    by_orbax("zarr", {"w": jnp.ones((3, 2))}, use_ocdbt=False)
    file = Path("zarr/w/.zarray")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(pts.CorruptCheckpointError, match=r"w: .*(does not fit into memory|chunks)"):
        pts.restore("zarr")


def test_lost_metadata_is_an_error():
    by_orbax("model", {"l": [1, {"x": 2.5}], "e": {}})
    Path("model/_METADATA").unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="_METADATA: expected the metadata of a tree, found no file"):
        pts.restore("model")


def test_metrics_that_are_no_numbers_are_metadata():
    with ocp.CheckpointManager(Path("run").absolute(), options=by_loss()) as manager:
        manager.save(1, args=args.StandardSave({"w": jnp.ones(2)}), metrics={"loss": 1.5, "note": "good"})
    with pts.load_checkpoint("run/1") as checkpoint:
        assert checkpoint.metrics == {"loss": 1.5}
        assert checkpoint.metadata["metrics"] == {"note": "good"}
    Path("run/1/metrics/metrics").write_text('{"loss": 1%s}' % ("0" * 400))
    with pytest.raises(pts.CorruptCheckpointError, match="metrics: expected numbers"):
        pts.load_checkpoint("run/1")


def test_names_and_positions_that_are_none():
    by_orbax("zarr", {"w": jnp.ones((3, 2))}, use_ocdbt=False)
    Path("zarr/_METADATA").unlink()
    Path("zarr/_CHECKPOINT_METADATA").unlink()
    shutil.rmtree("zarr/array_metadatas", ignore_errors=True)
    Path(os.fsdecode(b"zarr/\xff")).mkdir()
    Path(os.fsdecode(b"zarr/\xff/.zarray")).write_text("{}")
    with pytest.raises(pts.CorruptCheckpointError, match="expected names of arrays in UTF-8"):
        pts.restore("zarr")


def test_an_open_checkpoint_that_is_replaced_is_not_called_damaged():
    pts.save({"a": np.zeros(1000)}, "model", format="orbax")
    checkpoint = pts.load_checkpoint("model")
    pts.save({"a": np.ones(1000)}, "model", format="orbax", overwrite=True)
    with pytest.raises(pts.CheckpointIOError, match="replaced or deleted while it was open"):
        checkpoint["a"][:]


def test_errors_of_the_caller_are_not_damage():
    path = pts.save(tree(), "model", format="orbax")
    Path(path, ".nfs01").touch()
    pts.verify(path)

    def stop(done, total):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        pts.verify(path, progress=stop)
    checkpoint = pts.load_checkpoint(path)
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint.verify()


# Items.


def test_items_of_our_handler_are_read_together():
    with ocp.CheckpointManager(Path("run").absolute(), options=by_loss()) as manager:
        items = {
            "state": pts.orbax.SaveArgs(tree()),
            "ema": pts.orbax.SaveArgs({"w": np.ones(2)}, metadata={"decay": 0.9}),
            "other": args.StandardSave({"x": jnp.ones(2)}),
            "config": args.JsonSave({"a": 1}),
        }
        manager.save(7, args=args.Composite(**items), metrics={"loss": 2.5})
    expected = {"ema": {"w": np.ones(2)}, "other": {"x": jnp.ones(2)}, "state": tree()}
    assert pts.latest_checkpoint("run") == Path("run/7")
    assert_trees_equal(pts.restore("run"), expected)
    assert_trees_equal(pts.restore("run/7", only="state/w"), {"state": {"w": tree()["w"]}})
    assert pts.load_variable("run", "ema/w").tolist() == [1, 1]
    with pts.load_checkpoint("run/7") as checkpoint:
        assert checkpoint["state/w"][1:].tolist() == [[2, 3], [4, 5]]
        assert (checkpoint.step, checkpoint.metrics) == (7, {"loss": 2.5})
        assert checkpoint.metadata["config"] == {"a": 1}
    pts.verify("run/7")
    pts.convert("run", "converted")
    assert_trees_equal(pts.restore("converted"), expected)
    assert pts.list_checkpoints("converted")[0].metrics == {"loss": 2.5}


def test_a_converted_run_of_our_handler_keeps_steps_and_metrics():
    with ocp.CheckpointManager(Path("run").absolute(), options=by_loss()) as manager:
        for step in range(2):
            manager.save(step, args=pts.orbax.SaveArgs(tree()), metrics={"loss": float(step)})
    assert pts.load_checkpoint("run/1").step == 1
    pts.convert("run", "converted")
    before, after = (
        [(each.step, each.metrics, each.time) for each in pts.list_checkpoints(directory)]
        for directory in ("run", "converted")
    )
    assert [(step, metrics) for step, metrics, _ in after] == [(0, {"loss": 0.0}), (1, {"loss": 1.0})]
    assert before == after


def test_single_arrays_are_items_too_and_what_is_not_read_is_named():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        items = {
            "state": args.StandardSave({"w": jnp.ones(2)}),
            "table": args.ArraySave(jnp.arange(4)),
            "rate": args.ArraySave(0.5),
        }
        manager.save(1, args=args.Composite(**items))
    Path("run/1/dataset").mkdir()
    Path("run/1/dataset/position").touch()
    with pytest.warns(
        pts.StructureWarning, match="items of Orbax that are not trees, arrays or JSON are not read: dataset"
    ):
        restored = pts.restore("run")
    assert_trees_equal(restored, {"rate": 0.5, "state": {"w": jnp.ones(2)}, "table": jnp.arange(4)})


def test_arrays_of_too_many_axes_are_refused_by_name():
    with pytest.raises(pts.UnsupportedLeafError, match="w: Orbax holds no arrays of more than 32 axes, found 33"):
        pts.save({"w": np.ones((1,) * 33)}, "model", format="orbax")
    with pytest.raises(pts.UnsupportedLeafError, match="the tree cannot be saved"):
        pts.save({}, "model", format="orbax")


def test_damage_in_an_item_has_the_name_of_the_variable():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        items = {name: pts.orbax.SaveArgs({"w": np.arange(1000.0)}) for name in ("state", "ema")}
        manager.save(3, args=args.Composite(**items))
    (file,) = Path("run/3/state").glob("data-*")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    for read in (pts.restore, pts.verify, lambda path: pts.restore(path, mmap=True)):
        with pytest.raises(pts.CorruptCheckpointError) as caught:
            read("run/3")
        assert caught.value.damaged == ["state/w"]


@pytest.mark.parametrize("beside", ["Thumbs.db", "@eaDir", "notes.txt", "dataset"])
def test_steps_of_old_versions_are_found_with_other_files_beside(beside):
    by_orbax("run/1/default", {"w": jnp.ones(2)})
    if "." in beside:
        Path("run/1", beside).touch()
    else:
        Path("run/1", beside).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pts.StructureWarning)
        assert pts.restore("run/1")["w"].tolist() == [1, 1]


def test_a_run_of_the_checkpointer_of_version_1_is_the_tree_itself():
    with v1.training.Checkpointer(Path("run").absolute()) as checkpointer:
        checkpointer.save(1, {"dense": {"w": jnp.ones(2)}})
    assert pts.list_variables("run") == [("dense/w", (2,))]


def test_damage_in_several_items_keeps_its_reasons():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        items = {name: pts.orbax.SaveArgs({"w": np.arange(1 << 20)}) for name in ("state", "ema")}
        manager.save(3, args=args.Composite(**items))
    for file in Path("run/3").glob("*/data-*"):
        os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.restore("run/3", {name: {"w": np.zeros(1 << 20)} for name in items}, cast=True)
    assert caught.value.damaged == ["ema/w", "state/w"]
    assert str(caught.value).count("bytes, found") == 2


@pytest.mark.parametrize("writer", ["orbax", "pytreesaver"])
def test_large_arrays_are_read_ahead_for_sharded_templates(writer, monkeypatch):
    monkeypatch.setattr(arrays, "_AHEAD_NBYTES", 5 << 20)  # two arrays at a time
    spread = jax.NamedSharding(jax.make_mesh((8,), ("x",)), jax.P("x"))
    rng = np.random.default_rng(0)
    tree = {f"a{i}": jnp.asarray(rng.normal(size=(64, 8192)).astype(np.float32)) for i in range(5)}
    path = by_orbax("model", tree) if writer == "orbax" else pts.save(tree, "model", format="orbax")
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread), tree)
    restored = pts.restore(path, like)
    assert all(leaf.sharding == spread for leaf in restored.values())
    assert_trees_equal(jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, tree))
    if writer == "pytreesaver":
        file = max((each for each in Path(path).rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        with pytest.raises(pts.CorruptCheckpointError) as caught:
            pts.restore(path, like)
        assert len(caught.value.damaged) == 1


def test_a_reader_is_usable_after_a_restore_in_parts():
    tree = {"w": np.arange(1 << 19, dtype=np.float32).reshape(64, -1)}
    path = pts.save(tree, "model", format="orbax")
    with pts.load_checkpoint(path) as checkpoint:
        for _ in range(2):
            assert checkpoint["w"][3:5].tolist() == tree["w"][3:5].tolist()


def test_a_step_that_is_deleted_while_it_is_looked_at_does_not_exist(monkeypatch):
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        manager.save(1, args=args.StandardSave({"w": jnp.ones(2)}))
    real = filesystem.list_directory

    def deleting(path):
        if Path(path).name == "default":
            shutil.rmtree("run/1")
        return real(path)

    monkeypatch.setattr(filesystem, "list_directory", deleting)
    assert not pts.checkpoint_exists("run/1")
    assert pts.list_checkpoints("run") == []
