"""What a tree is apart from its leaves, as plain data; `pytreesaver._rebuild` makes a tree of it again.

The plain data is JSON: an integer stands for a leaf (its position among the leaves), ``null`` for None, an array for
a list, an object for a dict with string keys. Every other container is an object with one key that starts with ``$``;
docs/format.md lists them.
"""

import bisect
import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from pytreesaver._errors import DuplicateNameError, UnsupportedLeafError
from pytreesaver._text import SINGLE_LEAF_NAME, duplicates, shown
from pytreesaver._tree.kinds import NotPlainError
from pytreesaver._tree.plain import class_reference, encode_value

_registry = jax.tree_util.default_registry

MOST_LEVELS = 100
"""How deep a tree may be nested: near enough for every reader's stack."""

KEY_TYPES = (str, int, bool, float, type(None))


def name_component(entry: Any) -> str:
    """One entry of a JAX key path as it stands in a variable name.

    Example:
        >>> name_component(jax.tree_util.DictKey("kernel")), name_component(jax.tree_util.SequenceKey(0))
        ('kernel', '0')
    """
    match entry:
        case jax.tree_util.DictKey() | jax.tree_util.FlattenedIndexKey():
            return str(entry.key)
        case jax.tree_util.SequenceKey():
            return str(entry.idx)
        case jax.tree_util.GetAttrKey():
            return str(entry.name)
    return jax.tree_util.keystr((entry,), simple=True)


@dataclasses.dataclass(frozen=True, slots=True)
class FlatTree:
    """A tree taken apart: `names`, `leaves` (of equal length, in the order of `jax.tree.leaves`) and `structure`.

    `problems` maps a variable name or prefix to why what is there cannot be stored.
    """

    names: list[str]
    leaves: list[Any]
    structure: Any
    problems: dict[str, str]


def flatten_tree(tree: Any) -> FlatTree:
    """Take a tree apart into variable names, leaves and structure, in one walk.

    Raises:
        UnsupportedLeafError: the tree is nested deeper than `MOST_LEVELS`, or a dict mixes keys that cannot be
            sorted, which JAX refuses too.

    Example:
        >>> flat = flatten_tree({"w": (1.0, None), "b": 2})
        >>> flat.names, flat.leaves, flat.structure
        (['b', 'w/0'], [2, 1.0], {'w': {'$tuple': [1, None]}, 'b': 0})
    """
    flattener = _Flattener()
    try:
        structure = flattener.visit(tree, None)
        return FlatTree(flattener.names, flattener.leaves, structure, flattener.problems)
    finally:
        flattener.forget()


class _Flattener:
    """Visits a tree as JAX does: the same nodes, the same leaves, in the same order. The name of the root is None."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.leaves: list[Any] = []
        self.problems: dict[str, str] = {}
        self._level = 0
        # None for the types that are leaves. Not kept beyond one tree: a class may be registered with JAX later.
        self._visitors: dict[type, Callable[[Any, str | None], Any] | None] = {
            dict: self._visit_dict,
            list: self._visit_list,
            tuple: lambda node, name: {"$tuple": self._visit_list(node, name)},
            type(None): lambda node, name: None,
            collections.OrderedDict: lambda node, name: {"$ordereddict": self._visit_items(node, name, list(node))},
            collections.defaultdict: self._visit_default_dict,
        }

    def forget(self) -> None:
        """Refer no more to what was visited: the visitors refer to this object, and would keep the leaves alive."""
        self._visitors.clear()
        self.leaves = []

    def visit(self, node: Any, name: str | None) -> Any:
        kind = type(node)
        try:
            visitor = self._visitors[kind]
        except KeyError:
            visitor = self._visitors[kind] = self._visitor_of(node)
        if visitor is not None:
            self._level += 1
            if self._level > MOST_LEVELS:
                raise UnsupportedLeafError(
                    f"{(name or '')[:60]}...: expected a tree of at most {MOST_LEVELS} levels, found more"
                )
            visited = visitor(node, name)
            self._level -= 1
            return visited
        self.names.append(SINGLE_LEAF_NAME if name is None else name)
        self.leaves.append(node)
        return len(self.leaves) - 1

    def _visitor_of(self, node: Any) -> Callable[[Any, str | None], Any] | None:
        if not _registry.is_node(type(node)):
            return None
        # JAX's registry flattens a namedtuple by itself, with the class as auxiliary data; but it gives each of the
        # fields the key of the first one.
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            _, auxiliary = _registry.flatten_one_level(node)
            if auxiliary is type(node):
                return self._visit_namedtuple
        return self._visit_registered

    def _visit_list(self, node: Sequence[Any], name: str | None) -> list[Any]:
        prefix = _prefix(name)
        return [self.visit(child, f"{prefix}{i}") for i, child in enumerate(node)]

    def _visit_dict(self, node: dict[Any, Any], name: str | None) -> Any:
        keys = self._sorted_keys(node, name)
        if set(map(type, keys)) <= _ONLY_STR and not _has_a_tag(keys):
            prefix = _prefix(name)
            children = {key: self.visit(node[key], prefix + key) for key in keys}
            return children if keys == list(node) else {key: children[key] for key in node}
        children = dict(zip(keys, self._visit_items(node, name, keys), strict=True))
        return {"$dict": [children[key] for key in node]}

    def _visit_default_dict(self, node: collections.defaultdict[Any, Any], name: str | None) -> Any:
        keys = self._sorted_keys(node, name)
        children = dict(zip(keys, self._visit_items(node, name, keys), strict=True))
        factory = None if node.default_factory is None else FACTORIES.get(node.default_factory, "opaque")
        return {"$defaultdict": [factory, [children[key] for key in node]]}

    def _visit_items(self, node: Mapping[Any, Any], name: str | None, keys: Sequence[Any]) -> list[Any]:
        prefix = _prefix(name)
        items = []
        for key in keys:
            child_name = prefix + str(key)
            if type(key) not in KEY_TYPES:
                self.problems[child_name] = (
                    f"expected a dict key of type str, int, bool, float or None, found {key!r} "
                    f"of type {type(key).__module__}.{type(key).__qualname__}"
                )
            items.append([_encode_or_opaque(key), self.visit(node[key], child_name)])
        return items

    def _sorted_keys(self, node: dict[Any, Any], name: str | None) -> list[Any]:
        try:
            return sorted(node)
        except TypeError:
            raise UnsupportedLeafError(
                f"{SINGLE_LEAF_NAME if name is None else name}: expected dict keys that can be sorted, which JAX needs "
                f"too, found {', '.join(map(repr, list(node)[:5]))}; use keys of one type, all str or all int"
            ) from None

    def _visit_namedtuple(self, node: Any, name: str | None) -> Any:
        prefix = _prefix(name)
        fields = {field: self.visit(getattr(node, field), prefix + field) for field in node._fields}
        return {"$namedtuple": [class_reference(type(node)), fields]}

    def _visit_registered(self, node: Any, name: str | None) -> Any:
        keyed_children, auxiliary = _registry.flatten_one_level_with_keys(node)
        keyed_children = list(keyed_children)
        prefix = _prefix(name)
        visited = [self.visit(child, prefix + name_component(entry)) for entry, child in keyed_children]
        entries = [entry for entry, _ in keyed_children]
        reference = class_reference(type(node))
        if dataclasses.is_dataclass(node) and all(isinstance(e, jax.tree_util.GetAttrKey) for e in entries):
            children = {entry.name: child for entry, child in zip(entries, visited, strict=True)}
            declared = [field.name for field in dataclasses.fields(node)]
            if children.keys() <= set(declared):
                static = {
                    field: _encode_or_opaque(getattr(node, field))
                    for field in declared
                    if field not in children and hasattr(node, field)
                }
                return {"$dataclass": [reference, children, static]}
        return {"$node": [reference, _named_children(entries, visited), _encode_or_opaque(auxiliary)]}


_ONLY_STR = {str}


def _has_a_tag(sorted_keys: Sequence[str]) -> bool:
    """Whether a key starts with ``$``, as the keys do that say what a container is."""
    first = bisect.bisect_left(sorted_keys, "$")
    return first < len(sorted_keys) and sorted_keys[first].startswith("$")


def _prefix(name: str | None) -> str:
    return "" if name is None else f"{name}/"


FACTORIES: dict[Any, str] = {
    cls: cls.__name__ for cls in (bool, int, float, complex, str, bytes, list, tuple, dict, set)
}
"""The default factories of a defaultdict that can be stored, and the names under which they are."""


def _encode_or_opaque(value: Any) -> Any:
    try:
        return encode_value(value)
    except NotPlainError as error:
        return {"$opaque": str(error)}


def _named_children(entries: Sequence[Any], children: Sequence[Any]) -> Any:
    """The children of a registered node as the container that stands in for it where its class is unknown."""
    positional = (jax.tree_util.SequenceKey, jax.tree_util.FlattenedIndexKey)
    keys = [
        entry.key
        if isinstance(entry, jax.tree_util.DictKey) and type(entry.key) in KEY_TYPES
        else name_component(entry)
        for entry in entries
    ]
    if len(set(keys)) < len(keys) or all(isinstance(entry, positional) for entry in entries):
        return list(children)
    return {"$dict": [[_encode_or_opaque(key), child] for key, child in zip(keys, children, strict=True)]}


def refuse_duplicates(flat: FlatTree, tree: Any) -> None:
    """Raise a `DuplicateNameError` if two leaves of `tree`, taken apart as `flat`, have one name."""
    if len(set(flat.names)) == len(flat.names):
        return
    paths: dict[str, list[str]] = {}
    for name, (key_path, _) in zip(flat.names, jax.tree_util.tree_flatten_with_path(tree)[0], strict=True):
        paths.setdefault(name, []).append(jax.tree_util.keystr(key_path))
    lines = [f"  {shown(name)}: {' and '.join(paths[name])}" for name in duplicates(flat.names)]
    raise DuplicateNameError("expected a name of its own for every leaf, found these shared:\n" + "\n".join(lines))
