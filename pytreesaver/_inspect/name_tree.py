"""The variables of a checkpoint as a tree, with totals for each branch, folded where it repeats itself. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

SortKey = Literal["name", "size"]


class Summarized(Protocol):
    """What a listing shows of a variable, as every `Variable` has it and every `VariableSummary`."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


class VariableSummary(NamedTuple):
    """A variable as a listing shows it: `type` is as in messages (``"float32[784,512]"``), `size` the number of
    elements."""

    name: str
    type: str
    size: int
    nbytes: int


@dataclass
class Branch:
    """A node of the tree of variable names.

    Attributes:
        name: its component of the name; ``layer_{0..47}`` if it stands for several.
        path: its name from the root on, of the first if there are several.
        type: of the variable of this name; None if there is none.
        variables: how many variables it stands for, those below it included.
        size: how many elements those have.
        nbytes: how many bytes those have.
        count: how many alike branches it stands for.
        children: what lies below it.
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
    """The tree of the variables, under a root without a name.

    Example:
        >>> root = variable_tree([VariableSummary("a/w", "float32[2]", 2, 8), VariableSummary("b", "int", 1, 8)])
        >>> [(branch.name, branch.nbytes, branch.type) for branch in root.children], root.size
        ([('a', 8, None), ('b', 8, 'int')], 3)
    """
    root = Branch("", "")
    children: dict[tuple[int, str], Branch] = {}  # by the node above and the component
    for variable in variables:
        size, nbytes = variable.size, variable.nbytes
        branch, path = root, ""
        line = [root]
        for component in variable.name.split("/", _MOST_LEVELS):
            path = f"{path}/{component}" if branch is not root else component
            key = id(branch), component
            if key not in children:
                children[key] = Branch(component, path)
                branch.children.append(children[key])
            branch = children[key]
            line.append(branch)
        branch.type = variable.type
        for each in line:
            each.variables += 1
            each.size += size
            each.nbytes += nbytes
    return root


_MOST_LEVELS = 100  # what lies deeper in a name is one component


def sorted_tree(branch: Branch, by: SortKey) -> Branch:
    """The same tree with the branches of each node by their names, numbers in them by their value, or the largest
    first."""
    branch.children.sort(key=_by_name if by == "name" else _by_size)
    for child in branch.children:
        sorted_tree(child, by)
    return branch


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts names as people do: ``layer_2`` before ``layer_10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(i % 2 == 0, _value(part) if i % 2 else 0, part) for i, part in enumerate(parts) if part]


def _value(digits: str) -> int:
    return int(digits[:_MOST_DIGITS])


_MOST_DIGITS = 4000  # Python reads no longer numbers


def _by_name(branch: Branch) -> list[tuple[bool, int, str]]:
    return natural_order(branch.name)


def _by_size(branch: Branch) -> tuple[int, list[tuple[bool, int, str]]]:
    return -branch.nbytes, natural_order(branch.name)


def folded_tree(branch: Branch) -> Branch:
    """The same tree in which neighbours that differ in a number of their name, and in nothing below it, are one.

    Example:
        >>> layers = [VariableSummary(f"layer_{i}/w", "float32[2]", 2, 8) for i in range(48)]
        >>> folded = folded_tree(variable_tree([*layers, VariableSummary("step", "int", 1, 8)]))
        >>> [(child.name, child.count, child.nbytes) for child in folded.children]
        [('layer_{0..47}', 48, 384), ('step', 1, 8)]
    """
    return _folded(branch, {})[0]


_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})([^0-9]*)", re.DOTALL)


def _folded(branch: Branch, shapes: dict[object, int]) -> tuple[Branch, int]:
    """The folded branch, and a number that is the same for all that are alike but for their names."""
    folded = [_folded(child, shapes) for child in branch.children]
    signature = (branch.type, branch.nbytes, branch.size, tuple((child.name, shape) for child, shape in folded))
    groups: dict[object, list[tuple[int, Branch, int]]] = {}
    for child, shape in folded:
        match = _NUMBERED.fullmatch(child.name)
        # A number with zeros before it belongs to those with as many digits.
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
        children.append(_multiplied(members[0][1], len(members), f"{key[0]}{{{numbers}}}{key[1]}"))
    whole = Branch(
        branch.name, branch.path, branch.type, branch.variables, branch.size, branch.nbytes, branch.count, children
    )
    return whole, shapes.setdefault(signature, len(shapes))


def _multiplied(branch: Branch, times: int, name: str) -> Branch:
    return Branch(
        name,
        branch.path,
        branch.type,
        branch.variables * times,
        branch.size * times,
        branch.nbytes * times,
        branch.count * times,
        [_multiplied(child, times, child.name) for child in branch.children],
    )


def _ranges(numbers: Sequence[int], width: int) -> str:
    """Ascending numbers, of so many digits at least, in short: ``0..3,7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("..".join(f"{number:0{width}}" for number in part) for part in parts)


class Row(NamedTuple):
    """A line of a drawn tree: what is drawn before the name, and the branch. `hidden` says how many variables below it
    are not drawn."""

    guide: str
    branch: Branch
    hidden: int


def drawn(branch: Branch, depth: int | None = None) -> Iterator[Row]:
    """The lines of a tree below its root, as deep as `depth`, all if None.

    Example:
        >>> root = variable_tree([VariableSummary(f"a/{name}", "int", 1, 8) for name in "bcd"])
        >>> for row in drawn(root):
        ...     print(row.guide + row.branch.name)
        a
        ├─ b
        ├─ c
        └─ d
    """
    for child in branch.children:
        yield from _drawn(child, "", "", depth)


def _drawn(branch: Branch, guide: str, below: str, depth: int | None) -> Iterator[Row]:
    cut = depth is not None and depth <= 1
    own = branch.count if branch.type is not None else 0
    yield Row(guide, branch, branch.variables - own if cut else 0)
    if cut:
        return
    deeper = None if depth is None else depth - 1
    for i, child in enumerate(branch.children):
        last = i == len(branch.children) - 1
        yield from _drawn(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "), deeper)
