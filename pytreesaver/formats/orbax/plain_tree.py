"""The tree that Orbax is given: nested dicts and lists, with the same paths to the leaves. Pure functions."""

from typing import Any

from pytreesaver._tree.plain import decode_value
from pytreesaver._tree.restructure import node_parts


def orbax_tree(structure: Any) -> tuple[Any, list[str]]:
    """Return the containers as Orbax takes them, with positions as leaves, and the keys of the leaves in its store.

    Namedtuples, dataclasses and other nodes become dicts of their fields, or lists, as they do when Orbax saves them.

    Example:
        >>> orbax_tree({"a": {"$tuple": [0, {"$namedtuple": ["m:C", {"x": 1}]}]}})
        ({'a': [0, {'x': 1}]}, ['a.0', 'a.1.x'])
    """
    keys: dict[int, str] = {}
    tree = _plain(structure, (), keys)
    return tree, [keys[position] for position in sorted(keys)]


def array_directory(key: str) -> str:
    """Return the directory of an array in the store of a tree, as TensorStore derives it from the key.

    Example:
        >>> array_directory("a.b"), array_directory("a/"), array_directory("")
        ('a.b/', 'a/', '')
    """
    if key in ("", "/"):
        return ""
    return key if key.endswith("/") else f"{key}/"


def _plain(node: Any, path: tuple[str, ...], keys: dict[int, str]) -> Any:
    if type(node) is int:
        keys[node] = ".".join(path)
        return node
    if node is None:
        return None
    parts = node_parts(node)
    if not parts.children and type(node) is dict and next(iter(node), None) in ("$namedtuple", "$dataclass", "$node"):
        return None
    if type(node) is dict and "$tuple" in node and not parts.children:
        return ()
    positional = all(type(key) is int for key in parts.keys) and (type(node) is list or not _is_dict(node))
    if positional:
        return [_plain(child, (*path, str(key)), keys) for key, child in zip(parts.keys, parts.children, strict=True)]
    names = [str(decode_value(key)) for key in parts.keys]
    return {name: _plain(child, (*path, name), keys) for name, child in zip(names, parts.children, strict=True)}


def _is_dict(node: Any) -> bool:
    """Return whether a structure is a dict of any kind."""
    tag = next(iter(node), "")
    if not (len(node) == 1 and tag.startswith("$")):
        return True
    if tag == "$node":
        return type(node[tag][1]) is dict and _is_dict(node[tag][1])
    return tag not in ("$tuple",)
