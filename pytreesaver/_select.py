"""Which variables are meant: globs, regular expressions, predicates and masks, as values that act on names. Pure."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

from pytreesaver._errors import UnsupportedLeafError, VariableNotFoundError
from pytreesaver._names import SINGLE_LEAF_NAME, did_you_mean, shown
from pytreesaver._structure import flatten_tree


class Selection:
    """Says of every variable name whether it is meant. Selections are joined with ``|``, ``&`` and ``~``."""

    def selects(self, name: str) -> bool:
        """Whether the variable of this name is meant."""
        raise NotImplementedError

    def __or__(self, other: "Selection") -> "Selection":
        return _Any((self, other))

    def __and__(self, other: "Selection") -> "Selection":
        return _All((self, other))

    def __invert__(self) -> "Selection":
        return _Not(self)


def glob(pattern: str) -> Selection:
    """Selects the names that a pattern fits.

    ``*`` stands for anything within one component of a name, ``?`` for one character of it, and ``**`` as a component
    for any number of components. A pattern without any of these also selects everything under it.

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
    return _Regex(re.compile(pattern))


@dataclass(frozen=True)
class _Glob(Selection):
    pattern: str

    def selects(self, name: str) -> bool:
        return self._compiled.fullmatch(name) is not None

    @property
    def is_literal(self) -> bool:
        """Whether it is a name, which also stands for everything under it."""
        return "*" not in self.pattern and "?" not in self.pattern

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

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self.parts))}]"


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
    try:
        flat = flatten_tree(given)
    except UnsupportedLeafError:
        return None
    if not flat.leaves or not all(type(leaf) is bool for leaf in flat.leaves):
        return None
    return _Mask(dict(zip(flat.names, flat.leaves, strict=True)))


def selected(selection: Selection, names: Sequence[str], where: str, *, may_be_empty: bool = False) -> list[bool]:
    """For each name whether it is selected. `where` says in messages what the names are of.

    Raises:
        VariableNotFoundError: nothing is selected, or nothing by one member of a list; the message has similar names.
            Or a mask does not say anything of some names.

    Example:
        >>> selected(glob("params"), ["params/w", "step"], "the tree")
        [True, False]
    """
    parts = selection.parts if isinstance(selection, _EachOf) else (selection,)
    literals = {part.pattern for part in parts if _is_literal(part)}
    others = [part for part in parts if not _is_literal(part)]
    used: set[Any] = set()
    flags = []
    for name in names:
        # Lists of thousands of names are usual: those are looked up, and not compared one by one.
        by = {prefix for prefix in _prefixes(name) if prefix in literals} if literals else set()
        matching = {i for i, part in enumerate(others) if part.selects(name)}
        used |= by | {id(others[i]) for i in matching}
        flags.append(bool(by or matching))
    idle = [part for part in parts if (part.pattern if _is_literal(part) else id(part)) not in used]
    problems = (
        []
        if may_be_empty
        else [
            f"  {part!r} selects none{_near(part, names) if i < _MOST_SUGGESTIONS else ''}"
            for i, part in enumerate(idle)
        ]
    )
    if isinstance(selection, _Mask):
        problems += [
            f"  {shown(n)}: the mask says neither True nor False" for n in names if selection.flag_of(n) is None
        ]
    if problems or not (parts or may_be_empty):
        lines = problems or [f"  {selection!r} is empty"]
        raise VariableNotFoundError(
            f"expected a selection of the {len(names)} variables of {where}:\n" + "\n".join(lines)
        )
    return flags


_MOST_SUGGESTIONS = 20


def _is_literal(part: Selection) -> TypeGuard["_Glob"]:
    return isinstance(part, _Glob) and part.is_literal


def _prefixes(name: str) -> Iterator[str]:
    """A name and every name that it lies under."""
    yield name
    for i, character in enumerate(name):
        if character == "/":
            yield name[:i]


def _near(part: Selection, names: Sequence[str]) -> str:
    if not isinstance(part, _Glob):
        return ""
    prefixes = {prefix for name in names for prefix in _prefixes(name)} - set(names)
    wanted = re.sub(r"/?\*+/?$|^\*+/", "", part.pattern)
    return did_you_mean(wanted, [*sorted(prefixes), *names]) if wanted else ""
