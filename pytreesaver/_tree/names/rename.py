"""Renaming of variables between a tree and a checkpoint: the forms of `rename`. Pure functions on names."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from pytreesaver._text import SINGLE_LEAF_NAME, prefixes, suggestions

Rename = Mapping[str, str] | Sequence[tuple[str | re.Pattern[str], str]] | Callable[[str], str]
"""Type of arguments that rename variables, such as `rename`: a map from names in the result to names in the checkpoint.

A dict of names or of prefixes that end in ``/``, a list of (regular expression, replacement), or a function.
"""


R = TypeVar("R", bound="Renaming | None")


class Renaming:
    """Maps variable names of a tree to names in a checkpoint. Messages refer to it as `label`."""

    label = "rename"

    def stored_name(self, name: str) -> str:
        """Return the name in the checkpoint of the variable `name` of the tree."""
        raise NotImplementedError

    def tree_names(self, stored: str) -> list[str]:
        """Return the names in the tree of the variable `stored` of the checkpoint, or `stored` if they are unknown."""
        return [stored]

    def is_explicit(self, name: str) -> bool:
        """Return whether the renaming is about the variable itself, and not only about the containers it is in."""
        return self.stored_name(name).rpartition("/")[2] != name.rpartition("/")[2]

    def unused(self, names: Sequence[str]) -> dict[str, str]:
        """Return the entries that apply to none of these names of the tree. Each maps to a hint for the message."""
        raise NotImplementedError


@dataclass(frozen=True)
class ByName(Renaming):
    """A dict of names and of prefixes that end in ``/``; ``/`` itself is the root.

    Names take precedence over prefixes, and long prefixes over short ones.
    """

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

    def is_explicit(self, name: str) -> bool:
        return name in self.entries

    @cached_property
    def _by_stored(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The keys of the entries, by name and by prefix in the checkpoint."""
        exact: dict[str, list[str]] = {}
        under: dict[str, list[str]] = {}
        for key, value in self.entries.items():
            exact.setdefault(value, []).append(key)
            if key.endswith("/") and value.endswith("/"):
                under.setdefault(value, []).append(key)
        return exact, under

    def names_without_template(self, stored: str) -> list[str]:
        """Like `tree_names`, but without `stored` itself if the variable has another name."""
        names = self.tree_names(stored)
        return [name for name in names if name != stored or name in self.entries] or names

    def unused(self, names: Sequence[str]) -> dict[str, str]:
        used = {next((key for key in _keys(name) if key in self.entries), None) for name in names}
        unused = [key for key in self.entries if key not in used]
        if not unused:
            return {}
        under = {prefix for name in names for prefix in prefixes(name)}
        suggest, suggest_prefix = suggestions(names), suggestions(sorted(f"{prefix}/" for prefix in under - set(names)))
        hints = {}
        for key in unused:
            if key.rstrip("/") in under and key.endswith("/"):
                hints[key] = "; longer entries match all names that it matches"
            elif key in under:
                hints[key] = f"; a prefix ends in '/': {key + '/'!r}: {self.entries[key].rstrip('/') + '/'!r}"
            else:
                hints[key] = (suggest_prefix if key.endswith("/") else suggest)(key)
        return hints


def _keys(name: str) -> Iterator[str]:
    """Yield the keys that apply to a name: the name itself, then its prefixes, the longest first."""
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
    """Return the part of a name after a prefix, or None if the prefix itself is a leaf."""
    if prefix == "/":
        return None if name == SINGLE_LEAF_NAME else name
    return None if name == prefix[:-1] else name[len(prefix) :]


def _joined(prefix: str, rest: str | None) -> str:
    if rest is None:
        return SINGLE_LEAF_NAME if prefix == "/" else prefix[:-1]
    return rest if prefix == "/" else prefix + rest


@dataclass(frozen=True)
class _ByPattern(Renaming):
    """A list of (regular expression, replacement). The first expression that matches in a name applies."""

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
        matches = [[i for i, (pattern, _) in enumerate(self.pairs) if pattern.search(name)] for name in names]
        used, matching = {each[0] for each in matches if each}, {i for each in matches for i in each}
        return {
            repr(pattern.pattern): "; earlier entries match all names that it matches" if i in matching else ""
            for i, (pattern, _) in enumerate(self.pairs)
            if i not in used
        }


@dataclass(frozen=True)
class _ByFunction(Renaming):
    function: Callable[[str], object]

    def stored_name(self, name: str) -> str:
        stored = self.function(name)
        if not isinstance(stored, str):
            raise TypeError(f"rename: expected a function that returns a str, found {stored!r} for {name!r}")
        return stored

    def unused(self, names: Sequence[str]) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class _ToOtherNames(Renaming):
    """A renaming to names of another program."""

    renaming: Renaming
    others: Mapping[str, str]

    @property
    def label(self) -> str:  # type: ignore[override]
        return self.renaming.label

    def stored_name(self, name: str) -> str:
        stored = self.renaming.stored_name(name)
        return self.others.get(stored, stored)

    def tree_names(self, stored: str) -> list[str]:
        return self.renaming.tree_names(stored)

    def is_explicit(self, name: str) -> bool:
        return self.renaming.is_explicit(name)

    def unused(self, names: Sequence[str]) -> dict[str, str]:
        return self.renaming.unused(names)


def with_other_names(renaming: R, others: Mapping[str, str], *, only_entries: bool = False) -> R:
    """Return a renaming that may name a variable of the checkpoint as another program does, by {another name: name}.

    With `only_entries`, the result for a dict is one, and its prefixes have to be names of pytreesaver.
    """
    result: Any = renaming
    if isinstance(renaming, ByName):
        result = replace(renaming, entries={key: others.get(value, value) for key, value in renaming.entries.items()})
    if isinstance(renaming, Renaming) and others and not (isinstance(renaming, ByName) and only_entries):
        result = _ToOtherNames(result, others)
    return result  # type: ignore[no-any-return]


def as_renaming(given: Any) -> Renaming:
    """Convert any of the forms of `rename` to a `Renaming`.

    Raises:
        TypeError: if `given` is none of these forms.
        ValueError: if an entry is invalid.

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
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return _ByPattern([_pair(entry) for entry in given])
    if callable(given):
        return _ByFunction(given)
    raise TypeError(f"{_EXPECTED}, found {given!r}")


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
        raise ValueError(f"rename: {pattern!r} is not a valid regular expression: {error}") from error


def likely_renaming(
    missing: Sequence[str], surplus: Sequence[str], fits: Callable[[str, str], bool] = lambda name, other: True
) -> dict[str, str] | None:
    """Return a change of prefix that maps all missing variables to surplus ones that fit, or None if there is none.

    Example:
        >>> likely_renaming(["backbone/w", "backbone/b"], ["encoder/w", "encoder/b", "head/w"])
        {'backbone/': 'encoder/'}
        >>> likely_renaming(["w", "b"], ["params/w", "params/b"])
        {'/': 'params/'}
    """
    if len(missing) < 2:
        return None
    surplus_names = set(surplus)
    first = missing[0]
    candidates = (
        (first[:end] or "/", name[: len(name) - len(first) + end] or "/")
        for end in [0, *(i + 1 for i, character in enumerate(first) if character == "/")]
        for name in surplus
        if name == first[end:] or name.endswith(f"/{first[end:]}")
    )
    for prefix, other in islice(candidates, _MAX_CANDIDATES):
        new_names = [_joined(other, _rest(name, prefix)) for name in missing if _is_under(name, prefix)]
        if (
            len(new_names) == len(missing)
            and surplus_names.issuperset(new_names)
            and all(map(fits, missing, new_names))
        ):
            return {prefix: other}
    return None


_MAX_CANDIDATES = 1000
