"""Nodes whose class is registered with JAX without keys: names for their children, where the node itself knows some."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from pytreesaver._tree.restructure import node_parts


def is_keyless(entries: Sequence[Any]) -> bool:
    """Return whether the key path entries of a registered node are positions that JAX made up."""
    return bool(entries) and all(isinstance(entry, jax.tree_util.FlattenedIndexKey) for entry in entries)


def children_by_key(node: Any, children: Sequence[Any]) -> dict[Any, Any] | None:
    """Return the children of an immutable mapping by their keys, in the order of `children`.

    Return None if the node is not a mapping, or its children are not its values.
    """
    if not isinstance(node, Mapping) or len(node) != len(children):
        return None
    for keys in (list(node), _sorted(node)):
        if all(node[key] is child for key, child in zip(keys, children, strict=True)):
            return dict(zip(keys, children, strict=True))
    return None


def is_nested_mapping(node: Any, children: Sequence[Any]) -> bool:
    """Return whether the children of a mapping are the leaves of nested dicts, as those of Haiku's `FlatMap` are."""
    if not isinstance(node, Mapping):
        return False
    leaves = jax.tree.leaves(_as_dict(node, type(node)))
    return len(leaves) == len(children) and all(one is other for one, other in zip(leaves, children, strict=True))


def _as_dict(node: Mapping[Any, Any], kind: Any) -> dict[Any, Any]:
    return {key: _as_dict(value, kind) if isinstance(value, kind) else value for key, value in node.items()}


def _sorted(node: Mapping[Any, Any]) -> list[Any]:
    try:
        return sorted(node)
    except TypeError:
        return list(node)


def child_names(auxiliary: Any, count: int) -> list[str] | None:
    """Return the names that the auxiliary data of a node gives to its `count` children, or None if it gives none.

    These are the first list of as many different strings, or else the keys of a dict of as many. With one child, a
    string may mean anything.

    Args:
        auxiliary: the auxiliary data, as `encode_value` encodes it.
        count: the number of children.

    Example:
        >>> child_names({"$tuple": ["relu", {"$tuple": ["w", "b"]}]}, 2), child_names({"$tuple": ["relu", 3]}, 2)
        (['w', 'b'], None)
    """
    if count < 2:
        return None
    found = [*_lists_of_strings(auxiliary), *_keys_of_dicts(auxiliary)]
    return next((names for names in found if len(names) == len(set(names)) == count), None)


def _lists_of_strings(encoded: Any) -> Iterator[list[str]]:
    if isinstance(encoded, list) and encoded and all(isinstance(each, str) for each in encoded):
        yield encoded
    for value in _inside(encoded):
        yield from _lists_of_strings(value)


def _keys_of_dicts(encoded: Any) -> Iterator[list[str]]:
    if isinstance(encoded, dict) and not any(key.startswith("$") for key in encoded):
        yield list(encoded)
    for value in _inside(encoded):
        yield from _keys_of_dicts(value)


def _inside(encoded: Any) -> Iterable[Any]:
    return encoded.values() if isinstance(encoded, dict) else encoded if isinstance(encoded, list) else ()


def names_of_stored_children(structure: Any) -> dict[int, tuple[str, ...]]:
    """Return, for each leaf of a stored structure in nodes without keys, the names that these give it, outermost first.

    Example:
        >>> names_of_stored_children({"layer": {"$node": ["m:C", [0, 1], {"$tuple": ["w", "b"]}]}, "step": 2})
        {0: ('w',), 1: ('b',)}
    """
    found: dict[int, tuple[str, ...]] = {}
    _add_names(structure, (), found)
    return found


def _add_names(node: Any, above: tuple[str, ...], found: dict[int, tuple[str, ...]]) -> None:
    if type(node) is int:
        if above:
            found[node] = above
    elif node is not None:
        names = None
        if type(node) is dict and node.keys() == {"$node"} and type(node["$node"][1]) is list:
            names = child_names(node["$node"][2], len(node["$node"][1]))
        for i, child in enumerate(node_parts(node).children):
            _add_names(child, above if names is None else (*above, names[i]), found)


def boxed_leaves(structure: Any) -> set[int]:
    """Return the leaves of a stored structure that are the only child of a registered node, with the key ``value``.

    So are the variables of Flax, whose names end in ``/value``.
    """
    found: set[int] = set()
    pending = [structure]
    while pending:
        node = pending.pop()
        if node is None or type(node) is int:
            continue
        parts = node_parts(node)
        is_box = type(node) is dict and (node.keys() == {"$node"} or node.keys() == {"$dataclass"})
        if is_box and parts.keys == ["value"] and type(parts.children[0]) is int:
            found.add(parts.children[0])
        pending += parts.children
    return found
