"""Structures of parts of trees, and of names that never had a tree. Pure functions on the plain data of a structure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


def prune_structure(structure: Any, kept: Mapping[int, int]) -> Any:
    """The structure of a tree without some of its leaves; `kept` gives the new position of each leaf that stays.

    Branches without a leaf that stays are absent. What is left of a list or a tuple is a dict with the positions as its
    keys, and what is left of any other container but a dict is a dict with the names: so the names stay the same.

    Example:
        >>> prune_structure({"a": [0, 1], "b": 2, "c": {"$tuple": [3]}}, {1: 0, 3: 1})
        {'a': {'$dict': [[1, 0]]}, 'c': {'$tuple': [1]}}
    """
    pruned = _prune(structure, kept)
    return {} if pruned is _ABSENT else pruned


_ABSENT: Any = object()


class _Parts(NamedTuple):
    """The children of a node with their keys, and how to make a node of them: of all, or of (key, child) that stay."""

    keys: list[Any]
    children: list[Any]
    of_all: Callable[[list[Any]], Any]
    of_some: Callable[[list[list[Any]]], Any]


def _parts(node: Any) -> _Parts:
    if type(node) is list:
        return _Parts(list(range(len(node))), node, list, lambda some: {"$dict": some})
    if not _is_tagged(node):
        return _Parts(list(node), list(node.values()), lambda new: dict(zip(node, new, strict=True)), _as_dict)
    ((tag, body),) = node.items()
    match tag:
        case "$tuple":
            return _parts(body)._replace(of_all=lambda new: {tag: new})
        case "$dict" | "$ordereddict":
            keys, children = [key for key, _ in body], [child for _, child in body]
            return _Parts(keys, children, lambda new: {tag: _paired(keys, new)}, lambda some: {tag: some})
        case "$defaultdict":
            factory, items = body
            keys, children = [key for key, _ in items], [child for _, child in items]
            return _Parts(
                keys, children, lambda new: {tag: [factory, _paired(keys, new)]}, lambda some: {tag: [factory, some]}
            )
        case "$namedtuple" | "$dataclass":
            fields, rest = body[1], body[2:]
            return _Parts(
                list(fields),
                list(fields.values()),
                lambda new: {tag: [body[0], dict(zip(fields, new, strict=True)), *rest]},
                _as_dict,
            )
        case _:  # a registered node has its children in a container of their own
            inner = _parts(body[1])
            return inner._replace(of_all=lambda new: {tag: [body[0], inner.of_all(new), *body[2:]]})


def _paired(keys: list[Any], children: list[Any]) -> list[list[Any]]:
    return [[key, child] for key, child in zip(keys, children, strict=True)]


def _as_dict(items: list[list[Any]]) -> Any:
    return {"$dict": items} if any(key.startswith("$") for key, _ in items) else dict(items)


def _is_tagged(node: Any) -> bool:
    return len(node) == 1 and next(iter(node)).startswith("$")


def _prune(node: Any, kept: Mapping[int, int]) -> Any:
    if node is None:
        return _ABSENT
    if type(node) is int:
        return kept.get(node, _ABSENT)
    if _keeps_all(node, kept):
        return _renumbered(node, kept)
    parts = _parts(node)
    pruned = [[key, _prune(child, kept)] for key, child in zip(parts.keys, parts.children, strict=True)]
    some = [item for item in pruned if item[1] is not _ABSENT]
    return parts.of_some(some) if some else _ABSENT


def _renumbered(node: Any, kept: Mapping[int, int]) -> Any:
    if node is None:
        return None
    if type(node) is int:
        return kept[node]
    parts = _parts(node)
    return parts.of_all([_renumbered(child, kept) for child in parts.children])


def _keeps_all(node: Any, kept: Mapping[int, int]) -> bool:
    leaves = list(_leaves(node))
    return bool(leaves) and all(leaf in kept for leaf in leaves)


def _leaves(node: Any) -> Iterator[int]:
    if type(node) is int:
        yield node
    elif node is not None:
        for child in _parts(node).children:
            yield from _leaves(child)


def structure_of_names(names: Sequence[str]) -> Any:
    """The structure of nested dicts in which the leaves have these names, in this order.

    A name that is also the beginning of another, as in ``["a", "a/b"]``, leaves no place to nest: there the rest of the
    longer name is a key as it is.

    Example:
        >>> structure_of_names(["dense/kernel", "dense/bias", "step"])
        {'dense': {'kernel': 0, 'bias': 1}, 'step': 2}
    """
    if list(names) == ["."]:
        return 0
    return _nested([(name, position) for position, name in enumerate(names)])


def _nested(entries: Sequence[tuple[str, int]]) -> Any:
    groups: dict[str, list[tuple[str, int]]] = {}
    leaves = {name for name, _ in entries}
    items: dict[str, Any] = {}
    for name, position in entries:
        first, slash, rest = name.partition("/")
        if not slash or first in leaves:
            items[name] = position
            continue
        if first not in groups:
            groups[first] = []
            items[first] = groups[first]
        groups[first].append((rest, position))
    built = {key: _nested(value) if isinstance(value, list) else value for key, value in items.items()}
    if any(key.startswith("$") for key in built):
        return {"$dict": [[key, value] for key, value in built.items()]}
    return built
