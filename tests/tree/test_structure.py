"""Containers with unusual flatten functions."""

import gc
import weakref

import jax
import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


@jax.tree_util.register_pytree_with_keys_class
class SameKeyTwice:
    def __init__(self, one, other):
        self.children = (one, other)

    def tree_flatten_with_keys(self):
        return tuple((jax.tree_util.DictKey("k"), child) for child in self.children), None

    @classmethod
    def tree_unflatten(cls, auxiliary, children):
        return cls(*children)


@jax.tree_util.register_pytree_node_class
class KnowsItsClass:
    def __init__(self, x):
        self.x = x

    def tree_flatten(self):
        return (self.x,), type(self)

    @classmethod
    def tree_unflatten(cls, auxiliary, children):
        return cls(*children)


class Stranger:
    pass


def test_a_node_whose_children_share_a_key_keeps_all_of_them():
    pts.save(SameKeyTwice({"x": 1}, {"y": 2}), "model")
    restored = pts.restore("model")
    assert type(restored) is SameKeyTwice
    assert restored.children == ({"x": 1}, {"y": 2})


def test_its_substitute_keeps_all_children(monkeypatch):
    pts.save(SameKeyTwice({"x": 1}, {"y": 2}), "model")
    monkeypatch.setattr(SameKeyTwice, "tree_unflatten", None)
    monkeypatch.delitem(globals(), "SameKeyTwice")
    with pytest.warns(pts.StructureWarning, match="is restored as a list of its children"):
        assert pts.restore("model") == [{"x": 1}, {"y": 2}]


def test_a_node_with_its_class_as_auxiliary_data_can_be_saved():
    tree = KnowsItsClass(np.ones(2))
    pts.save(tree, "model")
    assert_trees_equal(pts.restore("model", like=tree), tree)
    with pytest.warns(pts.StructureWarning, match="KnowsItsClass is restored as a list of its children"):
        assert_trees_equal(pts.restore("model"), [tree.x])


def test_saving_and_restoring_keep_no_references_to_the_tree():
    """References in cycles would keep the memory until the next garbage collection."""
    array = np.zeros(100)
    watched = weakref.ref(array)
    gc.disable()
    try:
        path = pts.save({"w": array, "more": (array[:1], [3])}, "model")
        pts.restore(path, {"w": array, "more": (np.zeros(1), [0])})
        del array
        assert watched() is None
    finally:
        gc.enable()
