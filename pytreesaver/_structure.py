"""What a tree is apart from its leaves: taken from a tree as plain data, and made into a tree again.

The plain data is JSON: an integer stands for a leaf (its position among the leaves), ``null`` for None, an array for
a list, an object for a dict with string keys. Every other container is an object with one key that starts with ``$``;
docs/format.md lists them.
"""

import collections
import dataclasses
import functools
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from pytreesaver._errors import UnsupportedLeafError
from pytreesaver._names import SINGLE_LEAF_NAME, name_component
from pytreesaver._values import FindClass, NotPlainError, class_reference, decode_value, encode_value

_registry = jax.tree_util.default_registry

MOST_LEVELS = 100
"""How deep a tree may be nested: near enough for every reader's stack."""

_KEY_TYPES = (str, int, bool, float, type(None))


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
        if all(type(key) is str for key in keys) and not any(key.startswith("$") for key in keys):
            prefix = _prefix(name)
            children = {key: self.visit(node[key], prefix + key) for key in keys}
            return children if keys == list(node) else {key: children[key] for key in node}
        children = dict(zip(keys, self._visit_items(node, name, keys), strict=True))
        return {"$dict": [children[key] for key in node]}

    def _visit_default_dict(self, node: collections.defaultdict[Any, Any], name: str | None) -> Any:
        keys = self._sorted_keys(node, name)
        children = dict(zip(keys, self._visit_items(node, name, keys), strict=True))
        factory = None if node.default_factory is None else _FACTORIES.get(node.default_factory, "opaque")
        return {"$defaultdict": [factory, [children[key] for key in node]]}

    def _visit_items(self, node: Mapping[Any, Any], name: str | None, keys: Sequence[Any]) -> list[Any]:
        prefix = _prefix(name)
        items = []
        for key in keys:
            child_name = prefix + str(key)
            if type(key) not in _KEY_TYPES:
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


def _prefix(name: str | None) -> str:
    return "" if name is None else f"{name}/"


_FACTORIES: dict[Any, str] = {
    cls: cls.__name__ for cls in (bool, int, float, complex, str, bytes, list, tuple, dict, set)
}
_FACTORIES_BY_NAME = {name: cls for cls, name in _FACTORIES.items()}


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
        if isinstance(entry, jax.tree_util.DictKey) and type(entry.key) in _KEY_TYPES
        else name_component(entry)
        for entry in entries
    ]
    if len(set(keys)) < len(keys) or all(isinstance(entry, positional) for entry in entries):
        return list(children)
    return {"$dict": [[_encode_or_opaque(key), child] for key, child in zip(keys, children, strict=True)]}


class MalformedStructureError(ValueError):
    """The stored structure is not what this module writes."""


def find_imported_class(reference: str) -> type | None:
    """The class ``module:qualified.name``, if this process has imported its module already; never imports anything.

    Example:
        >>> find_imported_class("collections:OrderedDict"), find_imported_class("no_such_module:Thing")
        (<class 'collections.OrderedDict'>, None)
    """
    module_name, _, qualified_name = reference.partition(":")
    found: Any = sys.modules.get(module_name)
    for part in qualified_name.split("."):
        # Only through object and type: other attribute access could run code of a lazy module or of a metaclass.
        is_class = issubclass(type(found), type)
        if not is_class and not issubclass(type(found), types.ModuleType):
            return None
        namespace = type.__getattribute__(found, "__dict__") if is_class else object.__getattribute__(found, "__dict__")
        found = namespace.get(part)
    return found if issubclass(type(found), type) and class_reference(found) == reference else None


def rebuild_tree(
    structure: Any, leaves: Sequence[Any], find_class: FindClass = find_imported_class
) -> tuple[Any, list[str]]:
    """Put leaves into a stored structure. Gives the tree, and what could not be rebuilt as it was, one line each.

    A namedtuple whose class is not there becomes a namedtuple of the same name and fields; a dataclass becomes a dict
    of its fields; any other registered node a dict or list of its children.

    Raises:
        MalformedStructureError: the structure is not one that `flatten_tree` gives for that many leaves.

    Example:
        >>> rebuild_tree({"w": {"$tuple": [1, None]}, "b": 0}, [2, 1.0])
        ({'w': (1.0, None), 'b': 2}, [])
    """
    builder = _Builder(leaves, find_class)
    tree = builder.build(structure)
    if builder.unused:
        raise MalformedStructureError(f"expected every leaf in the structure, {len(builder.unused)} are not there")
    return tree, list(builder.problems)


class _Builder:
    def __init__(self, leaves: Sequence[Any], find_class: FindClass) -> None:
        self.leaves = leaves
        self.unused = set(range(len(leaves)))
        self.problems: dict[str, None] = {}
        self.find_class = find_class
        self._level = 0

    def build(self, node: Any) -> Any:
        if node is None:
            return None
        if type(node) is int:
            try:
                self.unused.remove(node)
            except KeyError:
                raise MalformedStructureError(f"leaf {node} stands twice in the structure, or does not exist") from None
            return self.leaves[node]
        self._level += 1
        if self._level > 2 * MOST_LEVELS:  # a registered node takes two: itself, and the container of its children
            raise MalformedStructureError("the structure is nested deeper than any that was saved")
        if type(node) is list:
            built: Any = [self.build(child) for child in node]
        elif type(node) is not dict:
            raise MalformedStructureError(f"expected a node of a structure, found {node!r}")
        elif len(node) == 1 and next(iter(node)).startswith("$"):
            built = self._build_tagged(*next(iter(node.items())))
        else:
            built = {key: self.build(child) for key, child in node.items()}
        self._level -= 1
        return built

    def _build_tagged(self, tag: str, body: Any) -> Any:
        try:
            match tag:
                case "$tuple":
                    return tuple([self.build(child) for child in body])
                case "$dict":
                    return self._build_items(body)
                case "$ordereddict":
                    return collections.OrderedDict(self._build_items(body))
                case "$defaultdict":
                    factory, items = body
                    return self._build_default_dict(factory, self._build_items(items))
                case "$namedtuple":
                    reference, fields = body
                    return self._build_namedtuple(reference, {name: self.build(c) for name, c in fields.items()})
                case "$dataclass":
                    reference, children, static = body
                    return self._build_dataclass(reference, {n: self.build(c) for n, c in children.items()}, static)
                case "$node":
                    reference, children, auxiliary = body
                    return self._build_registered(reference, self.build(children), auxiliary)
        except MalformedStructureError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise MalformedStructureError(f"malformed {tag} node: {error}") from error
        raise MalformedStructureError(f"unknown kind of node {tag!r}")

    def _build_items(self, items: Any) -> dict[Any, Any]:
        built = {self._key(key): self.build(child) for key, child in items}
        if len(built) < len(items):
            raise MalformedStructureError("a dict has one key twice")
        return built

    def _key(self, encoded: Any) -> Any:
        key = decode_value(encoded)
        if type(key) not in _KEY_TYPES:
            raise MalformedStructureError(f"expected the key of a dict, found {encoded!r}")
        return key

    def _build_default_dict(self, factory: Any, items: dict[Any, Any]) -> Any:
        if factory == "opaque":
            self.problems["a defaultdict has a factory that cannot be stored; it comes back as a dict"] = None
            return items
        return collections.defaultdict(None if factory is None else _FACTORIES_BY_NAME[factory], items)

    def _build_namedtuple(self, reference: str, fields: dict[str, Any]) -> Any:
        cls = self.find_class(reference)
        if cls is not None and issubclass(cls, tuple) and getattr(cls, "_fields", None) == tuple(fields):
            return tuple.__new__(cls, fields.values())
        try:
            substitute = _substitute_namedtuple(reference.rpartition(".")[2].rpartition(":")[2], tuple(fields))
        except ValueError:
            self._problem(reference, cls, "a dict of its fields")
            return fields
        self._problem(reference, cls, "a namedtuple of the same fields")
        return substitute(*fields.values())

    def _build_dataclass(self, reference: str, children: dict[str, Any], encoded_static: dict[str, Any]) -> Any:
        cls = self.find_class(reference)
        static = {}
        reasons = []
        for name, encoded in encoded_static.items():
            try:
                static[name] = decode_value(encoded, self.find_class)
            except NotPlainError as error:
                reasons.append(f"its static field {name!r} has no stored value ({error})")
        reason = " and ".join(reasons)
        if not reason and cls is not None and _registry.is_node(cls) and dataclasses.is_dataclass(cls):
            try:
                return _instance_of_dataclass(cls, children | static)
            except Exception as error:  # the class's own code, which has changed since the checkpoint was saved
                reason = f"its class refuses the stored fields ({error})"
        self._problem(reference, cls, "a dict of its fields", reason)
        return children | static

    def _build_registered(self, reference: str, children: Any, encoded_auxiliary: Any) -> Any:
        cls = self.find_class(reference)
        reason = ""
        if cls is not None and _registry.is_node(cls):
            try:
                auxiliary = decode_value(encoded_auxiliary, self.find_class)
                values = list(children.values()) if isinstance(children, dict) else children
                leaf = jax.tree_util.tree_structure(0)
                treedef = jax.tree_util.PyTreeDef.from_node_data_and_children(
                    _registry, (cls, auxiliary), [leaf] * len(values)
                )
                return jax.tree_util.tree_unflatten(treedef, values)
            except Exception as error:  # the class's own code, or data of it that cannot be stored
                reason = f"it could not be rebuilt ({error})"
        self._problem(reference, cls, f"a {type(children).__name__} of its children", reason)
        return children

    def _problem(self, reference: str, cls: type | None, substitute: str, reason: str = "") -> None:
        why = reason or (
            "it is not imported in this process" if cls is None else "its fields have changed since the save"
        )
        self.problems[f"{reference} comes back as {substitute}: {why}"] = None


def _instance_of_dataclass(cls: type, fields: Mapping[str, Any]) -> Any:
    declared = {field.name for field in dataclasses.fields(cls)}
    if not fields.keys() <= declared:
        raise TypeError(f"it has no fields {sorted(fields.keys() - declared)}")
    draft: Any = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(draft, name, value)
    # One level through the class's own flattening and unflattening gives what any jax.tree.map would give.
    return jax.tree.map(lambda child: child, draft, is_leaf=lambda node: node is not draft)


@functools.lru_cache(maxsize=256)
def _substitute_namedtuple(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)
