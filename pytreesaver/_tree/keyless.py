"""Nodes whose class is registered with JAX without keys: names for their children, where the node itself knows some."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import msgspec

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
    orders = [list(node), _sorted(node)]
    fitting = [keys for keys in orders if all(node[key] is child for key, child in zip(keys, children, strict=True))]
    if len(fitting) == 2 and fitting[0] != fitting[1]:  # one object in several places fits anywhere
        fitting = _order_of_class(node) or fitting
    return dict(zip(fitting[0], children, strict=True)) if fitting else None


def _order_of_class(node: Mapping[Any, Any]) -> list[list[Any]]:
    """Return the keys of a mapping in the order in which JAX flattens its values."""
    values = [_Marker() for _ in range(len(node))]
    treedef = jax.tree.structure(node, is_leaf=lambda each: each is not node)
    with suppress(Exception):  # the class may accept nothing else than arrays
        marked = jax.tree.unflatten(treedef, values)
        by_value = {id(marked[key]): key for key in marked}
        return [[by_value[id(value)] for value in values]]
    return []


class _Marker:
    """A leaf that is equal to no other."""


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


class Child(NamedTuple):
    """A child of a registered node.

    Attributes:
        position: its position.
        siblings: how many children there are, with itself.
        auxiliary: the auxiliary data of the node, or the keys of its children.
        has_key: whether it has a key, by which it is matched.
    """

    position: int
    siblings: int
    auxiliary: Any
    has_key: bool = False


def other_names(expected: Child, found: Child) -> list[tuple[str, str]] | None:
    """Return what the auxiliary data of two nodes call each child, if they name them differently, or else None.

    Names may be a list of as many different strings as there are children, the first items of as many tuples, the keys
    of a dict, or the parts of a string, separated by commas. A single child has no other place to be in.

    Args:
        expected: a child of the one node, of which only the position does not matter.
        found: one of the other node.

    Example:
        >>> names = {"$tuple": ["relu", {"$tuple": ["w", "b"]}]}
        >>> swapped = {"$tuple": ["relu", {"$tuple": ["b", "w"]}]}
        >>> other_names(Child(0, 2, names), Child(0, 2, swapped)), other_names(Child(0, 2, names), Child(0, 2, names))
        ([('w', 'b'), ('b', 'w')], None)
    """
    count = expected.siblings
    if count < 2 or (expected.has_key and found.has_key):
        return None
    if msgspec.json.encode(expected.auxiliary) == msgspec.json.encode(found.auxiliary):
        return None
    ours, theirs = (dict(_namings((), each.auxiliary, each.siblings)) for each in (expected, found))
    pairs = [(ours[path], theirs[path]) for path in ours if path in theirs]
    if not pairs and ours and theirs:  # the data have another form
        pairs = [(next(iter(ours.values())), next(iter(theirs.values())))]
    differing = [(one, other) for one, other in pairs if one != other]
    in_other_order = [pair for pair in differing if sorted(pair[0]) == sorted(pair[1])]
    renamed = [pair for pair in differing if len(pair[0]) == count]
    for one, other in [*in_other_order, *renamed]:
        names = list(zip(one, other, strict=False))
        # Of more strings than children, some are names.
        return names if len(one) == count else [(a, b) for a, b in names if a != b]
    return None


def _namings(path: tuple[Any, ...], encoded: Any, count: int) -> Iterator[tuple[tuple[Any, ...], list[str]]]:
    """Yield the strings in auxiliary data that may name `count` children, or among which their names are."""
    items: list[Any] = []
    if isinstance(encoded, str):
        parts = [part.strip() for part in re.split("[,;]", encoded)]
        if len(parts) == len(set(parts)) == count:
            yield path, parts
    elif isinstance(encoded, list):
        items = encoded
    elif isinstance(encoded, dict) and len(encoded) == 1 and next(iter(encoded)).startswith("$"):
        ((tag, body),) = encoded.items()
        if tag == "$dict":
            yield from _namings((*path, "keys"), [key for key, _ in body], count)
            items = [value for _, value in body]
        elif tag in ("$tuple", "$namedtuple", "$dataclass"):
            yield from _namings(path, body if tag == "$tuple" else body[1], count)
    elif isinstance(encoded, dict):
        if len(encoded) == count:
            yield (*path, "keys"), list(encoded)
        for key, value in encoded.items():
            yield from _namings((*path, key), value, count)
    heads = [head for item in items if (head := _head_of(item)) is not None]
    if len(set(heads)) == len(heads) and (len(heads) == len(items) == count or len(items) > count <= len(heads)):
        yield path, heads
    for i, item in enumerate(items):
        yield from _namings((*path, i), item, count)


def _head_of(item: Any) -> str | None:
    """Return a string or bytes as a string, and of a tuple its first item if that is one, or else None."""
    if isinstance(item, dict) and item.keys() == {"$tuple"}:
        item = item["$tuple"]
    if isinstance(item, list) and item and isinstance(item[0], str):
        return ".".join(item) if all(isinstance(each, str) for each in item) else item[0]
    if isinstance(item, dict) and item.keys() == {"$bytes"}:
        return str(base64.b64decode(item["$bytes"]))
    return item if isinstance(item, str) else None


def children_in_nodes(structure: Any) -> dict[int, tuple[Child, ...]]:
    """Return, for each leaf of a structure in registered nodes, the children of these that it is in, innermost first.

    The auxiliary data of a node whose children have keys are these keys.

    Example:
        >>> children_in_nodes({"layer": {"$node": ["m:C", [0, 1], {"$tuple": ["w", "b"]}]}, "step": 2})[1]
        (Child(position=1, siblings=2, auxiliary={'$tuple': ['w', 'b']}, has_key=False),)
    """
    found: dict[int, tuple[Child, ...]] = {}
    _add_children(structure, (), found)
    return found


def _naming_of(node: Any) -> tuple[Any, bool] | None:
    """Return what names the children of a structure's node, if it is a registered one, and whether these are keys."""
    if type(node) is not dict or node.keys() != {"$node"}:
        return None
    _, children, auxiliary = node["$node"]
    return (auxiliary, False) if type(children) is list else ([key for key, _ in children.get("$dict", ())], True)


def _add_children(node: Any, above: tuple[Child, ...], found: dict[int, tuple[Child, ...]]) -> None:
    if type(node) is int:
        if above:
            found[node] = above
    elif node is not None:
        naming, children = _naming_of(node), node_parts(node).children
        for i, child in enumerate(children):
            inside = above if naming is None else (Child(i, len(children), *naming), *above)
            _add_children(child, inside, found)


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
