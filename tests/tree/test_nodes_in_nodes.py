"""Auxiliary data of nodes in other nodes: each is compared with its own."""

import jax
import numpy as np
import pytest
from tree.containers import FrozenMap, Positional, WithAuxiliary, WithPositions

import pytreesaver as pts


@pytest.mark.parametrize(
    "around",
    [
        lambda node: FrozenMap(x=node, y=np.zeros(2)),
        lambda node: WithPositions(("p", "q"), (node, np.zeros(2))),
        lambda node: Positional(x=node, y=np.zeros(2)),
        lambda node: FrozenMap(x=WithPositions(("p", "q"), ([node], np.zeros(2))), y=np.zeros(2)),
    ],
    ids=["mapping", "positions", "keyless", "several"],
)
def test_nodes_in_nodes_are_compared_each_with_its_own(around):
    path = pts.save(around(Positional(w=np.full(2, 1.0), b=np.full(2, 2.0))), "model")
    same = pts.restore(path, around(Positional(w=np.zeros(2), b=np.zeros(2))))
    assert [float(leaf[0]) for leaf in jax.tree.leaves(same)] == [1, 2, 0, 0][: len(jax.tree.leaves(same))]
    with pytest.raises(pts.MismatchError, match="expected b, found w"):
        pts.restore(path, around(Positional(b=np.zeros(2), w=np.zeros(2))))


def test_equal_auxiliary_data_of_nodes_of_different_sizes_is_compared_for_each():
    def tree(first, children):
        return [WithAuxiliary("w,b", (0.0,) * 3), WithAuxiliary(first, children)]

    path = pts.save(tree("w,b", (1.0, 2.0)), "model")
    assert pts.restore(path, tree("w,b", (0.0, 0.0)))[1].children == (1.0, 2.0)
    with pytest.raises(pts.MismatchError, match="1/0: expected b, found w"):
        pts.restore(path, tree("b,w", (0.0, 0.0)))
