"""`init_from_checkpoint`: the assignment maps of TensorFlow."""

import jax.numpy as jnp
import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.testing import assert_trees_equal

SOURCE = {"a": {"w": np.full((4, 2), 1.0), "b": np.full(2, 2.0)}, "root": np.full(3, 3.0)}


def started(tree):
    return sorted(name for name, leaf in zip(flatten_tree(tree).names, flatten_tree(tree).leaves) if leaf.any())


def blank():
    return {
        "new": {"w": np.zeros((4, 2)), "b": np.zeros(2)},
        "new_1": {"w": np.zeros((4, 2))},
        "parts": [np.zeros((1, 2)), np.zeros((3, 2))],
        "root": np.zeros(3),
    }


@pytest.mark.parametrize(
    ("assignment_map", "expected"),
    [
        ({"a/w": "new/w"}, ["new/w"]),
        ({"a/": "new/"}, ["new/b", "new/w"]),
        ([("a/w", "new/w"), ("a/w", "new_1/w")], ["new/w", "new_1/w"]),
        ({"a/w": ["parts/0", "parts/1"]}, ["parts/0", "parts/1"]),
        ({"a/w": "parts"}, ["parts/0", "parts/1"]),
        ({}, []),
        ([], []),
    ],
    ids=str,
)
def test_the_forms_of_an_assignment_map(assignment_map, expected):
    tree = blank()
    path = pts.save(SOURCE, "model")
    result = pts.init_from_checkpoint(tree, path, assignment_map)
    assert started(result) == expected
    values = {"w": 1, "b": 2, "0": 1, "1": 1}
    for name, leaf, own in zip(flatten_tree(tree).names, flatten_tree(result).leaves, flatten_tree(tree).leaves):
        if name in expected:
            assert (leaf == values[name[-1]]).all()
            assert leaf.shape == own.shape
        else:
            assert leaf is own


def test_a_leaf_is_given_as_the_object_itself():
    tree = blank()
    path = pts.save(SOURCE, "model")
    result = pts.init_from_checkpoint(tree, path, {"a/w": tree["new"]["w"], "root": tree["root"]})
    assert started(result) == ["new/w", "root"]
    result = pts.init_from_checkpoint(tree, path, {"a/w": tree["parts"]})
    assert started(result) == ["parts/0", "parts/1"]


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("cuts", [[2, 4], [1, 1, 4], [6]])
def test_a_variable_is_sliced_along_one_axis(kind, axis, cuts):
    array = np.arange(36, dtype=np.float32).reshape(6, 6)
    path = pts.save({"w": array}, "model")
    parts = np.split(np.zeros_like(array), np.cumsum(cuts)[:-1], axis)
    result = pts.init_from_checkpoint([kind(part) for part in parts], path, {"w": [str(i) for i in range(len(cuts))]})
    assert_trees_equal(result, [kind(part) for part in np.split(array, np.cumsum(cuts)[:-1], axis)])


def test_prefixes_that_are_the_root():
    path = pts.save(SOURCE, "model")
    same = pts.init_from_checkpoint({"a": {"w": np.zeros((4, 2))}, "root": np.zeros(3)}, path, {"/": "/"})
    assert started(same) == ["a/w", "root"]
    below = pts.init_from_checkpoint({"x": {"root": np.zeros(3)}, "y": np.zeros(1)}, path, {"/": "x/"})
    assert started(below) == ["x/root"]
    above = pts.init_from_checkpoint({"w": np.zeros((4, 2)), "b": np.zeros(2)}, path, {"a/": "/"})
    assert started(above) == ["b", "w"]


def test_one_error_lists_all_mistakes_in_a_map():
    tree = {**blank(), "extra": {"w": np.zeros((4, 2)), "more": np.zeros(1)}, "wrong": np.zeros(3, np.float32)}
    path = pts.save(SOURCE, "model")
    entries = [
        ("nope", "new/w"),
        ("a", "new/w"),
        ("a/w", "nwe/w"),
        ("a/", "nothing/"),
        ("a/", "new"),
        ("a/b", "new/b"),
        ("a/b", "new/b"),
        ("a/w", 3),
        ("a/w", np.zeros((4, 2))),
        ("a/", "extra/"),
        ("root", "wrong"),
        ("root", "parts"),
    ]
    with pytest.raises(pts.MismatchError) as caught:
        pts.init_from_checkpoint(tree, path, entries)
    assert str(caught.value) == (
        "the assignment map does not fit model:\n"
        "  'nope': expected a variable of the checkpoint, found none\n"
        "  'a': expected a variable of the checkpoint, found none; a prefix ends in '/'\n"
        "  'a/w': expected a leaf of the tree, found 'nwe/w'; did you mean 'new/w'?\n"
        "  'a/': expected leaves of the tree under 'nothing/', found none\n"
        "  'a/': Assignment map with scope only name a/ should map to scope only new. "
        "Should be 'scope/': 'other_scope/'.\n"
        "  'a/b': new/b is already assigned by 'a/b'\n"
        "  'a/w': expected the name of a leaf, an array that is a leaf of the tree, or a list, found 3\n"
        "  'a/w': expected the name of a leaf, an array that is a leaf of the tree, or a list, "
        "found an array that occurs 0 times in the tree\n"
        "2 variables of model do not match:\n"
        "missing from the checkpoint (1):\n"
        "  extra/more (looked for as a/more)\n"
        "with a different shape or dtype (1):\n"
        "  wrong: expected float32[3], found float64[3]\n"
        "root: expected slices of float64[3] along one axis, "
        "found parts/0: float64[1,2], parts/1: float64[3,2]"
    )
    with pytest.raises(pts.MismatchError, match="expected leaves of the tree, found an empty list"):
        pts.init_from_checkpoint(tree, path, {"a/w": []})
    with pytest.raises(pts.UnsupportedLeafError, match="w/0: expected an array"):
        pts.init_from_checkpoint({"w": [print, np.ones(1)]}, path, {"a/w": "w"})
    for invalid in ([("a/w",)], ["a/w"], {3: "new/w"}, None, "a/w", 3):
        with pytest.raises(TypeError, match="assignment_map: expected a dict, or a list of pairs"):
            pts.init_from_checkpoint(tree, path, invalid)


def test_slices_are_in_numeric_order():
    path = pts.save({"emb": np.arange(13.0)}, "model")
    tree = {"emb": {f"part_{i}": np.zeros(1) for i in range(13)}}
    result = pts.init_from_checkpoint(tree, path, {"emb": "emb"})["emb"]
    assert [result[f"part_{i}"][0] for i in range(13)] == list(range(13))
