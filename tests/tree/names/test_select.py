"""Selections: every form, partial saves and restores, and error messages."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._tree.names.select import as_selection, selected
from pytreesaver._tree.rebuild import rebuild_tree
from pytreesaver._tree.restructure import prune_structure, structure_of_names
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.testing import pytrees

NAMES = [
    "params/encoder/0/w",
    "params/encoder/0/b",
    "params/encoder/10/w",
    "params/head/w",
    "params",
    "opt/mu/head/w",
    "a.b",
]


def chosen(selection, names=NAMES):
    return [name for name in names if as_selection(selection).selects(name)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("params/head", ["params/head/w"]),
        ("params/head/w", ["params/head/w"]),
        ("params", ["params/encoder/0/w", "params/encoder/0/b", "params/encoder/10/w", "params/head/w", "params"]),
        ("head", []),
        ("par", []),
        ("params/*", []),
        ("params/*/w", ["params/head/w"]),
        ("params/encoder/*/w", ["params/encoder/0/w", "params/encoder/10/w"]),
        ("params/encoder/?/w", ["params/encoder/0/w"]),
        ("**/w", ["params/encoder/0/w", "params/encoder/10/w", "params/head/w", "opt/mu/head/w"]),
        ("params/**/w", ["params/encoder/0/w", "params/encoder/10/w", "params/head/w"]),
        ("params/**", ["params/encoder/0/w", "params/encoder/0/b", "params/encoder/10/w", "params/head/w"]),
        ("**/head/*", ["params/head/w", "opt/mu/head/w"]),
        ("**", NAMES),
        ("*", ["params", "a.b"]),
        ("a.b", ["a.b"]),
        ("a?b", ["a.b"]),
    ],
)
def test_globs(pattern, expected):
    assert chosen(pattern) == expected
    assert chosen(pts.glob(pattern)) == expected


def test_other_forms_and_operators():
    assert chosen(re.compile("/0/")) == NAMES[:2]
    assert chosen(pts.regex("^opt|b$")) == ["params/encoder/0/b", "opt/mu/head/w", "a.b"]
    assert chosen(lambda name: len(name) < 7) == ["params", "a.b"]
    assert chosen(["opt", re.compile("^a")]) == ["opt/mu/head/w", "a.b"]
    assert chosen(pts.glob("**/w") & ~pts.glob("params/encoder") | pts.glob("a.b")) == NAMES[3:4] + NAMES[5:]
    for nonsense in (3, None, [3], {"a": 1.0}):
        with pytest.raises(TypeError, match="expected a glob"):
            as_selection(nonsense)


def test_masks_are_prefixes_of_the_tree():
    tree = {"params": {"w": 1, "b": 2}, "opt": (3, 4)}
    assert chosen({"params": {"w": True, "b": False}, "opt": (False, True)}, flatten_tree(tree).names) == [
        "opt/1",
        "params/w",
    ]
    assert chosen({"params": True, "opt": False}, flatten_tree(tree).names) == ["params/b", "params/w"]
    assert chosen(True, flatten_tree(tree).names) == flatten_tree(tree).names
    with pytest.raises(pts.VariableNotFoundError, match="opt/0: expected True or False in the mask"):
        selected(as_selection({"params": True}), flatten_tree(tree).names, "the tree")


@given(pytrees(max_leaves=8), st.data())
def test_a_pruned_tree_has_the_names_and_leaves_of_its_part(tree, data):
    flat = flatten_tree(tree)
    kept = data.draw(st.sets(st.sampled_from(range(len(flat.names))))) if flat.names else set()
    positions = {leaf: i for i, leaf in enumerate(sorted(kept))}
    structure = prune_structure(flat.structure, positions)
    part, _ = rebuild_tree(structure, [flat.names[i] for i in sorted(kept)])
    again = flatten_tree(part)
    if kept == set(range(len(flat.names))) and flat.names:
        assert structure == flat.structure
    assert sorted(again.leaves) == sorted(flat.names[i] for i in kept)
    assert all(name == leaf for name, leaf in zip(again.names, again.leaves, strict=True))


@given(st.lists(st.text("ab/$.", max_size=6), unique=True, max_size=8))
def test_structure_of_names_has_these_names(names):
    tree, problems = rebuild_tree(structure_of_names(names), names)
    flat = flatten_tree(tree)
    assert problems == []
    assert sorted(flat.names) == sorted(names)
    assert all(name == leaf for name, leaf in zip(flat.names, flat.leaves, strict=True))


@given(pytrees(max_leaves=6), st.data())
def test_restoring_a_part_changes_only_that_part(tree, data):
    flat = flatten_tree(tree)
    if not flat.names:
        return
    part = data.draw(st.sets(st.sampled_from(flat.names), min_size=1))
    saver = pts.Saver(lambda name: name in part)
    path = saver.save(tree, "part", latest_filename="state")
    assert {name for name, _ in pts.list_variables(path)} == part
    restored = saver.restore(path, tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    for name, before, after in zip(flat.names, flat.leaves, flatten_tree(restored).leaves, strict=True):
        if name in part:
            assert np.shape(after) == np.shape(before)
        else:
            assert after is before
