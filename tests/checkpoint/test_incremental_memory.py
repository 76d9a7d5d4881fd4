"""Incremental saves: arrays that were tied, what a process remembers, and what savers do."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint.incremental import array, refuse, shared_files, written_nbytes
from checkpoint.saving import spread

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.formats.native import incremental, known
from pytreesaver.testing import assert_trees_equal


class TestSavers:
    def test_a_manager(self, tree):
        with pts.CheckpointManager("run", max_to_keep=2, incremental=True) as manager:
            for step in range(6):
                tree = {**tree, "step": step}
                manager.save(step, tree)
            manager.wait_until_finished()
            assert manager.all_steps() == [4, 5]
            assert written_nbytes("run/ckpt-5") < 10_000
            assert len(shared_files("run/ckpt-5")) == 1
        with pts.CheckpointManager("run", max_to_keep=1, incremental=True, block=True) as manager:
            restored = manager.restore(tree)
            manager.save(6, {**restored, "step": 6})
            assert written_nbytes("run/ckpt-6") < 10_000
            assert manager.all_steps() == [6]
            assert_trees_equal(manager.restore(), {**tree, "step": 6})

    def test_a_saver(self, tree):
        saver = pts.Saver(max_to_keep=2, incremental=True)
        for step in range(5):
            tree = {**tree, "step": step}
            saver.save(tree, "run/model", step)
        assert written_nbytes("run/model-4") < 10_000
        assert_trees_equal(saver.restore("run/model-4"), tree)
        other = pts.Saver(incremental=True)
        restored = other.restore("run/model-4")
        other.save(restored, "run/model", 5)
        assert len(shared_files("run/model-5")) == 1

    def test_a_failed_save_does_not_end_the_sharing(self, tree, monkeypatch):
        manager = pts.CheckpointManager("run", incremental=True, block=True)
        manager.save(1, tree)
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "rename", refuse(errno.EIO))
            with pytest.raises(pts.CheckpointIOError):
                manager.save(2, tree)
        manager.save(3, tree)
        assert len(shared_files("run/ckpt-3")) == 1

    def test_only_the_native_format_is_incremental(self):
        with pytest.raises(ValueError, match='incremental: expected format="native"'):
            pts.CheckpointManager("run", format="npz", incremental=True)
        with pytest.raises(ValueError, match='incremental: expected format="native"'):
            pts.Saver(format="safetensors", incremental=True).save({"w": 1}, "model")


class TestTiedArrays:
    """One array in two places is stored once. Two equal ones are stored twice, also if they were one before."""

    @pytest.mark.parametrize("copied_leaf", [lambda x: x, jnp.array, np.array], ids=["same", "jax", "numpy"])
    def test_arrays_that_were_tied(self, copied_leaf):
        x = array(1)
        pts.save({"a": x, "b": x, "c": array(2)}, "first")
        for tree in ({"a": x, "b": copied_leaf(x)}, {"a": copied_leaf(x), "b": copied_leaf(x + 0)}):
            pts.save({**tree, "c": array(2)}, "second", base="first", overwrite=True)
            pts.verify("second")
            assert_trees_equal(pts.restore("second"), {**tree, "c": array(2)})

    def test_restored_arrays_that_were_tied(self):
        x = array(1)
        pts.save({"a": x, "b": x}, "first")
        like = {"a": jax.ShapeDtypeStruct(x.shape, x.dtype), "b": jax.ShapeDtypeStruct(x.shape, x.dtype)}
        restored = pts.restore("first", like)
        pts.save(restored, "second", base="first")
        assert_trees_equal(pts.restore("second"), restored)

    def test_arrays_that_are_tied_with_another_sharding(self):
        x = jax.device_put(array(1).reshape(8, -1), spread("x"))
        pts.save({"a": x, "b": x + 1}, "first")
        tree = pts.restore("first", sharding=jax.devices()[0])
        tree["b"] = tree["a"]
        pts.save(tree, "second", base="first")
        restored = pts.restore("second")
        assert restored["a"] is restored["b"]
        np.testing.assert_array_equal(restored["a"], x)

    def test_a_manager_whose_loop_unties_them(self):
        x = array(1)
        tree = {"a": x, "b": x, "step": 0}
        with pts.CheckpointManager("run", max_to_keep=1, incremental=True, block=True) as manager:
            for step in range(3):
                manager.save(step, tree)
                tree = {**jax.jit(lambda a, b: {"a": a + 0, "b": b * 1})(tree["a"], tree["b"]), "step": step + 1}
            assert_trees_equal(manager.restore()["b"], x)


def test_what_was_not_fetched_is_always_shared():
    x, n = array(1), np.random.default_rng(0).normal(size=200_000)
    pts.save({"x": x, "n": n}, "first")
    expected = np.array(x)
    future = pts.save_async({"x": x, "n": n}, "second", base="first", shard_nbytes=1 << 20)
    x.delete()
    future.result()
    np.testing.assert_array_equal(pts.restore("second")["x"], expected)


def test_a_durable_save_syncs_what_an_overwriting_one_did_not(monkeypatch, tree):
    pts.save(tree, "first", overwrite=True, durable=False)
    synced = []
    real = filesystem.sync_file
    monkeypatch.setattr(filesystem, "sync_file", lambda number: synced.append(os.fstat(number).st_ino) or real(number))
    pts.save(tree, "second", base="first")
    assert {file.stat().st_ino for file in Path("first").glob("data-*")} <= set(synced)


def test_a_restore_of_a_part_does_not_cost_what_a_manager_knows(tree, monkeypatch):
    with pts.CheckpointManager("run", incremental=True, block=True) as manager:
        manager.save(1, tree)
        pts.restore("run/ckpt-1", only="head")
        monkeypatch.setattr(known, "MOST_REMEMBERED_VARIABLES", 1)
        pts.restore("run/ckpt-1")
        monkeypatch.setattr(incremental, "_has_checksums", lambda *args: pytest.fail("compared bytes"))
        manager.save(2, tree)
    assert len(shared_files("run/ckpt-2")) == 1


def test_failed_saves_do_not_cost_what_a_manager_knows(tree, monkeypatch):
    with pts.CheckpointManager("run", incremental=True, block=True) as manager:
        manager.save(1, tree)
        for step in (2, 3, 4):
            with monkeypatch.context() as patch:
                patch.setattr(filesystem, "rename", refuse(errno.ENOSPC))
                with pytest.raises(pts.CheckpointIOError):
                    manager.save(step, tree)
        manager.save(5, tree)
    assert len(shared_files("run/ckpt-5")) == 1


def test_a_saver_that_restored_the_newest_of_a_directory(tree):
    pts.Saver(incremental=True).save(tree, "run/model", 1)
    saver = pts.Saver(incremental=True)
    restored = saver.restore("run")
    saver.save({**restored, "step": 2}, "run/model", 2)
    assert len(shared_files("run/model-2")) == 1


def test_a_save_into_a_new_directory_on_another_device_says_why(tree, caplog, monkeypatch):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == Path.cwd().stat().st_dev:
        pytest.skip("needs a second file system")
    base = other / f"pytreesaver-test-{os.getpid()}"
    pts.save(tree, base)
    try:
        future = pts.save_async(tree, "new/second", base=base)
        expected = np.array(tree["head"])
        tree["head"].delete()
        future.result()
    finally:
        pts.remove_checkpoint(base)
    assert "cannot be linked" in caplog.text
    np.testing.assert_array_equal(pts.restore("new/second")["head"], expected)


def test_nothing_else_of_a_checkpoint_is_remembered(tree):
    pts.save(tree, "first", metadata={"large": "x" * 1000})
    remembered = known.recall(Path("first").absolute())
    assert (remembered.index.metadata, remembered.index.structure) == ({}, None)


def test_a_fork_can_save():
    code = """
import os, numpy as np, pytreesaver as pts
from pytreesaver.formats.native import known
with known._lock:
    child = os.fork()
    if not child:
        pts.save({"w": np.ones(3)}, "from-the-fork")
        os._exit(0)
os._exit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=60).returncode == 0
    assert Path("from-the-fork").exists()


def failing_once(link, at):
    calls = iter(range(1000))

    def call(source, target):
        if next(calls) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return link(source, target)

    return call


@pytest.mark.parametrize("fail", [False, True])
def test_restored_arrays_in_several_cells(fail, monkeypatch):
    tree = {"a": jnp.arange(40_000.0), "b": jnp.arange(20_000.0) + 5, "c": jnp.arange(40_000.0)}
    for root in ("local", f"memory://restored/cells-{fail}"):
        pts.save(tree, f"{root}/1", shard_nbytes=170_000)
        for name in (None, "a", "c"):
            restored = pts.restore(f"{root}/1", sharding=lambda n, s, name=name: spread("x") if n != name else None)
            with monkeypatch.context() as patch:
                if fail:
                    patch.setattr(filesystem, "link", failing_once(filesystem.link, 2))
                pts.save(restored, f"{root}/2", base=f"{root}/1", overwrite=True)
            for path in (f"{root}/1", f"{root}/2"):
                pts.verify(path)
                found = pts.restore(path, as_numpy=True)
                for each, value in tree.items():
                    np.testing.assert_array_equal(found[each], value)


def test_a_restore_in_a_store_keeps_what_was_known(monkeypatch):
    tree = {"a": array(1), "b": array(2)}
    pts.save(tree, "memory://known/1")
    pts.save(tree, "memory://known/2", base="memory://known/1")
    pts.restore("memory://known/2")
    monkeypatch.setattr(incremental, "_has_checksums", lambda *args: pytest.fail("compared bytes"))
    pts.save(tree, "memory://known/3", base="memory://known/2")
    with pts.load_checkpoint("memory://known/3") as checkpoint:
        assert checkpoint.shared_nbytes > tree["a"].nbytes
