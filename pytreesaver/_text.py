"""Variable names: the path of a leaf in its tree, its entries joined with ``/``. Pure functions on strings."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

SINGLE_LEAF_NAME = "."
"""The name of the one variable of a tree that is itself a leaf."""


def near_names(name: str, candidates: Sequence[str], most: int = 3) -> list[str]:
    """Up to `most` of `candidates` that look like `name`, the likeliest first.

    Example:
        >>> near_names("params/dens/kernel", ["params/dense/kernel", "step"])
        ['params/dense/kernel']
    """
    from rapidfuzz import fuzz, process

    alike = process.extract(name, candidates, scorer=fuzz.WRatio, limit=4 * most, score_cutoff=80)
    # What only contains a similar part is as good to that scorer as what is similar as a whole.
    found: list[str] = []
    for near in sorted((near for near, _, _ in alike), key=lambda near: -fuzz.ratio(name, near)):
        if not any(near.startswith(f"{better}/") for better in found):
            found.append(near)
    return found[:most]


def did_you_mean(name: str, candidates: Sequence[str]) -> str:
    """A half sentence that offers names like `name`, or nothing: ``; did you mean 'b'?``."""
    near = near_names(name, candidates)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def listed_with_suggestions(names: Sequence[str], candidates: Sequence[str]) -> list[str]:
    """A line of a message for each name; the first ones offer names like it, which takes milliseconds each.

    Example:
        >>> listed_with_suggestions(["dens/w"], ["dense/w"])
        ["  dens/w; did you mean 'dense/w'?"]
    """
    suggest = suggestions(candidates)
    return [f"  {shown(name)}{suggest(name)}" for name in names]


def suggestions(candidates: Iterable[str]) -> Callable[[str], str]:
    """`did_you_mean` for a message of many lines: only the first names that are asked for get an answer.

    The candidates are looked at when the first name is asked for.
    """
    known: list[str] = []
    asked = itertools.count()

    def suggest(name: str) -> str:
        if not known:
            known.extend(candidates)
        return did_you_mean(name, known) if next(asked) < _MOST_SUGGESTIONS else ""

    return suggest


_MOST_SUGGESTIONS = 20


def prefixes(name: str) -> Iterator[str]:
    """A name and every name that it lies under.

    Example:
        >>> list(prefixes("params/dense/kernel"))
        ['params/dense/kernel', 'params', 'params/dense']
    """
    yield name
    for i, character in enumerate(name):
        if character == "/":
            yield name[:i]


def shown(name: str) -> str:
    """A name as it stands in a message: as it is, or quoted if it could be misread.

    Example:
        >>> shown("params/kernel"), shown("line\\nbreak"), shown("")
        ('params/kernel', "'line\\\\nbreak'", "''")
    """
    return name if name.isprintable() and name and name == name.strip() else repr(name)


def printable(text: str) -> str:
    """A text in which nothing can move the cursor, colour the terminal or turn the line around: all that is escaped.

    Example:
        >>> printable(chr(27) + "[31mred") == "\\\\x1b[31mred"
        True
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def integer_text(value: int) -> str:
    """An integer as people read it; one of many thousand bits in hexadecimal, because Python writes no other.

    Example:
        >>> integer_text(2**70), integer_text(2**20000)[:4]
        ('1180591620717411303424', '0x10')
    """
    return str(value) if value.bit_length() < 10_000 else hex(value)


def time_text(seconds: float) -> str:
    """A time, in seconds since the epoch, as people read it.

    Example:
        >>> time_text(1.5e9), time_text(1e300)
        ('2017-07-14 02:40:00 UTC', '1e+300 s')
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):  # no calendar has it
        return f"{seconds:g} s"


def duplicates(names: Iterable[str]) -> list[str]:
    """The names that stand more than once in `names`, each once, in order.

    Example:
        >>> duplicates(["a", "b", "a"])
        ['a']
    """
    seen: set[str] = set()
    again: dict[str, None] = {}
    for name in names:
        if name in seen:
            again[name] = None
        seen.add(name)
    return list(again)
