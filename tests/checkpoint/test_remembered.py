"""What is remembered of the last tree never shows in the next one."""

import collections
import copy
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._checkpoint.saving import remembered
from pytreesaver._io import memory
from pytreesaver._tree.leaves import cells_of, leaf_columns
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.testing import assert_trees_equal, pytrees

Pair = collections.namedtuple("Pair", ["first", "second"])


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(remembered, "_LEAST_LEAVES", 0)


def ordered(structure):
    """Return a structure as text, with the order of its keys."""
    return repr(structure)


def check(tree):
    expected = flatten_tree(tree)
    for _ in range(2):
        found = remembered.flattened(tree)
        assert found.names == expected.names
        assert [id(leaf) for leaf in found.leaves] == [id(leaf) for leaf in expected.leaves]
        assert ordered(found.structure) == ordered(expected.structure)
        assert (found.problems, found.functions) == (expected.problems, expected.functions)
        columns = leaf_columns(found.leaves)
        again, references = remembered.described(found.leaves, is_shared=False)
        assert (again.types, again.shapes, again.problems) == (columns.types, columns.shapes, columns.problems)
        if not columns.problems:
            assert len(references) == len(found.leaves)
            for leaf, leaf_type, cells in zip(found.leaves, again.types, again.cells, strict=True):
                wanted = cells_of(leaf, leaf_type)
                if cells is not None:
                    assert (cells.arrays[0] is leaf, cells.boundaries) == (True, wanted.boundaries)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pytrees(), min_size=1, max_size=3), st.data())
def test_trees_are_described_as_if_nothing_were_remembered(any_size, trees, data):
    for tree in trees:
        check(tree)
        leaves, structure = jax.tree.flatten(tree)
        if leaves:
            leaves[data.draw(st.integers(0, len(leaves) - 1))] = data.draw(st.sampled_from([1, 1.5, jnp.ones(2), "a"]))
        check(structure.unflatten(leaves))
        check(tree)


ALIKE = [
    {"a": 1, "b": {"c": 2.0, "d": 3}},
    {"b": {"c": 2.0, "d": 3}, "a": 1},
    {"a": 1, "b": {"d": 3, "c": 2.0}},
    {"a": 1, "b": {"c": 2, "d": 3.0}},
    {1: 5},
    {True: 5},
    {1.0: 5},
    {"1": 5},
    [1, 2],
    (1, 2),
    Pair(1, 2),
    collections.OrderedDict(b=1, a=2),
    {"a": [1, None, {"x": 2}]},
    {"a": [1, {"x": 2}, None]},
    {"$tuple": 1},
]


def test_trees_that_look_alike_are_told_apart(any_size):
    for first in ALIKE:
        for second in ALIKE:
            check(first)
            check(second)


def test_keys_that_are_refused_are_refused_again(any_size):
    check({"a": 1})
    with pytest.raises(pts.UnsupportedLeafError, match="dict key"):
        pts.save({np.int64(1): 1}, "model")
    with pytest.raises(pts.UnsupportedLeafError, match="dict key"):
        pts.save({np.str_("a"): 1}, "model")
    check({1: 1})
    with pytest.raises(pts.UnsupportedLeafError, match="dict key"):
        pts.save({np.int64(1): 1}, "model")


def test_arrays_that_were_deleted_since_are_refused(any_size):
    tree = {"w": jnp.ones(3), "v": jnp.ones(4)}
    pts.save(tree, "first")
    tree["w"].delete()
    with pytest.raises(pts.UnsupportedLeafError, match="deleted"):
        pts.save(tree, "second")


def test_nothing_is_kept_alive(any_size):
    tree = {"w": jnp.ones(3), "v": [jnp.ones(4)]}
    references = [weakref.ref(leaf) for leaf in jax.tree.leaves(tree)]
    pts.save(tree, "first")
    pts.save(tree, "second")
    del tree
    gc.collect()
    assert [each() for each in references] == [None, None]


def test_the_same_tree_saved_again(any_size):
    tree = {"w": jnp.arange(3), "key": jax.random.key(0), "n": 3, "x": np.ones(2)}
    for step in range(3):
        tree = {**tree, "n": step}
        pts.save(tree, f"model-{step}")
        assert_trees_equal(pts.restore(f"model-{step}"), tree)
    pts.save(copy.deepcopy(tree), "copied")
    assert_trees_equal(pts.restore("copied"), tree)


def test_the_collection_is_paused_only_for_a_block():
    assert gc.isenabled()
    with memory.collection_paused():
        assert not gc.isenabled()
        with memory.collection_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with memory.collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(KeyError), memory.collection_paused():
        raise KeyError
    assert gc.isenabled()


def test_trees_that_are_refused_are_refused_again(any_size):
    check({"a": [jnp.ones(2)]})
    deep = {"a": [jnp.ones(2)]}
    for _ in range(2000):
        deep = {"a": [deep["a"]]}
    with pytest.raises(pts.UnsupportedLeafError, match="at most 100 levels"):
        pts.save(deep, "model")
    with pytest.raises(pts.UnsupportedLeafError, match="sortable dict keys"):
        pts.save({"a": [{"b": 1, 2: 3}]}, "model")


def test_a_tree_that_contains_itself_is_refused_again(any_size):
    endless = []
    endless.append(endless)
    pts.save({f"k{i}": np.zeros(2) for i in range(200)}, "first")
    for tree in ({"x": endless}, {"x": {"y": endless}}):
        with pytest.raises(pts.UnsupportedLeafError, match="at most 100 levels"):
            pts.save(tree, "model")


def test_keys_that_cannot_be_compared(any_size):
    class Odd:
        def __eq__(self, other):
            raise RuntimeError("compared")

        __hash__ = object.__hash__

    pts.save({"a": 1}, "first")
    with pytest.raises(pts.UnsupportedLeafError):
        pts.save({Odd(): 1}, "model")


def test_an_interrupt_does_not_end_the_collection_for_good(monkeypatch):
    monkeypatch.setattr(memory._Pauses, "_LONGEST_SECS", -1.0)
    memory._pauses.begin("interrupted before its end")
    assert not gc.isenabled()
    with memory.collection_paused():
        pass
    assert gc.isenabled()
