"""Testing utilities: Hypothesis strategies, exact comparison of trees, and a conformance suite for formats.

Requires Hypothesis and pytest: ``pip install pytreesaver[testing]``.

Example:
    >>> from hypothesis import given, settings
    >>> from pytreesaver.testing import assert_trees_equal, pytrees
    >>> @settings(deadline=None)
    ... @given(pytrees())
    ... def test_round_trip(tree):
    ...     path = pytreesaver.save(tree, "checkpoint", overwrite=True)
    ...     assert_trees_equal(pytreesaver.restore(path), tree)
    >>> test_round_trip()
"""

from pytreesaver.testing._conformance import FormatConformance
from pytreesaver.testing._equality import assert_trees_equal, tree_differences
from pytreesaver.testing._strategies import (
    Box,
    Layer,
    Pair,
    dict_keys,
    dtypes,
    jax_arrays,
    leaves,
    numpy_arrays,
    numpy_scalars,
    prng_keys,
    python_values,
    pytrees,
    renamings,
    selections,
    sharded_arrays,
    shardings,
)

__all__ = [
    "Box",
    "FormatConformance",
    "Layer",
    "Pair",
    "assert_trees_equal",
    "dict_keys",
    "dtypes",
    "jax_arrays",
    "leaves",
    "numpy_arrays",
    "numpy_scalars",
    "prng_keys",
    "python_values",
    "pytrees",
    "renamings",
    "selections",
    "sharded_arrays",
    "shardings",
    "tree_differences",
]
