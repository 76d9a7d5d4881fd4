"""msgpack: files of Flax are read, and Flax reads those of pytreesaver."""

from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import pytest
from flax.training import checkpoints, train_state
from helpers import message_of
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver.formats import msgpack
from pytreesaver.formats.msgpack import encoding
from pytreesaver.formats.msgpack.encoding import chunk_boundaries
from pytreesaver.testing import FormatConformance, assert_trees_equal, pytrees


class TestMsgpack(FormatConformance):
    format = msgpack


def state():
    params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2, jnp.bfloat16)}}
    return train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))


VALUES = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bf16": jnp.ones(3, jnp.bfloat16),
    "f8": jnp.ones(2, jnp.float8_e4m3fn),
    "complex": 1.5 + 2j,
    "c64": np.array([1j], np.complex64),
    "scalar": np.float32(2.5),
    "int": 7,
    "big": 2**63 + 1,
    "negative": -(2**63),
    "text": "h\u00e9llo",
    "bytes": b"\0x\0",
    "none": None,
    "bool": True,
    "empty": np.zeros((0, 3), np.int8),
    "nested": {"0": np.ones(1), "a/b": np.ones(2)},
    "no": {},
}


# Files of Flax.


def test_a_state_of_flax_is_restored():
    original = state().replace(step=5)
    Path("state.msgpack").write_bytes(flax.serialization.to_bytes(original))
    restored = pts.restore("state.msgpack", state())
    assert_trees_equal(jax.tree.leaves(restored), jax.tree.leaves(state().replace(step=5)))
    tree = pts.restore("state.msgpack")
    assert tree["step"] == 5
    assert tree["params"]["dense"]["bias"].dtype == jnp.bfloat16
    assert [name for name, _ in pts.list_variables("state.msgpack")][:2] == [
        "opt_state/0/count",
        "opt_state/0/mu/dense/bias",
    ]


def test_every_value_of_flax_is_read():
    Path("values").write_bytes(flax.serialization.msgpack_serialize(VALUES))
    expected = {key: np.asarray(value) if isinstance(value, jax.Array) else value for key, value in VALUES.items()}
    assert_trees_equal(pts.restore("values"), expected)
    assert pts.load_variable("values", "f32").tolist() == VALUES["f32"].tolist()
    with pts.load_checkpoint("values") as checkpoint:
        assert checkpoint["f32"][1].tolist() == [3, 4, 5]
    assert np.array_equal(pts.restore("values", mmap=True)["f32"], VALUES["f32"])
    pts.verify("values")


@pytest.mark.parametrize("tree", [{"a": [1, np.ones(2), {"b": None}]}, {"$x": 3}, {"a": {1: np.ones(2)}}], ids=str)
def test_other_trees_of_msgpack_are_read(tree):
    Path("tree").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert_trees_equal(pts.restore("tree"), tree)


@pytest.mark.parametrize("nbytes", [16, 17, 40])
def test_arrays_in_pieces_are_put_together(monkeypatch, nbytes):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", nbytes)
    tree = {"w": np.arange(15, dtype=np.int32).reshape(3, 5), "small": np.ones(1)}
    Path("pieces.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    assert_trees_equal(pts.restore("pieces.msgpack"), tree)
    with pts.load_checkpoint("pieces.msgpack") as checkpoint:
        assert checkpoint["w"][1, 2:].tolist() == [7, 8, 9]
    pts.convert("pieces.msgpack", "native")
    assert_trees_equal(pts.restore("native"), tree)


def test_a_directory_of_flax_is_a_run_directory():
    with flax.config.temp_flip_flag("use_orbax_checkpointing", False):
        for step in (1, 2, 10):
            with pytest.warns(DeprecationWarning, match="Orbax"):
                checkpoints.save_checkpoint("run", {"w": np.full(3, step)}, step, keep=5)
    assert Path("run/checkpoint_10").is_file()
    assert pts.latest_checkpoint("run") == Path("run/checkpoint_10")
    assert pts.restore("run")["w"].tolist() == [10] * 3
    assert [(each.path.name, each.step) for each in pts.list_checkpoints("run")] == [
        (f"checkpoint_{step}", step) for step in (1, 2, 10)
    ]
    pts.convert("run", "native")
    with pts.CheckpointManager("native") as manager:
        assert manager.all_steps() == [1, 2, 10]


# Files for Flax.


def test_flax_reads_what_was_written(tmp_path):
    original = state().replace(step=7)
    path = pts.save(original, tmp_path / "state.msgpack", metadata={"epoch": 3})
    assert path.is_file()
    restored = flax.serialization.from_bytes(state(), path.read_bytes())
    assert_trees_equal(
        jax.tree.map(np.asarray, jax.tree.leaves(restored)), jax.tree.map(np.asarray, jax.tree.leaves(original))
    )
    assert pts.load_checkpoint(path).metadata == {"epoch": 3}


def test_every_value_is_written_as_flax_does(tmp_path):
    path = pts.save(VALUES, tmp_path / "values.msgpack")
    assert_trees_equal(pts.restore(path), VALUES)
    theirs = flax.serialization.msgpack_restore(path.read_bytes())
    expected = flax.serialization.msgpack_restore(flax.serialization.msgpack_serialize(VALUES))
    assert_trees_equal(theirs, expected)


def test_sequences_are_numbered_as_in_flax(tmp_path):
    tree = {"layers": [np.ones(2), (np.zeros(1), None)], "keys": {3: jax.random.key(0)}}
    path = pts.save(tree, tmp_path / "m.msgpack")
    theirs = flax.serialization.msgpack_restore(path.read_bytes())
    assert theirs["keys"].keys() == {"3"}
    assert theirs["layers"].keys() == {"0", "1"}
    assert theirs["layers"]["1"]["1"] is None
    assert_trees_equal(pts.restore(path), tree)


@given(pytrees())
def test_every_tree_comes_back_and_is_msgpack(tree):
    try:
        pts.save(tree, "tree.msgpack", overwrite=True)
    except pts.UnsupportedLeafError:  # a single leaf, or an empty tree
        return
    assert_trees_equal(pts.restore("tree.msgpack"), tree)
    pts.verify("tree.msgpack")
    msgspec.msgpack.decode(Path("tree.msgpack").read_bytes(), ext_hook=lambda code, data: (code, len(data)))


@pytest.mark.parametrize("nbytes", [8, 24, 100])
def test_large_arrays_are_written_in_pieces(monkeypatch, tmp_path, nbytes):
    monkeypatch.setattr(encoding, "MAX_CHUNK_NBYTES", nbytes)
    tree = {"w": np.arange(2 * 3 * 5, dtype=np.int16).reshape(2, 3, 5), "v": jnp.arange(4)}
    path = pts.save(tree, tmp_path / "m.msgpack")
    assert_trees_equal(pts.restore(path), tree)
    theirs = flax.serialization.msgpack_restore(path.read_bytes())
    assert_trees_equal(theirs, {"w": tree["w"], "v": np.arange(4, dtype=np.int32)})


@given(st.lists(st.integers(0, 6), max_size=4), st.integers(1, 8), st.integers(1, 60))
def test_pieces_follow_each_other(shape, itemsize, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "MAX_CHUNK_NBYTES", most)
        boundaries = chunk_boundaries(tuple(shape), itemsize)
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    if boundaries is None:
        assert whole.size * itemsize <= most
        return
    pieces = [
        whole[tuple(slice(a[i], a[i + 1]) for a, i in zip(boundaries, at, strict=True))].reshape(-1)
        for at in np.ndindex(*(len(axis) - 1 for axis in boundaries))
    ]
    assert all(piece.size * itemsize <= most or piece.size == 1 for piece in pieces)
    assert np.concatenate(pieces).tolist() == whole.reshape(-1).tolist()


def test_a_leaf_or_nothing_is_refused(tmp_path):
    for tree in (np.ones(2), {}):
        message = message_of(pts.UnsupportedLeafError, lambda tree=tree: pts.save(tree, tmp_path / "m.msgpack"))
        assert "put it in a dict" in message
