"""Partial restores: `only` reads and returns the selected variables."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint.saving import names_of, save_anew
from helpers import message_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._tree.names.select import as_selection
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.formats.indexed.reader import IndexedReader
from pytreesaver.testing import assert_trees_equal, pytrees, selections


def count_reads(patch):
    """Return a list to which the names of all variables that are read from now on are appended."""
    names = []
    reals = {method: getattr(IndexedReader, method) for method in ("read", "read_boxes", "map")}
    for method, real in reals.items():

        def counted(self, positions, *args, real=real, **options):
            requested = [positions] if isinstance(positions, int) else positions
            names.extend(self.names[each[0] if isinstance(each, tuple) else each] for each in requested)
            return real(self, positions, *args, **options)

        patch.setattr(IndexedReader, method, counted)
    return names


@pytest.fixture
def reads(monkeypatch):
    return count_reads(monkeypatch)


@given(pytrees(max_leaves=8), st.data())
@settings(max_examples=150)
def test_restoring_a_selection_equals_restoring_each_selected_leaf(tree, data):
    names = names_of(tree)
    assume(names)
    selection = data.draw(selections(names))
    path = save_anew(tree)
    chosen = {name for name in names if as_selection(selection).selects(name)}
    part = pts.restore(path, tree, only=selection)
    assert jax.tree.structure(part) == jax.tree.structure(tree)
    alone = {name: pts.restore(path, tree, only=[re.compile(rf"\A{re.escape(name)}\Z")]) for name in chosen}
    flat, whole = flatten_tree(part), flatten_tree(tree)
    for i, (name, leaf, own) in enumerate(zip(flat.names, flat.leaves, whole.leaves, strict=True)):
        if name in chosen:
            assert_trees_equal(leaf, flatten_tree(alone[name]).leaves[i])
            assert_trees_equal(leaf, own)
        else:
            assert leaf is own


@given(pytrees(max_leaves=8), st.data())
@settings(max_examples=100)
def test_a_selection_without_a_template_returns_that_part_of_the_tree(tree, data):
    names = names_of(tree)
    assume(names)
    selection = data.draw(selections(names))
    whole = flatten_tree(tree)
    chosen = {
        name: leaf for name, leaf in zip(names, whole.leaves, strict=True) if as_selection(selection).selects(name)
    }
    restored = flatten_tree(pts.restore(save_anew(tree), only=selection))
    saved = flatten_tree(pts.restore(save_anew(tree, only=selection)))
    for part in (restored, saved):
        assert_trees_equal(dict(zip(part.names, part.leaves, strict=True)), chosen)


def test_only_selected_variables_are_read(reads):
    tree = {"a": {"w": np.ones(3), "b": 2.0}, "c": np.zeros(4), "key": jax.random.key(0)}
    path = pts.save(tree, "model")
    pts.restore(path, only="a")
    assert sorted(reads) == ["a/b", "a/w"]
    reads.clear()
    pts.restore(path, tree, only="c")
    assert reads == ["c"]
    reads.clear()
    pts.restore(path, {"x": np.zeros(4), "y": np.zeros(4)}, rename={"x": "c", "y": "c"}, unexpected="ignore")
    assert reads == ["c"]  # once, for two leaves
    reads.clear()
    pts.restore(path, {"c": np.zeros(4), "other": 1}, missing="keep", unexpected="ignore", mmap=True)
    assert reads == ["c"]


@given(pytrees(max_leaves=6), st.data())
@settings(max_examples=50)
def test_each_selected_variable_is_read_once_and_no_other(tree, data):
    names = names_of(tree)
    assume(names)
    selection = data.draw(selections(names))
    path = save_anew(tree)
    taken = {name for name in names if as_selection(selection).selects(name)}
    with pytest.MonkeyPatch.context() as patch:
        read = count_reads(patch)
        pts.restore(path, only=selection)
    assert sorted(read) == sorted(taken)


def test_the_error_for_a_selection_without_matches_suggests_names():
    path = pts.save({"encoder": {"kernel": 1, "bias": 2}, "head": 3}, "model")
    assert message_of(pts.VariableNotFoundError, lambda: pts.restore(path, only="encodr")) == (
        "the selection does not match the 3 variables of model:\n  'encodr' selects nothing; did you mean 'encoder'?"
    )
    assert message_of(pts.VariableNotFoundError, lambda: pts.restore(path, only=["head", "encoder/kernal"])) == (
        "the selection does not match the 3 variables of model:\n"
        "  'encoder/kernal' selects nothing; did you mean 'encoder/kernel' or 'encoder'?"
    )
    assert "of the template (like)" in message_of(
        pts.VariableNotFoundError, lambda: pts.restore(path, {"head": 3}, only=re.compile("tail"))
    )
    with pytest.raises(pts.VariableNotFoundError, match="of the tree:\n  'hed' selects nothing; did you mean 'head'"):
        pts.save({"head": 3}, "part", only="hed")
    with pytest.raises(pts.VariableNotFoundError, match="hed"):
        pts.save_async({"head": 3}, "part", only="hed")
    with pytest.raises(TypeError, match="expected a glob"):
        pts.restore(path, only=3)


def test_stored_variables_outside_of_the_selection_are_not_unexpected():
    path = pts.save({"encoder": {"w": 1, "extra": 2}, "head": 3}, "model")
    like = {"encoder": {"w": 0}, "tail": 9}
    assert message_of(pts.MismatchError, lambda: pts.restore(path, like, only="encoder")) == (
        "1 variable of model does not match:\n"
        "in the checkpoint but not in the template (1):\n"
        "  encoder/extra\n"
        '(unexpected="ignore" ignores extra variables)'
    )
    assert pts.restore(path, like, only="encoder", unexpected="ignore") == {"encoder": {"w": 1}, "tail": 9}


def test_an_asynchronous_save_of_a_selection():
    tree = {"params": {"w": jnp.ones(3)}, "opt": (jnp.zeros(3), 4)}
    assert_trees_equal(pts.restore(pts.save_async(tree, "model", only="params").result()), {"params": tree["params"]})


def test_the_error_for_a_wrong_mask_names_all_mistakes():
    path = pts.save({"a": 1, "l": [1, 2]}, "model")
    message = message_of(
        pts.VariableNotFoundError, lambda: pts.restore(path, only={"aa": True, "l": [True, False, True]})
    )
    assert message == (
        "the selection does not match the 3 variables of model:\n"
        "  a: expected True or False in the mask, found neither\n"
        "  aa: the mask is True, but no variable has this name; did you mean 'a'?\n"
        "  l/2: the mask is True, but no variable has this name; did you mean 'l'?"
    )
    assert pts.restore(path, only={"a": np.True_, "l": np.False_}) == {"a": 1}


def test_selector_expressions_as_only():
    path = pts.save({"a": 1, "b": {"c": 2, "d": 3}, "e": 4}, "model")
    assert pts.restore(path, only=pts.glob("a") | "b/c") == {"a": 1, "b": {"c": 2}}
    assert pts.restore(path, only="b" & ~pts.glob("b/c")) == {"b": {"d": 3}}
    assert pts.restore(path, only=["e"] | pts.regex("^a")) == {"a": 1, "e": 4}
    with pytest.raises(pts.VariableNotFoundError, match=r"\('bb' & 'c'\) selects nothing; did you mean 'b'"):
        pts.restore(path, only=pts.glob("bb") & "c")
    with pytest.raises(ValueError, match="regex: '\\*' is not a valid regular expression"):
        pts.regex("*")
