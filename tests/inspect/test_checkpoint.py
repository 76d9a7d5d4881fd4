"""Tests of `Checkpoint` and `Variable`: reading, indexing and verification."""

import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pytreesaver as pts
from pytreesaver.testing import numpy_arrays, pytrees

TREE = {
    "embed": jnp.arange(12.0).reshape(6, 2),
    "key": jax.random.key(3),
    "step": 5,
    "big": 2**80,
    "name": "run\0",
    "blob": b"\0\1",
    "half": jnp.ones(3, jnp.bfloat16),
    "swapped": np.arange(3, dtype=">i2"),
}


@pytest.fixture
def checkpoint():
    pts.save(TREE, "model", metadata={"epoch": 3})
    with pts.load_checkpoint("model") as opened:
        yield opened


def test_a_checkpoint_is_a_mapping_of_variables(checkpoint):
    assert list(checkpoint) == sorted(TREE)
    assert len(checkpoint) == 8
    assert "embed" in checkpoint
    assert "nothing" not in checkpoint
    assert 5 not in checkpoint
    assert checkpoint.metadata == {"epoch": 3}
    assert repr(checkpoint) == "<Checkpoint model: 8 variables>"
    embed = checkpoint["embed"]
    assert (embed.name, embed.shape, embed.dtype, embed.nbytes, embed.kind) == ("embed", (6, 2), np.float32, 48, "jax")
    assert (embed.ndim, embed.size, len(embed)) == (2, 12, 6)
    assert repr(embed) == "<Variable embed: float32[6,2], 48 bytes>"
    assert repr(checkpoint["key"]) == "<Variable key: key<threefry2x32>[], 8 bytes>"
    with pytest.raises(TypeError, match="step is a scalar"):
        len(checkpoint["step"])


def test_values_are_read_as_numpy_arrays(checkpoint):
    np.testing.assert_array_equal(checkpoint["embed"].read(), np.arange(12.0).reshape(6, 2))
    np.testing.assert_array_equal(checkpoint["key"].read(), jax.random.key_data(TREE["key"]))
    for name, value in (("step", 5), ("big", 2**80), ("name", "run\0"), ("blob", b"\0\1")):
        array = checkpoint[name].read()
        assert array.shape == ()
        assert array[()] == value
        for part in (checkpoint[name][()], checkpoint[name][...]):
            assert (part.dtype, part.shape, part[()]) == (np.dtype(int if name == "step" else object), (), value)
    assert checkpoint["half"].read().dtype == jnp.bfloat16
    assert checkpoint["half"].dtype == jnp.bfloat16
    assert checkpoint["swapped"].read().dtype == np.dtype(">i2")
    assert checkpoint["swapped"][1:].tolist() == [1, 2]
    np.testing.assert_array_equal(np.asarray(checkpoint["embed"]), TREE["embed"])
    assert np.asarray(checkpoint["embed"], np.float64).dtype == np.float64
    assert jnp.sum(jnp.asarray(checkpoint["embed"])) == 66


@given(st.data(), numpy_arrays())
def test_indexing_matches_numpy(data, array):
    shutil.rmtree("model", ignore_errors=True)
    pts.save({"x": array}, "model", durable=False)
    with pts.load_checkpoint("model") as checkpoint:
        index = data.draw(hnp.basic_indices(array.shape, allow_newaxis=False))
        expected = np.asarray(array[index]).astype(array.dtype)
        found = checkpoint["x"][index]
        assert (found.shape, found.dtype, found.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (6, "index 6 is out of bounds for axis 0 of length 6"),
        (-7, "out of bounds"),
        ((0, 0, 0), "at most 2 indices"),
        ((..., ...), "at most one ..."),
        (True, "integers, slices and ..."),
        ([0, 1], "read\\(\\) returns an array"),
        (None, "integers, slices"),
        ("a", "integers, slices"),
        (np.array([0, 1]), "integers, slices"),
        (np.array([True]), "integers, slices"),
    ],
)
def test_invalid_indices_are_rejected(checkpoint, index, message):
    with pytest.raises(IndexError, match=message):
        checkpoint["embed"][index]


def test_a_slice_reads_little_more_than_its_own_bytes(monkeypatch):
    from pytreesaver._io import filesystem

    table = np.arange(64 << 20, dtype=np.uint8).reshape(1 << 16, 1 << 10)
    pts.save({"table": table, "wide": table.reshape(4, -1)}, "model", durable=False)
    with pts.load_checkpoint("model") as checkpoint:
        variables = {name: checkpoint[name] for name in checkpoint}
        variables["table"][0]  # opens the file
        count = 0
        real = filesystem.read_into

        def counted(descriptor, buffer, offset):
            nonlocal count
            count += buffer.nbytes
            return real(descriptor, buffer, offset)

        monkeypatch.setattr(filesystem, "read_into", counted)
        np.testing.assert_array_equal(variables["table"][1000:1010], table[1000:1010])
        assert count <= 2 << 20
        count = 0
        np.testing.assert_array_equal(variables["wide"][:, 5:9], table.reshape(4, -1)[:, 5:9])
        assert count <= 4 << 20


def test_a_missing_variable_error_suggests_similar_names(checkpoint):
    with pytest.raises(pts.VariableNotFoundError) as caught:
        checkpoint["embd"]
    assert str(caught.value) == "model has no variable 'embd'; did you mean 'embed'?"
    assert isinstance(caught.value, KeyError)
    with pytest.raises(pts.VariableNotFoundError, match="no variable 'zzz'"):
        pts.load_variable("model", "zzz")


def test_reading_from_a_closed_checkpoint_raises():
    pts.save(TREE, "model")
    with pts.load_checkpoint("model") as checkpoint:
        variable = checkpoint["embed"]
    with pytest.raises(ValueError, match="was closed"):
        variable.read()


def test_data_skipped_by_long_steps_is_not_read(monkeypatch):
    from pytreesaver._io import filesystem

    table = np.arange(32 << 20, dtype=np.uint8).reshape(64, 1 << 10, 512)
    pts.save({"table": table}, "model", durable=False)
    real, count = filesystem.read_into, []
    with pts.load_checkpoint("model") as checkpoint:
        checkpoint["table"][0, 0, 0]
        monkeypatch.setattr(filesystem, "read_into", lambda d, b, o: count.append(b.nbytes) or real(d, b, o))
        for index in (np.s_[::63], np.s_[::-32, 5], np.s_[3::20, ::7, 1:3], np.s_[63:0:-62]):
            count.clear()
            np.testing.assert_array_equal(checkpoint["table"][index], table[index])
            assert sum(count) <= 5 << 20


def test_an_open_checkpoint_cannot_be_copied(checkpoint):
    import copy
    import pickle

    for thing in (checkpoint, checkpoint["embed"]):
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot pickle or copy"):
                attempt(thing)


def test_list_variables_is_sorted_by_name():
    pts.save({"b": {"y": np.zeros((2, 3)), "x": jax.random.split(jax.random.key(0), 4)}, "a": 1}, "model")
    assert pts.list_variables("model") == [("a", ()), ("b/x", (4, 2)), ("b/y", (2, 3))]
    assert pts.load_variable("model", "b/y").shape == (2, 3)


def test_a_single_leaf_has_the_name_dot():
    pts.save(jnp.arange(3), "model")
    assert pts.list_variables("model") == [(".", (3,))]
    assert pts.restore("model").tolist() == [0, 1, 2]


def test_verify_reads_in_bounded_memory(peak_memory):
    pts.save({"huge": np.zeros(300 << 20, np.uint8), "more": np.zeros(80 << 20, np.uint8)}, "model", durable=False)
    pts.verify("model")
    assert 32 << 20 <= peak_memory() <= 80 << 20


def test_restoring_shards_needs_little_memory_above_the_result(peak_memory):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    array = jax.device_put(jnp.zeros((1024, 64 << 10), jnp.float32), sharding)  # 256 MiB
    pts.save({"sharded": array}, "model", durable=False)
    restored = pts.restore("model", as_numpy=True)
    assert restored["sharded"].shape == array.shape
    assert peak_memory() <= (256 + 160) << 20


def test_an_unclosed_checkpoint_is_closed_by_garbage_collection():
    import gc
    import os

    pts.save(TREE, "model")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        pts.load_checkpoint("model")["embed"][1:2]
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_few_values_of_a_large_variable_do_not_keep_it_in_memory(peak_memory):
    pts.save({"flat": np.arange(32 << 20, dtype=np.uint8)}, "model", durable=False)
    with pts.load_checkpoint("model") as checkpoint:
        few = checkpoint["flat"][:: 1 << 20]
        assert few.tolist() == np.arange(32 << 20, dtype=np.uint8)[:: 1 << 20].tolist()
        assert few.base is None
        assert peak_memory() <= 4 << 20
        assert checkpoint["flat"][:].nbytes == 32 << 20
        assert checkpoint["flat"][5:5].tolist() == []


def test_membership_tests_do_not_compute_suggestions(monkeypatch, checkpoint):
    from pytreesaver._inspect import checkpoint as module

    monkeypatch.setattr(module, "did_you_mean", lambda *args: pytest.fail("looked for similar names"))
    assert "emb" not in checkpoint
    assert checkpoint.get("emb") is None
    assert checkpoint.get("embed").shape == (6, 2)


@given(pytrees())
def test_the_type_tree_contains_every_variable(tree):
    with pts.load_checkpoint(pts.save(tree, "typed", overwrite=True)) as checkpoint:
        root = checkpoint.type_tree()
        types = Counter(variable.type for variable in checkpoint.values())

    def nodes(node):
        yield node
        for child in node.children:
            yield from nodes(child)

    assert types - Counter(node.type for node in nodes(root) if not node.children) == Counter()
    assert str(root).count("\n") + 1 >= len(list(nodes(root)))


def test_the_type_tree_names_container_classes():
    state = optax.adam(1e-3).init({"w": np.zeros((2, 3), np.float32)})
    with pts.load_checkpoint(pts.save({"opt": state, "none": None, "list": [1, "a"]}, "typed")) as checkpoint:
        lines = str(checkpoint.type_tree()).split("\n")
    assert lines[0] == "dict"
    assert "├─ none: None" in lines
    assert "   ├─ 0: int" in lines
    assert any("0: optax" in line and line.endswith("ScaleByAdamState") for line in lines)
    assert any(line.endswith("w: float32[2,3]") for line in lines)
