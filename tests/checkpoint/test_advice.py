"""Messages name a way out that helps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import message_of

import pytreesaver as pts


class Settings:
    pass


def test_a_reference_to_an_array_says_how_to_save_its_value():
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save({"w": jax.new_ref(jnp.ones(3))}, "model"))
    assert "w: " in message
    assert "save its value, ref[...]" in message


def test_the_settings_of_a_model_belong_into_metadata():
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save({"w": 1, "settings": Settings()}, "model"))
    assert "metadata= takes the settings of a model as a dict" in message


def test_scalars_are_metadata_and_metrics():
    scalars = {"jax": jnp.float32(0.5), "numpy": np.int64(3), "array": np.array(True), "list": [jnp.bfloat16(2)]}
    with pts.load_checkpoint(pts.save({"w": 1}, "model", metadata=scalars)) as checkpoint:
        assert checkpoint.metadata == {"jax": 0.5, "numpy": 3, "array": True, "list": [2.0]}
        assert type(checkpoint.metadata["array"]) is bool
    with pts.CheckpointManager("run") as manager:
        manager.save(1, {"w": 1}, metrics={"a": jnp.float32(0.5), "b": np.array(2)}, metadata=scalars)
    assert pts.list_checkpoints("run")[0].metrics == {"a": 0.5, "b": 2.0}
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save({"w": 1}, "other", metadata={"a": np.ones(2)}))
    assert "['a']: expected None, bool, int" in message


def test_a_renaming_is_suggested_only_if_the_shapes_fit():
    pts.save({"encoder": {"w": np.ones((2, 3)), "b": np.ones(3)}}, "model")
    fitting = {"backbone": {"w": np.ones((2, 3)), "b": np.ones(3)}}
    message = message_of(pts.MismatchError, lambda: pts.restore("model", fitting))
    assert "rename={'backbone/': 'encoder/'} finds them" in message
    other = {"backbone": {"w": np.ones((2, 5)), "b": np.ones(5)}}
    assert "finds them" not in message_of(pts.MismatchError, lambda: pts.restore("model", other))


def test_an_abstract_model_that_a_filter_has_emptied_is_explained():
    model = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    pts.save(model, "model")
    abstract = eqx.filter_eval_shape(lambda: eqx.nn.Linear(2, 3, key=jax.random.key(0)))
    message = message_of(pts.MismatchError, lambda: pts.restore("model", eqx.filter(abstract, eqx.is_array)))
    assert "the template has no leaves; equinox.filter(tree, equinox.is_array) removes those of an abstract" in message
    assert jnp.array_equal(pts.restore("model", abstract).weight, model.weight)


def test_keys_in_metadata_and_metrics_are_named():
    with pytest.raises(pts.UnsupportedLeafError, match=r"metadata: .*'k'"):
        pts.save({"w": 1}, "model", metadata={"k": jax.random.key(0)})
    with pytest.raises(pts.UnsupportedLeafError, match=r"metadata: .*'a'"):
        pts.save({"w": 1}, "model", metadata={"a": np.zeros((), jax.dtypes.float0)})
    with pytest.raises(TypeError, match="metrics: expected a number, found 'k'"):
        pts.CheckpointManager("run").save(1, {"w": 1}, metrics={"k": jax.random.key(0)})


def test_only_names_that_fit_are_suggested():
    pts.save({"a": {"kernel": np.ones((2, 3))}, "c": {"kernel": np.ones((4, 3))}}, "model")
    message = message_of(pts.MismatchError, lambda: pts.restore("model", {"b": {"kernel": np.ones((4, 3))}, "z": 1.0}))
    assert "b/kernel; did you mean 'c/kernel'?" in message


def test_shared_layers_of_equinox_have_a_way_out():
    class Tied(eqx.Module):
        shared: eqx.nn.Shared

    linear = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    model = Tied(eqx.nn.Shared((linear, linear), lambda pair: pair[1].weight, lambda pair: pair[0].weight))
    with pytest.raises(pts.UnsupportedLeafError, match=r"equinox\.filter\(model, equinox\.is_array\) leaves it out"):
        pts.save(model, "model")
    pts.save(eqx.filter(model, eqx.is_array), "model")
