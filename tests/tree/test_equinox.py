"""Whole Equinox models, whose functions are leaves of the tree."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pytreesaver as pts


class Model(eqx.Module):
    encoder: eqx.nn.MLP
    layers: list
    scale: jax.Array
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        functions = {"activation": jax.nn.gelu, "final_activation": jnp.sin}
        self.encoder = eqx.nn.MLP(2, 3, 4, 2, key=key, **functions)
        self.layers = [eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(3, 3, key=key), jnp.tanh]
        self.scale = jnp.ones(3)
        self.dropout = eqx.nn.Dropout(0.3)


def model(seed):
    return Model(jax.random.key(seed))


def arrays_of(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def assert_same_model(found, expected):
    for one, other in zip(arrays_of(found), arrays_of(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    functions = [[leaf for leaf in jax.tree.leaves(tree) if callable(leaf)] for tree in (found, expected)]
    assert functions[0] == functions[1]


@pytest.mark.parametrize("template", ["model", "abstract"])
def test_a_whole_model_is_restored_into_a_template(template):
    saved = model(0)
    pts.save(saved, "model")
    like = model(1) if template == "model" else eqx.filter_eval_shape(lambda: model(1))
    assert_same_model(pts.restore("model", like), saved)
    pts.save_async(saved, "async").result()
    assert_same_model(pts.restore("async", like), saved)


def test_a_whole_model_is_restored_without_a_template():
    saved = model(0)
    pts.save(saved, "model")
    assert_same_model(pts.restore("model"), saved)
    assert [name for name, _ in pts.list_variables("model") if "activation" in name] == []


def test_filtered_and_whole_models_are_interchangeable():
    saved = model(0)
    pts.save(eqx.filter(saved, eqx.is_array), "filtered")
    restored = pts.restore("filtered", model(1), missing="keep")  # the rate of the dropout is not an array
    assert_same_model(restored, saved)
    pts.save(saved, "whole")
    arrays = pts.restore("whole", eqx.filter(model(1), eqx.is_array), unexpected="ignore")
    for one, other in zip(arrays_of(arrays), arrays_of(saved), strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_of_a_model():
    saved = model(0)
    pts.save({"model": saved, "step": 3}, "state")
    restored = pts.restore("state", {"model": model(1), "step": 0}, only="model/encoder")
    assert_same_model(restored["model"].encoder, saved.encoder)
    assert restored["step"] == 0


def test_a_function_that_is_not_found_is_named():
    class Local(eqx.Module):
        weight: jax.Array
        activation: object

    pts.save({"model": Local(jnp.ones(2), lambda x: x)}, "model")
    with pytest.warns(
        pts.StructureWarning, match=r"the function .*<lambda> is restored as None: it has no name in a mod"
    ):
        pts.restore("model")
    like = {"model": Local(jnp.zeros(2), jnp.sin)}
    restored = pts.restore("model", like)["model"]
    assert restored.activation is jnp.sin
    assert restored.weight.tolist() == [1, 1]


def test_functions_outside_of_equinox_modules_are_refused():
    for tree in ({"f": jax.nn.relu}, {"model": model(0), "f": jax.nn.relu}):
        with pytest.raises(pts.UnsupportedLeafError, match="f: expected an array"):
            pts.save(tree, "model")
    with pytest.raises(pts.DuplicateNameError, match="scale: "):
        pts.save({"a": model(0), "a/scale": 1}, "model")


def test_nothing_is_imported_for_a_function():
    pts.save(model(0), "model")
    program = (
        "import sys, pytreesaver as pts, warnings; warnings.simplefilter('ignore'); "
        "pts.restore('model', as_numpy=True); "
        "assert 'equinox' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
