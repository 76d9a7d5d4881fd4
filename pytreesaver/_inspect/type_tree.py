"""The structure of a stored tree, with the types of its containers and leaves, for display. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pytreesaver._text import printable
from pytreesaver._tree.plain import decode_value
from pytreesaver._tree.restructure import node_parts


@dataclass(frozen=True)
class TypeNode:
    """A node of a tree: its key in its parent (None for the root), its type, and its children.

    `type` is the name of a container type, such as ``"dict"`` or ``"optax.ScaleByAdamState"``, or the type of a leaf
    as it appears in messages, such as ``"float32[784,512]"``.
    """

    key: str | None
    type: str
    children: list["TypeNode"] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self._lines("", ""))

    def _lines(self, guide: str, child_guide: str) -> Iterator[str]:
        yield printable(f"{guide}{self.type}" if self.key is None else f"{guide}{self.key}: {self.type}")
        for i, child in enumerate(self.children):
            last = i == len(self.children) - 1
            guides = child_guide + ("└─ " if last else "├─ "), child_guide + ("   " if last else "│  ")
            yield from child._lines(*guides)


def type_tree(structure: Any, describe_leaf: Callable[[int], str]) -> TypeNode:
    """Return the type tree of a stored structure. `describe_leaf` maps the position of a leaf to its type.

    Example:
        >>> print(type_tree({"w": 0, "opt": {"$tuple": [1, None]}}, lambda leaf: ["float32[2]", "int"][leaf]))
        dict
        ├─ w: float32[2]
        └─ opt: tuple
           ├─ 0: int
           └─ 1: None
    """
    return _node(None, structure, describe_leaf)


def _node(key: str | None, node: Any, describe_leaf: Callable[[int], str]) -> TypeNode:
    if type(node) is int:
        return TypeNode(key, describe_leaf(node))
    if node is None:
        return TypeNode(key, "None")
    parts = node_parts(node)
    keys = [str(decode_value(each)) for each in parts.keys]
    children = [_node(name, child, describe_leaf) for name, child in zip(keys, parts.children, strict=True)]
    return TypeNode(key, _container_type(node), children)


def _container_type(node: Any) -> str:
    if type(node) is list:
        return "list"
    tag = next(iter(node), "")
    if len(node) != 1 or not tag.startswith("$"):
        return "dict"
    if tag in ("$namedtuple", "$dataclass", "$node"):
        module, _, name = str(node[tag][0]).partition(":")
        return name if module == "builtins" else f"{module}.{name}"
    return {"$ordereddict": "OrderedDict"}.get(tag, tag[1:])
