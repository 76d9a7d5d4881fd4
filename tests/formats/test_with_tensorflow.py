"""TensorFlow itself reads what pytreesaver writes, and the other way round. ``make test-tensorflow`` runs these."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal, pytrees

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore")]
SAMPLES = Path(__file__).parents[1] / "data" / "of_tensorflow"


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


def tensors_of(tf, prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def same(one, other):
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_tensorflow_reads_every_kind_of_leaf(tf, tmp_path):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    array = jnp.arange(64.0).reshape(8, 8)
    axes = jax.sharding.PartitionSpec("a", "b")
    tree = {
        "sharded": jax.device_put(array, jax.sharding.NamedSharding(mesh, axes)),
        "bf16": jnp.ones(3, jnp.bfloat16),
        "f8": jnp.ones(3, jnp.float8_e4m3fn),
        "int4": jnp.array([-8, 7], jnp.int4),
        "texts": np.array([b"a", b"bcd"]),
        "note": "h\u00e9llo",
        "step": 7,
        "opt": optax.adam(1e-3).init({"w": jnp.ones((2, 3))}),
    }
    for options in ({}, {"shard_nbytes": 100}):
        path = pts.save(tree, tmp_path / "m", format="tensorflow", overwrite=True, **options)
        found = tensors_of(tf, path)
        assert same(found["sharded"], array)
        assert same(found["bf16"], tree["bf16"])
        assert same(found["f8"], tree["f8"])
        assert same(found["int4"], tree["int4"])
        assert found["texts"].tolist() == [b"a", b"bcd"]
        assert found["note"] == "h\u00e9llo".encode()
        assert found["step"] == 7
        assert found["opt/0/mu/w"].shape == (2, 3)
        assert tf.train.list_variables(str(path)) == [
            (name, list(each.shape)) for name, each in sorted(as_arrays(path))
        ]


def as_arrays(path):
    with pts.load_checkpoint(path) as checkpoint:
        return [(name, variable.read()) for name, variable in checkpoint.items()]


@given(pytrees())
@settings(max_examples=50)
def test_tensorflow_lists_every_tree(tf, tree):
    try:
        pts.save(tree, "m", format="tensorflow", overwrite=True)
    except pts.UnsupportedLeafError:
        return
    assert tensors_of(tf, "m").keys() == {name for name, _ in pts.list_variables("m")}


def test_a_saver_of_tensorflow_goes_on_with_ours_and_back(tf):
    saver = pts.Saver(max_to_keep=3, format="tensorflow")
    for step in (1, 2):
        saver.save({"w": np.float32([step])}, "run/model", step)
    assert tf.train.latest_checkpoint("run") == "run/model-2"
    assert tf.compat.v1.train.checkpoint_exists("run/model-1")
    with tf.Graph().as_default():
        variable = tf.compat.v1.get_variable("w", [1])
        theirs = tf.compat.v1.train.Saver(max_to_keep=3)
        with tf.compat.v1.Session() as session:
            theirs.restore(session, tf.train.latest_checkpoint("run"))
            assert session.run(variable).tolist() == [2]
            theirs.recover_last_checkpoints(["run/model-1", "run/model-2"])
            session.run(variable.assign([3.0]))
            theirs.save(session, "run/model", global_step=3)
    assert pts.latest_checkpoint("run") == Path("run/model-3")
    assert pts.restore("run")["w"].tolist() == [3]
    saver.close()
    with pts.Saver(max_to_keep=3, format="tensorflow") as again:
        again.save({"w": np.float32([4])}, "run/model", 4)
    assert tf.train.get_checkpoint_state("run").all_model_checkpoint_paths[:] == [
        "run/model-2",
        "run/model-3",
        "run/model-4",
    ]


def test_a_manager_of_tensorflow_goes_on_with_ours(tf):
    with pts.CheckpointManager("run", max_to_keep=2, format="tensorflow", block=True) as manager:
        for step in (1, 2, 3):
            manager.save(step, {"w": np.float32([step])})
    theirs = tf.train.CheckpointManager(tf.train.Checkpoint(w=tf.Variable([9.0])), "run", max_to_keep=2)
    assert theirs.checkpoints == ["run/ckpt-2", "run/ckpt-3"]
    theirs.save(checkpoint_number=4)
    assert not Path("run/ckpt-2.index").exists()
    assert pts.latest_checkpoint("run") == Path("run/ckpt-4")
    assert pts.load_variable("run", "w").tolist() == [9]


@pytest.mark.parametrize(
    "name", ["keras2/ckpt-1", "keras3/ckpt-1", "tf1_run/model.ckpt-30", "partitioned/partitioned.ckpt"]
)
def test_rewritten_samples_have_the_same_tensors_for_tensorflow(tf, name, tmp_path):
    path = pts.convert(SAMPLES / name, tmp_path / "again", format="tensorflow")
    ours, theirs = tensors_of(tf, path), tensors_of(tf, SAMPLES / name)
    with pts.load_checkpoint(SAMPLES / name) as checkpoint:
        for key, value in theirs.items():
            if key != "_CHECKPOINTABLE_OBJECT_GRAPH":
                assert same(ours[checkpoint[key].name], value), key


def test_random_tensors_of_tensorflow_are_read(tf, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(20):
        values = {}
        for i in range(30):
            shape = rng.integers(0, 5, rng.integers(0, 4))
            dtype = rng.choice(["float16", "float32", "float64", "int8", "uint16", "int64", "bool", "complex64"])
            values[f"v{i}/{dtype}"] = rng.integers(0, 2, shape).astype(dtype)
        values["s"] = np.array([rng.bytes(rng.integers(0, 300)) + b"x" for _ in range(5)], object)
        prefix = str(tmp_path / f"m-{number}")
        names = list(values)
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(v) for v in values.values()],
        )
        with pts.load_checkpoint(prefix) as checkpoint:
            for key, value in values.items():
                found = checkpoint[key].read()
                assert found.tolist() == value.tolist(), key
                assert found.shape == value.shape, key
            checkpoint.verify()


def test_our_tree_comes_back_after_a_copy_by_hand(tmp_path):
    tree = {"w": jnp.ones(3), "t": (1, "a")}
    pts.save(tree, tmp_path / "m", format="tensorflow")
    for file in tmp_path.glob("m.*"):
        shutil.copy(file, tmp_path / file.name.replace("m.", "other."))
    assert_trees_equal(pts.restore(tmp_path / "other"), tree)
