"""Targets of restored arrays: any sharding, NumPy, or mapped memory; and the peak memory of a restore."""

import dataclasses
import gc
import math
import os
import shutil
import subprocess
import sys
import textwrap
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import message_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import pytreesaver as pts
from pytreesaver._checkpoint.restoring import reading
from pytreesaver._io import filesystem
from pytreesaver.formats.native import reader
from pytreesaver.testing import assert_trees_equal, pytrees, sharded_arrays, shardings


def spread(*spec, over=(8,)):
    devices = np.array(jax.devices()[: math.prod(over)]).reshape(over)
    return NamedSharding(jax.sharding.Mesh(devices, ("x", "y")[: len(over)]), PartitionSpec(*spec))


def save_anew(tree, path="checkpoint"):
    shutil.rmtree(path, ignore_errors=True)
    return pts.save(tree, path, durable=False)


@given(sharded_arrays(), st.data())
@settings(max_examples=150)
def test_resharding_keeps_the_values(array, data):
    wanted = data.draw(shardings(array.shape))
    expected = jax.device_put(np.asarray(array), wanted)  # via NumPy: JAX reshards some empty arrays wrongly
    options = {"verify": data.draw(st.booleans()), "mmap": data.draw(st.booleans())}
    path = save_anew({"w": array, "k": np.arange(3)})
    template = {"w": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=wanted), "k": np.zeros(3, int)}
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # as if the array were large, with small blocks
            patch.setattr(reading, "_SMALL_NBYTES", 0)
            patch.setattr(reader, "SLICE_NBYTES", 8)
            patch.setattr(reader, "_GAP_NBYTES", 8)
        by_template = pts.restore(path, template, **options)
        by_argument = pts.restore(path, sharding=wanted, **options)
        by_tree = pts.restore(path, template, sharding={"w": wanted, "k": None}, **options)
        back = pts.restore(save_anew(by_tree, "again"), {"w": array, "k": np.zeros(3, int)}, **options)
    for restored in (by_template, by_argument, by_tree):
        assert_trees_equal(restored["w"], expected)
        assert restored["w"].sharding == wanted
    assert_trees_equal(back["w"], array)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("spec", [("x",), (None, "x"), ()], ids=str)
@pytest.mark.parametrize("saved", [("x",), (None, "x"), None], ids=str)
def test_large_arrays_are_resharded_to_any_number_of_devices_and_back(saved, spec, count):
    values = np.arange(1024 * 1032, dtype=np.float32).reshape(1024, 1032)
    array = jnp.asarray(values) if saved is None else jax.device_put(values, spread(*saved))
    path = pts.save({"w": array}, "model")
    wanted = spread(*spec, over=(count,))
    for mmap in (False, True):
        restored = pts.restore(path, sharding=wanted, mmap=mmap)["w"]
        assert restored.sharding == wanted
        assert np.asarray(restored).tobytes() == values.tobytes()
    assert_trees_equal(pts.restore(pts.save({"w": restored}, "back"), {"w": array})["w"], array)


def test_a_sharded_template_reads_the_variable_once(monkeypatch):
    pts.save({"w": np.zeros((1024, 2048), np.float32), "other": np.zeros(1 << 20)}, "model")
    nbytes, real = [], filesystem.read_into
    monkeypatch.setattr(filesystem, "read_into", lambda d, b, o: nbytes.append(b.nbytes) or real(d, b, o))
    for spec in (("x",), (None, "x"), (("x",), None), ()):
        like = {"w": jax.ShapeDtypeStruct((1024, 2048), jnp.float32, sharding=spread(*spec))}
        nbytes.clear()
        pts.restore("model", like, only="w")
        assert 8 << 20 <= sum(nbytes) <= (8 << 20) + 20_000  # the rest is the header and the index


def test_reading_a_box_reads_only_the_blocks_that_overlap_it(monkeypatch):
    from pytreesaver.formats.registry import open_reader

    pts.save({"w": np.arange(4096 * 2048, dtype=np.float32).reshape(4096, 2048)}, "model")  # 32 MiB
    nbytes, real = [], filesystem.read_into
    reader = open_reader("model")
    monkeypatch.setattr(filesystem, "read_into", lambda d, b, o: nbytes.append(b.nbytes) or real(d, b, o))
    part = np.empty((512, 2048), np.float32)
    reader.read_boxes(0, [((512, 1024), (0, 2048))], [part], verify=True)  # the shard of one of eight devices: 4 MiB
    assert sum(nbytes) <= (4 << 20) + 20_000
    assert part[0, 0] == 512 * 2048
    reader.close()


def test_one_sharding_or_device_for_all_jax_leaves():
    tree = {"w": jnp.ones((8, 4)), "key": jax.random.split(jax.random.key(0), 8), "n": np.ones(3), "i": 3}
    path = pts.save(tree, "model")
    device = jax.devices()[3]
    for sharding in (device, SingleDeviceSharding(device)):
        restored = pts.restore(path, sharding=sharding)
        assert restored["w"].sharding == restored["key"].sharding == SingleDeviceSharding(device)
        assert_trees_equal(restored, tree, shardings=False)
    restored = pts.restore(path, tree, sharding=spread("x"))
    assert restored["w"].sharding == spread("x")
    assert restored["key"].sharding.is_equivalent_to(spread("x"), 1)
    assert_trees_equal(restored, tree, shardings=False)


def test_a_prefix_tree_and_a_function_of_shardings():
    tree = {"params": {"w": jnp.ones((8, 8)), "b": jnp.zeros(8)}, "opt": (jnp.zeros((8, 8)), jnp.int32(0)), "n": 1}
    path = pts.save(tree, "model")
    rows, columns = spread("x"), spread(None, "x")
    prefix = {"params": {"w": columns, "b": rows}, "opt": (rows, None), "n": None}
    called = []

    def by_name(name, shape):
        called.append((name, shape))
        return rows if shape and name.startswith("params") else None

    for like in (None, tree):
        restored = pts.restore(path, like, sharding=prefix)
        assert restored["params"]["w"].sharding == columns
        assert restored["params"]["b"].sharding == restored["opt"][0].sharding == rows
        assert len(restored["opt"][1].sharding.device_set) == 1
        assert_trees_equal(restored, tree, shardings=False)
        called.clear()
        restored = pts.restore(path, like, sharding=by_name, only=["params", "opt/1"])
        assert called == [("opt/1", ()), ("params/b", (8,)), ("params/w", (8, 8))]
        assert restored["params"]["w"].sharding == rows
    assert pts.restore(path, sharding={"params": rows, "opt": None, "n": None})["params"]["w"].sharding == rows


def test_invalid_shardings():
    tree = {"params": {"w": jnp.ones((6, 8)), "b": jnp.zeros(8)}, "step": jnp.int32(0)}
    path = pts.save(tree, "model")
    rows = spread("x")
    for like in (None, tree):
        message = message_of(pts.MismatchError, lambda like=like: pts.restore(path, like, sharding=rows))
        assert message.startswith(
            "2 variables of model do not match:\nwith a different shape or dtype (2):\n  params/w: "
        )
        assert "step: expected int32[] with NamedSharding" in message
        message = message_of(
            pts.MismatchError, lambda like=like: pts.restore(path, like, sharding={"parms": {"b": rows}, "step": None})
        )
        assert message == (
            "sharding is not a prefix of the tree:\n"
            "  params/b: expected a sharding or None, found no entry\n"
            "  params/w: expected a sharding or None, found no entry\n"
            "  parms/b: no leaf of the tree has this name or prefix; did you mean 'params/b' or 'params/w'?"
        )
    for invalid in (PartitionSpec("x"), {"params": "x", "step": None}, lambda name, shape: 3):
        with pytest.raises(TypeError, match=r"expected a jax\.sharding\.Sharding, a device or None, found"):
            pts.restore(path, sharding=invalid)
    with pytest.raises(TypeError, match=r"NamedSharding\(mesh, spec\) makes one"):
        pts.restore(path, sharding={"params": PartitionSpec("x"), "step": None})
    with pytest.raises(ValueError, match="with as_numpy=True there are none"):
        pts.restore(path, sharding=rows, as_numpy=True)


def test_restore_does_not_need_the_mesh_of_the_save():
    """A checkpoint of arrays on eight devices is restored on one device without warnings."""
    pts.save({"w": jax.device_put(jnp.arange(64.0).reshape(8, 8), spread("x", "y", over=(4, 2)))}, "model")
    program = """
        import jax, pytreesaver as pts
        assert len(jax.devices()) == 1
        for options in ({}, {"mmap": True}, {"like": {"w": jax.numpy.zeros((8, 8))}}):
            assert pts.restore("model", **options)["w"].sum() == 2016
    """
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_as_numpy_uses_no_device():
    tree = {"w": jnp.ones((4, 4)), "key": jax.random.key(1), "b": jnp.ones(3, jnp.bfloat16), "n": 1, "x": np.ones(2)}
    pts.save(tree, "model")
    program = """
        import numpy as np, pytreesaver as pts
        template = {"w": np.zeros((4, 4), np.float32), "n": 0}
        for options in ({}, {"mmap": True}, {"like": template, "only": ["w", "n"]}, {"cast": "float16"}):
            restored = pts.restore("model", as_numpy=True, **options)
            assert (restored["w"] == 1).all() and isinstance(restored["w"], np.ndarray)
    """
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}  # initializing the devices would raise
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# Memory-mapped files.


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


# Memory.


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


@given(sharded_arrays(), st.data())
@settings(max_examples=75)
def test_reshaping_and_resharding_keep_the_values(array, data):
    shape = data.draw(st.sampled_from([array.shape, (array.size,), (1, array.size, 1), array.shape[::-1]]))
    wanted = data.draw(shardings(shape))
    path = save_anew({"w": array})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_SMALL_NBYTES", 0)
        patch.setattr(reader, "SLICE_NBYTES", 8)
        patch.setattr(reader, "_GAP_NBYTES", 8)
        patch.setattr(reader, "_RESHAPED_NBYTES", data.draw(st.sampled_from([1, 24, 1 << 20])))
        like = {"w": jax.ShapeDtypeStruct(shape, array.dtype, sharding=wanted)}
        restored = pts.restore(path, like, reshape=True, mmap=data.draw(st.booleans()))["w"]
    assert restored.sharding == wanted
    assert np.asarray(restored).tobytes() == np.asarray(array).tobytes()


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


def test_a_tree_of_shardings_may_be_callable():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Module:
        w: object

        def __call__(self, x):
            return x

    module = Module(jnp.ones(8))
    path = pts.save(module, "model")
    restored = pts.restore(path, module, sharding=Module(spread("x")))
    assert restored.w.sharding == spread("x")
    with pytest.raises(TypeError, match=r"found Mesh.*NamedSharding\(mesh, spec\) makes one"):
        pts.restore(path, module, sharding=spread("x").mesh)


def test_a_tree_of_shardings_may_have_entries_where_the_tree_has_no_leaves():
    device = jax.devices()[3]
    tree = {"w": jnp.ones(2), "bias": None, "opt": (jnp.zeros(2), ())}
    path = pts.save(tree, "model")
    for sharding in (
        jax.tree.map(lambda leaf: SingleDeviceSharding(device), tree),
        {"w": device, "bias": None, "opt": device},
        {"w": device, "bias": device, "opt": (device, device)},
    ):
        for like in (None, tree):
            restored = pts.restore(path, like, sharding=sharding)
            assert restored["w"].devices() == restored["opt"][0].devices() == {device}
            assert restored["bias"] is None
            assert restored["opt"][1] == ()
