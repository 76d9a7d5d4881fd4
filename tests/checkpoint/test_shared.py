"""One object in two places of a tree."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import message_of, rewrite
from jax.sharding import NamedSharding, PartitionSpec

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


def sharded():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.device_put(jnp.arange(4096.0), NamedSharding(mesh, PartitionSpec("x")))


ARRAYS = {
    "jax": lambda: jnp.arange(1000.0),
    "numpy": lambda: np.arange(1000.0),
    "key": lambda: jax.random.split(jax.random.key(0), 5),
    "sharded": sharded,
    "empty": lambda: np.zeros((0, 3)),
    "large": lambda: np.arange(400_000.0),
}


@pytest.mark.parametrize("save", ["save", "save_async", "cp"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_in_two_places_is_stored_once_and_comes_back_as_one_object(kind, save):
    shared = ARRAYS[kind]()
    tree = {"a": np.ones(3), "embed": shared, "head": {"kernel": shared}, "other": np.array(np.ones(3)), "z": shared}
    if save == "save_async":
        pts.save_async(tree, "model").result()
    else:
        pts.save(tree, "model")
    if save == "cp":
        pts.copy_checkpoint("model", "copy")
        Path("model").rename("original")
        Path("copy").rename("model")
    pts.verify("model")
    restored = pts.restore("model")
    assert_trees_equal(restored, jax.tree.map(lambda leaf: leaf, tree), shardings=False)
    assert restored["embed"] is restored["head"]["kernel"] is restored["z"]
    assert restored["a"] is not restored["other"]
    size = sum(file.stat().st_size for file in Path("model").iterdir())
    pts.save({"a": tree["a"], "embed": shared, "other": tree["other"]}, "once")
    assert size < 1.5 * sum(file.stat().st_size for file in Path("once").iterdir()) + 1000
    for name in ("embed", "head/kernel", "z"):
        assert np.array_equal(pts.load_variable("model", name), pts.load_variable("model", "embed"))


def test_with_a_template_or_a_renaming_they_are_separate():
    shared = np.arange(3.0)
    pts.save({"a": shared, "b": shared}, "model")
    like = {"a": np.zeros(3), "b": np.zeros(3)}
    for mmap in (False, True):
        restored = pts.restore("model", like, mmap=mmap)
        restored["a"][0] = 5
        assert restored["b"].tolist() == [0, 1, 2]
    renamed = pts.restore("model", rename={"c": "a", "d": "a", "b": "b"})
    renamed["c"][0] = 5
    assert renamed["d"].tolist() == [0, 1, 2]
    pts.save({"a": shared, "b": shared, "c": shared}, "three")
    later = pts.restore("three", {"b": np.zeros(3), "c": np.zeros(3)}, unexpected="ignore")
    later["b"][0] = 5
    assert later["c"].tolist() == [0, 1, 2]
    only = pts.restore("model", only="b")
    assert only["b"].tolist() == [0, 1, 2]
    pts.copy_checkpoint("model", "part", only="b")
    assert pts.restore("part")["b"].tolist() == [0, 1, 2]


def test_equal_arrays_and_python_values_are_not_shared():
    pts.save({"a": np.ones(3), "b": np.ones(3), "c": 1.5, "d": 1.5, "e": "x", "f": "x"}, "model")
    assert "same_as" not in Path("model/index.json").read_text()


def test_a_reader_that_ignores_same_as_would_find_every_variable():
    shared = np.arange(3.0)
    pts.save({"a": shared, "b": shared, "c": np.ones(2)}, "model")
    with pts.load_checkpoint("model") as checkpoint:
        assert [variable.read().tolist() for variable in checkpoint.values()] == [[0, 1, 2], [0, 1, 2], [1, 1]]


HOSTILE = {
    "no position": {"x": 0},
    "later one": {"0": 1},
    "itself": {"1": 1},
    "out of range": {"9": 0},
    "another shape": {"2": 0},
    "another place": {"3": 0},
    "negative": {"1": -1},
    "chain": {"1": 0, "4": 1},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_same_as_is_rejected(case):
    shared = np.arange(3.0)
    path = pts.save({"a": shared, "b": shared, "c": np.ones(2), "d": np.zeros(3), "e": shared}, "model")
    rewrite(path, lambda index: index.update(same_as={"1": 0, "4": 0} | HOSTILE[case]))
    with pytest.raises(pts.CorruptCheckpointError, match=r"same_as|the same array as"):
        pts.restore(path)


def test_chunks_that_overlap_without_same_as_are_rejected():
    shared = np.arange(3.0)
    path = pts.save({"a": shared, "b": shared}, "model")
    rewrite(path, lambda index: index.pop("same_as"))
    with pytest.raises(pts.CorruptCheckpointError, match="expected no overlap"):
        pts.restore(path)


def test_a_module_of_nnx_in_two_places_is_refused():
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    class Model(nnx.Module):
        def __init__(self):
            self.first = linear
            self.second = linear

    model = Model()
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save(model, "model"))
    assert "second: the same Linear object as first, which would be restored as two; save nnx.state(model)" in message
    assert not Path("model").exists()
    pts.save(nnx.state(model), "state")
    assert pts.list_variables("state") == [("first/bias/value", (2,)), ("first/kernel/value", (2, 2))]


def test_a_variable_of_nnx_in_two_places_is_refused():
    tied = nnx.Param(jnp.ones(3))
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save({"a": tied, "b": tied}, "model"))
    assert "b: the same Param object as a," in message


class Tied(nnx.Module):
    def __init__(self, tie):
        self.one = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.other = self.one if tie else nnx.Linear(2, 2, rngs=nnx.Rngs(1))


def test_a_template_with_one_module_in_two_places_is_refused():
    pts.save(Tied(False), "model")
    pts.save(nnx.state(Tied(True)), "state")
    for path, options in [("model", {}), ("state", {"missing": "keep"})]:
        with pytest.raises(pts.UnsupportedLeafError, match=r"other: the same object as one"):
            pts.restore(path, Tied(True), **options)
    model = Tied(True)
    nnx.update(model, pts.restore("state", nnx.state(model)))
    assert model.one is model.other


def test_states_that_share_their_variables_are_saved_and_restored_apart():
    state = nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    pts.save({"params": state, "ema": state}, "model")
    restored = pts.restore("model", {"params": state, "ema": state})
    assert_trees_equal(restored, {"params": state, "ema": state})
