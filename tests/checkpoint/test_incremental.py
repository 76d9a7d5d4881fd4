"""Incremental saves: what is unchanged is shared with an earlier checkpoint, and every checkpoint is complete."""

import errno
import gc
import itertools
import logging
import os
import random
import shutil
import weakref
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint.incremental import array, nbytes_of, refuse, shared_files, written_nbytes
from checkpoint.saving import spread
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.formats.native import incremental, known, sharing_files, writing
from pytreesaver.testing import assert_trees_equal, pytrees


def test_what_is_unchanged_is_not_written_again(tree):
    pts.save(tree, "first")
    changed = {**tree, "head": tree["head"] + 1, "step": 2}
    pts.save(changed, "second", base="first")
    assert len(shared_files("second")) == 1
    assert tree["head"].nbytes < written_nbytes("second") < tree["head"].nbytes + 20_000
    shutil.rmtree("first")
    pts.verify("second")
    assert_trees_equal(pts.restore("second"), changed)


def test_the_bytes_of_unchanged_arrays_are_not_even_read(monkeypatch, tree):
    pts.save(tree, "first")
    taken = []
    for module in (incremental, writing.write_data.__globals__):
        name = module if isinstance(module, dict) else vars(module)
        real = name["cell_bytes"]
        monkeypatch.setitem(name, "cell_bytes", lambda cell, kind, real=real: taken.append(cell) or real(cell, kind))
    pts.save_async({**tree, "step": 2}, "second", base="first").result()
    # Their file is shared, since more than half of it is in use.
    assert all(each is not leaf for each in taken for leaf in jax.tree.leaves(tree))
    assert 2 in taken


def test_nothing_is_kept_alive(tree):
    pts.save(tree, "first")
    pts.save(tree, "second", base="first")
    pts.save_async(tree, "third", base="second").result()
    restored = pts.restore("third")
    references = [weakref.ref(leaf) for leaf in jax.tree.leaves([tree, restored]) if isinstance(leaf, jax.Array)]
    assert len(references) == 6
    tree.clear()
    del restored
    gc.collect()
    assert [each for each in references if each() is not None] == []


def test_restored_arrays_are_known(tree, monkeypatch):
    pts.save(tree, "first")
    restored = pts.restore("first", tree)
    monkeypatch.setattr(incremental, "_has_checksums", lambda *args: pytest.fail("compared bytes"))
    pts.save(restored, "second", base="first")
    assert len(shared_files("second")) == 1


@pytest.mark.parametrize("options", [{"verify": False}, {"mmap": True}])
def test_arrays_that_were_not_verified_are_compared(tree, monkeypatch, options):
    pts.save(tree, "first")
    known.forget(Path("first").absolute())
    restored = pts.restore("first", **options)
    compared = []
    real = incremental._has_checksums
    monkeypatch.setattr(incremental, "_has_checksums", lambda *args: compared.append(args) or real(*args))
    pts.save(restored, "second", base="first")
    assert len(compared) == 3
    assert len(shared_files("second")) == 1


def test_equal_bytes_in_other_arrays_are_found():
    values = [np.arange(100_000), np.arange(2_000_000)]
    pts.save(values, "first")
    copies = [jnp.asarray(values[0].astype(np.int32)), values[1].copy()]
    pts.save(copies, "second", base="first")
    assert len(shared_files("second")) == 1
    assert_trees_equal(pts.restore("second"), copies)


def test_arrays_of_numpy_that_were_changed_in_place_are_written(tree):
    tree = {"w": np.arange(100_000), "v": np.arange(100_000)}
    pts.save(tree, "first")
    for position in (0, 50_000, 99_999):
        tree["w"][position] += 1
        pts.save(tree, "second", base="first", overwrite=True)
        assert_trees_equal(pts.restore("second"), tree)
        assert len(shared_files("second")) == 1


def test_another_process_compares_and_verifies(tree, caplog):
    pts.save(tree, "first")
    known.forget(Path("first").absolute())
    pts.save(tree, "second", base="first")
    assert len(shared_files("second")) == 1
    assert caplog.text == ""


def flip(path, name):
    """Damage one variable of a checkpoint in place."""
    with pts.load_checkpoint(path) as checkpoint:
        value = np.asarray(checkpoint[name].read()).tobytes()
    for file in Path(path).glob("data-*"):
        content = bytearray(file.read_bytes())
        position = content.find(value)
        if position >= 0:
            content[position + len(value) // 3] ^= 1
            with file.open("r+b") as opened:
                opened.write(content)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_damaged_base_is_never_shared(tree, is_known, caplog):
    pts.save(tree, "first")
    if not is_known:
        known.forget(Path("first").absolute())
    flip("first", "frozen/v")
    pts.save(tree, "second", base="first")
    assert "frozen/v" in caplog.text
    assert "head" not in caplog.text
    pts.verify("second")
    assert_trees_equal(pts.restore("second"), tree)


def test_a_truncated_base_is_never_shared(tree, caplog):
    pts.save(tree, "first")
    (data,) = Path("first").glob("data-*")
    os.truncate(data, data.stat().st_size - 1)
    pts.save(tree, "second", base="first")
    assert "an incremental save writes again" in caplog.text
    assert shared_files("second") == []
    assert_trees_equal(pts.restore("second"), tree)


def test_a_file_is_shared_only_while_half_of_it_is_in_use(tree):
    leaves = {str(i): array(i) for i in range(4)}
    pts.save(leaves, "0")
    for i in range(4):
        leaves = {**leaves, str(i): leaves[str(i)] + 1}
        pts.save(leaves, str(i + 1), base=str(i))
        whole = sum(leaf.nbytes for leaf in leaves.values())
        assert nbytes_of(str(i + 1)) <= 2 * whole + 20_000
        assert_trees_equal(pts.restore(str(i + 1)), leaves)
    # After the third change, only a quarter of the first file was in use.
    names = {Path(file).stat().st_ino for file in Path("0").glob("data-*")}
    assert names & {file.stat().st_ino for file in Path("2").glob("data-*")}
    assert not names & {file.stat().st_ino for file in Path("3").glob("data-*")}


def test_small_files_do_not_pile_up():
    tree = {str(i): jnp.full(100, i) for i in range(20)}
    pts.save(tree, "0")
    for i in range(20):
        tree = {**tree, str(i): tree[str(i)] + 1}
        pts.save(tree, str(i + 1), base=str(i))
        assert len(list(Path(str(i + 1)).iterdir())) == 2


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_checkpoints_can_be_deleted_in_any_order(order):
    generator = random.Random(str(order))
    leaves = {str(i): array(i, 20_000) for i in range(8)}
    saved = []
    for i in range(4):
        for name in generator.sample(sorted(leaves), generator.randint(0, 4)):
            leaves[name] = leaves[name] * 1.5
        saved.append(dict(leaves))
        pts.save(leaves, str(i), base=str(i - 1) if i else None)
    for i in order:
        pts.remove_checkpoint(str(i))
        for j in range(4):
            if Path(str(j)).exists():
                pts.verify(str(j))
                assert_trees_equal(pts.restore(str(j)), saved[j])


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_a_sequence_of_incremental_saves_comes_back(data, any_size):
    shutil.rmtree("run", ignore_errors=True)
    tree = data.draw(pytrees())
    saved = []
    for i in range(data.draw(st.integers(2, 4))):
        if i and data.draw(st.booleans()):
            tree = data.draw(pytrees())
        elif i:
            leaves, structure = jax.tree.flatten(tree)
            tree = structure.unflatten([data.draw(st.sampled_from([leaf, copied(leaf), leaves[0]])) for leaf in leaves])
        base = None if i == 0 else f"run/{data.draw(st.integers(0, i - 1))}"
        if data.draw(st.booleans()):
            pts.save(tree, f"run/{i}", base=base, durable=False)
        else:
            pts.save_async(tree, f"run/{i}", base=base, durable=False).result()
        saved.append(tree)
    for i, each in enumerate(saved):
        pts.verify(f"run/{i}")
        assert_trees_equal(pts.restore(f"run/{i}"), each)


def copied(leaf):
    return leaf.copy() if isinstance(leaf, np.ndarray | jax.Array) else leaf


def test_keys_and_shared_arrays(any_size):
    key, w = jax.random.key(1), array(1)
    tree = {"key": key, "a": w, "b": w, "n": 1}
    pts.save(tree, "first")
    tree["n"] = 2
    pts.save(tree, "second", base="first")
    assert len(shared_files("second")) == 1
    restored = pts.restore("second")
    assert_trees_equal(restored, tree)
    assert restored["a"] is restored["b"]


def test_sharded_arrays(any_size):
    x = jax.device_put(array(1).reshape(8, -1), spread("x"))
    y = jax.device_put(array(2).reshape(8, -1), spread("x", "y", over=(4, 2)))
    pts.save({"x": x, "y": y}, "first")
    other = pts.restore("first", sharding=spread(None, "x"))
    pts.save({**other, "z": 1}, "second", base="first")  # as one process, in the cells of the first
    assert len(shared_files("second")) == 1
    assert_trees_equal(pts.restore("second", {"x": x, "y": y, "z": 1}), {"x": x, "y": y, "z": 1})


def test_the_cells_of_a_base_that_is_gone_are_written(monkeypatch, any_size):
    x = jax.device_put(array(1).reshape(8, -1), spread("x"))
    pts.save({"x": x}, "first")
    other = pts.restore("first", sharding=spread(None, "x"))
    monkeypatch.setattr(filesystem, "link", refuse(errno.ENOENT))
    pts.save(other, "second", base="first")
    assert_trees_equal(pts.restore("second"), pts.restore("first"))


def test_limits_of_files(tree):
    pts.save(tree, "first")
    pts.save(tree, "second", base="first", shard_nbytes=tree["head"].nbytes)
    assert shared_files("second") == []
    pts.save(tree, "third", base="second", shard_nbytes=tree["head"].nbytes)
    assert len(shared_files("third")) == 3


def test_a_file_system_without_hard_links_gets_everything_and_says_so_once(monkeypatch, tree, caplog, tmp_path):
    monkeypatch.setattr(sharing_files, "_may_link", {})
    monkeypatch.setattr(filesystem, "link", refuse(errno.EPERM))
    pts.save(tree, "0")
    for i in range(3):
        pts.save_async(tree, str(i + 1), base=str(i)).result()
        assert_trees_equal(pts.restore(str(i + 1)), tree)
    assert caplog.messages == [
        f"data files of {tmp_path} cannot be linked into {tmp_path} (Operation not permitted): every incremental save "
        "there writes everything"
    ]


def test_a_base_that_disappears_during_the_save(monkeypatch, tree):
    pts.save(tree, "first")
    real = filesystem.link

    def late(source, target):
        shutil.rmtree("first")
        real(source, target)

    monkeypatch.setattr(sharing_files, "_may_link", {(Path.cwd(), Path.cwd()): True})
    monkeypatch.setattr(filesystem, "link", late)
    pts.save(tree, "second", base="first")
    assert_trees_equal(pts.restore("second"), tree)


def test_a_base_that_was_overwritten_meanwhile(tree):
    pts.save(tree, "first")
    other = {**tree, "head": tree["head"] - 1}
    shutil.rmtree("first")
    pts.save(other, "elsewhere")
    known.forget(Path("elsewhere").absolute())
    Path("elsewhere").rename("first")
    pts.save(tree, "second", base="first")
    assert_trees_equal(pts.restore("second"), tree)


def test_overwriting_the_base_itself(tree):
    pts.save(tree, "model")
    for step in range(3):
        tree = {**tree, "head": tree["head"] + 1, "step": step}
        pts.save(tree, "model", base="model", overwrite=True)
        assert len(list(Path("model").iterdir())) == 3
        assert_trees_equal(pts.restore("model"), tree)


def test_a_base_has_to_exist(tree):
    with pytest.raises(pts.CheckpointNotFoundError, match="missing"):
        pts.save(tree, "model", base="missing")
    assert not Path("model").exists()
    pts.save(tree, "other.safetensors")
    with pytest.raises(
        pts.CheckpointNotFoundError, match='base: expected a checkpoint of the format "native" at other'
    ):
        pts.save(tree, "model", base="other.safetensors")
    with pytest.raises(TypeError, match="base: expected a str"):
        pts.save(tree, "model", base=5)
    with pytest.raises(ValueError, match='base: expected format="native"'):
        pts.save(tree, "model.npz", base="other.safetensors")


def test_donated_arrays_that_changed_are_safe(tree):
    pts.save(tree, "first")
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    expected = np.asarray(tree["head"]) + 1
    tree["head"] = step(tree["head"])
    future = pts.save_async(tree, "second", base="first")
    tree["head"] = step(tree["head"])
    future.result()
    assert np.array_equal(pts.restore("second")["head"], expected)
    assert len(shared_files("second")) == 1


def test_no_warning_is_logged(tree, caplog):
    caplog.set_level(logging.INFO)
    pts.save(tree, "first")
    pts.save(tree, "second", base="first")
    assert caplog.messages == []
