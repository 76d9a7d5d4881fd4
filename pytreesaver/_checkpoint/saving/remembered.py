"""What is known of the last tree that was saved. The next one is often alike, and then takes less time.

Nothing here keeps an array alive.
"""

import itertools
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from pytreesaver._tree.kinds import PYTHON_TYPES, LeafType, OneCellEach
from pytreesaver._tree.leaves import LeafColumns, LeafError, leaf_columns, leaf_type_of
from pytreesaver._tree.structure import FlatTree, flatten_tree

_LEAST_LEAVES = 100  # smaller trees take little time anyway
_MOST_LEAVES = 100_000


class _Containers(NamedTuple):
    """A tree without leaves: its structure for JAX, the keys of its dicts in their order, and what we make of both.

    `size` is the number of its nodes and leaves.
    """

    treedef: Any
    size: int
    keys: list[tuple[Any, ...]]
    names: list[str]
    structure: Any


_last_containers: list[_Containers] = []


def flattened(tree: Any) -> FlatTree:
    """Return what `flatten_tree` does."""
    known = _last_containers[0] if _last_containers else None
    if known is not None:
        keys = _keys_of(tree, known.size)
        if keys is not None and _are_str(keys) and keys == known.keys:
            with suppress(Exception):  # of a tree that is too deep, which `flatten_tree` refuses in its own words
                leaves, treedef = jax.tree.flatten(tree)
                if treedef == known.treedef:
                    return FlatTree(known.names, leaves, known.structure, {})
    flat = flatten_tree(tree)
    is_plain = not (flat.problems or flat.functions or flat.shared or flat.older_names or flat.has_keyless)
    if is_plain and _LEAST_LEAVES <= len(flat.leaves) <= _MOST_LEAVES:
        found: Any = jax.tree.structure(tree)
        keys = _keys_of(tree, found.num_nodes)
        if keys is not None and _are_str(keys):
            _last_containers[:] = [_Containers(found, found.num_nodes, keys, flat.names, flat.structure)]
    return flat


def _are_str(keys: list[tuple[Any, ...]]) -> bool:
    """Return whether all keys are of type str. Others may be equal to one, and have another name or none."""
    return set(map(type, itertools.chain.from_iterable(keys))) <= {str}


_LEAF_TYPES = frozenset({*PYTHON_TYPES, np.ndarray, type(None)})


def _keys_of(tree: Any, most: int) -> list[tuple[Any, ...]] | None:
    """Return the keys of all dicts in their order, which JAX does not tell apart.

    Return None if there are more than `most` containers, or others than dicts, lists, tuples and namedtuples: their
    names may depend on more.
    """
    keys: list[tuple[Any, ...]] = []
    kinds: dict[type, bool | None] = {dict: True, list: True, tuple: True, **dict.fromkeys(_LEAF_TYPES, False)}
    leaf_kind: type | None = None  # of the last leaf, which is likely to be that of the next one
    rest: list[Any] = [[tree]]
    left = most
    while rest:
        left -= 1
        if left < -1:
            return None  # perhaps a container that contains itself
        for child in rest.pop():
            kind = type(child)
            if kind is leaf_kind:
                continue
            if kind is dict:
                keys.append(tuple(child))
                rest.append(child.values())
                continue
            if kind not in kinds:
                kinds[kind] = _is_plain_container(child)
            is_container = kinds[kind]
            if is_container is None:
                return None
            if is_container:
                rest.append(child)
            else:
                leaf_kind = kind
    return keys


def _is_plain_container(node: Any) -> bool | None:
    """Return whether a node is a namedtuple, False if it is a leaf, and None for any other container."""
    registry = jax.tree_util.default_registry
    if not registry.is_node(type(node)):
        return False
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        _, auxiliary = registry.flatten_one_level(node)
        return True if auxiliary is type(node) else None
    return None


References = list["weakref.ref[Any] | None"]


class _Leaves(NamedTuple):
    """Weak references to the arrays of the last tree, and what the leaves are."""

    references: References
    types: list[LeafType]
    shapes: list[tuple[int, ...]]


_last_leaves: list[_Leaves] = []


def described(leaves: Sequence[Any], *, is_shared: bool) -> tuple[LeafColumns, References]:
    """Return what `leaf_columns` does, and a weak reference to each array of JAX, or None for another leaf."""
    known = _last_leaves[0] if _last_leaves and not is_shared else None
    if known is not None and len(known.references) == len(leaves):
        columns = _as_before(leaves, known)
        if columns is not None:
            return columns, known.references
    columns = leaf_columns(leaves, is_shared=is_shared)
    if columns.problems:
        return columns, []
    references: References = [
        weakref.ref(leaf) if leaf_type.kind in ("jax", "key") else None
        for leaf, leaf_type in zip(leaves, columns.types, strict=True)
    ]
    is_simple = all(
        cells is not None or reference is None for cells, reference in zip(columns.cells, references, strict=True)
    )
    if is_simple and not is_shared and _LEAST_LEAVES <= len(leaves) <= _MOST_LEAVES:
        _last_leaves[:] = [_Leaves(references, columns.types, columns.shapes)]
    return columns, references


def _as_before(leaves: Sequence[Any], known: _Leaves) -> LeafColumns | None:
    """Return the columns if all arrays of JAX are those of the last tree. Other leaves may have changed."""
    others = []
    for i, (leaf, reference) in enumerate(zip(leaves, known.references, strict=True)):
        if reference is None:
            others.append(i)
        elif reference() is not leaf or getattr(leaf, "is_deleted", bool)():
            return None
    types, shapes = known.types, known.shapes
    if others:
        types, shapes = list(types), list(shapes)
        for i in others:
            try:
                types[i], shapes[i] = leaf_type_of(leaves[i])
            except LeafError:
                return None
            if types[i].kind in ("jax", "key"):
                return None
    return LeafColumns(types, shapes, OneCellEach(leaves), {})
