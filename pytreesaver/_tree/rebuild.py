"""Rebuild a tree from its leaves and its stored structure. Never imports a module that a file names."""

import collections
import dataclasses
import functools
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pytreesaver._tree.kinds import NotPlainError
from pytreesaver._tree.plain import FindClass, class_reference, decode_value
from pytreesaver._tree.structure import DEFAULT_FACTORIES, FUNCTION, MAX_DEPTH, function_reference, is_dict_key

_registry = jax.tree_util.default_registry
_DEFAULT_FACTORIES_BY_NAME = {name: cls for cls, name in DEFAULT_FACTORIES.items()}


class MalformedStructureError(ValueError):
    """The stored structure is invalid."""


def find_imported_class(reference: str) -> type | None:
    """Return the class ``module:qualified.name`` if its module is already imported, otherwise None.

    Example:
        >>> find_imported_class("collections:OrderedDict"), find_imported_class("no_such_module:Thing")
        (<class 'collections.OrderedDict'>, None)
    """
    found = _imported_object(reference)
    return found if issubclass(type(found), type) and class_reference(found) == reference else None


def _imported_object(reference: str) -> Any:
    """Return the object ``module:qualified.name`` of a module that is already imported, otherwise None."""
    module_name, _, qualified_name = reference.partition(":")
    found: Any = sys.modules.get(module_name)
    for part in qualified_name.split("."):
        # Bypass normal attribute access, which could run code of a lazy module or a metaclass.
        is_class = issubclass(type(found), type)
        if not is_class and not issubclass(type(found), types.ModuleType):
            return None
        namespace = type.__getattribute__(found, "__dict__") if is_class else object.__getattribute__(found, "__dict__")
        found = namespace.get(part)
    return found


def rebuild_tree(
    structure: Any, leaves: Sequence[Any], find_class: FindClass = find_imported_class
) -> tuple[Any, list[str]]:
    """Rebuild a tree from a stored structure and leaves. Return it and a line for each container that was substituted.

    If its class is not available, a namedtuple becomes a namedtuple with the same name and fields, a dataclass becomes
    a dict of its fields, and any other registered node becomes a dict or list of its children.

    Raises:
        MalformedStructureError: if the structure is invalid or does not match the number of leaves.

    Example:
        >>> rebuild_tree({"w": {"$tuple": [1, None]}, "b": 0}, [2, 1.0])
        ({'w': (1.0, None), 'b': 2}, [])
    """
    builder = _Builder(leaves, find_class)
    tree = builder.build(structure)
    if builder.unused:
        raise MalformedStructureError(f"{len(builder.unused)} leaves are missing from the structure")
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
                raise MalformedStructureError(f"leaf {node} occurs twice in the structure or does not exist") from None
            return self.leaves[node]
        self._level += 1
        if self._level > 2 * MAX_DEPTH:  # a registered node counts twice: itself and the container of its children
            raise MalformedStructureError(f"expected a structure of at most {MAX_DEPTH} levels, found more")
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
                    if children == [] and auxiliary == {"$opaque": FUNCTION}:
                        return self._find_function(reference)
                    return self._build_registered(reference, self.build(children), auxiliary)
        except MalformedStructureError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise MalformedStructureError(f"malformed {tag} node: {error}") from error
        raise MalformedStructureError(f"unknown node type {tag!r}")

    def _build_items(self, items: Any) -> dict[Any, Any]:
        built = {self._key(key): self.build(child) for key, child in items}
        if len(built) < len(items):
            raise MalformedStructureError("a dict has a duplicate key")
        return built

    def _key(self, encoded: Any) -> Any:
        key = decode_value(encoded)
        if not is_dict_key(key):
            raise MalformedStructureError(f"expected a dict key, found {encoded!r}")
        return key

    def _build_default_dict(self, factory: Any, items: dict[Any, Any]) -> Any:
        if factory == "opaque":
            self.problems["a defaultdict with a factory that cannot be stored is restored as a dict"] = None
            return items
        return collections.defaultdict(None if factory is None else _DEFAULT_FACTORIES_BY_NAME[factory], items)

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
            except Exception as error:  # raised by the class's own code, which may have changed since the save
                reason = f"its class rejects the stored fields ({error})"
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
            except Exception as error:  # raised by the class's own code, or its auxiliary data could not be stored
                if issubclass(cls, Mapping) and isinstance(children, dict):
                    mapping = _mapping_of_class(cls, children)
                    if mapping is not None:
                        return mapping
                reason = f"it could not be rebuilt ({error})"
        self._problem(reference, cls, f"a {type(children).__name__} of its children", reason)
        return children

    def _find_function(self, reference: str) -> Any:
        found = _imported_object(reference)
        if callable(found) and function_reference(found) == reference:
            return found
        # Lambdas, and functions inside others, are called <lambda> and <locals>.
        why = "it has no name in a module" if "<" in reference else "it is not imported in this process"
        self.problems[f"the function {reference} is restored as None: {why}"] = None
        return None

    def _problem(self, reference: str, cls: type | None, substitute: str, reason: str = "") -> None:
        why = reason or (
            "it is not imported in this process" if cls is None else "its fields have changed since the save"
        )
        self.problems[f"{reference} is restored as {substitute}: {why}"] = None


def _instance_of_dataclass(cls: type, fields: Mapping[str, Any]) -> Any:
    declared = {field.name for field in dataclasses.fields(cls)}
    if not fields.keys() <= declared:
        raise TypeError(f"it has no fields {sorted(fields.keys() - declared)}")
    draft: Any = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(draft, name, value)
    # Flatten and unflatten one level with the functions of the class, as jax.tree.map would.
    return jax.tree.map(lambda child: child, draft, is_leaf=lambda node: node is not draft)


def _mapping_of_class(cls: Any, children: dict[Any, Any]) -> Any:
    """Return an immutable mapping of these children, or None if its class makes something else of them."""
    try:
        mapping = cls(children)
        return mapping if set(mapping) == set(children) else None
    except Exception:  # raised by the class's own code
        return None


@functools.lru_cache(maxsize=256)
def _substitute_namedtuple(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)
