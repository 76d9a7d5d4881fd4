"""Restored trees equal the saved ones."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.layout import Format, Layout

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal, jax_arrays, prng_keys, pytrees, sharded_arrays


def save_anew(tree):
    shutil.rmtree("checkpoint", ignore_errors=True)
    pts.save(tree, "checkpoint", durable=False)  # overwriting would sync to disk


@given(pytrees())
@settings(max_examples=300)
def test_restore_without_a_template_returns_the_saved_tree(tree):
    save_anew(tree)
    assert_trees_equal(pts.restore("checkpoint"), tree)


@given(pytrees())
@settings(max_examples=200)
def test_restore_with_the_tree_as_template_returns_the_saved_tree(tree):
    save_anew(tree)
    assert_trees_equal(pts.restore("checkpoint", like=tree), tree)


@given(pytrees())
@settings(max_examples=100)
def test_a_tree_saved_without_x64_is_restored_with_x64(tree):
    save_anew(tree)
    with jax.enable_x64(True):
        assert_trees_equal(pts.restore("checkpoint"), tree)


@given(st.data())
@settings(max_examples=100)
def test_trees_with_64_bit_arrays_are_restored(data):
    with jax.enable_x64(True):
        tree = data.draw(pytrees())
        save_anew(tree)
        assert_trees_equal(pts.restore("checkpoint"), tree)
        assert_trees_equal(pts.restore("checkpoint", like=tree), tree)


@given(pytrees(st.one_of(jax_arrays(), prng_keys())))
def test_restore_with_abstract_arrays_as_template_returns_the_saved_tree(tree):
    template = jax.eval_shape(lambda: tree)
    save_anew(tree)
    assert_trees_equal(pts.restore("checkpoint", like=template), tree)


def jax_values():
    """Leaves that `jax.eval_shape` accepts."""
    numbers = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.complex_numbers())
    return st.one_of(jax_arrays(), prng_keys(), jax_arrays().map(np.array), numbers)


@given(st.data())
@settings(max_examples=100)
def test_restore_with_an_abstract_template_returns_jax_arrays(data):
    with jax.enable_x64(True):
        tree = data.draw(pytrees(jax_values()))
        expected = jax.tree.map(as_jax_array, tree)
        save_anew(tree)
        assert_trees_equal(pts.restore("checkpoint", like=jax.eval_shape(lambda: tree)), expected)


def values_of_32_bits():
    """The same without x64: no 64-bit arrays, and only Python numbers that do not overflow in 32 bits."""
    reals = st.floats(-1e30, 1e30) | st.sampled_from([0.1, float("nan"), float("-inf")])
    numbers = st.one_of(st.booleans(), st.integers(-(2**31), 2**31 - 1), reals, st.builds(complex, reals, reals))
    return st.one_of(jax_arrays(), prng_keys(), jax_arrays().map(np.array), numbers)


@given(pytrees(values_of_32_bits()))
@settings(max_examples=100)
def test_restore_with_an_abstract_template_without_x64_returns_jax_arrays(tree):
    save_anew(tree)
    expected = jax.tree.map(as_jax_array, tree)
    assert_trees_equal(pts.restore("checkpoint", like=jax.eval_shape(lambda: tree)), expected)


def as_jax_array(leaf):
    return leaf if isinstance(leaf, jax.Array) else jax.numpy.asarray(leaf)


@given(st.dictionaries(st.sampled_from("abc"), sharded_arrays(), max_size=3))
@settings(max_examples=50)
def test_sharded_arrays_are_restored(tree):
    save_anew(tree)
    assert_trees_equal(pts.restore("checkpoint", like=tree), tree)
    on_one_device = pts.restore("checkpoint")
    assert_trees_equal(on_one_device, tree, shardings=False)
    for array in on_one_device.values():
        assert len(array.sharding.device_set) == 1


@given(pytrees())
@settings(max_examples=50)
def test_as_numpy_restores_the_same_values_without_jax_arrays(tree):
    save_anew(tree)
    for restored in (pts.restore("checkpoint", as_numpy=True), pts.restore("checkpoint", like=tree, as_numpy=True)):
        for leaf, original in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
            assert not isinstance(leaf, jax.Array)
            if isinstance(original, jax.Array):
                is_key = jax.numpy.issubdtype(original.dtype, jax.dtypes.prng_key)
                values = np.asarray(jax.random.key_data(original) if is_key else original)
                assert (leaf.dtype, leaf.shape, leaf.tobytes()) == (values.dtype, values.shape, values.tobytes())


def in_another_layout(array):
    return jax.device_put(array, Format(Layout((1, 0)), array.sharding))


SMALL_LEAVES = {
    "float32": jnp.arange(6.0).reshape(2, 3),
    "bfloat16": jnp.arange(6, dtype=jnp.bfloat16),
    "int4": jnp.arange(6, dtype=jnp.int4),
    "bool": jnp.array([True, False]),
    "complex": jnp.array(1 + 2j),
    "empty": jnp.zeros((0, 3)),
    "another layout": in_another_layout(jnp.arange(6.0).reshape(2, 3)),
    "key": jax.random.key(7),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(6, dtype=">i4"),
    "str": "text",
    "int": 3,
}


@pytest.mark.parametrize("seldom", SMALL_LEAVES)
@pytest.mark.parametrize("save", [pts.save, lambda tree, path: pts.save_async(tree, path).result()])
def test_many_small_leaves_among_which_are_some_that_are_read_otherwise(seldom, save):
    common = {f"w{i}": jnp.full(500, i, jnp.float32) for i in range(700)}  # over a MiB, which is written otherwise
    tree = {**common, **{f"seldom{i}": SMALL_LEAVES[seldom] for i in range(3)}}
    save(tree, "checkpoint")
    assert_trees_equal(pts.restore("checkpoint", like=tree), tree)
