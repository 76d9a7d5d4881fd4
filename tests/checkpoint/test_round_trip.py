"""Every tree comes back as it was."""

import shutil

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal, jax_arrays, prng_keys, pytrees, sharded_arrays


def save_anew(tree):
    shutil.rmtree("checkpoint", ignore_errors=True)
    pts.save(tree, "checkpoint", durable=False)  # replacing one would wait for the disk


@given(pytrees())
@settings(max_examples=300)
def test_any_tree_comes_back_without_a_template(tree):
    save_anew(tree)
    assert_trees_equal(pts.restore("checkpoint"), tree)


@given(pytrees())
@settings(max_examples=200)
def test_any_tree_comes_back_with_itself_as_template(tree):
    save_anew(tree)
    assert_trees_equal(pts.restore("checkpoint", like=tree), tree)


@given(pytrees())
@settings(max_examples=100)
def test_a_tree_of_32_bits_comes_back_where_64_are_allowed(tree):
    save_anew(tree)
    with jax.enable_x64(True):
        assert_trees_equal(pts.restore("checkpoint"), tree)


@given(st.data())
@settings(max_examples=100)
def test_64_bit_trees_come_back(data):
    with jax.enable_x64(True):
        tree = data.draw(pytrees())
        save_anew(tree)
        assert_trees_equal(pts.restore("checkpoint"), tree)
        assert_trees_equal(pts.restore("checkpoint", like=tree), tree)


@given(pytrees(st.one_of(jax_arrays(), prng_keys())))
def test_any_tree_of_arrays_comes_back_with_its_shapes_as_template(tree):
    template = jax.eval_shape(lambda: tree)
    save_anew(tree)
    assert_trees_equal(pts.restore("checkpoint", like=template), tree)


def jax_values():
    """Every leaf that JAX takes for a value: what `jax.eval_shape` accepts."""
    numbers = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.complex_numbers())
    return st.one_of(jax_arrays(), prng_keys(), jax_arrays().map(np.array), numbers)


@given(st.data())
@settings(max_examples=100)
def test_any_tree_of_values_comes_back_as_its_abstract_shapes_say(data):
    with jax.enable_x64(True):
        tree = data.draw(pytrees(jax_values()))
        expected = jax.tree.map(as_jax_holds_it, tree)
        save_anew(tree)
        assert_trees_equal(pts.restore("checkpoint", like=jax.eval_shape(lambda: tree)), expected)


def values_of_32_bits():
    """The same where JAX holds 32 bits: no arrays of 64, and Python numbers that do not overflow."""
    reals = st.floats(-1e30, 1e30) | st.sampled_from([0.1, float("nan"), float("-inf")])
    numbers = st.one_of(st.booleans(), st.integers(-(2**31), 2**31 - 1), reals, st.builds(complex, reals, reals))
    return st.one_of(jax_arrays(), prng_keys(), jax_arrays().map(np.array), numbers)


@given(pytrees(values_of_32_bits()))
@settings(max_examples=100)
def test_any_tree_of_values_of_32_bits_comes_back_as_its_abstract_shapes_say(tree):
    save_anew(tree)
    expected = jax.tree.map(as_jax_holds_it, tree)
    assert_trees_equal(pts.restore("checkpoint", like=jax.eval_shape(lambda: tree)), expected)


def as_jax_holds_it(leaf):
    return leaf if isinstance(leaf, jax.Array) else jax.numpy.asarray(leaf)


@given(st.dictionaries(st.sampled_from("abc"), sharded_arrays(), max_size=3))
@settings(max_examples=50)
def test_sharded_arrays_come_back(tree):
    save_anew(tree)
    assert_trees_equal(pts.restore("checkpoint", like=tree), tree)
    on_one_device = pts.restore("checkpoint")
    assert_trees_equal(on_one_device, tree, shardings=False)
    for array in on_one_device.values():
        assert len(array.sharding.device_set) == 1


@given(pytrees())
@settings(max_examples=50)
def test_as_numpy_gives_the_same_values_without_jax_arrays(tree):
    save_anew(tree)
    for restored in (pts.restore("checkpoint", as_numpy=True), pts.restore("checkpoint", like=tree, as_numpy=True)):
        for leaf, original in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
            assert not isinstance(leaf, jax.Array)
            if isinstance(original, jax.Array):
                is_key = jax.numpy.issubdtype(original.dtype, jax.dtypes.prng_key)
                values = np.asarray(jax.random.key_data(original) if is_key else original)
                assert (leaf.dtype, leaf.shape, leaf.tobytes()) == (values.dtype, values.shape, values.tobytes())
