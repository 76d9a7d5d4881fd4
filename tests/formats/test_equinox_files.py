"""Files of `equinox.tree_serialise_leaves` are restored into templates, and differences are named."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import message_of

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


class Model(eqx.Module):
    mlp: eqx.nn.MLP
    scale: jax.Array
    rate: float
    steps: int
    table: np.ndarray

    def __init__(self, key, width=4):
        self.mlp = eqx.nn.MLP(2, 3, width, 2, key=key)
        self.scale = jnp.ones(3, jnp.bfloat16)
        self.rate, self.steps = 0.5, 7
        self.table = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))


def model(seed, **options):
    return Model(jax.random.key(seed), **options)


def arrays_of(tree):
    return jax.tree.map(np.asarray, jax.tree.leaves(eqx.filter(tree, eqx.is_array_like)))


def test_a_model_is_restored_into_a_template():
    saved = model(0)
    eqx.tree_serialise_leaves("model.eqx", saved)
    restored = pts.restore("model.eqx", model(1))
    theirs = eqx.tree_deserialise_leaves("model.eqx", model(1))
    assert_trees_equal(arrays_of(restored), arrays_of(theirs))
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    assert (restored.rate, restored.steps) == (0.5, 7)
    assert_trees_equal(
        arrays_of(pts.restore("model.eqx", eqx.filter_eval_shape(lambda: model(1)), as_numpy=True)), arrays_of(saved)
    )


def test_without_a_template_it_is_a_list_of_arrays():
    saved = model(0)
    eqx.tree_serialise_leaves("model.eqx", saved)
    found = pts.restore("model.eqx")
    assert [each.shape for each in found] == [each.shape for each in arrays_of(saved)]
    assert [name for name, _ in pts.list_variables("model.eqx")] == sorted(map(str, range(len(found))))
    pts.convert("model.eqx", "native")
    assert_trees_equal(pts.restore("native"), found)
    pts.verify("model.eqx")


def test_differences_are_named():
    eqx.tree_serialise_leaves("model.eqx", model(0))
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore("model.eqx", model(0, width=5))
    assert caught.value.shape["mlp/layers/0/weight"] == ((5, 2), (4, 2))
    assert not caught.value.missing
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore("model.eqx", [model(0), np.ones(2)])
    assert list(caught.value.missing) == ["1"]
    with pytest.raises(pts.MismatchError, match="array 10 of 10") as caught:
        pts.restore("model.eqx", eqx.tree_at(lambda tree: tree.table, model(0), None))
    assert list(caught.value.unexpected) == ["array 10 of 10"]


def test_hyperparameters_in_the_first_line_are_the_metadata():
    with Path("model.eqx").open("wb") as file:
        file.write((json.dumps({"width": 4}) + "\n").encode())
        eqx.tree_serialise_leaves(file, model(0))
    assert pts.load_checkpoint("model.eqx").metadata == {"width": 4}
    assert_trees_equal(arrays_of(pts.restore("model.eqx", model(1))), arrays_of(model(0)))


def test_other_files_of_numpy_are_none_of_equinox():
    np.save("one.npy", np.ones(2))
    message = message_of(pts.CheckpointNotFoundError, lambda: pts.restore("one.npy"))
    assert "numpy.load" in message
    Path("one.eqx").write_bytes(Path("one.npy").read_bytes())
    assert_trees_equal(pts.restore("one.eqx", [np.zeros(2)]), [np.ones(2)])


def test_they_are_not_written():
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save({"w": np.ones(2)}, "m", format="equinox"))
    assert "files of Equinox are only read" in message
    assert not Path("m").exists()
    with pytest.raises(ValueError, match=r"\.eqx"):
        pts.save({"w": np.ones(2)}, "m.eqx")


def test_damaged_files_are_refused():
    eqx.tree_serialise_leaves("model.eqx", model(0))
    content = Path("model.eqx").read_bytes()
    for length in range(0, len(content), 7):
        Path("model.eqx").write_bytes(content[:length])
        with pytest.raises(pts.CheckpointError, match=r"model\.eqx"):
            pts.restore("model.eqx", model(1))
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    Path("model.eqx").write_bytes(Path("objects.npy").read_bytes())
    message = message_of(pts.CorruptCheckpointError, lambda: pts.restore("model.eqx"))
    assert "a pickle, which could run any code" in message


def test_leaves_that_equinox_does_not_save_stay_as_they_are():
    class Other(eqx.Module):
        activation: str
        function: dict
        weight: jax.Array

    original = Other("gelu", {"f": jax.nn.relu, "dtype": np.dtype("f4")}, jnp.ones(3))
    eqx.tree_serialise_leaves("other.eqx", original)
    fresh = Other("relu", {"f": jax.nn.gelu, "dtype": np.dtype("f2")}, jnp.zeros(3))
    restored = pts.restore("other.eqx", fresh)
    assert restored.weight.tolist() == [1, 1, 1]
    assert (restored.activation, restored.function) == ("relu", fresh.function)
    norm = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="ema")
    eqx.tree_serialise_leaves("norm.eqx", norm)
    assert_trees_equal(arrays_of(pts.restore("norm.eqx", norm)), arrays_of(norm))


def test_warm_starts_and_renames_know_the_order():
    eqx.tree_serialise_leaves("model.eqx", model(0))
    expected = arrays_of(model(0))
    for restored in (
        pts.warm_start(model(1), "model.eqx"),
        pts.init_from_checkpoint(model(1), "model.eqx", {"/": "/"}),
        pts.restore("model.eqx", model(1), rename={"scale": "scale"}),
    ):
        assert_trees_equal(arrays_of(restored), expected)
    swapped = pts.restore("model.eqx", {"w": jnp.zeros((4, 2))}, rename={"w": "0"}, unexpected="ignore")
    assert np.array_equal(swapped["w"], expected[0])


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


ONE = header(b"{'descr':'<f4','fortran_order':False,'shape':(1,)}\n")
HOSTILE = {
    "unfinished": header(b"((("),
    "bools": header(b"{'descr':'<f4','fortran_order':False,'shape':(True,)}\n") + b"1234",
    "no shape": header(b"{'descr':'<f4','fortran_order':False}\n"),
    "not UTF-8 before it": b'{"a":"\xe9"}\n'
    + header(b"{'descr':'<f4','fortran_order':False,'shape':(1,)}\n")
    + b"1234",
    "deep JSON before it": b'{"a":' + b"[" * 150 + b"]" * 150 + b"}\n" + header(b"((("),
    "no JSON before it": b"{not json\n" + ONE + b"1234",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_and_do_not_disturb_a_run(content):
    Path("run").mkdir()
    for name in ("bad.npy", "bad.eqx"):
        Path("run", name).write_bytes(content)
    with pytest.raises(pts.CheckpointError, match=r"bad\.eqx"):
        pts.restore("run/bad.eqx", [np.zeros(1, np.float32)])
    with pts.Saver() as saver:
        for step in (1, 2):
            saver.save({"w": np.ones(2)}, "run/m", step)
    assert pts.latest_checkpoint("run") == Path("run/m-2")
    pts.list_checkpoints("run")


def test_parts_of_a_file_with_another_number_of_arrays_are_refused():
    eqx.tree_serialise_leaves("abc.eqx", {"a": jnp.ones(3), "b": 2 * jnp.ones(3), "c": 3 * jnp.ones(3)})
    like = {"a": jnp.zeros(3), "c": jnp.zeros(3)}
    for options in ({"only": ["c"]}, {"unexpected": "ignore"}, {"missing": "keep"}):
        with pytest.raises(pts.MismatchError, match="expected 2 arrays, as many as the template"):
            pts.restore("abc.eqx", like, **options)
    found = pts.restore("abc.eqx", like, rename={"a": "0", "c": "2"}, unexpected="ignore")
    assert (found["a"].tolist(), found["c"].tolist()) == ([1] * 3, [3] * 3)
