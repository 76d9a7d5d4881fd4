"""Functions beside the weights: exported, loaded in another process, and refused if they cannot be read."""

import base64
import collections
import json
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import flax.linen
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from checkpoint.saving import spread

import pytreesaver as pts
from pytreesaver._checkpoint.models import stored
from pytreesaver.formats.indexed import index as indexes
from pytreesaver.testing import assert_trees_equal

PARAMS = {"w": jnp.arange(6.0).reshape(3, 2), "b": np.ones(2, np.float32), "scale": 2.0, "count": 3}
(BATCH,) = jax.export.symbolic_shape("batch")
X = jax.ShapeDtypeStruct((BATCH, 3), jnp.float32)
Pair = collections.namedtuple("Pair", ["first", "second"])


def predict(params, x):
    return jnp.tanh(x @ params["w"]) * params["scale"] + params["b"]


def values(count=4):
    return np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)


PREDICT = """
import sys, numpy as np, pytreesaver as pts
model = pts.load_model(sys.argv[1])
x = np.frombuffer(sys.stdin.buffer.read(), np.float32).reshape(-1, 3)
sys.stdout.buffer.write(np.asarray(model(x)).tobytes())
"""


def test_another_process_predicts_the_same_numbers_with_the_path_alone():
    pts.export_model("served", predict, X, params=PARAMS)
    x = values(7)
    result = subprocess.run(
        [sys.executable, "-c", PREDICT, "served"], input=x.tobytes(), capture_output=True, check=True, cwd=Path.cwd()
    )
    assert result.stdout == np.asarray(jax.jit(predict)(PARAMS, x)).tobytes()


def test_a_model():
    path = pts.export_model("served", jax.jit(predict), X, params=PARAMS, metadata={"loss": 0.5})
    assert path == Path("served")
    assert_trees_equal(pts.restore("served"), PARAMS)
    model = pts.load_model("served")
    assert_trees_equal(model.params, PARAMS)
    assert model.platforms == ("cpu",)
    assert [str(aval.shape) for aval in model.in_avals] == ["(batch, 3)"]
    assert [aval.dtype for aval in model.out_avals] == [jnp.float32]
    assert repr(model) == "<Model served: <call(float32[batch,3]) -> float32[batch,2]>>"
    for count in (1, 5):
        np.testing.assert_array_equal(model(values(count)), jax.jit(predict)(PARAMS, values(count)))
    other = {**PARAMS, "w": PARAMS["w"] + 1}
    np.testing.assert_array_equal(model.apply(other, values()), jax.jit(predict)(other, values()))
    np.testing.assert_array_equal(jax.jit(model)(values()), model(values()))
    with pts.load_checkpoint("served") as checkpoint:
        assert checkpoint.models == {"call": "(float32[batch,3]) -> float32[batch,2]  (cpu)"}
        assert checkpoint.metadata == {"loss": 0.5}


def test_trees_as_arguments_and_results():
    def function(params, batch, key, factor):
        noise = jax.random.normal(key, (2,))
        return Pair({"y": batch["x"] @ params["w"] * factor}, (noise, [params["count"] + 1, None]))

    arguments = {"x": values()}, jax.random.key(3), 0.5
    pts.export_model("served", function, *arguments, params=PARAMS)
    result = pts.load_model("served")(*arguments)
    expected = jax.jit(function)(PARAMS, *arguments)
    assert type(result) is Pair
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(TypeError, match=r"the leaves \['0/x', '1', '2'\], found \['0', '1', '2'\]"):
        pts.load_model("served")(values(), jax.random.key(3), 0.5)


def test_several_functions_of_one_module():
    module = flax.linen.Dense(2)
    params = module.init(jax.random.key(0), values())
    functions = {"encode": module.apply, "norm": lambda params: jnp.linalg.norm(params["params"]["kernel"])}
    pts.export_model("served", functions, {"encode": (X,), "norm": ()}, params=params)
    model = pts.load_model("served")
    assert sorted(model) == ["encode", "norm"]
    np.testing.assert_allclose(model["encode"](values()), module.apply(params, values()), rtol=1e-6)
    assert model["norm"]() == functions["norm"](params)
    with pytest.raises(TypeError, match=r"call one of them: model\['encode'\], model\['norm'\]"):
        model(values())
    with pytest.raises(KeyError, match="did you mean"):
        model["encoded"]


@pytest.mark.parametrize("order", [1, 2])
def test_gradients(order):
    pts.export_model("served", predict, X, params=PARAMS, vjp_order=order)
    model = pts.load_model("served")

    def grad_of(function):
        def loss(w):
            return jnp.sum(function({**PARAMS, "w": w}, values()) ** 2)

        return jax.grad(loss if order == 1 else lambda w: jnp.sum(jax.grad(loss)(w) ** 2))

    np.testing.assert_allclose(grad_of(model.apply)(PARAMS["w"]), grad_of(predict)(PARAMS["w"]), rtol=1e-4)


def test_a_function_for_the_weights_of_a_checkpoint(caplog):
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(7, {"params": PARAMS, "opt": np.zeros(100_000)}, metrics={"loss": 0.1}, metadata={"git": "abc"})
    pts.export_model("served", lambda tree, x: predict(tree["params"], x), X, of="run/ckpt-7", only="params")
    model = pts.load_model("served")
    np.testing.assert_array_equal(model(values()), jax.jit(predict)(PARAMS, values()))
    assert_trees_equal(model.params, {"params": PARAMS})
    with pts.load_checkpoint("served") as checkpoint:
        assert (checkpoint.step, checkpoint.metrics, checkpoint.metadata) == (7, {"loss": 0.1}, {"git": "abc"})
    assert caplog.text == ""


def test_a_function_is_added_to_a_checkpoint_of_a_run():
    tree = {"w": jnp.arange(100_000.0), "step": 1}
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, tree)
        manager.save(2, tree)
    before = Path("run/ckpt-2").stat().st_ino
    pts.export_model("run/ckpt-2", lambda tree, i: tree["w"][i], 3, of="run/ckpt-2", overwrite=True)
    assert pts.load_model("run")(5) == 5.0
    with pts.load_checkpoint("run/ckpt-2") as checkpoint:
        assert checkpoint.shared_nbytes > 400_000  # its data was not written again
    assert Path("run/ckpt-2").stat().st_ino == before
    with pts.CheckpointManager("run", block=True) as manager:
        assert manager.all_steps() == [1, 2]
        assert manager.latest_step() == 2
        manager.save(3, tree)
    assert [each.path.name for each in pts.list_checkpoints("run")] == ["ckpt-1", "ckpt-2", "ckpt-3"]


def test_weights_are_cast_before_the_function_gets_them():
    pts.export_model("served", predict, jnp.ones((2, 3), jnp.bfloat16), params=PARAMS, cast="bfloat16")
    model = pts.load_model("served")
    assert model.params["w"].dtype == jnp.bfloat16
    assert model(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("format", ["native", "safetensors", "npz", "msgpack", "tensorflow", "orbax"])
def test_convert_carries_it_to_every_format_and_back(format):
    tree = {"w": PARAMS["w"], "b": PARAMS["b"]}
    pts.export_model("served", lambda p, x: x @ p["w"] + p["b"], X, params=tree)
    pts.convert("served", "converted", format=format)
    pts.convert("converted", "back")
    pts.copy_checkpoint("back", "copied")
    expected = pts.load_model("served")(values())
    for path in ("converted", "back", "copied"):
        np.testing.assert_array_equal(pts.load_model(path)(values()), expected)
    pts.export_model("direct", lambda p, x: x @ p["w"] + p["b"], X, params=tree, format=format)
    np.testing.assert_array_equal(pts.load_model("direct")(values()), expected)


def test_a_part_of_the_weights_has_no_model():
    pts.export_model("served", predict, X, params=PARAMS)
    with pytest.warns(pts.StructureWarning, match="its models are not copied"):
        pts.copy_checkpoint("served", "part", only="w")
    with pytest.raises(pts.CheckpointNotFoundError, match="expected a checkpoint with a model"):
        pts.load_model("part")
    with pytest.warns(pts.StructureWarning, match="its models are not converted"):
        pts.convert("served", "half", cast="float16")
    with pts.load_checkpoint("half") as checkpoint:
        assert checkpoint.models == {}


def test_several_platforms():
    pts.export_model("served", predict, X, params=PARAMS, platforms=["cpu", "cuda", "tpu"])
    model = pts.load_model("served")
    assert model.platforms == ("cpu", "cuda", "tpu")
    assert model(values()).shape == (4, 2)


def test_a_function_for_another_platform_says_so():
    pts.export_model("served", predict, X, params=PARAMS, platforms=["tpu"])
    with pytest.raises(ValueError, match="tpu"):
        pts.load_model("served")(values())


def test_a_function_over_several_devices():
    w = jax.device_put(jnp.arange(64.0).reshape(8, 8), spread("x"))
    x = jax.device_put(jnp.ones((16, 8)), spread("x"))
    pts.export_model("served", lambda p, x: x @ p["w"], x, params={"w": w})
    model = pts.load_model("served")
    assert len(model.params["w"].sharding.device_set) == 8
    np.testing.assert_array_equal(model(np.ones((16, 8), np.float32)), np.ones((16, 8)) @ np.arange(64.0).reshape(8, 8))
    code = "import sys, pytreesaver as pts; pts.load_model('served')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=one_device())
    assert "the model was exported for 8 devices, and there are 1" in result.stderr


def one_device():
    import os

    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def test_classes_that_are_not_there_are_substituted():
    code = """
import collections, jax.numpy as jnp, pytreesaver as pts
Result = collections.namedtuple("Result", ["mean", "total"])
pts.export_model("served", lambda p, x: Result(jnp.mean(x * p), jnp.sum(x)), jnp.ones(3), params=jnp.ones(3))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    result = pts.load_model("served")(jnp.arange(3.0))
    assert (float(result.mean), float(result.total)) == (1.0, 3.0)


def test_what_cannot_be_an_argument_is_named():
    with pytest.raises(pts.UnsupportedLeafError) as caught:
        pts.export_model(
            "served", predict, X, params={**PARAMS, "name": "digits", "big": 2**80, "words": np.array(["a"])}
        )
    for name in ("name", "big", "words"):
        assert f"  {name}: expected an array or a number" in str(caught.value)
    assert not Path("served").exists()
    with pytest.raises(TypeError, match="expected params, a tree of weights, or of"):
        pts.export_model("served", predict, X)
    with pytest.raises(TypeError, match="expected a function"):
        pts.export_model("served", 3, X, params=PARAMS)
    with pytest.raises(TypeError, match="one dict with a tuple of arguments"):
        pts.export_model("served", {"a": predict}, X, params=PARAMS)


def edited(path, change):
    """Change a model in the index of a checkpoint, with a right checksum."""
    index = indexes.decode_index((path / "index.json").read_bytes(), "test")
    change(index.models["call"])
    (path / "index.json").write_bytes(indexes.encode_index(index))


@pytest.mark.parametrize("version", [1, 1000])
def test_a_version_that_jax_does_not_read_is_refused_by_name(version):
    path = pts.export_model("served", predict, X, params=PARAMS)
    edited(path, lambda model: model.update(calling_convention=version, jax="99.1"))
    with pytest.raises(
        pts.UnsupportedVersionError, match=rf"exported by JAX 99.1 with version {version} of the calling"
    ):
        pts.load_model("served")
    assert_trees_equal(pts.restore("served"), PARAMS)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.update(exported=model["exported"][:-40]),
        lambda model: model.update(exported="!"),
        lambda model: model.update(exported=stored.compressed(b"nothing")),
        lambda model: model.pop("parameters"),
        lambda model: model.update(platforms=3),
    ],
)
def test_a_malformed_model_is_an_error(change):
    path = pts.export_model("served", predict, X, params=PARAMS)
    edited(path, change)
    with pytest.raises(pts.CorruptCheckpointError, match="served"):
        pts.load_model("served")


def test_a_flipped_bit_in_the_model_is_found():
    path = pts.export_model("served", predict, X, params=PARAMS)
    content = bytearray((path / "index.json").read_bytes())
    content[content.index(b'"exported"') + 100] ^= 1
    (path / "index.json").write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError, match="does not match"):
        pts.load_model("served")


def test_the_description_is_plain_json_without_jax():
    pts.export_model("served", predict, X, params=PARAMS)
    text = json.loads(Path("served/index.json").read_text())["models"]["call"]
    assert msgspec.convert(text, stored.StoredModel).parameters == ["b", "count", "scale", "w"]
    code = (
        "import sys, pytreesaver as pts; print(pts.load_checkpoint('served').models); assert 'jax' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "float32[batch,3]" in result.stdout


def test_captured_arrays_are_pointed_out(caplog, monkeypatch):
    from pytreesaver._checkpoint.models import exporting

    monkeypatch.setattr(exporting, "_LARGE_NBYTES", 1 << 20)
    table = np.random.default_rng(0).normal(size=400_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pts.export_model("served", lambda p, i: p * jnp.asarray(table)[i], 3, params=jnp.ones(2))
    assert "it contains arrays as constants; pass them as weights" in caplog.text


def test_a_function_of_a_part_is_added_without_the_loss_of_the_rest():
    tree = {"params": PARAMS, "opt": jnp.zeros(3), "name": "digits"}
    pts.save(tree, "whole")
    pts.export_model("whole", lambda t, x: predict(t["params"], x), X, of="whole", only="params", overwrite=True)
    assert_trees_equal(pts.restore("whole"), tree)
    np.testing.assert_array_equal(pts.load_model("whole")(values()), jax.jit(predict)(PARAMS, values()))
    with pytest.raises(ValueError, match="cast: would round the weights of the checkpoint itself"):
        pts.export_model("whole", predict, X, of="./whole", only="params", cast="bfloat16", overwrite=True)


@pytest.mark.parametrize("format", ["orbax", "tensorflow", "safetensors"])
def test_a_function_is_added_in_the_format_of_the_checkpoint(format):
    tree = {"w": PARAMS["w"], "b": PARAMS["b"]}
    pts.save(tree, "other", format=format)
    pts.export_model("other", lambda p, x: x @ p["w"] + p["b"], X, of="other", overwrite=True)
    assert pts.load_model("other")(values()).shape == (4, 2)
    with pts.load_checkpoint("other") as checkpoint:
        assert checkpoint.format == format


def test_platforms_and_orders_are_checked():
    for platforms, error in (("cpu", TypeError), ([], ValueError), (["gpu"], ValueError)):
        with pytest.raises(error, match="platforms: expected"):
            pts.export_model("served", predict, X, params=PARAMS, platforms=platforms)
    for order in (-1, "x", True):
        with pytest.raises(ValueError, match="vjp_order: expected"):
            pts.export_model("served", predict, X, params=PARAMS, vjp_order=order)


def test_weights_that_jax_would_truncate_are_refused():
    with pytest.raises(pts.UnsupportedLeafError, match="float64, which JAX would truncate to float32"):
        pts.export_model("served", lambda p, x: x, X, params={"w": np.ones(3)})
    with jax.enable_x64(True):
        pts.export_model("served", lambda p, x: x * p["w"], jnp.ones(3), params={"w": np.ones(3)})


def test_a_namedtuple_and_a_dict_of_the_same_names():
    Point = collections.namedtuple("Point", ["z", "a"])
    pts.export_model("served", lambda p, point: point.z - point.a, Point(1.0, 2.0), params={})
    assert pts.load_model("served")({"z": 5.0, "a": 1.0}) == 4.0


def test_code_that_would_fill_the_memory_is_refused():
    path = pts.export_model("served", predict, X, params=PARAMS)
    bomb = base64.b64encode(zlib.compress(bytes(200 << 20))).decode()
    edited(path, lambda model: model.update(exported=bomb))
    with pytest.raises(pts.CorruptCheckpointError, match="expected at most"):
        pts.load_model("served")


@pytest.mark.parametrize("change", [{"parameters": ["nope"]}, {"result": [0, 0]}, {"argument_names": []}])
def test_a_model_that_does_not_fit_its_code_is_an_error(change):
    path = pts.export_model("served", predict, X, params=PARAMS)
    edited(path, lambda model: model.update(change))
    with pytest.raises(pts.CorruptCheckpointError, match="served"):
        pts.load_model("served")


def test_a_model_is_not_exported_over_something_else():
    pts.save(PARAMS, "there")
    with pytest.raises(pts.CheckpointExistsError, match="overwrite=True"):
        pts.export_model("there", lambda p, x: pytest.fail("exported"), X, params=PARAMS)


def test_code_that_compresses_well_is_loaded_again():
    table = np.zeros(30 << 20, np.float32)
    table[5] = 1
    pts.export_model("served", lambda p, x: x + (table * p["w"][0]).sum(), X, params={"w": jnp.ones(2)})
    assert pts.load_model("served")(values()).shape == (4, 3)


def test_weights_that_no_function_can_get_are_refused():
    for wrong in (np.ones(3, ">f4"), np.ones(3, ">f8"), 2**40, 1e300):
        with pytest.raises(pts.UnsupportedLeafError, match="w"):
            pts.export_model("served", lambda p, x: x, X, params={"w": wrong})
    pts.export_model("served", lambda p, x: x * p["w"], X, params={"w": float("inf")}, vjp_order=np.int64(1))
