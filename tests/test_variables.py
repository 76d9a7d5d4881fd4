"""Looking into a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pytreesaver as pts
from pytreesaver.testing import numpy_arrays

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


def test_values_come_as_numpy_arrays(checkpoint):
    np.testing.assert_array_equal(checkpoint["embed"].read(), np.arange(12.0).reshape(6, 2))
    np.testing.assert_array_equal(checkpoint["key"].read(), jax.random.key_data(TREE["key"]))
    for name, value in (("step", 5), ("big", 2**80), ("name", "run\0"), ("blob", b"\0\1")):
        array = checkpoint[name].read()
        assert array.shape == ()
        assert array[()] == value
        assert checkpoint[name][()] == value
    assert checkpoint["half"].read().dtype == jnp.bfloat16
    assert checkpoint["half"].dtype == jnp.bfloat16
    assert checkpoint["swapped"].read().dtype == np.dtype(">i2")
    assert checkpoint["swapped"][1:].tolist() == [1, 2]
    np.testing.assert_array_equal(np.asarray(checkpoint["embed"]), TREE["embed"])
    assert np.asarray(checkpoint["embed"], np.float64).dtype == np.float64
    assert jnp.sum(jnp.asarray(checkpoint["embed"])) == 66


@given(st.data(), numpy_arrays())
def test_indexing_is_numpys(data, array):
    pts.save({"x": array}, "model", overwrite=True, durable=False)
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
        ((..., ...), "a single ..."),
        (True, "integers, slices and ..."),
        ([0, 1], "read\\(\\) gives an array"),
        (None, "integers, slices"),
        ("a", "integers, slices"),
    ],
)
def test_other_indices_are_refused(checkpoint, index, message):
    with pytest.raises(IndexError, match=message):
        checkpoint["embed"][index]


def test_a_slice_reads_little_more_than_it_asks_for(monkeypatch):
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


def test_a_missing_variable_is_named_with_near_names(checkpoint):
    with pytest.raises(pts.VariableNotFoundError) as caught:
        checkpoint["embd"]
    assert str(caught.value) == "model has no variable 'embd'; did you mean 'embed'?"
    assert isinstance(caught.value, KeyError)
    with pytest.raises(pts.VariableNotFoundError, match="no variable 'zzz'"):
        pts.load_variable("model", "zzz")


def test_a_closed_checkpoint_says_so():
    pts.save(TREE, "model")
    with pts.load_checkpoint("model") as checkpoint:
        variable = checkpoint["embed"]
    with pytest.raises(ValueError, match="was closed"):
        variable.read()


def test_lists_are_sorted_by_name():
    pts.save({"b": {"y": np.zeros((2, 3)), "x": jax.random.split(jax.random.key(0), 4)}, "a": 1}, "model")
    assert pts.list_variables("model") == [("a", ()), ("b/x", (4, 2)), ("b/y", (2, 3))]
    assert pts.load_variable("model", "b/y").shape == (2, 3)


def test_a_single_leaf_has_the_name_dot():
    pts.save(jnp.arange(3), "model")
    assert pts.list_variables("model") == [(".", (3,))]
    assert pts.restore("model").tolist() == [0, 1, 2]


def test_verify_reads_in_bounded_memory(monkeypatch):
    from pytreesaver._io import filesystem

    pts.save({f"w{i}": np.full(8 << 20, i, np.uint8) for i in range(24)}, "model", durable=False)
    asked = []
    real = filesystem.new_memory
    monkeypatch.setattr(filesystem, "new_memory", lambda nbytes: asked.append(nbytes) or real(nbytes))
    import tracemalloc

    tracemalloc.start()
    pts.verify("model")
    assert sum(asked) >= 24 * (8 << 20)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
