"""Which name a variable of the tree has in the checkpoint: the forms of `rename`, as values that act on names. Pure."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from pytreesaver._text import SINGLE_LEAF_NAME, prefixes, suggestions


class Renaming:
    """Gives the name in the checkpoint of a variable of the tree.

    `label` is what messages call it.
    """

    label = "rename"

    def stored_name(self, name: str) -> str:
        """The name in the checkpoint of the variable that is called `name` in the tree."""
        raise NotImplementedError

    def tree_names(self, stored: str) -> list[str]:
        """The names in the tree of the variable that is called `stored` in the checkpoint; where there is no telling
        from that name, the name itself."""
        return [stored]

    def unused(self, names: Sequence[str]) -> dict[str, str]:
        """The entries that say nothing of any of these names of the tree, each with a hint at what could be meant."""
        raise NotImplementedError


@dataclass(frozen=True)
class ByName(Renaming):
    """A dict of names, and of prefixes that end in ``/``; a name counts before a prefix, a long prefix before a short
    one. The prefix ``/`` is the root."""

    entries: Mapping[str, str]
    label: str = "rename"

    def stored_name(self, name: str) -> str:
        for key in _keys(name):
            stored = self.entries.get(key)
            if stored is None:
                continue
            if key.endswith("/") and stored.endswith("/"):
                return _joined(stored, _rest(name, key))
            if key == name:
                return stored
        return name

    def tree_names(self, stored: str) -> list[str]:
        exact, under = self._by_stored
        found = dict.fromkeys(exact.get(stored, ()))
        for value in _keys(stored):
            for key in under.get(value, ()):
                found[_joined(key, _rest(stored, value))] = None
        found[stored] = None
        return [name for name in found if self.stored_name(name) == stored]

    @cached_property
    def _by_stored(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The entries by their names and by their prefixes in the checkpoint."""
        exact: dict[str, list[str]] = {}
        under: dict[str, list[str]] = {}
        for key, value in self.entries.items():
            exact.setdefault(value, []).append(key)
            if key.endswith("/") and value.endswith("/"):
                under.setdefault(value, []).append(key)
        return exact, under

    def moved_names(self, stored: str) -> list[str]:
        """The same where nothing but the renaming says what the tree has: what is renamed has no more its old name."""
        names = self.tree_names(stored)
        return [name for name in names if name != stored or name in self.entries] or names

    def unused(self, names: Sequence[str]) -> dict[str, str]:
        used = {next((key for key in _keys(name) if key in self.entries), None) for name in names}
        idle = [key for key in self.entries if key not in used]
        if not idle:
            return {}
        under = {prefix for name in names for prefix in prefixes(name)}
        suggest, suggest_prefix = suggestions(names), suggestions(sorted(f"{prefix}/" for prefix in under - set(names)))
        hints = {}
        for key in idle:
            if key.rstrip("/") in under and key.endswith("/"):
                hints[key] = "; longer entries match all that it matches"
            elif key in under:
                hints[key] = f"; a prefix ends in '/': {key + '/'!r}: {self.entries[key].rstrip('/') + '/'!r}"
            else:
                hints[key] = (suggest_prefix if key.endswith("/") else suggest)(key)
        return hints


def _keys(name: str) -> Iterator[str]:
    """What may stand in a dict for a name: itself, and all prefixes, the longest first."""
    yield name
    if name != SINGLE_LEAF_NAME:
        yield f"{name}/"
        for i in range(len(name) - 1, -1, -1):
            if name[i] == "/":
                yield name[: i + 1]
    yield "/"


def _is_under(name: str, prefix: str) -> bool:
    return prefix == "/" or name.startswith(prefix) or name == prefix[:-1]


def _rest(name: str, prefix: str) -> str | None:
    """What follows a prefix in a name; None if the name is the prefix itself, a subtree that is a single leaf."""
    if prefix == "/":
        return None if name == SINGLE_LEAF_NAME else name
    return None if name == prefix[:-1] else name[len(prefix) :]


def _joined(prefix: str, rest: str | None) -> str:
    if rest is None:
        return SINGLE_LEAF_NAME if prefix == "/" else prefix[:-1]
    return rest if prefix == "/" else prefix + rest


@dataclass(frozen=True)
class _ByPattern(Renaming):
    """A list of (regular expression, replacement): the first that is found in a name counts."""

    pairs: Sequence[tuple[re.Pattern[str], str]]

    def stored_name(self, name: str) -> str:
        for pattern, replacement in self.pairs:
            if pattern.search(name):
                try:
                    return pattern.sub(replacement, name)
                except (re.error, IndexError) as error:
                    raise ValueError(f"rename: {replacement!r} cannot replace {pattern.pattern!r}: {error}") from None
        return name

    def unused(self, names: Sequence[str]) -> dict[str, str]:
        found = [[i for i, (pattern, _) in enumerate(self.pairs) if pattern.search(name)] for name in names]
        first, any_place = {each[0] for each in found if each}, {i for each in found for i in each}
        return {
            repr(pattern.pattern): "; entries before it match all that it matches" if i in any_place else ""
            for i, (pattern, _) in enumerate(self.pairs)
            if i not in first
        }


@dataclass(frozen=True)
class _ByFunction(Renaming):
    function: Callable[[str], str]

    def stored_name(self, name: str) -> str:
        stored = self.function(name)
        if not isinstance(stored, str):
            raise TypeError(f"rename: expected a function that gives a str, found {stored!r} for {name!r}")
        return stored

    def unused(self, names: Sequence[str]) -> dict[str, str]:
        return {}


def as_renaming(given: Any) -> Renaming:
    """A renaming from any of the forms that a user may give it in.

    Raises:
        TypeError: it is none of those.
        ValueError: an entry makes no sense.

    Example:
        >>> as_renaming({"backbone/": "encoder/"}).stored_name("backbone/0/w")
        'encoder/0/w'
        >>> as_renaming([(r"block_(\\d+)", r"layers/\\1")]).stored_name("encoder/block_3/w")
        'encoder/layers/3/w'
    """
    if isinstance(given, Renaming):
        return given
    if isinstance(given, Mapping):
        return _by_name(given)
    if isinstance(given, str | bytes) or not (callable(given) or isinstance(given, Sequence)):
        raise TypeError(f"{_EXPECTED}, found {given!r}")
    if callable(given):
        return _ByFunction(given)
    return _ByPattern([_pair(entry) for entry in given])


_EXPECTED = (
    "rename: expected a dict of names or of prefixes ending in '/', a list of (regular expression, replacement), or a "
    "function, each from names in the tree to names in the checkpoint"
)


def _by_name(given: Mapping[Any, Any]) -> ByName:
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{_EXPECTED}, found {key!r}: {value!r}")
        if key.endswith("/") != value.endswith("/"):
            raise ValueError(
                f"rename: expected a name for a name, or a prefix ending in '/' for a prefix, found {key!r}: {value!r}"
            )
    return ByName(dict(given))


def _pair(entry: Any) -> tuple[re.Pattern[str], str]:
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 2:
        raise TypeError(f"{_EXPECTED}, found the entry {entry!r}")
    pattern, replacement = entry
    if not isinstance(pattern, str | re.Pattern) or not isinstance(replacement, str):
        raise TypeError(f"{_EXPECTED}, found the entry {entry!r}")
    try:
        return re.compile(pattern), replacement
    except re.error as error:
        raise ValueError(f"rename: {pattern!r} is no regular expression: {error}") from error


def likely_renaming(missing: Sequence[str], surplus: Sequence[str]) -> dict[str, str] | None:
    """The change of a prefix that finds every missing variable among the surplus ones, if there is one.

    Example:
        >>> likely_renaming(["backbone/w", "backbone/b"], ["encoder/w", "encoder/b", "head/w"])
        {'backbone/': 'encoder/'}
        >>> likely_renaming(["w", "b"], ["params/w", "params/b"])
        {'/': 'params/'}
    """
    if len(missing) < 2:
        return None
    there = set(surplus)
    first = missing[0]
    candidates = (
        (first[:end] or "/", name[: len(name) - len(first) + end] or "/")
        for end in [0, *(i + 1 for i, character in enumerate(first) if character == "/")]
        for name in surplus
        if name == first[end:] or name.endswith(f"/{first[end:]}")
    )
    for prefix, other in islice(candidates, _MOST_CANDIDATES):
        if all(_is_under(name, prefix) and _joined(other, _rest(name, prefix)) in there for name in missing):
            return {prefix: other}
    return None


_MOST_CANDIDATES = 1000
