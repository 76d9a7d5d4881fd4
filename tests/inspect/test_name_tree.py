"""Tests of the tree of names: it contains every variable once and its totals add up, folded or not."""

import re
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from pytreesaver._inspect.name_tree import (
    VariableSummary,
    folded_tree,
    natural_sort_key,
    sorted_tree,
    tree_rows,
    variable_tree,
)

COMPONENTS = st.sampled_from(
    ["a", "b", "", "layer_0", "layer_1", "layer_2", "layer_10", "layer_01", "w0", "{0..1}", "\n"]
)
NAMES = st.lists(st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join), unique=True, max_size=25)


@st.composite
def summaries(draw):
    names = draw(NAMES)
    return [
        VariableSummary(
            name, draw(st.sampled_from(["int", "float32[2]"])), draw(st.integers(0, 9)), draw(st.integers(0, 99))
        )
        for name in names
    ]


def count_variables(branch):
    """Count the variables of a tree, bottom up."""
    count = branch.count if branch.type is not None else 0
    return count + sum(count_variables(child) for child in branch.children)


@given(summaries(), st.booleans(), st.sampled_from(["name", "size"]))
def test_totals_add_up(variables, fold, by):
    tree = variable_tree(variables)
    tree = sorted_tree(folded_tree(tree) if fold else tree, by)
    assert tree.variables == len(variables) == count_variables(tree)
    assert tree.nbytes == sum(each.nbytes for each in variables)
    assert tree.size == sum(each.size for each in variables)

    def check(branch):
        below = sum(child.nbytes for child in branch.children)
        assert branch.nbytes >= below
        assert branch.type is not None or branch.nbytes == below
        for child in branch.children:
            check(child)

    check(tree)


def expanded(branch, above=()):
    """Yield the names that a folded tree represents."""
    names = [branch.name]
    match = re.fullmatch(r"(.*?)\{([0-9.,]+)\}(.*)", branch.name, re.DOTALL)
    if branch.count > 1 and match:
        parts = [part.split("..") for part in match[2].split(",")]
        numbers = [n for part in parts for n in range(int(part[0]), int(part[-1]) + 1)]
        names = [f"{match[1]}{number}{match[3]}" for number in numbers]
    here = [*above, names] if branch.path or branch.name else list(above)
    if branch.type is not None:
        yield from ("/".join(each) for each in product(*here))
    for child in branch.children:
        yield from expanded(child, here)


@given(st.lists(st.integers(0, 30), unique=True, min_size=1), st.lists(st.sampled_from("wbk"), unique=True, min_size=1))
def test_a_folded_tree_represents_the_same_names(layers, leaves):
    names = [f"net/layer_{i}/{leaf}" for i in layers for leaf in leaves]
    tree = folded_tree(variable_tree([VariableSummary(name, "int", 1, 8) for name in names]))
    assert sorted(expanded(tree)) == sorted(names)
    assert len(list(tree_rows(tree))) <= 2 + len(leaves)


def test_different_layers_are_not_folded():
    variables = [VariableSummary(f"layer_{i}/w", "float32[2]" if i != 3 else "float32[3]", 2, 8) for i in range(6)]
    tree = folded_tree(variable_tree(variables))
    assert [child.name for child in tree.children] == ["layer_{0..2,4..5}", "layer_3"]


def test_nested_folds():
    variables = [VariableSummary(f"layer_{i}/head_{j}/w", "int", 1, 8) for i in range(3) for j in range(2)]
    rows = [(row.branch.name, row.branch.count) for row in tree_rows(folded_tree(variable_tree(variables)))]
    assert rows == [("layer_{0..2}", 3), ("head_{0..1}", 6), ("w", 6)]


@given(summaries(), st.integers(1, 4))
def test_a_tree_of_limited_depth_counts_hidden_variables(variables, depth):
    tree = sorted_tree(variable_tree(variables), "name")
    rows = list(tree_rows(tree, depth))
    shown = sum(row.branch.count for row in rows if row.branch.type is not None)
    assert shown + sum(row.hidden for row in rows) == len(variables)
    assert len(list(tree_rows(tree))) >= len(rows)


def test_natural_sort_key():
    names = ["layer_10", "layer_9", "b", "layer_1", "10", "9"]
    assert sorted(names, key=natural_sort_key) == ["9", "10", "b", "layer_1", "layer_9", "layer_10"]
