"""Memory of a restore: mapped files, and the peak."""

import gc
import os
import shutil
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint.saving import save_anew, spread
from hypothesis import given, settings

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal, pytrees


@given(pytrees(max_leaves=6))
@settings(max_examples=100)
def test_restore_with_mmap_returns_the_saved_tree(tree):
    path = save_anew(tree)
    assert_trees_equal(pts.restore(path, mmap=True), tree)
    assert_trees_equal(pts.restore(path, tree, mmap=True, verify=False), tree)


def mapped_files():
    with open("/proc/self/maps") as maps:
        return [line.split() for line in maps if ".safetensors" in line]


def is_in_a_mapped_file(address):
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped_files()]
    return any(low <= address < high for low, high in ranges)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_mapped_arrays_share_memory_with_the_file():
    big = np.arange(1 << 20, dtype=np.float32)
    tree = {"jax": jnp.asarray(big), "numpy": big, "bf16": jnp.ones((512, 512), jnp.bfloat16)}
    path = pts.save(tree, "model")
    for options in ({}, {"like": tree}, {"verify": False}):
        restored = pts.restore(path, mmap=True, **options)
        assert is_in_a_mapped_file(restored["jax"].unsafe_buffer_pointer())
        assert is_in_a_mapped_file(restored["bf16"].unsafe_buffer_pointer())
        assert is_in_a_mapped_file(restored["numpy"].ctypes.data)
        assert_trees_equal(restored, tree)
    assert is_in_a_mapped_file(pts.restore(path, mmap=True, as_numpy=True)["jax"].ctypes.data)
    slices = pts.restore(path, mmap=True, sharding=spread("x"), only="jax")["jax"]
    assert all(is_in_a_mapped_file(shard.data.unsafe_buffer_pointer()) for shard in slices.addressable_shards)
    assert not is_in_a_mapped_file(pts.restore(path)["jax"].unsafe_buffer_pointer())
    del restored, slices
    gc.collect()
    assert not mapped_files()


def test_mapped_arrays_can_be_modified_or_donated_and_outlive_their_file():
    tree = {"jax": jnp.arange(1 << 18, dtype=jnp.float32), "numpy": np.arange(1 << 18)}
    path = pts.save(tree, "model")
    restored = pts.restore(path, mmap=True)
    restored["numpy"][:] = 0
    assert jax.jit(lambda x: x + 1, donate_argnums=0)(restored["jax"])[0] == 1
    again = pts.restore(path, mmap=True)
    pts.save({"other": 1}, path, overwrite=True)
    shutil.rmtree(path)
    assert_trees_equal(again, tree)


def test_mapped_bytes_are_verified():
    path = pts.save({"a": jnp.zeros(1 << 19), "b": np.ones(10), "c": jnp.zeros(1 << 19)}, "model")
    data = path / "data-00000-of-00001.safetensors"
    content = bytearray(data.read_bytes())
    content[content.index(np.ones(10).tobytes())] ^= 1
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.restore(path, mmap=True)
    assert len(caught.value.damaged) == 2
    assert "b" in caught.value.damaged
    pts.restore(path, mmap=True, verify=False)


@pytest.fixture
def peak_memory(peak_memory):
    tracemalloc.start()
    yield peak_memory
    tracemalloc.stop()


MIB = 1 << 20


@pytest.mark.parametrize(
    ("options", "result_nbytes"),
    [
        ({}, 256 * MIB),
        ({"as_numpy": True}, 256 * MIB),
        ({"sharding": spread("x")}, 256 * MIB),
        ({"sharding": spread(None, "x")}, 256 * MIB),
        ({"cast": jnp.bfloat16}, 128 * MIB),
        ({"cast": jnp.bfloat16, "sharding": spread("x")}, 128 * MIB),
        ({"like": {"w": jax.ShapeDtypeStruct((16, 4 * MIB), jnp.float32)}, "reshape": True}, 256 * MIB),
        ({"mmap": True}, 0),
        ({"mmap": True, "cast": jnp.bfloat16}, 128 * MIB),
    ],
    ids=str,
)
def test_peak_memory_of_restoring_a_huge_leaf(options, result_nbytes, peak_memory):
    pts.save({"w": np.zeros((1024, 64 << 10), np.float32)}, "model", durable=False)
    restored = pts.restore("model", **options)
    assert restored["w"].nbytes in (256 * MIB, 128 * MIB)
    assert peak_memory() <= result_nbytes + 64 * MIB


def test_peak_memory_of_casting_many_leaves(peak_memory):
    pts.save({str(i): np.zeros(MIB // 4, np.float32) for i in range(256)}, "model", durable=False)
    restored = pts.restore("model", cast=jnp.bfloat16)
    assert sum(leaf.nbytes for leaf in restored.values()) == 128 * MIB
    assert peak_memory() <= (128 + 64 + 16) * MIB


@pytest.mark.parametrize("options", [{}, {"cast": True}], ids=str)
@pytest.mark.parametrize("saved", [None, ("x",), (None, "x")], ids=str)
@pytest.mark.parametrize("wanted", [None, ("x",), (None, "x")], ids=str)
def test_a_large_array_is_reshaped(saved, wanted, options, peak_memory):
    values = np.arange(4096 * 2048, dtype=np.float32).reshape(4096, 2048)  # 32 MiB
    path = pts.save({"w": values if saved is None else jax.device_put(values, spread(*saved))}, "model", durable=False)
    shape, dtype = (1024, 8, 1024), jnp.bfloat16 if options else jnp.float32
    sharding = None if wanted is None else spread(*wanted)
    like = {"w": jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)}
    for mmap in (False, True):
        restored = pts.restore(path, like, reshape=True, mmap=mmap, **options)["w"]
        expected = jax.device_put(jnp.asarray(values).astype(dtype).reshape(shape), sharding)
        assert_trees_equal(restored, expected)


def test_peak_memory_of_reshaping_a_sharded_array(peak_memory):
    array = jax.device_put(np.zeros((1024, 64 << 10), np.float32), spread(None, "x"))
    pts.save({"w": array}, "model", durable=False)
    like = {"w": jax.ShapeDtypeStruct((2048, 32 << 10), jnp.float32, sharding=spread("x"))}
    assert pts.restore("model", like, reshape=True)["w"].nbytes == 256 * MIB
    assert peak_memory() <= (256 + 64) * MIB


def test_only_contiguous_shards_are_mapped(monkeypatch):
    array = np.arange(1 << 21, dtype=np.float32).reshape(-1, 8)  # each shard has 262,144 short ranges
    path = pts.save({"w": array}, "model", durable=False)
    nbytes, real = [], filesystem.read_into
    monkeypatch.setattr(filesystem, "read_into", lambda d, b, o: nbytes.append(b.nbytes) or real(d, b, o))
    restored = pts.restore(path, sharding=spread(None, "x"), mmap=True)["w"]
    assert np.asarray(restored).tobytes() == array.tobytes()
    assert sum(nbytes) <= array.nbytes + 20_000


def test_peak_memory_of_reading_one_item_of_long_strings(peak_memory):
    path = pts.save({"a": np.full(20_000, "é" * 999)}, "model", durable=False)  # 80 MB
    with pts.load_checkpoint(path) as checkpoint:
        assert checkpoint["a"][7] == "é" * 999
    assert peak_memory() <= 8 * MIB
    assert not pts.diff(path, path)


def test_damage_in_a_mapped_file_is_found_quickly():
    path = pts.save({str(i): np.full(8, i) for i in range(3000)}, "model", durable=False)
    os.truncate(path / "data-00000-of-00001.safetensors", 20_000)
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.restore(path, mmap=True)
    assert len(caught.value.damaged) > 2000
