"""Selection of variables by name: globs, regular expressions, predicates and masks. Pure functions."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Union

import numpy as np

from pytreesaver._errors import UnsupportedLeafError, VariableNotFoundError
from pytreesaver._text import SINGLE_LEAF_NAME, prefixes, quoted, suggestions


class Selector:
    """Selects variables by name.

    Selectors are combined with ``|``, ``&`` and ``~``, and with anything else that `only` accepts. Unlike the members
    of a list, the operands need not select anything.
    """

    def selects(self, name: str) -> bool:
        """Return whether the variable with this name is selected."""
        raise NotImplementedError

    def __or__(self, other: "Selection") -> "Selector":
        return _Any((self, as_selection(other)))

    def __ror__(self, other: "Selection") -> "Selector":
        return _Any((as_selection(other), self))

    def __and__(self, other: "Selection") -> "Selector":
        return _All((self, as_selection(other)))

    def __rand__(self, other: "Selection") -> "Selector":
        return _All((as_selection(other), self))

    def __invert__(self) -> "Selector":
        return _Not(self)


class _DataclassInstance(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Mask = Union[bool, None, Mapping[Any, "Mask"], Sequence["Mask"], _DataclassInstance]  # noqa: UP007
"""A tree of bools that is a prefix of the tree, as for `optax.masked`."""

Selection = Union[str, re.Pattern[str], Callable[[str], bool], Selector, Mask, Sequence["Selection"]]  # noqa: UP007
"""Type of arguments that select variables, such as `only`.

A glob (see `pytreesaver.glob`), a compiled regular expression, a predicate on the name, a `Selector`, a list of these
(which selects what any member selects), or a mask: a tree of bools that is a prefix of the tree.
"""


def glob(pattern: str) -> Selector:
    """Select the names that match a glob pattern.

    Within a component of a name, ``*`` matches any characters and ``?`` a single character. The component ``**``
    matches any number of components; at the end of a pattern it matches everything below the rest. A pattern without
    wildcards also selects everything below it.

    Example:
        >>> selection = glob("encoder/**") & ~glob("**/bias")
        >>> [name for name in ("encoder/w", "encoder/0/bias", "head/w") if selection.selects(name)]
        ['encoder/w']
    """
    if not isinstance(pattern, str):
        raise TypeError(f"glob: expected a str, found {pattern!r}")
    return _Glob(pattern)


def regex(pattern: str | re.Pattern[str]) -> Selector:
    """Select the names that contain a match of a regular expression (`re.search`).

    Example:
        >>> regex(r"layer_[0-3]/").selects("encoder/layer_2/w"), regex(r"^layer").selects("encoder/layer_2/w")
        (True, False)
    """
    try:
        return _Regex(re.compile(pattern))
    except re.error as error:
        raise ValueError(f"regex: {pattern!r} is not a valid regular expression: {error}") from error


@dataclass(frozen=True)
class _Glob(Selector):
    pattern: str

    def selects(self, name: str) -> bool:
        return self._compiled.fullmatch(name) is not None

    @property
    def is_literal(self) -> bool:
        """Whether it has no wildcards and thus also selects everything below it."""
        return "*" not in self.pattern and "?" not in self.pattern

    @property
    def literal_prefix(self) -> str:
        """The components before the first wildcard. All names that the glob selects are this name or below it."""
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
class _Regex(Selector):
    pattern: re.Pattern[str]

    def selects(self, name: str) -> bool:
        return self.pattern.search(name) is not None

    def __repr__(self) -> str:
        return f"regex({self.pattern.pattern!r})"


@dataclass(frozen=True)
class _Predicate(Selector):
    function: Callable[[str], Any]

    def selects(self, name: str) -> bool:
        return bool(self.function(name))

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


@dataclass(frozen=True)
class _Any(Selector):
    parts: tuple[Selector, ...]

    def selects(self, name: str) -> bool:
        return any(part.selects(name) for part in self.parts)

    def __repr__(self) -> str:
        return f"({' | '.join(map(repr, self.parts))})"


@dataclass(frozen=True)
class _All(Selector):
    parts: tuple[Selector, ...]

    def selects(self, name: str) -> bool:
        return all(part.selects(name) for part in self.parts)

    def __repr__(self) -> str:
        return f"({' & '.join(map(repr, self.parts))})"


@dataclass(frozen=True)
class _Not(Selector):
    part: Selector

    def selects(self, name: str) -> bool:
        return not self.part.selects(name)

    def __repr__(self) -> str:
        return f"~{self.part!r}"


@dataclass(frozen=True)
class _EachOf(_Any):
    """The members of a list. Unlike the operands of ``a | b``, each must select something."""

    def selects(self, name: str) -> bool:
        return bool(self.members_for(name))

    def members_for(self, name: str) -> set[int]:
        """Return the positions of the members that select a name.

        Globs are looked up by their literal prefix, since lists of thousands of names are common.
        """
        globs, others = self._by_prefix
        candidates = [*globs.get("", ()), *(i for prefix in prefixes(name) for i in globs.get(prefix, ()))]
        return {i for i in (*candidates, *others) if self.parts[i].selects(name)}

    @cached_property
    def _by_prefix(self) -> tuple[dict[str, list[int]], list[int]]:
        globs: dict[str, list[int]] = {}
        others: list[int] = []
        for i, part in enumerate(self.parts):
            if isinstance(part, _Glob):
                globs.setdefault(part.literal_prefix, []).append(i)
            else:
                others.append(i)
        return globs, others

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self.parts))}]"


@dataclass(frozen=True)
class NameSet(Selector):
    """Selects a set of names. Messages refer to it as `label`."""

    names: Collection[str]
    label: str

    def selects(self, name: str) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        return self.label


@dataclass(frozen=True)
class _Mask(Selector):
    """A tree of bools. Each applies to all variables below its name."""

    flags: Mapping[str, bool]

    def selects(self, name: str) -> bool:
        return self.flag_of(name) or False

    def flag_of(self, name: str) -> bool | None:
        """Return the flag that applies to a name, or None if the mask does not cover it."""
        while True:
            if name in self.flags:
                return self.flags[name]
            name, slash, _ = name.rpartition("/")
            if not slash:
                return self.flags.get(SINGLE_LEAF_NAME)

    def __repr__(self) -> str:
        return "the mask"


def as_selection(given: Any) -> Selector:
    """Convert any of the forms of a selection to a selector.

    A str is a glob, a compiled regular expression is searched for, a function is a predicate on the name, a list
    selects what any of its members selects, and a tree of bools is a mask: a prefix of the tree.

    Raises:
        TypeError: if `given` is none of these.
    """
    if isinstance(given, Selector):
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
        "expected a glob, a compiled regular expression, a function of the name, a list of these, or a tree of bools, "
        f"found {given!r}"
    )


def _as_mask(given: Any) -> _Mask | None:
    if isinstance(given, list | tuple) and all(isinstance(each, str | re.Pattern | Selector) for each in given):
        return None  # without importing JAX to flatten it
    from pytreesaver._tree.structure import flatten_tree

    try:
        flat = flatten_tree(given)
    except UnsupportedLeafError:
        return None
    if not flat.leaves or not all(isinstance(leaf, bool | np.bool_) for leaf in flat.leaves):
        return None
    return _Mask({name: bool(leaf) for name, leaf in zip(flat.names, flat.leaves, strict=True)})


def selected_names(selection: Selector, names: Sequence[str], where: str) -> list[str]:
    """Return the names that are selected. Raises the same exceptions as `selected`."""
    return [name for name, flag in zip(names, selected(selection, names, where), strict=True) if flag]


def selected(selection: Selector, names: Sequence[str], where: str, *, may_be_empty: bool = False) -> list[bool]:
    """Return for each name whether it is selected. `where` describes the tree or the checkpoint in messages.

    Raises:
        VariableNotFoundError: if the selection or a member of a list selects nothing (the message suggests similar
            names), or if a mask does not cover a name or is True for a name that does not exist.

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
        unused = [part for i, part in enumerate(each_of.parts) if i not in used]
        problems = [f"  {part!r} selects nothing{_suggestion(part, suggest)}" for part in unused]
    if isinstance(selection, _Mask):
        problems += _mask_problems(selection, names, suggest)
    if problems or not (each_of.parts or may_be_empty):
        lines = problems or [f"  {selection!r} is empty"]
        raise VariableNotFoundError(
            f"the selection does not match the {len(names)} variables of {where}:\n" + "\n".join(lines)
        )
    return flags


def _mask_problems(mask: _Mask, names: Sequence[str], suggest: Callable[[str], str]) -> list[str]:
    known = {prefix for name in names for prefix in prefixes(name)} | {SINGLE_LEAF_NAME}
    problems = [
        f"  {quoted(n)}: expected True or False in the mask, found neither" for n in names if mask.flag_of(n) is None
    ]
    # False is valid for any name: a Saver applies the mask of a tree to a checkpoint of a part of that tree.
    unknown = [name for name, flag in mask.flags.items() if flag and name not in known]
    return problems + [f"  {quoted(n)}: the mask is True, but no variable has this name{suggest(n)}" for n in unknown]


def _known_names(names: Sequence[str]) -> Iterator[str]:
    yield from sorted({prefix for name in names for prefix in prefixes(name)} - set(names))
    yield from names


def _suggestion(part: Selector, suggest: Callable[[str], str]) -> str:
    if isinstance(part, _Any | _All):
        return next(filter(None, (_suggestion(each, suggest) for each in part.parts)), "")
    if not isinstance(part, _Glob):
        return ""
    wanted = re.sub(r"/?\*+/?$|^\*+/", "", part.pattern)
    return suggest(wanted) if wanted else ""
