"""Targets of restored arrays: any sharding or device, and NumPy."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint.saving import save_anew, spread
from helpers import message_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec, SingleDeviceSharding

import pytreesaver as pts
from pytreesaver._checkpoint.restoring import reading
from pytreesaver._io import filesystem
from pytreesaver.formats.indexed import reader
from pytreesaver.testing import assert_trees_equal, sharded_arrays, shardings


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


def test_a_sharding_makes_jax_arrays_of_a_checkpoint_that_knows_none():
    arrays = {
        "w": np.arange(16.0, dtype=np.float32).reshape(8, 2),
        "big": np.arange(8, dtype=np.dtype(">i4")),
        "low": np.ones(8, ml_dtypes.bfloat16),
        "flags": np.ones(8, np.bool_),
        "dates": np.array(["2026-01-01"], "datetime64[D]"),
        "step": 3,
    }
    path = pts.save(arrays, "model")
    restored = pts.restore(path, sharding=lambda name, shape: None if name == "flags" else spread("x"))
    assert all(restored[name].sharding == spread("x") for name in ("w", "big", "low"))
    assert restored["big"].tolist() == list(range(8))
    assert type(restored["flags"]) is type(restored["dates"]) is np.ndarray
    assert restored["step"] == 3
    path = pts.save({"w": jnp.ones(8), "n": np.ones(8)}, "mixed")
    assert type(pts.restore(path, sharding=spread("x"))["n"]) is np.ndarray
    path = pts.save({"w": np.ones(8)}, "doubles")
    with pytest.raises(pts.MismatchError, match="float64"):
        pts.restore(path, sharding=spread("x"))
    assert pts.restore(path, sharding=spread("x"), cast=True)["w"].dtype == np.float32
