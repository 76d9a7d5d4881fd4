"""The tree in an Orbax checkpoint: the names and kinds of its leaves, and its structure. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pytreesaver._tree.plain import decode_value
from pytreesaver._tree.restructure import node_parts

SEQUENCE = 1
UNKNOWN = "Unknown"
_EMPTY: dict[str, Any] = {"None": None, "NamedTuple": None, "Dict": {}, "List": [], "Tuple": {"$tuple": []}}
_PLACEHOLDERS = ("PLACEHOLDER://", "AGGREGATED://")


class Key(msgspec.Struct, frozen=True):
    """One level of the path of a leaf: a position in a sequence, or a key of a dict."""

    key: str | int
    key_type: int = 2


class _Value(msgspec.Struct):
    value_type: str = UNKNOWN
    skip_deserialize: bool = False


class _Leaf(msgspec.Struct):
    key_metadata: list[Key]
    value_metadata: _Value = msgspec.field(default_factory=_Value)


class TreeMetadata(msgspec.Struct):
    """The file `_METADATA`."""

    tree_metadata: dict[str, _Leaf]
    use_zarr3: bool | None = None
    store_array_data_equal_to_fill_value: bool = False
    custom_metadata: Any = None


class OrbaxLeaf(NamedTuple):
    """A leaf: its path, what Orbax says of its type, its key in the store, and its value if that is not an array."""

    path: tuple[Key, ...]
    value_type: str
    key: str
    value: Any = None

    @property
    def name(self) -> str:
        """The name of the variable."""
        return "/".join(str(key.key) for key in self.path) if self.path else "."


def leaves_of_metadata(metadata: TreeMetadata) -> tuple[list[OrbaxLeaf], list[tuple[tuple[Key, ...], Any]]]:
    """Return the leaves of a tree, and the paths and structures of its empty containers."""
    leaves, empty = [], []
    for leaf in metadata.tree_metadata.values():
        path, kind = tuple(leaf.key_metadata), leaf.value_metadata.value_type
        if kind in _EMPTY:
            empty.append((path, _EMPTY[kind]))
        else:
            leaves.append(OrbaxLeaf(path, kind, ".".join(str(key.key) for key in path)))
    return leaves, empty


def leaves_of_aggregate(tree: Any) -> tuple[list[OrbaxLeaf], list[tuple[tuple[Key, ...], Any]]]:
    """Return the same of the nested dicts that versions before 0.5 wrote. Small leaves have values there."""
    leaves: list[OrbaxLeaf] = []
    empty: list[tuple[tuple[Key, ...], Any]] = []

    def visit(node: Any, path: tuple[Key, ...]) -> None:
        if isinstance(node, dict) and (array := _array_of_t5x(node)) is not None:
            leaves.append(OrbaxLeaf(path, UNKNOWN, array))
        elif isinstance(node, dict | list) and node:
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, child in items:
                visit(child, (*path, Key(str(key), 2 if isinstance(node, dict) else SEQUENCE)))
        elif node is None or isinstance(node, dict | list):
            empty.append((path, node))
        elif isinstance(node, str) and node.startswith(_PLACEHOLDERS):
            leaves.append(OrbaxLeaf(path, UNKNOWN, node.partition("://")[2]))
        else:
            leaves.append(OrbaxLeaf(path, "aggregated", "", node))

    visit(tree, ())
    return leaves, empty


def _array_of_t5x(node: Mapping[str, Any]) -> str | None:
    """Return the directory of an array that T5X saved beside the tree: the node is the specification of TensorStore."""
    store = node.get("kvstore")
    path = store.get("path") if isinstance(store, dict) else None
    if not {"driver", "metadata"} <= node.keys() or not isinstance(path, str):
        return None
    return path.rstrip("/").rpartition("/")[2]


def leaves_of_keys(keys: Iterable[str]) -> list[OrbaxLeaf]:
    """Return the leaves of a tree of which only the keys in the store are known: their parts are joined with dots."""
    return [OrbaxLeaf(tuple(Key(part) for part in key.split(".")), UNKNOWN, key) for key in sorted(keys)]


def structure_of(leaves: Sequence[OrbaxLeaf], empty: Iterable[tuple[tuple[Key, ...], Any]], first: int) -> Any:
    """Return the structure of a tree, whose leaves have positions from `first` on.

    Raises:
        ValueError: if a leaf and a container have the same path, or an item of a list is missing.
    """
    places = [(leaf.path, first + i) for i, leaf in enumerate(leaves)] + list(empty)
    if [path for path, _ in places] == [()]:
        return places[0][1]
    root: dict[Key, Any] = {}
    for path, structure in places:
        node: Any = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
            if isinstance(node, _Done):
                break
        if not path or isinstance(node, _Done) or path[-1] in node:
            raise ValueError(f"several leaves at {'/'.join(str(each.key) for each in path)}")
        node[path[-1]] = _Done(structure)
    return _built(root)


class _Done(NamedTuple):
    """A leaf or an empty container."""

    structure: Any


def _built(node: Any) -> Any:
    if isinstance(node, _Done):
        return node.structure
    children = {key: _built(child) for key, child in node.items()}
    if children and all(key.key_type == SEQUENCE for key in children):
        by_position = {int(key.key): child for key, child in children.items()}
        if sorted(by_position) == list(range(len(by_position))):
            return [by_position[i] for i in range(len(by_position))]
        return {"$dict": [[i, by_position[i]] for i in sorted(by_position)]}
    names = [str(key.key) for key in children]
    if any(name.startswith("$") for name in names):
        return {"$dict": [[name, child] for name, child in zip(names, children.values(), strict=True)]}
    return dict(zip(names, children.values(), strict=True))


def joined_structure(parts: Mapping[str, Any]) -> Any:
    """Return one structure for the trees of several items, by their prefixes, which end in ``/``."""
    if list(parts) == [""]:
        return parts[""]
    return {prefix.removesuffix("/"): structure for prefix, structure in parts.items()}


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
