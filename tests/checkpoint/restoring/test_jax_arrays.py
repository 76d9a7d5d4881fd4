"""Restoring of JAX arrays: thousands at a time, under any JAX settings, without copies where possible."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._checkpoint.restoring import reading as leaf_reading
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal


@pytest.fixture(scope="module")
def thousands():
    """Enough arrays of several kinds for the compiled function, and a few of other kinds."""
    patterns = np.random.default_rng(0).integers(0, 2**32, (1100, 5), np.uint32)
    tree = {f"f{i}": row.view(np.float32) for i, row in enumerate(patterns)}  # including NaNs with payloads
    tree |= {f"b{i}": row.astype(np.uint8).view(bool) & True for i, row in enumerate(patterns[:, :2] % 2)}
    tree |= {f"i{i}": np.int32(row[0] % 2**31).reshape(()) for i, row in enumerate(patterns)}
    tree |= {f"h{i}": row.astype(np.uint16).view(jnp.bfloat16) for i, row in enumerate(patterns)}
    tree |= {f"n{i}": (row % 16).astype(jnp.int4) for i, row in enumerate(patterns[:1030])}
    tree |= {f"o{i}": row.astype(np.uint8).view(jnp.float8_e4m3fn) for i, row in enumerate(patterns[:40])}
    return {name: jnp.asarray(array) for name, array in tree.items()}


def check_thousands(path, tree):
    restored = pts.restore(path)
    assert_trees_equal(restored, tree)
    for name, leaf in restored.items():
        assert not leaf.committed, name
        assert np.asarray(leaf).tobytes() == np.asarray(tree[name]).tobytes(), name
    return restored


def test_thousands_of_arrays_are_restored_bitwise_and_uncommitted(thousands):
    check_thousands(pts.save(thousands, "model"), thousands)


@pytest.mark.parametrize("setting", ["jax_disable_jit", "jax_debug_nans", "jax_debug_infs"])
def test_restore_works_with_jax_debug_settings(thousands, setting):
    path = pts.save(thousands, "model")
    jax.config.update(setting, True)
    try:
        check_thousands(path, thousands)
    finally:
        jax.config.update(setting, False)


def test_thousands_of_arrays_go_to_the_default_device_under_a_transfer_guard(thousands):
    path = pts.save(thousands, "model")
    device = jax.devices()[2]
    with jax.default_device(device), jax.transfer_guard("disallow"):
        restored = pts.restore(path)
    assert {d for leaf in restored.values() for d in leaf.devices()} == {device}


def test_weak_types_are_restored_under_a_transfer_guard_and_debug_checks():
    bits = np.array([0x7FC00001, 0xFF800000, 0x7F800001], np.uint32).view(np.float32)  # NaNs and an infinity
    weak = jax.jit(lambda scalar, array: jnp.broadcast_to(scalar, array.shape).at[...].set(array))(0.0, bits)
    tree = {"a": weak, "b": jnp.asarray(1.5), "n": jnp.asarray(3), "c": jnp.asarray(1j)}
    assert all(leaf.weak_type for leaf in tree.values())
    path = pts.save(tree, "model")
    with jax.transfer_guard("disallow"), jax.debug_nans(True), jax.debug_infs(True):
        restored = pts.restore(path)
    assert_trees_equal(restored, tree)
    assert np.asarray(restored["a"]).tobytes() == bits.tobytes()


@pytest.mark.parametrize("odd", [4, 7, 60])
def test_jax_uses_the_memory_of_large_arrays_of_odd_sizes_without_a_copy(monkeypatch, odd):
    tree = {f"w{i}": jnp.full((1 << 20) + odd, i, jnp.int8) for i in range(4)}
    path = pts.save(tree, "model")
    places, real = [], filesystem.new_memory

    def noted(nbytes):
        memory = real(nbytes)
        places.append(memory.ctypes.data)
        return memory

    monkeypatch.setattr(filesystem, "new_memory", noted)
    restored = pts.restore(path)
    assert all(leaf.unsafe_buffer_pointer() % 64 == 0 for leaf in restored.values())
    assert {leaf.unsafe_buffer_pointer() // 4096 * 4096 for leaf in restored.values()} <= set(places)
    assert_trees_equal(restored, tree)


def test_under_a_mesh_all_arrays_are_uncommitted_on_one_device(thousands):
    path = pts.save(thousands, "model")
    with jax.set_mesh(jax.make_mesh((8,), ("x",), devices=jax.devices()[:8])):
        restored = pts.restore(path)
    assert not any(leaf.committed for leaf in restored.values())
    assert {len(leaf.sharding.device_set) for leaf in restored.values()} == {1}


def test_a_guard_against_explicit_transfers_is_respected(thousands):
    path = pts.save(thousands, "model")
    with jax.transfer_guard("disallow_explicit"), pytest.raises(Exception, match="Disallowed host-to-device"):
        pts.restore(path)


@pytest.mark.parametrize(("count", "size"), [(10, (1 << 20) - 1), (3300, 4096)])
def test_arrays_that_jax_copies_are_read_in_windows(monkeypatch, peak_memory, count, size):
    window = count * size // 3
    monkeypatch.setattr(leaf_reading, "_WINDOW_NBYTES", window)
    tree = {f"w{i}": jnp.full(size, i % 100, jnp.int8) for i in range(count)}
    path = pts.save(tree, "model")
    restored = pts.restore(path)
    assert peak_memory() < 2.3 * window
    assert_trees_equal(restored, tree)


def test_trees_without_jax_arrays_do_not_initialize_jax_backends():
    program = """
import numpy as np, pytreesaver as pts
from jax._src import xla_bridge
tree = {"w": np.ones(3), "n": 1}
pts.save_async(tree, "model").result()
pts.save_async(tree, "copied", copy=True).result()
assert pts.restore("model")["n"] == 1
assert pts.restore("model", tree, mmap=True)["n"] == 1
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
