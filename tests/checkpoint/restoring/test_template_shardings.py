"""Shardings over abstract meshes and layouts in a template are honoured or refused, never dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import message_of
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import pytreesaver as pts


def mesh_of(shape, names=("x", "y")):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Explicit,) * len(names))


def init():
    return {
        "w": jax.sharding.reshard(jnp.arange(32.0).reshape(8, 4), P("x", "y")),
        "b": jnp.zeros(8),
        "key": jax.random.key(0),
        "step": 3,
    }


@pytest.fixture
def mesh():
    return mesh_of((4, 2))


@pytest.fixture
def abstract(mesh):
    with jax.set_mesh(mesh):
        pts.save(init(), "model")
        return jax.eval_shape(init)


def test_an_abstract_template_is_restored_over_the_active_mesh(mesh, abstract):
    with jax.set_mesh(mesh):
        restored = pts.restore("model", like=abstract)
        expected = init()
    assert restored["w"].sharding == NamedSharding(mesh, P("x", "y"))
    assert restored["b"].sharding == expected["b"].sharding
    assert jax.random.key_data(restored["key"]).tolist() == jax.random.key_data(expected["key"]).tolist()
    np.testing.assert_array_equal(restored["w"], np.arange(32.0).reshape(8, 4))


def test_a_state_of_flax_is_restored_over_the_active_mesh(mesh):
    class Model(nnx.Module):
        def __init__(self, rngs):
            kernel = jax.random.normal(rngs.params(), (8, 4))
            self.kernel = nnx.Param(jax.sharding.reshard(kernel, P("x", "y")))

    with jax.set_mesh(mesh):
        state = nnx.state(Model(nnx.Rngs(0)))
        pts.save(state, "flax")
        abstract = nnx.state(nnx.eval_shape(lambda: Model(nnx.Rngs(0))))
        restored = pts.restore("flax", like=abstract)
    assert restored["kernel"].get_value().sharding == NamedSharding(mesh, P("x", "y"))
    np.testing.assert_array_equal(restored["kernel"].get_value(), state["kernel"].get_value())


@pytest.mark.parametrize("shape", [None, (2, 4), (8,)])
def test_without_a_fitting_mesh_the_error_names_every_leaf_and_the_ways_out(abstract, shape):
    def restore():
        if shape is None:
            return pts.restore("model", like=abstract)
        with jax.set_mesh(mesh_of(shape, ("x", "y")[: len(shape)])):
            return pts.restore("model", like=abstract)

    message = message_of(pts.MismatchError, restore)
    assert "restore under jax.set_mesh(mesh), or pass shardings over devices as sharding=" in message
    assert ("found no active mesh" in message) == (shape is None)
    assert "  w: P('x', 'y') over the axes {'x': 4, 'y': 2}" in message
    assert "  b: " in message


def test_a_given_sharding_or_numpy_needs_no_mesh(abstract):
    everywhere = SingleDeviceSharding(jax.devices()[3])
    assert pts.restore("model", like=abstract, sharding=everywhere)["w"].devices() == {jax.devices()[3]}
    assert isinstance(pts.restore("model", like=abstract, as_numpy=True)["w"], np.ndarray)
    assert pts.restore("model", like=abstract, only="step")["step"] == 3


def test_an_abstract_template_that_is_not_sharded_needs_no_mesh():
    pts.save({"w": jnp.ones(4)}, "plain")
    assert pts.restore("plain", like=jax.eval_shape(lambda: {"w": jnp.ones(4)}))["w"].tolist() == [1.0] * 4


def column_major(sharding):
    return Format(Layout((1, 0)), sharding)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", ["array", "abstract"])
def test_a_layout_in_the_template_is_honoured(large, sharded, kind):
    shape = (1024, 512) if large else (8, 4)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("x")) if sharded else SingleDeviceSharding(jax.devices()[2])
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    pts.save({"w": values}, "model")
    wanted = column_major(sharding)
    like = (
        jax.device_put(values, wanted) if kind == "array" else jax.ShapeDtypeStruct(shape, "float32", sharding=wanted)
    )
    for options in ({}, {"mmap": True}):
        restored = pts.restore("model", like={"w": like}, **options)["w"]
        assert restored.format.layout.major_to_minor == (1, 0)
        assert restored.sharding == sharding
        np.testing.assert_array_equal(restored, values)
    assert pts.restore("model", like={"w": like}, as_numpy=True)["w"].tolist() == values.tolist()


def test_a_usual_layout_changes_nothing():
    pts.save({"w": jnp.ones((3, 2))}, "model")
    like = jax.device_put(jnp.ones((3, 2)), jax.devices()[1])
    assert pts.restore("model", like={"w": like})["w"].format == like.format
