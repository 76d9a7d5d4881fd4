"""Variable names and message text. Pure functions on strings.

A variable name is the path of a leaf in its tree, with its entries joined by ``/``.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

SINGLE_LEAF_NAME = "."
"""The variable name of a tree that is a single leaf."""


def similar_names(name: str, candidates: Sequence[str], limit: int = 3) -> list[str]:
    """Return up to `limit` of `candidates` that resemble `name`, the best match first.

    Example:
        >>> similar_names("params/dens/kernel", ["params/dense/kernel", "step"])
        ['params/dense/kernel']
    """
    from rapidfuzz import fuzz, process

    matches = process.extract(name, candidates, scorer=fuzz.WRatio, limit=4 * limit, score_cutoff=80)
    # WRatio scores a partial match as high as a full match, so rank the matches by their full ratio.
    found: list[str] = []
    for match in sorted((match for match, _, _ in matches), key=lambda match: -fuzz.ratio(name, match)):
        if not any(match.startswith(f"{better}/") for better in found):
            found.append(match)
    return found[:limit]


def did_you_mean(name: str, candidates: Sequence[str]) -> str:
    """Return a message suffix that suggests similar names, ``; did you mean 'b'?``, or an empty string."""
    similar = similar_names(name, candidates)
    return f"; did you mean {' or '.join(map(repr, similar))}?" if similar else ""


def lines_with_suggestions(
    names: Sequence[str], candidates: Sequence[str], fits: Callable[[str, str], bool] = lambda name, other: True
) -> list[str]:
    """Return a message line for each name. Only the first suggest similar names, since each search takes milliseconds.

    Only names that `fits` accepts for a name are suggested.

    Example:
        >>> lines_with_suggestions(["dens/w"], ["dense/w"])
        ["  dens/w; did you mean 'dense/w'?"]
    """
    lines = []
    for i, name in enumerate(names):
        fitting = [each for each in candidates if fits(name, each)] if i < _MAX_SUGGESTIONS else []
        lines.append(f"  {quoted(name)}{did_you_mean(name, fitting) if fitting else ''}")
    return lines


def suggestions(candidates: Iterable[str]) -> Callable[[str], str]:
    """Return a variant of `did_you_mean` for long messages, which suggests names only in its first calls.

    The candidates are not consumed before the first call.
    """
    known: list[str] = []
    calls = itertools.count()

    def suggest(name: str) -> str:
        if not known:
            known.extend(candidates)
        return did_you_mean(name, known) if next(calls) < _MAX_SUGGESTIONS else ""

    return suggest


_MAX_SUGGESTIONS = 20


def prefixes(name: str) -> Iterator[str]:
    """Yield a name and all its ancestors.

    Example:
        >>> list(prefixes("params/dense/kernel"))
        ['params/dense/kernel', 'params', 'params/dense']
    """
    yield name
    for i, character in enumerate(name):
        if character == "/":
            yield name[:i]


def quoted(name: str) -> str:
    """Return a name for use in a message: unchanged, or quoted if it could be misread.

    Example:
        >>> quoted("params/kernel"), quoted("line\\nbreak"), quoted("")
        ('params/kernel', "'line\\\\nbreak'", "''")
    """
    return name if name.isprintable() and name and name == name.strip() else repr(name)


def printable(text: str) -> str:
    """Return text with control and bidirectional characters escaped, so that it cannot affect the terminal.

    Example:
        >>> printable(chr(27) + "[31mred") == "\\\\x1b[31mred"
        True
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def integer_text(value: int) -> str:
    """Return an integer in decimal, or in hexadecimal if it is too long for Python's decimal conversion.

    Example:
        >>> integer_text(2**70), integer_text(2**20000)[:4]
        ('1180591620717411303424', '0x10')
    """
    return str(value) if value.bit_length() < 10_000 else hex(value)


def time_text(seconds: float) -> str:
    """Return a time, given in seconds since the epoch, in readable form.

    Example:
        >>> time_text(1.5e9), time_text(1e300)
        ('2017-07-14 02:40:00 UTC', '1e+300 s')
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):  # outside the range of datetime
        return f"{seconds:g} s"


class NotJSONError(ValueError):
    """Text that is not JSON, or not of the expected types."""


def decode_json(text: bytes, type: Any = Any) -> Any:
    """Decode JSON, as values of a type that `msgspec` can check.

    Raises:
        NotJSONError: if it is damaged: not JSON, not UTF-8, nested too deeply, or of other types.

    Example:
        >>> decode_json(b"[1, 2]", list[int])
        [1, 2]
    """
    try:
        return msgspec.json.decode(text, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotJSONError(str(error)) from None


def duplicates(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once in `names`, each once, in order.

    Example:
        >>> duplicates(["a", "b", "a"])
        ['a']
    """
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for name in names:
        if name in seen:
            repeated[name] = None
        seen.add(name)
    return list(repeated)


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: ``1 variable``, ``2 variables``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
