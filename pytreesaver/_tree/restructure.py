"""Structures of partial trees, of trees with renamed leaves, and of lists of names.

Pure functions on the JSON data of a structure; see `pytreesaver._tree.structure`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pytreesaver._text import SINGLE_LEAF_NAME, prefixes
from pytreesaver._tree.plain import decode_value


def prune_structure(structure: Any, kept: Mapping[int, int]) -> Any:
    """Remove leaves from a structure. `kept` maps the position of each remaining leaf to its new position.

    Branches without a remaining leaf are removed. To keep the names, an incomplete list or tuple becomes a dict with
    positions as keys, and an incomplete container of any other type, except for dicts, becomes a dict of its children.

    Example:
        >>> prune_structure({"a": [0, 1], "b": 2, "c": {"$tuple": [3]}}, {1: 0, 3: 1})
        {'a': {'$dict': [[1, 0]]}, 'c': {'$tuple': [1]}}
    """
    pruned = _prune(structure, kept)
    return {} if pruned is _ABSENT else pruned


_ABSENT: Any = object()


class NodeParts(NamedTuple):
    """The keys and children of a node, and functions to rebuild it.

    Attributes:
        keys: the keys of the children.
        children: the child nodes.
        rebuild: makes a node of the same type from new children.
        rebuild_partial: makes a node from a list of [key, child], which may lack some of the keys.
    """

    keys: list[Any]
    children: list[Any]
    rebuild: Callable[[list[Any]], Any]
    rebuild_partial: Callable[[list[list[Any]]], Any]


def node_parts(node: Any) -> NodeParts:
    """Return the parts of a node that is neither a leaf nor None."""
    if type(node) is list:
        return NodeParts(list(range(len(node))), node, list, lambda some: {"$dict": some})
    if not _is_tagged(node):
        return NodeParts(list(node), list(node.values()), lambda new: dict(zip(node, new, strict=True)), _as_dict)
    ((tag, body),) = node.items()
    match tag:
        case "$tuple":
            return node_parts(body)._replace(rebuild=lambda new: {tag: new})
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
        case _:  # a registered node keeps its children in a nested container
            inner = node_parts(body[1])
            return inner._replace(rebuild=lambda new: {tag: [body[0], inner.rebuild(new), *body[2:]]})


def _paired(keys: list[Any], children: list[Any]) -> list[list[Any]]:
    return [[key, child] for key, child in zip(keys, children, strict=True)]


def _as_dict(items: list[list[Any]]) -> Any:
    return {"$dict": items} if any(key.startswith("$") for key, _ in items) else dict(items)


def _is_tagged(node: Any) -> bool:
    return len(node) == 1 and next(iter(node)).startswith("$")


def _prune(node: Any, kept: Mapping[int, int], *, keep_empty: bool = False) -> Any:
    return _pruned(node, kept, keep_empty).node


class _Pruned(NamedTuple):
    """A pruned node, whether it had leaves, and whether it kept all of them."""

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
        complete = [new.node if new.had_leaves else child for new, child in zip(children, parts.children, strict=True)]
        return _Pruned(parts.rebuild(complete), True, True)
    some = [[key, child.node] for key, child in zip(parts.keys, children, strict=True) if child.node is not _ABSENT]
    return _Pruned(parts.rebuild_partial(some) if some else _ABSENT, True, False)


def _has_leaves(node: Any) -> bool:
    return next(_leaves(node), None) is not None


def _renumbered(node: Any, kept: Mapping[int, int]) -> Any:
    if node is None:
        return None
    if type(node) is int:
        return kept[node]
    parts = node_parts(node)
    return parts.rebuild([_renumbered(child, kept) for child in parts.children])


def joined_structure(parts: Mapping[str, Any], first: Mapping[str, int]) -> Any:
    """Return a dict of structures, whose positions count from those in `first`.

    Example:
        >>> joined_structure({"params": {"w": 0}, "ema": [0, 1]}, {"params": 0, "ema": 1})
        {'params': {'w': 0}, 'ema': [1, 2]}
    """
    moved = []
    for key, structure in parts.items():
        kept = {position: first[key] + position for position in _leaves(structure)}
        moved.append([key, _renumbered(structure, kept)])
    return _as_dict(moved)


def _leaves(node: Any) -> Iterator[int]:
    if type(node) is int:
        yield node
    elif node is not None:
        for child in node_parts(node).children:
            yield from _leaves(child)


class NameConflictError(Exception):
    """A leaf and a container would have the same name, which is the message."""


def move_structure(
    structure: Any,
    names: Sequence[str],
    moved: Mapping[int, Sequence[tuple[str, int]]],
    *,
    keep_empty: bool,
) -> Any:
    """Return the structure of a tree after renaming its leaves.

    A branch whose leaves are all renamed in the same way is moved unchanged. A container that loses or gains leaves
    keeps its type if it is a dict, OrderedDict or defaultdict. Otherwise it becomes a dict.

    Args:
        structure: the structure of the original tree.
        names: the original name of each leaf.
        moved: maps each remaining leaf to a list of (new name, new position).
        keep_empty: keep containers without leaves.

    Raises:
        NameConflictError: if a leaf and a container would have the same name.

    Example:
        >>> names, moved = ["old/0", "old/1", "step"], {0: [("new/0", 0)], 1: [("new/1", 1)], 2: [("step", 2)]}
        >>> move_structure({"old": {"$tuple": [0, 1]}, "step": 2}, names, moved, keep_empty=True)
        {'step': 2, 'new': {'$tuple': [0, 1]}}
    """
    branches = list(_moved_branches(structure, None, names, moved))
    if len(branches) == 1 and branches[0][0] is None:
        return branches[0][1]
    if any(name is None for name, _, _ in branches):
        raise NameConflictError(SINGLE_LEAF_NAME)
    staying = {leaf: position for leaf, places in moved.items() for name, position in places if name == names[leaf]}
    rest = _prune(structure, staying, keep_empty=keep_empty)
    entries = [(name, branch) for name, branch, path in branches if name is not None and name != path]
    return _insert_branches({} if rest is _ABSENT or type(rest) is int else rest, entries, "")


def _insert_branches(node: Any, entries: Sequence[tuple[str, Any]], path: str) -> Any:
    """Insert branches into a container, at names relative to it. `path` is its own name with a slash, for messages."""
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
            raise NameConflictError(path + name)
        elif type(child) is int:  # a leaf has this name, so the children become keys beside it
            flat += _children_of(branch, name)
        else:
            inside.setdefault(at[name], []).extend(_children_of(branch, ""))
    for name, branch in entries:
        if name in at:
            continue
        # The longest key applies: if there are keys "a" and "a/b", the name "a/b/c" is in "a/b".
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
        children[i] = _insert_branches(children[i], inner, f"{path}{components[i]}/")
    for first, group in groups.items():
        flat += _nest_group(first, group, path)
    flat = _with_unique_keys(flat)
    if not flat:
        return parts.rebuild(children)
    items = [[key, child] for key, child in zip(parts.keys, children, strict=True)]
    if items and all(type(key) is int for key, _ in items) and all(_is_number(key) for key, _ in flat):
        return _dict_of([*items, *([int(key), branch] for key, branch in flat)])
    more = [[key, branch] for key, branch in flat]
    if all(type(key) is str for key, _ in items):
        return parts.rebuild_partial([*items, *more]) if _keeps_type(node) else _dict_of([*items, *more])
    return _dict_of([*([component, children[i]] for component, i in at.items()), *more])


def _nest_group(first: str, group: Sequence[tuple[str, Any]], path: str) -> list[tuple[str, Any]]:
    """Return the keys and children of a container for new names with a common first component."""
    leaves = [branch for name, branch in group if name == first and type(branch) is int]
    containers = [branch for name, branch in group if name == first and type(branch) is not int]
    below = [(name, branch) for name, branch in group if name != first]
    if leaves:  # a leaf has this name, so everything else becomes keys beside it
        return [(first, leaves[0]), *below, *(child for branch in containers for child in _children_of(branch, first))]
    rest = [(name[len(first) + 1 :], branch) for name, branch in below]
    rest += [child for branch in containers[1:] for child in _children_of(branch, "")]
    return [(first, _insert_branches(containers[0] if containers else {}, rest, f"{path}{first}/"))]


def _with_unique_keys(entries: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Make the keys of branches unique: split all but one of the branches with the same key into their children."""
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


def _keeps_type(node: Any) -> bool:
    """Return whether a container keeps its type when it gains a str key."""
    return type(node) is dict and _is_tagged(node) and next(iter(node)) in ("$ordereddict", "$defaultdict")


def _dict_of(items: list[list[Any]]) -> Any:
    return _as_dict(items) if all(type(key) is str for key, _ in items) else {"$dict": items}


def _moved_branches(
    node: Any, path: str | None, names: Sequence[str], moved: Mapping[int, Sequence[tuple[str, int]]]
) -> Iterator[tuple[str | None, Any, str | None]]:
    """Yield (new name, structure, old name) of the largest branches that move unchanged. None names the root."""
    if type(node) is int:
        for name, position in moved.get(node, ()):
            yield (None if name == SINGLE_LEAF_NAME else name), position, path
        return
    leaves = list(_leaves(node))
    if not leaves:
        return
    targets = {tuple(_target_path(names[leaf], path, name) for name, _ in moved.get(leaf, ())) for leaf in leaves}
    if len(targets) == 1:
        (target_paths,) = targets
        # A branch that moves to the root must be the only one.
        is_alone = len(leaves) == len(moved) and len(target_paths) == 1
        if _NO_PATH not in target_paths and (None not in target_paths or is_alone):
            for i, target in enumerate(target_paths):
                yield target, _renumbered(node, {leaf: moved[leaf][i][1] for leaf in leaves}), path
            return
    parts = node_parts(node)
    for key, child in zip(parts.keys, parts.children, strict=True):
        component = str(decode_value(key))
        yield from _moved_branches(child, component if path is None else f"{path}/{component}", names, moved)


_NO_PATH: Any = object()


def _target_path(name: str, path: str | None, new_name: str) -> Any:
    """Return the new path of the branch at `path` that gives its leaf the new name. None is the root."""
    rest = name if path is None else name[len(path) + 1 :]
    if new_name == rest:
        return None
    return new_name.removesuffix(f"/{rest}") if new_name.endswith(f"/{rest}") else _NO_PATH


def names_without_leaves(structure: Any) -> Iterator[str]:
    """Yield the names of all containers without leaves, and of all None.

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
    """Return a structure of nested dicts whose leaves have these names, in this order.

    If a name is a prefix of another, as in ``["a", "a/b"]``, the longer name cannot be nested: its rest becomes a
    single key.

    Example:
        >>> structure_of_names(["dense/kernel", "dense/bias", "step"])
        {'dense': {'kernel': 0, 'bias': 1}, 'step': 2}
    """
    if list(names) == [SINGLE_LEAF_NAME]:
        return 0
    return _plain_structure(names) or _insert_branches({}, [(name, i) for i, name in enumerate(names)], "")


def _plain_structure(names: Sequence[str]) -> dict[str, Any] | None:
    """Return what `structure_of_names` does for names without peculiarities, and fast; None for other names."""
    root: dict[str, Any] = {}
    for position, name in enumerate(names):
        node = root
        *containers, last = name.split("/")
        for component in containers:
            node = node.setdefault(component, {})
            if type(node) is int:
                return None
        if last in node or not all((*containers, last)) or "$" in name:
            return None
        node[last] = position
    return root
