"""The trees that scenarios save, and how they are found again."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


def tree(number, values=300):
    """Return the tree of a number. Trees of different numbers differ in every leaf, and in their sizes."""
    return {
        "w": np.arange(float(values + number)) + number,
        "b": np.full(7, number, np.int16),
        "nested": {"step": number, "name": f"run {number}"},
    }


def plain_tree(number):
    """Return a tree that formats for arrays alone can hold."""
    return {"w": np.arange(300.0 + number) + number, "b": np.full(7, number, np.int16)}


def found(path, numbers: Collection[int | None], *, of=tree, like=None):
    """Check that a path has one of the trees of these numbers, bit by bit; None means that nothing is there.

    Returns:
        The number.
    """
    path = Path(path)
    try:
        restored = pts.restore(path, like)
    except pts.CheckpointNotFoundError:
        assert None in numbers, f"{path}: lost, expected one of {numbers}"
        assert not pts.checkpoint_exists(path), f"{path}: exists, but cannot be restored"
        return None
    for number in numbers:
        if number is not None and len(restored["w"]) == len(of(number)["w"]):
            assert_trees_equal(restored, of(number))
            pts.verify(path)
            return number
    raise AssertionError(f"{path}: expected one of {numbers}, found {restored['w'][:1]}")
