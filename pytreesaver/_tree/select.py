"""Which variables are meant: globs, regular expressions, predicates and masks, as values that act on names. Pure."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pytreesaver._errors import UnsupportedLeafError, VariableNotFoundError
from pytreesaver._text import SINGLE_LEAF_NAME, prefixes, shown, suggestions


class Selection:
    """Says of every variable name whether it is meant.

    Selections are joined with ``|``, ``&`` and ``~``, also with anything that `only` takes for one. Other than the
    members of a list, the parts of such an expression need not select anything.
    """

    def selects(self, name: str) -> bool:
        """Whether the variable of this name is meant."""
        raise NotImplementedError

    def __or__(self, other: Any) -> "Selection":
        return _Any((self, as_selection(other)))

    def __ror__(self, other: Any) -> "Selection":
        return _Any((as_selection(other), self))

    def __and__(self, other: Any) -> "Selection":
        return _All((self, as_selection(other)))

    def __rand__(self, other: Any) -> "Selection":
        return _All((as_selection(other), self))

    def __invert__(self) -> "Selection":
        return _Not(self)


def glob(pattern: str) -> Selection:
    """Selects the names that a pattern fits.

    ``*`` stands for anything within one component of a name, ``?`` for one character of it, and ``**`` as a component
    for any number of components, at its end for everything that lies under the rest. A pattern without any of these
    also selects everything under it.

    Example:
        >>> selection = glob("encoder/**") & ~glob("**/bias")
        >>> [name for name in ("encoder/w", "encoder/0/bias", "head/w") if selection.selects(name)]
        ['encoder/w']
    """
    if not isinstance(pattern, str):
        raise TypeError(f"glob: expected a str, found {pattern!r}")
    return _Glob(pattern)


def regex(pattern: str | re.Pattern[str]) -> Selection:
    """Selects the names in which a regular expression is found (`re.search`).

    Example:
        >>> regex(r"layer_[0-3]/").selects("encoder/layer_2/w"), regex(r"^layer").selects("encoder/layer_2/w")
        (True, False)
    """
    try:
        return _Regex(re.compile(pattern))
    except re.error as error:
        raise ValueError(f"regex: {pattern!r} is no regular expression: {error}") from error


@dataclass(frozen=True)
class _Glob(Selection):
    pattern: str

    def selects(self, name: str) -> bool:
        return self._compiled.fullmatch(name) is not None

    @property
    def is_literal(self) -> bool:
        """Whether it is a name, which also stands for everything under it."""
        return "*" not in self.pattern and "?" not in self.pattern

    @property
    def beginning(self) -> str:
        """The components before the first one with a wildcard; every name that it selects is that or lies under it."""
        components = self.pattern.split("/")
        wild = next((i for i, part in enumerate(components) if "*" in part or "?" in part), len(components))
        return "/".join(components[:wild])

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        if self.is_literal:
            return re.compile(re.escape(self.pattern) + r"(?:/.*)?", re.DOTALL)
        *components, last = self.pattern.split("/")
        parts = ["(?:[^/]*/)*" if part == "**" else _component(part) + "/" for part in components]
        return re.compile("".join(parts) + (".*" if last == "**" else _component(last)), re.DOTALL)

    def __repr__(self) -> str:
        return repr(self.pattern)


def _component(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")


@dataclass(frozen=True)
class _Regex(Selection):
    pattern: re.Pattern[str]

    def selects(self, name: str) -> bool:
        return self.pattern.search(name) is not None

    def __repr__(self) -> str:
        return f"regex({self.pattern.pattern!r})"


@dataclass(frozen=True)
class _Predicate(Selection):
    function: Callable[[str], Any]

    def selects(self, name: str) -> bool:
        return bool(self.function(name))

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


@dataclass(frozen=True)
class _Any(Selection):
    parts: tuple[Selection, ...]

    def selects(self, name: str) -> bool:
        return any(part.selects(name) for part in self.parts)

    def __repr__(self) -> str:
        return f"({' | '.join(map(repr, self.parts))})"


@dataclass(frozen=True)
class _All(Selection):
    parts: tuple[Selection, ...]

    def selects(self, name: str) -> bool:
        return all(part.selects(name) for part in self.parts)

    def __repr__(self) -> str:
        return f"({' & '.join(map(repr, self.parts))})"


@dataclass(frozen=True)
class _Not(Selection):
    part: Selection

    def selects(self, name: str) -> bool:
        return not self.part.selects(name)

    def __repr__(self) -> str:
        return f"~{self.part!r}"


@dataclass(frozen=True)
class _EachOf(_Any):
    """The members of a list: unlike the parts of ``a | b``, each of them has to select something."""

    def selects(self, name: str) -> bool:
        return bool(self.members_for(name))

    def members_for(self, name: str) -> set[int]:
        """The positions of the members that select a name.

        Lists of thousands of names are usual: a glob is looked up by the components that it begins with.
        """
        begins, others = self._by_beginning
        candidates = [*begins.get("", ()), *(i for prefix in prefixes(name) for i in begins.get(prefix, ()))]
        return {i for i in (*candidates, *others) if self.parts[i].selects(name)}

    @cached_property
    def _by_beginning(self) -> tuple[dict[str, list[int]], list[int]]:
        begins: dict[str, list[int]] = {}
        others: list[int] = []
        for i, part in enumerate(self.parts):
            if isinstance(part, _Glob):
                begins.setdefault(part.beginning, []).append(i)
            else:
                others.append(i)
        return begins, others

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self.parts))}]"


@dataclass(frozen=True)
class OneOf(Selection):
    """Selects a set of names. `label` is what messages call it."""

    names: Collection[str]
    label: str

    def selects(self, name: str) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        return self.label


@dataclass(frozen=True)
class _Mask(Selection):
    """A tree of bools, each of which speaks for everything under its name."""

    flags: Mapping[str, bool]

    def selects(self, name: str) -> bool:
        return self.flag_of(name) or False

    def flag_of(self, name: str) -> bool | None:
        """What the mask says of a name, None if it says nothing."""
        while True:
            if name in self.flags:
                return self.flags[name]
            name, slash, _ = name.rpartition("/")
            if not slash:
                return self.flags.get(SINGLE_LEAF_NAME)

    def __repr__(self) -> str:
        return "the mask"


def as_selection(given: Any) -> Selection:
    """A selection from any of the forms that a user may give it in.

    A str is a glob, a compiled regular expression is searched for, a function is called with each name, a list selects
    what any of its members selects, and a tree of bools is a mask of the tree or of a prefix of it.

    Raises:
        TypeError: it is none of those.
    """
    if isinstance(given, Selection):
        return given
    if isinstance(given, str):
        return _Glob(given)
    if isinstance(given, re.Pattern):
        return _Regex(given)
    mask = _as_mask(given)
    if mask is not None:
        return mask
    if isinstance(given, list | tuple | set | frozenset):
        return _EachOf(tuple(map(as_selection, given)))
    if callable(given):
        return _Predicate(given)
    raise TypeError(
        "expected a glob, a compiled regular expression, a function of the name, a list of those, or a tree of bools, "
        f"found {given!r}"
    )


def _as_mask(given: Any) -> _Mask | None:
    if isinstance(given, list | tuple) and all(isinstance(each, str | re.Pattern | Selection) for each in given):
        return None  # it is not a tree of bools, and JAX, which takes trees apart, is not needed to see that
    from pytreesaver._tree.structure import flatten_tree

    try:
        flat = flatten_tree(given)
    except UnsupportedLeafError:
        return None
    if not flat.leaves or not all(isinstance(leaf, bool | np.bool_) for leaf in flat.leaves):
        return None
    return _Mask({name: bool(leaf) for name, leaf in zip(flat.names, flat.leaves, strict=True)})


def selected_names(selection: Selection, names: Sequence[str], where: str) -> list[str]:
    """Those of the names that are selected. Raises what `selected` raises."""
    return [name for name, flag in zip(names, selected(selection, names, where), strict=True) if flag]


def selected(selection: Selection, names: Sequence[str], where: str, *, may_be_empty: bool = False) -> list[bool]:
    """For each name whether it is selected. `where` says in messages what the names are of.

    Raises:
        VariableNotFoundError: nothing is selected, or nothing by one member of a list; the message has similar names.
            Or a mask does not say anything of some names, or True of what is not there.

    Example:
        >>> selected(glob("params"), ["params/w", "step"], "the tree")
        [True, False]
    """
    each_of = selection if isinstance(selection, _EachOf) else _EachOf((selection,))
    used: set[int] = set()
    flags = []
    for name in names:
        matching = each_of.members_for(name)
        used |= matching
        flags.append(bool(matching))
    suggest = suggestions(_known_names(names))
    problems = []
    if not may_be_empty:
        idle = [part for i, part in enumerate(each_of.parts) if i not in used]
        problems = [f"  {part!r} selects none{_near(part, suggest)}" for part in idle]
    if isinstance(selection, _Mask):
        problems += _mask_problems(selection, names, suggest)
    if problems or not (each_of.parts or may_be_empty):
        lines = problems or [f"  {selection!r} is empty"]
        raise VariableNotFoundError(
            f"expected a selection of the {len(names)} variables of {where}:\n" + "\n".join(lines)
        )
    return flags


def _mask_problems(mask: _Mask, names: Sequence[str], suggest: Callable[[str], str]) -> list[str]:
    known = {prefix for name in names for prefix in prefixes(name)} | {SINGLE_LEAF_NAME}
    problems = [f"  {shown(n)}: the mask says neither True nor False" for n in names if mask.flag_of(n) is None]
    # What is not wanted may be absent: a Saver's mask is for the tree that was saved a part of.
    idle = [name for name, flag in mask.flags.items() if flag and name not in known]
    return problems + [f"  {shown(n)}: the mask says True, and there is nothing{suggest(n)}" for n in idle]


def _known_names(names: Sequence[str]) -> Iterator[str]:
    yield from sorted({prefix for name in names for prefix in prefixes(name)} - set(names))
    yield from names


def _near(part: Selection, suggest: Callable[[str], str]) -> str:
    if isinstance(part, _Any | _All):
        return next(filter(None, (_near(each, suggest) for each in part.parts)), "")
    if not isinstance(part, _Glob):
        return ""
    wanted = re.sub(r"/?\*+/?$|^\*+/", "", part.pattern)
    return suggest(wanted) if wanted else ""
