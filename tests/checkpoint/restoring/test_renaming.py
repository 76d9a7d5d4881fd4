"""Restores with `rename`: its forms, precedence, and errors."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint.saving import names_of, save_anew
from helpers import message_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._text import prefixes
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.testing import assert_trees_equal, python_values, pytrees, renamings


@given(pytrees(max_leaves=8), st.data())
@settings(max_examples=150)
def test_renaming_and_renaming_back_restores_the_tree(tree, data):
    names = names_of(tree)
    assume(names)
    back, rename = data.draw(renamings(names))
    path = save_anew(tree)
    leaves = dict(zip(names, flatten_tree(tree).leaves, strict=True))
    template = {new: leaves[old] for new, old in back.items()}
    renamed = pts.restore(path, template, rename=rename)
    assert_trees_equal(renamed, template)
    again = pts.restore(save_anew(renamed, "renamed"), tree, rename={old: new for new, old in back.items()}.__getitem__)
    assert_trees_equal(again, tree)


@given(pytrees(max_leaves=8), st.data())
@settings(max_examples=100)
def test_renaming_without_a_template_moves_each_leaf(tree, data):
    names = names_of(tree)
    assume(names and not any(name.endswith("/") for name in names))
    back, _ = data.draw(renamings(names))
    leaves = dict(zip(names, flatten_tree(tree).leaves, strict=True))
    flat = flatten_tree(pts.restore(save_anew(tree), rename=back))
    assert_trees_equal(dict(zip(flat.names, flat.leaves, strict=True)), {new: leaves[old] for new, old in back.items()})


FORMS = {
    "names": {"backbone/w": "encoder/w", "backbone/b": "encoder/b"},
    "prefix": {"backbone/": "encoder/"},
    "prefix and exception": {"backbone/": "encoder/", "backbone/b": "tail"},
    "regular expression": [(r"^backbone/(\w)$", r"encoder/\1")],
    "compiled": [(re.compile("backbone"), "encoder"), ("head", "tail")],
    "function": lambda name: name.replace("backbone", "encoder"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_rename(form):
    path = pts.save({"encoder": {"w": 1, "b": 2}, "head": 3, "tail": 4}, "model")
    like = {"backbone": {"w": 0, "b": 0}, "head": 0}
    restored = pts.restore(path, like, rename=FORMS[form], unexpected="ignore")
    expected = {"w": 1, "b": 4 if form == "prefix and exception" else 2}
    assert restored == {"backbone": expected, "head": 4 if form == "compiled" else 3}


def test_names_take_precedence_over_prefixes_and_longer_prefixes_over_shorter_ones():
    path = pts.save({"a": {"w": 1, "b": {"w": 2}}, "c": {"w": 3, "w2": 4}}, "model")
    like = {"x": {"w": 0, "b": {"w": 0}}, "y": {"w": 0}}
    rename = {"x/": "a/", "x/b/": "c/", "y/w": "a/b/w"}
    assert pts.restore(path, like, rename=rename, unexpected="ignore") == {"x": {"w": 1, "b": {"w": 3}}, "y": {"w": 2}}


def test_only_the_first_regular_expression_that_matches_applies():
    path = pts.save({"left": {"w": 1}, "right": {"w": 2}}, "model")
    swapped = pts.restore(path, {"left": {"w": 0}, "right": {"w": 0}}, rename=[("^left", "right"), ("^right", "left")])
    assert swapped == {"left": {"w": 2}, "right": {"w": 1}}


def test_a_slash_renames_from_or_to_the_root():
    path = pts.save({"params": {"w": (1, 2)}, "step": 7}, "state")
    assert pts.restore(path, {"w": (0, 0)}, rename={"/": "params/"}, unexpected="ignore") == {"w": (1, 2)}
    assert pts.restore(path, rename={"/": "params/"}, only="w") == {"w": (1, 2)}
    assert pts.restore(path, 0, rename={"/": "params/w/1/"}, unexpected="ignore") == 2
    assert pts.restore(path, rename={"run/": "/"}) == {"run": {"params": {"w": (1, 2)}, "step": 7}}
    single = pts.save(np.arange(3), "single")
    assert_trees_equal(pts.restore(single, rename={"w": "."}), {"w": np.arange(3)})
    assert_trees_equal(pts.restore(single, {"w": np.zeros(3, int)}, rename={"w/": "/"}), {"w": np.arange(3)})


def test_renaming_without_a_template_keeps_the_containers():
    path = pts.save({"encoder": [{"w": 1}, (2, 3)], "head": {4: 5}}, "model")
    assert pts.restore(path, rename={"backbone/": "encoder/"}) == {"backbone": [{"w": 1}, (2, 3)], "head": {4: 5}}
    assert pts.restore(path, rename={"first": "encoder/0/w"}, only="first") == {"first": 1}
    assert pts.restore(path, rename={"a/": "encoder/1/", "b/": "encoder/1/"}, only=["a", "b"]) == {
        "a": (2, 3),
        "b": (2, 3),
    }
    with pytest.raises(ValueError, match="pass a template as like=, or rename with a dict"):
        pts.restore(path, rename=str.lower)
    message = message_of(pts.VariableNotFoundError, lambda: pts.restore(path, rename={"backbone/": "encodr/"}))
    assert message.startswith("rename: model has no such variables; rename maps names in the result to names in the")
    message = message_of(pts.DuplicateNameError, lambda: pts.restore(path, rename={"head/4": "encoder/0/w"}))
    assert message.endswith("\n  head/4")


def test_leaves_that_take_the_same_variable_share_no_memory():
    path = pts.save({"w": np.arange(4.0), "big": jnp.zeros(1 << 19)}, "model")
    like = {"a": np.zeros(4), "b": np.zeros(4), "c": jnp.zeros(1 << 19), "d": np.zeros(1 << 19, np.float32)}
    rename = {"a": "w", "b": "w", "c": "big", "d": "big"}
    for mmap in (False, True):
        restored = pts.restore(path, like, rename=rename, mmap=mmap)
        restored["a"][:] = 9
        restored["d"][:] = 9
        assert restored["b"].tolist() == [0, 1, 2, 3]
        assert not restored["c"].any()


def test_unused_entries_of_rename_are_in_the_error_with_all_other_differences():
    path = pts.save({"encoder": {"w": 1, "b": 2}, "head": 3}, "model")
    like = {"backbone": {"w": 0, "b": 0.5}, "head": 0}
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore(path, like, rename={"bakbone/": "encoder/", "backbone/b": "encoder/b", "backbone/w": "encodr/w"})
    assert str(caught.value) == (
        "3 variables of model do not match:\n"
        "entries of rename that match no variable of the template (1):\n"
        "  bakbone/; did you mean 'backbone/'?\n"
        "missing from the checkpoint (1):\n"
        "  backbone/w (looked for as encodr/w); did you mean 'encoder/w'?\n"
        "in the checkpoint but not in the template (1):\n"
        "  encoder/w\n"
        "with a different shape or dtype (1):\n"
        "  backbone/b: expected float, found int\n"
        '(missing="keep" keeps the template\'s own values; unexpected="ignore" ignores extra variables; '
        "cast=True converts to the template's dtypes)"
    )
    assert caught.value.unused == ["bakbone/"]
    only_that = message_of(
        pts.MismatchError, lambda: pts.restore(path, {"head": 0}, only="head", rename={"hed": "head"})
    )
    assert only_that == ("entries of rename that match no variable of the template (1):\n  hed; did you mean 'head'?")
    with pytest.raises(pts.MismatchError, match=r"backbone; a prefix ends in '/': 'backbone/': 'encoder/'"):
        pts.restore(path, like, rename={"backbone": "encoder"})
    with pytest.raises(pts.MismatchError, match=r"\(2\):\n  '\^backbon\$'\n  'backbone'; earlier entries match all"):
        pts.restore(path, like, rename=[("^backbon$", "x"), ("^backbone", "encoder"), ("backbone", "never reached")])


@pytest.mark.parametrize(
    ("rename", "error", "said"),
    [
        (
            {"a/": "b"},
            ValueError,
            r"expected a name for a name, or a prefix ending in '/' for a prefix, found 'a/': 'b'",
        ),
        ({"a": 3}, TypeError, "found 'a': 3"),
        ("a", TypeError, "expected a dict of names"),
        (["a"], TypeError, "found the entry 'a'"),
        ([("(", "b")], ValueError, "is not a valid regular expression"),
        ([("w", r"\7")], ValueError, "cannot replace 'w': invalid group reference"),
        (lambda name: None, TypeError, "expected a function that returns a str, found None for 'w'"),
    ],
)
def test_invalid_renamings(rename, error, said):
    path = pts.save({"w": 1}, "model")
    with pytest.raises(error, match=said):
        pts.restore(path, {"w": 0}, rename=rename)


def test_a_mistyped_key_among_thousands_is_listed_first():
    tree = {f"layer_{i}": {"attention": {"query": i}} for i in range(3000)}
    path = pts.save(tree, "model")
    like = dict(tree)
    like["layer_1234"] = {"atention": {"query": 0}}
    first = message_of(pts.MismatchError, lambda: pts.restore(path, like)).splitlines()[:3]
    assert first[2] == "  layer_1234/atention/query; did you mean 'layer_1234/attention/query'?"
    names = [f"layer_{i}/attention/query" for i in range(3000)]
    names[77] = "layer_77/atention/query"
    first = message_of(pts.VariableNotFoundError, lambda: pts.restore(path, only=names)).splitlines()[:2]
    assert first[1].startswith("  'layer_77/atention/query' selects nothing; did you mean 'layer_77/attention/query'")
    rename = {f"layer_{i}/attention/query": f"layer_{i}/attention/query" for i in range(2999)}
    rename["layer_2999/attention/qeury"] = "layer_2999/attention/query"
    first = message_of(pts.MismatchError, lambda: pts.restore(path, tree, rename=rename)).splitlines()[:2]
    assert first[1].startswith("  layer_2999/attention/qeury; did you mean 'layer_2999/attention/query'")


def test_a_wrong_prefix_is_detected():
    layers = {f"layer_{i}": {"w": i, "b": -i} for i in range(200)}
    path = pts.save({"params": layers, "step": 1}, "model")
    message = message_of(pts.MismatchError, lambda: pts.restore(path, layers))
    assert message.splitlines()[1:3] == [
        "missing from the checkpoint (400):",
        "  all of them exist under another prefix: rename={'/': 'params/'} finds them",
    ]
    assert pts.restore(path, layers, rename={"/": "params/"}, unexpected="ignore") == layers
    message = message_of(pts.MismatchError, lambda: pts.restore(path, {"model": layers, "step": 0}))
    assert "rename={'model/': 'params/'}" in message
    message = message_of(pts.MismatchError, lambda: pts.restore(path, {"model": layers, "step": 0, "new": 3}))
    assert "under another prefix" not in message


def test_only_renamed_variables_move():
    tree = {"net/~/lin": {"w": 1, "b": 2}, "opt": [{"m": 3}, (4, 5)], "ints": {0: 6, 1: 7}, "step": 8}
    path = pts.save(tree, "model")
    restored = pts.restore(path, rename={"net/~/lin/kernel": "net/~/lin/w", "ints/5": "ints/0", "opt/0/v": "step"})
    assert restored == {
        "net/~/lin": {"kernel": 1, "b": 2},
        "opt": [{"m": 3, "v": 8}, (4, 5)],
        "ints": {5: 6, 1: 7},
    }
    assert pts.restore(path, rename={"opt/1/2": "step"})["opt"] == [{"m": 3}, {0: 4, 1: 5, 2: 8}]
    assert pts.restore(path, rename={"opt/new/deep": "step"})["opt"] == {"0": {"m": 3}, "1": (4, 5), "new": {"deep": 8}}


@pytest.mark.parametrize("rename", [{"b": "a"}, {".": "a"}], ids=str)
def test_a_name_cannot_be_both_a_leaf_and_a_container(rename):
    path = pts.save({"a": 1, "b": {"x": 1, "y": 2}}, "model")
    with pytest.raises(pts.DuplicateNameError, match=r"rename: [b.] would be a leaf of model"):
        pts.restore(path, rename=rename)


@pytest.mark.parametrize(
    ("tree", "rename", "expected"),
    [
        (
            {"encoder": {"w": 1, "b": 2}, "params": {"head": 3}},
            {"params/": "encoder/", "params/head": "params/head"},
            {"params": {"w": 1, "b": 2, "head": 3}},
        ),
        (
            {"a": {"p": 1, "q": 2}, "b": {"r": 3}, "head": {"k": 1}},
            {"m/": "a/", "m/r": "b/r"},
            {"m": {"p": 1, "q": 2, "r": 3}, "head": {"k": 1}},
        ),
        ({"a": {"w": 1}, "b": {"w": 2}}, {"m/": "a/", "m/0/": "b/"}, {"m": {"w": 1, "0": {"w": 2}}}),
        ({"a": {}, "old": {"a": 1}}, {"/": "old/", "old/a": "old/a"}, {"a": 1, "old": {"a": 1}}),
        ({"a": {"w": 1}, "b": {"w2": 2}}, {"m/": "a/", "m/w2": "b/w2"}, {"m": {"w": 1, "w2": 2}}),
        ({"a": {}, "c": 1, "d": 2}, {"a/x": "c", "a": "d"}, {"a": 2, "a/x": 1}),
        ({"c": 1, "d": 2, "e": {"w": 3}}, {"a": "c", "a/b": "d", "a/b/": "e/"}, {"a": 1, "a/b": 2, "a/b/w": 3}),
        (
            {"opt": (), "params": {"w": 1, "e": None}, "mask": None, "step": 2},
            {"it": "step", "params/v": "params/w"},
            {"opt": (), "params": {"v": 1, "e": None}, "mask": None, "it": 2},
        ),
    ],
    ids=str,
)
def test_branches_with_the_same_name_are_merged(tree, rename, expected):
    assert pts.restore(pts.save(tree, "model"), rename=rename) == expected


@given(pytrees(python_values(), max_leaves=10), st.data())
@settings(max_examples=150)
def test_renaming_a_prefix_without_a_template_moves_all_variables_under_it(tree, data):
    flat = flatten_tree(tree)
    under = sorted({f"{prefix}/" for name in flat.names for prefix in prefixes(name) if prefix != name} | {"/"})
    # A key "." is ambiguous with the name of a single leaf, and an empty key with the end of a prefix.
    components = {component for name in flat.names for component in name.split("/")}
    assume(flat.names == ["."] or (components and not components & {".", ""}))
    old = data.draw(st.sampled_from(under))
    new = data.draw(st.sampled_from([*under, "new/", "a/b/", "0/"]))
    expected = {}
    for name, leaf in zip(flat.names, flat.leaves, strict=True):
        rest = name if old == "/" else name.removeprefix(old)
        is_under = old == "/" or name.startswith(old)
        target = name
        if is_under:
            target = (new[:-1] if flat.names == ["."] else new + rest) if new != "/" else rest
        expected.setdefault(target, []).append(leaf)
    try:
        restored = flatten_tree(pts.restore(save_anew(tree), rename={new: old}))
    except pts.DuplicateNameError:
        names = [name for name, leaves in expected.items() for _ in leaves]
        hidden = [n for n in flat.names if new == "/" or n.startswith(new) or f"{n}/" == new]
        assert hidden or len(set(names)) < len(names) or any(n.startswith(f"{m}/") for n in names for m in names)
        return
    assert sorted(restored.names) == sorted(expected)
    for name, leaf in zip(restored.names, restored.leaves, strict=True):
        assert_trees_equal(leaf, expected[name][0])


def test_a_big_endian_variable_into_several_leaves():
    path = pts.save({"a": np.arange(4, dtype=">i4")}, "model")
    for mmap in (False, True):
        restored = pts.restore(path, rename={"x": "a", "y": "a", "z": "a"}, mmap=mmap)
        assert all(leaf.tolist() == [0, 1, 2, 3] and leaf.dtype == ">i4" for leaf in restored.values())


def test_thousands_of_names_are_fast():
    """Each of these calls takes from ten seconds to minutes if it compares every name with every other name."""
    tree = {f"layer_{i}": {"w": i, "b": -i} for i in range(5000)}
    path = pts.save(tree, "model", durable=False)
    rename = {f"l_{i}/": f"layer_{i}/" for i in range(5000)}
    assert len(pts.restore(path, rename=rename)) == 5000
    like = {f"l_{i}": {"w": 0, "b": 0} for i in range(5000)}
    names = [f"l_{i}/*" for i in range(5000)]
    assert pts.restore(path, like, rename=rename, only=names)["l_7"] == {"w": 7, "b": -7}
    assert len(pts.restore(path, only=[f"layer_{i}/w" for i in range(5000)])) == 5000
    with pytest.raises(pts.MismatchError):
        pts.restore(path, tree, rename={f"x{i}/": f"layer_{i}/" for i in range(5000)})
    mapped = pts.init_from_checkpoint(like, path, {f"layer_{i}/": f"l_{i}/" for i in range(5000)})
    assert mapped["l_9"] == {"w": 9, "b": -9}
    with pytest.raises(pts.MismatchError):
        pts.init_from_checkpoint(like, path, {f"layr_{i}/": f"l{i}/" for i in range(5000)})
