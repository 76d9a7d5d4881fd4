"""The tree of variable names, with totals for each branch and optional folding of repeated branches. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

SortKey = Literal["name", "size"]


class Summarized(Protocol):
    """The properties of a variable that a listing shows, implemented by `Variable` and `VariableSummary`."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


class VariableSummary(NamedTuple):
    """The properties of a variable that a listing shows.

    `type` is as it appears in messages, such as ``"float32[784,512]"``. `size` is the number of elements.
    """

    name: str
    type: str
    size: int
    nbytes: int


@dataclass
class Branch:
    """A node of the tree of variable names.

    Attributes:
        name: the last component of the path; ``layer_{0..47}`` for folded branches.
        path: the full name, or that of the first branch if several are folded.
        type: the type of the variable with this name, or None if there is no such variable.
        variables: the number of variables in the branch.
        size: their total number of elements.
        nbytes: their total size in bytes.
        count: the number of branches folded into this one.
        children: the branches directly below this one.
    """

    name: str
    path: str
    type: str | None = None
    variables: int = 0
    size: int = 0
    nbytes: int = 0
    count: int = 1
    children: list["Branch"] = field(default_factory=list)


def variable_tree(variables: Iterable[Summarized]) -> Branch:
    """Return the tree of variable names, under a root without a name.

    Example:
        >>> root = variable_tree([VariableSummary("a/w", "float32[2]", 2, 8), VariableSummary("b", "int", 1, 8)])
        >>> [(branch.name, branch.nbytes, branch.type) for branch in root.children], root.size
        ([('a', 8, None), ('b', 8, 'int')], 3)
    """
    root = Branch("", "")
    children: dict[tuple[int, str], Branch] = {}  # by id of the parent, and component
    for variable in variables:
        size, nbytes = variable.size, variable.nbytes
        branch, path = root, ""
        ancestors = [root]
        for component in variable.name.split("/", _MAX_LEVELS):
            path = f"{path}/{component}" if branch is not root else component
            key = id(branch), component
            if key not in children:
                children[key] = Branch(component, path)
                branch.children.append(children[key])
            branch = children[key]
            ancestors.append(branch)
        branch.type = variable.type
        for each in ancestors:
            each.variables += 1
            each.size += size
            each.nbytes += nbytes
    return root


_MAX_LEVELS = 100  # any further components of a name are joined into one


def sorted_tree(branch: Branch, by: SortKey) -> Branch:
    """Sort the children of every node in place, by name in natural order or by size in descending order."""
    branch.children.sort(key=_by_name if by == "name" else _by_size)
    for child in branch.children:
        sorted_tree(child, by)
    return branch


def natural_sort_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key for natural order: ``layer_2`` before ``layer_10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(i % 2 == 0, _int(part) if i % 2 else 0, part) for i, part in enumerate(parts) if part]


def _int(digits: str) -> int:
    return int(digits[:_MAX_DIGITS])


_MAX_DIGITS = 4000  # int() refuses strings of more than 4300 digits by default


def _by_name(branch: Branch) -> list[tuple[bool, int, str]]:
    return natural_sort_key(branch.name)


def _by_size(branch: Branch) -> tuple[int, list[tuple[bool, int, str]]]:
    return -branch.nbytes, natural_sort_key(branch.name)


def folded_tree(branch: Branch) -> Branch:
    """Return the tree with those siblings merged that differ only in the last number in their names.

    Example:
        >>> layers = [VariableSummary(f"layer_{i}/w", "float32[2]", 2, 8) for i in range(48)]
        >>> folded = folded_tree(variable_tree([*layers, VariableSummary("step", "int", 1, 8)]))
        >>> [(child.name, child.count, child.nbytes) for child in folded.children]
        [('layer_{0..47}', 48, 384), ('step', 1, 8)]
    """
    return _fold(branch, {})[0]


_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})([^0-9]*)", re.DOTALL)


def _fold(branch: Branch, shapes: dict[object, int]) -> tuple[Branch, int]:
    """Return the folded branch, and an id that it shares with all branches that differ from it only in name."""
    folded = [_fold(child, shapes) for child in branch.children]
    signature = (branch.type, branch.nbytes, branch.size, tuple((child.name, shape) for child, shape in folded))
    groups: dict[object, list[tuple[int, Branch, int]]] = {}
    for child, shape in folded:
        match = _NUMBERED.fullmatch(child.name)
        # A zero-padded number is merged only with zero-padded numbers of the same width.
        width = len(match[2]) if match and match[2].startswith("0") and len(match[2]) > 1 else 0
        key: object = (match[1], match[3], width, shape) if match and child.count == 1 else child.path
        groups.setdefault(key, []).append((int(match[2]) if match else 0, child, shape))
    children = []
    for key, members in groups.items():
        if len(members) == 1 or not isinstance(key, tuple):
            children += [child for _, child, _ in members]
            continue
        members.sort(key=lambda member: member[0])
        numbers = _ranges([number for number, _, _ in members], key[2])
        children.append(_scaled(members[0][1], len(members), f"{key[0]}{{{numbers}}}{key[1]}"))
    result = Branch(
        branch.name, branch.path, branch.type, branch.variables, branch.size, branch.nbytes, branch.count, children
    )
    return result, shapes.setdefault(signature, len(shapes))


def _scaled(branch: Branch, times: int, name: str) -> Branch:
    return Branch(
        name,
        branch.path,
        branch.type,
        branch.variables * times,
        branch.size * times,
        branch.nbytes * times,
        branch.count * times,
        [_scaled(child, times, child.name) for child in branch.children],
    )


def _ranges(numbers: Sequence[int], width: int) -> str:
    """Return ascending numbers in short form, zero-padded to `width`: ``0..3,7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("..".join(f"{number:0{width}}" for number in part) for part in parts)


class Row(NamedTuple):
    """A line of a printed tree: the guide lines before the name, the branch, and the number of hidden variables."""

    guide: str
    branch: Branch
    hidden: int


def tree_rows(branch: Branch, depth: int | None = None) -> Iterator[Row]:
    """Yield the lines of a tree below its root, down to `depth` levels, or all levels if it is None.

    Example:
        >>> root = variable_tree([VariableSummary(f"a/{name}", "int", 1, 8) for name in "bcd"])
        >>> for row in tree_rows(root):
        ...     print(row.guide + row.branch.name)
        a
        ├─ b
        ├─ c
        └─ d
    """
    for child in branch.children:
        yield from _rows(child, "", "", depth)


def _rows(branch: Branch, guide: str, child_guide: str, depth: int | None) -> Iterator[Row]:
    is_deepest = depth is not None and depth <= 1
    shown = branch.count if branch.type is not None else 0
    yield Row(guide, branch, branch.variables - shown if is_deepest else 0)
    if is_deepest:
        return
    deeper = None if depth is None else depth - 1
    for i, child in enumerate(branch.children):
        last = i == len(branch.children) - 1
        guides = child_guide + ("└─ " if last else "├─ "), child_guide + ("   " if last else "│  ")
        yield from _rows(child, *guides, deeper)
