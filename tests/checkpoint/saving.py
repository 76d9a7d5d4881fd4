"""Saves, and arrays on several devices, for the tests of this folder."""

import math
import shutil

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import pytreesaver as pts
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.testing import assert_trees_equal

OLD = {"w": np.arange(5), "step": 1}
NEW = {"w": np.arange(700.0), "b": np.ones(3, np.int8), "step": 2}


def save_anew(tree, path="checkpoint", **options):
    shutil.rmtree(path, ignore_errors=True)
    return pts.save(tree, path, durable=False, **options)


def names_of(tree):
    return flatten_tree(tree).names


def spread(*spec, over=(8,)):
    devices = np.array(jax.devices()[: math.prod(over)]).reshape(over)
    return NamedSharding(jax.sharding.Mesh(devices, ("x", "y")[: len(over)]), PartitionSpec(*spec))


def found_at(root, path):
    """Return which of the two trees is at the path: "old", "new" or None. Any other tree fails the test."""
    try:
        tree = pts.restore(root / path)
    except pts.CheckpointNotFoundError:
        return None
    for name, expected in (("old", OLD), ("new", NEW)):
        if tree.keys() == expected.keys():
            assert_trees_equal(tree, expected)
            return name
    raise AssertionError(f"neither tree: {tree}")
