"""Random trees between Orbax and pytreesaver, in both directions."""

import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from hypothesis import assume, given, settings

import pytreesaver as pts
from pytreesaver._checkpoint.saving.contents import contents_of
from pytreesaver.formats import orbax
from pytreesaver.testing import assert_trees_equal, pytrees


def part_for_orbax(tree):
    """Return what Orbax holds of a tree, as nested dicts."""
    unsupported = orbax.unsupported(contents_of(tree, None))
    names = [name for name, _ in pts.list_variables(pts.save(tree, "whole", overwrite=True, durable=False))]
    kept = [name for name in names if name not in unsupported]
    assume(kept)
    part = pts.restore("whole", only=lambda name: name in kept)
    assume(isinstance(part, dict) and not orbax.unsupported(contents_of(part, None)))
    return part


def bits(leaf):
    is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return data.astype(data.dtype.newbyteorder("<")).tobytes()  # Orbax restores little-endian arrays


def without_scalars(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, np.generic) else leaf, tree)


@settings(max_examples=25)
@given(pytrees())
def test_orbax_restores_what_pytreesaver_writes(tree):
    part = part_for_orbax(tree)
    path = pts.save(part, "ours", format="orbax", overwrite=True, durable=False)
    assert_trees_equal(pts.restore(path), part)
    with ocp.StandardCheckpointer() as checkpointer:
        # It takes no NumPy scalars.
        restored = checkpointer.restore(Path(path).absolute(), without_scalars(part))
    assert jax.tree.structure(restored) == jax.tree.structure(part)
    for found, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(part), strict=True):
        assert bits(found) == bits(expected)


@settings(max_examples=25)
@given(pytrees())
def test_pytreesaver_restores_what_orbax_writes(tree):
    part = part_for_orbax(tree)
    shutil.rmtree("theirs", ignore_errors=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path("theirs").absolute(), without_scalars(part))
    restored = pts.restore("theirs", without_scalars(part))
    assert jax.tree.structure(restored) == jax.tree.structure(part)
    for found, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(part), strict=True):
        assert bits(found) == bits(expected)
