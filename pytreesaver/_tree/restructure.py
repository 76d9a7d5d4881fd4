"""Structures of parts of trees, of trees with other names, and of names that never had a tree.

Pure functions on the plain data of a structure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pytreesaver._text import SINGLE_LEAF_NAME, prefixes
from pytreesaver._tree.plain import decode_value


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


class NodeParts(NamedTuple):
    """The children of a node with their keys, and how to make a node of them: of all, or of (key, child) that stay."""

    keys: list[Any]
    children: list[Any]
    of_all: Callable[[list[Any]], Any]
    of_some: Callable[[list[list[Any]]], Any]


def node_parts(node: Any) -> NodeParts:
    """A node of a structure that is neither a leaf nor None, taken apart."""
    if type(node) is list:
        return NodeParts(list(range(len(node))), node, list, lambda some: {"$dict": some})
    if not _is_tagged(node):
        return NodeParts(list(node), list(node.values()), lambda new: dict(zip(node, new, strict=True)), _as_dict)
    ((tag, body),) = node.items()
    match tag:
        case "$tuple":
            return node_parts(body)._replace(of_all=lambda new: {tag: new})
        case "$dict" | "$ordereddict":
            keys, children = [key for key, _ in body], [child for _, child in body]
            return NodeParts(keys, children, lambda new: {tag: _paired(keys, new)}, lambda some: {tag: some})
        case "$defaultdict":
            factory, items = body
            keys, children = [key for key, _ in items], [child for _, child in items]
            return NodeParts(
                keys, children, lambda new: {tag: [factory, _paired(keys, new)]}, lambda some: {tag: [factory, some]}
            )
        case "$namedtuple" | "$dataclass":
            fields, rest = body[1], body[2:]
            return NodeParts(
                list(fields),
                list(fields.values()),
                lambda new: {tag: [body[0], dict(zip(fields, new, strict=True)), *rest]},
                _as_dict,
            )
        case _:  # a registered node has its children in a container of their own
            inner = node_parts(body[1])
            return inner._replace(of_all=lambda new: {tag: [body[0], inner.of_all(new), *body[2:]]})


def _paired(keys: list[Any], children: list[Any]) -> list[list[Any]]:
    return [[key, child] for key, child in zip(keys, children, strict=True)]


def _as_dict(items: list[list[Any]]) -> Any:
    return {"$dict": items} if any(key.startswith("$") for key, _ in items) else dict(items)


def _is_tagged(node: Any) -> bool:
    return len(node) == 1 and next(iter(node)).startswith("$")


def _prune(node: Any, kept: Mapping[int, int], *, keep_empty: bool = False) -> Any:
    return _pruned(node, kept, keep_empty).node


class _Pruned(NamedTuple):
    """What is left of a node, whether it had leaves, and whether it has kept them all."""

    node: Any
    had_leaves: bool
    kept_all: bool


def _pruned(node: Any, kept: Mapping[int, int], keep_empty: bool) -> _Pruned:
    if type(node) is int:
        return _Pruned(kept.get(node, _ABSENT), True, node in kept)
    without_leaves = _Pruned(node if keep_empty else _ABSENT, False, True)
    if node is None:
        return without_leaves
    parts = node_parts(node)
    children = [_pruned(child, kept, keep_empty) for child in parts.children]
    if not any(child.had_leaves for child in children):
        return without_leaves
    if all(child.kept_all for child in children):
        whole = [new.node if new.had_leaves else child for new, child in zip(children, parts.children, strict=True)]
        return _Pruned(parts.of_all(whole), True, True)
    some = [[key, child.node] for key, child in zip(parts.keys, children, strict=True) if child.node is not _ABSENT]
    return _Pruned(parts.of_some(some) if some else _ABSENT, True, False)


def _has_leaves(node: Any) -> bool:
    return next(_leaves(node), None) is not None


def _renumbered(node: Any, kept: Mapping[int, int]) -> Any:
    if node is None:
        return None
    if type(node) is int:
        return kept[node]
    parts = node_parts(node)
    return parts.of_all([_renumbered(child, kept) for child in parts.children])


def _leaves(node: Any) -> Iterator[int]:
    if type(node) is int:
        yield node
    elif node is not None:
        for child in node_parts(node).children:
            yield from _leaves(child)


class TakenNameError(Exception):
    """The name that a leaf cannot have because there are leaves under it."""


def move_structure(
    structure: Any,
    names: Sequence[str],
    moved: Mapping[int, Sequence[tuple[str, int]]],
    *,
    keep_empty: bool,
) -> Any:
    """The structure of a tree whose leaves have other names now.

    Args:
        structure: of the tree as it was.
        names: the name that each leaf had.
        moved: for each leaf that stays, its new names and their positions.
        keep_empty: whether containers without any leaf stay.

    A branch of which every leaf moves in the same way stays what it is, under its new name. So does every container
    that only loses or gains leaves, but that a list, or a class, of which a part is gone or new is a dict.

    Raises:
        TakenNameError: a leaf and a container would have one name.

    Example:
        >>> names, moved = ["old/0", "old/1", "step"], {0: [("new/0", 0)], 1: [("new/1", 1)], 2: [("step", 2)]}
        >>> move_structure({"old": {"$tuple": [0, 1]}, "step": 2}, names, moved, keep_empty=True)
        {'step': 2, 'new': {'$tuple': [0, 1]}}
    """
    branches = list(_moved_branches(structure, None, names, moved))
    if len(branches) == 1 and branches[0][0] is None:
        return branches[0][1]
    if any(name is None for name, _, _ in branches):
        raise TakenNameError(SINGLE_LEAF_NAME)
    staying = {leaf: position for leaf, places in moved.items() for name, position in places if name == names[leaf]}
    rest = _prune(structure, staying, keep_empty=keep_empty)
    entries = [(name, branch) for name, branch, path in branches if name is not None and name != path]
    return _with_branches({} if rest is _ABSENT or type(rest) is int else rest, entries, "")


def _with_branches(node: Any, entries: Sequence[tuple[str, Any]], path: str) -> Any:
    """A container with more branches, at names as seen from it; `path` is the beginning of its own for messages."""
    if not entries:
        return node
    parts = node_parts({} if node is None else node)
    children = list(parts.children)
    at = {str(decode_value(key)): i for i, key in enumerate(parts.keys)}
    inside: dict[int, list[tuple[str, Any]]] = {}
    groups: dict[str, list[tuple[str, Any]]] = {}
    flat: list[tuple[str, Any]] = []
    for name, branch in entries:
        if name not in at:
            continue
        child = children[at[name]]
        if not _has_leaves(child):
            children[at[name]] = branch
        elif type(branch) is int:
            raise TakenNameError(path + name)
        elif type(child) is int:  # beside a leaf of that name there is no place for a container
            flat += _children_of(branch, name)
        else:
            inside.setdefault(at[name], []).extend(_children_of(branch, ""))
    for name, branch in entries:
        if name in at:
            continue
        # The longest key counts: with a key "a/b" beside "a", what is under "a/b" is in there.
        holders = [p for p in prefixes(name) if p in at and type(children[at[p]]) is not int]
        if holders:
            holder = max(holders, key=len)
            inside.setdefault(at[holder], []).append((name[len(holder) + 1 :], branch))
        elif name.partition("/")[0] in at:
            flat.append((name, branch))
        else:
            groups.setdefault(name.partition("/")[0], []).append((name, branch))
    components = list(at)
    for i, inner in inside.items():
        children[i] = _with_branches(children[i], inner, f"{path}{components[i]}/")
    for first, group in groups.items():
        flat += _grown(first, group, path)
    flat = _apart(flat)
    if not flat:
        return parts.of_all(children)
    items = [[key, child] for key, child in zip(parts.keys, children, strict=True)]
    if items and all(type(key) is int for key, _ in items) and all(_is_number(key) for key, _ in flat):
        return _dict_of([*items, *([int(key), branch] for key, branch in flat)])
    more = [[key, branch] for key, branch in flat]
    if all(type(key) is str for key, _ in items):
        return parts.of_some([*items, *more]) if _keeps_kind(node) else _dict_of([*items, *more])
    return _dict_of([*([component, children[i]] for component, i in at.items()), *more])


def _grown(first: str, group: Sequence[tuple[str, Any]], path: str) -> list[tuple[str, Any]]:
    """The keys of a container for new names that have their first component in common."""
    leaves = [branch for name, branch in group if name == first and type(branch) is int]
    containers = [branch for name, branch in group if name == first and type(branch) is not int]
    below = [(name, branch) for name, branch in group if name != first]
    if leaves:  # beside a leaf of that name there is no place for a container
        return [(first, leaves[0]), *below, *(child for branch in containers for child in _children_of(branch, first))]
    rest = [(name[len(first) + 1 :], branch) for name, branch in below]
    rest += [child for branch in containers[1:] for child in _children_of(branch, "")]
    return [(first, _with_branches(containers[0] if containers else {}, rest, f"{path}{first}/"))]


def _apart(entries: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The same branches as keys of one container: of several with one name only one stays whole."""
    result: dict[str, Any] = {}
    waiting = list(entries)
    while waiting:
        name, branch = waiting.pop()
        if name in result and type(branch) is int:
            waiting += _children_of(result[name], name)
            result[name] = branch
        elif name in result:
            waiting += _children_of(branch, name)
        else:
            result[name] = branch
    return list(reversed(result.items()))


def _children_of(branch: Any, name: str) -> list[tuple[str, Any]]:
    parts = node_parts(branch)
    components = [str(decode_value(key)) for key in parts.keys]
    return [
        (f"{name}/{component}" if name else component, child)
        for component, child in zip(components, parts.children, strict=True)
    ]


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit() and str(int(key)) == key


def _keeps_kind(node: Any) -> bool:
    """Whether a container stays of its kind when it gets another str key."""
    return type(node) is dict and _is_tagged(node) and next(iter(node)) in ("$ordereddict", "$defaultdict")


def _dict_of(items: list[list[Any]]) -> Any:
    return _as_dict(items) if all(type(key) is str for key, _ in items) else {"$dict": items}


def _moved_branches(
    node: Any, path: str | None, names: Sequence[str], moved: Mapping[int, Sequence[tuple[str, int]]]
) -> Iterator[tuple[str | None, Any, str | None]]:
    """The (new name, structure, old name) of the largest branches that move as they are; that of the root is None."""
    if type(node) is int:
        for name, position in moved.get(node, ()):
            yield (None if name == SINGLE_LEAF_NAME else name), position, path
        return
    leaves = list(_leaves(node))
    if not leaves:
        return
    places = {tuple(_new_place(names[leaf], path, name) for name, _ in moved.get(leaf, ())) for leaf in leaves}
    if len(places) == 1:
        (place_of_all,) = places
        # At the root there is room for nothing else.
        is_alone = len(leaves) == len(moved) and len(place_of_all) == 1
        if _NOWHERE not in place_of_all and (None not in place_of_all or is_alone):
            for i, place in enumerate(place_of_all):
                yield place, _renumbered(node, {leaf: moved[leaf][i][1] for leaf in leaves}), path
            return
    parts = node_parts(node)
    for key, child in zip(parts.keys, parts.children, strict=True):
        component = str(decode_value(key))
        yield from _moved_branches(child, component if path is None else f"{path}/{component}", names, moved)


_NOWHERE: Any = object()


def _new_place(name: str, path: str | None, new_name: str) -> Any:
    """Where a branch at `path` would have to be for its leaf to have its new name; the root is None."""
    rest = name if path is None else name[len(path) + 1 :]
    if new_name == rest:
        return None
    return new_name.removesuffix(f"/{rest}") if new_name.endswith(f"/{rest}") else _NOWHERE


def names_without_leaves(structure: Any) -> Iterator[str]:
    """The names of all containers in which there is no leaf, and of None.

    Example:
        >>> list(names_without_leaves({"w": 0, "b": None, "opt": [{}, 1]}))
        ['b', 'opt/0']
    """
    return _names_without_leaves(structure, None)


def _names_without_leaves(node: Any, path: str | None) -> Iterator[str]:
    if type(node) is int:
        return
    if not _has_leaves(node):
        yield SINGLE_LEAF_NAME if path is None else path
    if node is not None:
        for component, child in _children_of(node, ""):
            yield from _names_without_leaves(child, component if path is None else f"{path}/{component}")


def structure_of_names(names: Sequence[str]) -> Any:
    """The structure of nested dicts in which the leaves have these names, in this order.

    A name that is also the beginning of another, as in ``["a", "a/b"]``, leaves no place to nest: there the rest of the
    longer name is a key as it is.

    Example:
        >>> structure_of_names(["dense/kernel", "dense/bias", "step"])
        {'dense': {'kernel': 0, 'bias': 1}, 'step': 2}
    """
    if list(names) == [SINGLE_LEAF_NAME]:
        return 0
    return _with_branches({}, [(name, position) for position, name in enumerate(names)], "")
