"""Flatten a tree into names, leaves and a structure, from which `pytreesaver._tree.rebuild` rebuilds it.

The structure is JSON data: an integer is a leaf (its position among the leaves), ``null`` is None, an array is a list,
an object is a dict with string keys. Every other container is an object with a single key that starts with ``$``;
docs/format.md lists them.
"""

import bisect
import collections
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pytreesaver._errors import DuplicateNameError, UnsupportedLeafError
from pytreesaver._text import SINGLE_LEAF_NAME, duplicates, quoted
from pytreesaver._tree.keyless import children_by_key, is_keyless, is_nested_mapping
from pytreesaver._tree.kinds import NotPlainError
from pytreesaver._tree.plain import class_reference, encode_value

_registry = jax.tree_util.default_registry

MAX_DEPTH = 100
"""Maximum nesting of a tree: safe for the stack of any reader."""

_KEY_TYPES = (str, int, bool, float, type(None))


def is_dict_key(key: Any) -> bool:
    """Return whether dicts with this key can be stored: a str, int, bool, float or None, or a tuple of such keys."""
    return all(map(is_dict_key, key)) if type(key) is tuple else type(key) in _KEY_TYPES


def name_component(entry: Any) -> str:
    """Return an entry of a JAX key path as a component of a variable name.

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
    """A flattened tree.

    Attributes:
        names: the variable name of each leaf, in the order of `jax.tree.leaves`.
        leaves: the leaves, in the same order.
        structure: the containers, as JSON data.
        problems: maps a variable name or prefix to the reason why it cannot be stored.
        older_names: maps variable names to those that earlier versions gave to the same leaves, where they differ.
        has_keyless: whether there are nodes that are registered without keys.
        shared: where a node with an identity is again, and where it was first.
        functions: the functions in Equinox modules, by their positions among the leaves of `jax.tree.leaves`. They have
            no names, and are not stored.
    """

    names: list[str]
    leaves: list[Any]
    structure: Any
    problems: dict[str, str]
    older_names: dict[str, str] = dataclasses.field(default_factory=dict)
    has_keyless: bool = False
    shared: dict[str, str] = dataclasses.field(default_factory=dict)
    functions: dict[int, Any] = dataclasses.field(default_factory=dict)

    def all_leaves(self, restored: Mapping[str, Any]) -> list[Any]:
        """Return the leaves of `jax.tree.leaves`, those of some names replaced."""
        leaves = [restored.get(name, own) for name, own in zip(self.names, self.leaves, strict=True)]
        for position, function in sorted(self.functions.items()):
            leaves.insert(position, function)
        return leaves


def flatten_tree(tree: Any) -> FlatTree:
    """Flatten a tree into variable names, leaves and structure in one pass.

    Raises:
        UnsupportedLeafError: if the tree is nested deeper than `MAX_DEPTH`, or if the keys of a dict cannot be sorted,
            which JAX does not support either.

    Example:
        >>> flat = flatten_tree({"w": (1.0, None), "b": 2})
        >>> flat.names, flat.leaves, flat.structure
        (['b', 'w/0'], [2, 1.0], {'w': {'$tuple': [1, None]}, 'b': 0})
    """
    flattener = _Flattener()
    try:
        structure = flattener.visit(tree, None)
        return FlatTree(
            flattener.names,
            flattener.leaves,
            structure,
            flattener.problems,
            flattener.older_names,
            flattener.has_keyless,
            flattener.shared,
            flattener.functions,
        )
    finally:
        flattener.clear()


class _Flattener:
    """Visits the nodes and leaves of a tree in the same order as JAX. The name of the root is None."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.leaves: list[Any] = []
        self.problems: dict[str, str] = {}
        self.older_names: dict[str, str] = {}
        self.has_keyless = False
        self.shared: dict[str, str] = {}
        self.functions: dict[int, Any] = {}
        self._equinox_module = getattr(sys.modules.get("equinox"), "Module", None)
        self._modules = 0  # how many Equinox modules enclose the current node
        self._identities: dict[int, str] = {}
        self._kinds_with_identity = _kinds_with_identity()
        self._state = getattr(sys.modules.get("flax.nnx"), "State", ())
        self._states = 0  # how many states of nnx enclose the current node
        self._level = 0
        # None means that the type is a leaf. Not cached across trees: a class may be registered with JAX later.
        self._visitors: dict[type, Callable[[Any, str | None], Any] | None] = {
            dict: self._visit_dict,
            list: self._visit_list,
            tuple: lambda node, name: {"$tuple": self._visit_list(node, name)},
            type(None): lambda node, name: None,
            collections.OrderedDict: lambda node, name: {"$ordereddict": self._visit_items(node, name, list(node))},
            collections.defaultdict: self._visit_default_dict,
        }

    def clear(self) -> None:
        """Release the leaves at once: the visitors form a reference cycle that would keep them alive."""
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
            if self._level > MAX_DEPTH:
                raise UnsupportedLeafError(
                    f"{(name or '')[:60]}...: expected a tree of at most {MAX_DEPTH} levels, found more"
                )
            visited = visitor(node, name)
            self._level -= 1
            return visited
        if self._modules and callable(node):
            self.functions[len(self.leaves) + len(self.functions)] = node
            return {"$node": [function_reference(node), [], {"$opaque": FUNCTION}]}
        self.names.append(SINGLE_LEAF_NAME if name is None else name)
        self.leaves.append(node)
        return len(self.leaves) - 1

    def _visitor_of(self, node: Any) -> Callable[[Any, str | None], Any] | None:
        if not _registry.is_node(type(node)):
            return None
        # The JAX registry flattens namedtuples, with the class as auxiliary data, but returns the key of the first
        # field for every field.
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
        if set(map(type, keys)) <= _ONLY_STR and not _has_tag(keys):
            prefix = _prefix(name)
            visitors, names, leaves, visit = self._visitors, self.names, self.leaves, self.visit
            children = {}
            for key in keys:
                child = node[key]
                if visitors.get(type(child), visit) is None and not self._modules:  # a leaf, as `visit` finds out
                    names.append(prefix + key)
                    leaves.append(child)
                    children[key] = len(leaves) - 1
                else:
                    children[key] = visit(child, prefix + key)
            return children if keys == list(node) else {key: children[key] for key in node}
        children = dict(zip(keys, self._visit_items(node, name, keys), strict=True))
        return {"$dict": [children[key] for key in node]}

    def _visit_default_dict(self, node: collections.defaultdict[Any, Any], name: str | None) -> Any:
        keys = self._sorted_keys(node, name)
        children = dict(zip(keys, self._visit_items(node, name, keys), strict=True))
        factory = None if node.default_factory is None else DEFAULT_FACTORIES.get(node.default_factory, "opaque")
        return {"$defaultdict": [factory, [children[key] for key in node]]}

    def _visit_items(self, node: Mapping[Any, Any], name: str | None, keys: Sequence[Any]) -> list[Any]:
        prefix = _prefix(name)
        items = []
        for key in keys:
            child_name = prefix + str(key)
            if not is_dict_key(key):
                hint = "; convert it with .item()" if isinstance(key, np.generic) else ""
                self.problems[child_name] = (
                    "expected a dict key of type str, int, bool, float or None, or a tuple of these, "
                    f"found {key!r} of type {type(key).__module__}.{type(key).__qualname__}{hint}"
                )
            items.append([_encode_or_opaque(key), self.visit(node[key], child_name)])
        return items

    def _sorted_keys(self, node: dict[Any, Any], name: str | None) -> list[Any]:
        try:
            return sorted(node)
        except TypeError:
            raise UnsupportedLeafError(
                f"{SINGLE_LEAF_NAME if name is None else name}: expected sortable dict keys, as JAX requires, "
                f"found {', '.join(map(repr, list(node)[:5]))}; use keys of one type, all str or all int"
            ) from None

    def _visit_namedtuple(self, node: Any, name: str | None) -> Any:
        prefix = _prefix(name)
        fields = {field: self.visit(getattr(node, field), prefix + field) for field in node._fields}
        return {"$namedtuple": [class_reference(type(node)), fields]}

    def _note_shared(self, node: Any, name: str | None) -> None:
        """Note a node with an identity that was visited before: it would come back as two."""
        where = SINGLE_LEAF_NAME if name is None else name
        first = self._identities.setdefault(id(node), where)
        if first != where:
            self.shared[where] = first
            self.problems[where] = (
                f"the same {type(node).__name__} object as {quoted(first)}, which would be restored as two; "
                "save nnx.state(model) or nnx.split(model)[1], which holds it once"
            )

    def _visit_registered(self, node: Any, name: str | None) -> Any:
        if self._equinox_module is not None and isinstance(node, self._equinox_module):
            self._modules += 1
            visited = self._visit_children(node, name)
            self._modules -= 1
            return visited
        if isinstance(node, self._state):  # states that share their variables are restored as different ones
            self._states += 1
            visited = self._visit_children(node, name)
            self._states -= 1
            return visited
        if isinstance(node, self._kinds_with_identity) and not self._states:
            self._note_shared(node, name)
        return self._visit_children(node, name)

    def _visit_children(self, node: Any, name: str | None) -> Any:
        keyed_children, auxiliary = _registry.flatten_one_level_with_keys(node)
        keyed_children = list(keyed_children)
        if is_keyless([entry for entry, _ in keyed_children]):
            return self._visit_keyless(node, name, [child for _, child in keyed_children], auxiliary)
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

    def _visit_keyless(self, node: Any, name: str | None, children: Sequence[Any], auxiliary: Any) -> Any:
        self.has_keyless = True
        prefix, reference = _prefix(name), class_reference(type(node))
        encoded = _encode_or_opaque(auxiliary)
        by_key = children_by_key(node, children)
        if by_key is None and is_nested_mapping(node, children):
            first = len(self.names)
            structure = self._visit_nested(node, name, encoded)
            for i, leaf in enumerate(self.names[first:]):
                self.older_names[leaf] = f"{prefix}{i}"
            return structure
        keys = list(range(len(children))) if by_key is None else list(by_key)
        visited_children = []
        for i, (key, child) in enumerate(zip(keys, children, strict=True)):
            first, child_name = len(self.names), f"{prefix}{key}"
            visited_children.append(self.visit(child, child_name))
            for leaf in self.names[first:]:
                older = self.older_names.get(leaf, leaf).removeprefix(child_name)
                if by_key is not None or leaf in self.older_names:
                    self.older_names[leaf] = f"{prefix}{i}{older}"
        if by_key is None:
            return {"$node": [reference, visited_children, encoded]}
        items = [[_encode_or_opaque(key), child] for key, child in zip(keys, visited_children, strict=True)]
        return {"$node": [reference, {"$dict": items}, encoded]}

    def _visit_nested(self, node: Mapping[Any, Any], name: str | None, auxiliary: Any) -> Any:
        """Visit the mappings inside of a mapping that JAX flattens all at once, in the order of JAX."""
        prefix, items = _prefix(name), []
        for key in sorted(node):
            child, child_name = node[key], f"{prefix}{key}"
            is_inside = isinstance(child, type(node))
            visited = self._visit_nested(child, child_name, auxiliary) if is_inside else self.visit(child, child_name)
            items.append([_encode_or_opaque(key), visited])
        return {"$node": [class_reference(type(node)), {"$dict": items}, auxiliary]}


def _kinds_with_identity() -> tuple[type, ...]:
    """Return the classes of nodes whose library, if it is imported, tells two equal ones from one in two places."""
    nnx = sys.modules.get("flax.nnx")
    found = (getattr(nnx, name, None) for name in ("Pytree", "Object", "Module", "Variable"))
    return tuple(kind for kind in found if isinstance(kind, type))


_ONLY_STR = {str}


def _has_tag(sorted_keys: Sequence[str]) -> bool:
    """Return whether a key starts with ``$``, which would be mistaken for the tag of a container."""
    first = bisect.bisect_left(sorted_keys, "$")
    return first < len(sorted_keys) and sorted_keys[first].startswith("$")


FUNCTION = "a function"
"""The auxiliary data of a function in an Equinox module, which has no children and is not stored."""


def function_reference(function: Any) -> str:
    """Return the reference to a function, ``module:qualified.name``."""
    kind = type(function)
    module = getattr(function, "__module__", None) or kind.__module__
    return f"{module}:{getattr(function, '__qualname__', kind.__qualname__)}"


def _prefix(name: str | None) -> str:
    return "" if name is None else f"{name}/"


DEFAULT_FACTORIES: dict[Any, str] = {
    cls: cls.__name__ for cls in (bool, int, float, complex, str, bytes, list, tuple, dict, set)
}
"""The default factories of a defaultdict that can be stored, and their names."""


def _encode_or_opaque(value: Any, level: int = 0) -> Any:
    """Encode a value. What is not plain data in lists, tuples and dicts is opaque, and the rest of them is not."""
    try:
        return encode_value(value)
    except NotPlainError as error:
        if type(value) in (list, tuple) and level < MAX_DEPTH:
            items = [_encode_or_opaque(item, level + 1) for item in value]
            return items if type(value) is list else {"$tuple": items}
        if type(value) is dict and level < MAX_DEPTH and all(type(key) is str for key in value):
            return {"$dict": [[key, _encode_or_opaque(item, level + 1)] for key, item in value.items()]}
        return {"$opaque": str(error)}


def _named_children(entries: Sequence[Any], children: Sequence[Any]) -> Any:
    """Return the children of a registered node as the container that replaces it if its class is unavailable."""
    positional = (jax.tree_util.SequenceKey, jax.tree_util.FlattenedIndexKey)
    keys = [
        entry.key if isinstance(entry, jax.tree_util.DictKey) and is_dict_key(entry.key) else name_component(entry)
        for entry in entries
    ]
    if len(set(keys)) < len(keys) or all(isinstance(entry, positional) for entry in entries):
        return list(children)
    return {"$dict": [[_encode_or_opaque(key), child] for key, child in zip(keys, children, strict=True)]}


def check_unique_names(flat: FlatTree, tree: Any) -> None:
    """Raise a `DuplicateNameError` unless all leaves of `tree`, flattened as `flat`, have distinct names."""
    if len(set(flat.names)) == len(flat.names):
        return
    paths: dict[str, list[str]] = {}
    leaves = [each for i, each in enumerate(jax.tree_util.tree_flatten_with_path(tree)[0]) if i not in flat.functions]
    for name, (key_path, _) in zip(flat.names, leaves, strict=True):
        paths.setdefault(name, []).append(jax.tree_util.keystr(key_path))
    lines = [f"  {quoted(name)}: {' and '.join(paths[name])}" for name in duplicates(flat.names)]
    raise DuplicateNameError(
        "expected distinct variable names, found several leaves of the same name:\n" + "\n".join(lines)
    )
