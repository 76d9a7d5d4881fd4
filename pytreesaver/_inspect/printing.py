"""Text of the values of variables, formatted by NumPy."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pytreesaver._inspect.variable import Variable
from pytreesaver._text import integer_text, printable

_OPTION_TYPES = {
    "precision": int,
    "threshold": int,
    "edgeitems": int,
    "linewidth": int,
    "suppress": bool,
    "floatmode": str,
    "sign": str,
    "nanstr": str,
    "infstr": str,
}


def parse_print_options(given: Sequence[str]) -> dict[str, Any]:
    """Parse NumPy print options given as ``key=value``.

    Raises:
        ValueError: if an option is unknown or its value is invalid.

    Example:
        >>> parse_print_options(["precision=3", "suppress=true"])
        {'precision': 3, 'suppress': True}
    """
    options: dict[str, Any] = {}
    for entry in given:
        key, equals, text = (part.strip() for part in entry.partition("="))
        if key not in _OPTION_TYPES or not equals:
            known = ", ".join(_OPTION_TYPES)
            raise ValueError(f"print options: expected KEY=VALUE with KEY one of {known}; found {entry!r}")
        value: Any = text
        if _OPTION_TYPES[key] is int:
            if not text.isdecimal():
                raise ValueError(f"print options: {key}: expected a number, found {text!r}")
            value = int(text)
        elif _OPTION_TYPES[key] is bool:
            if text.lower() not in ("true", "false"):
                raise ValueError(f"print options: {key}: expected true or false, found {text!r}")
            value = text.lower() == "true"
        try:
            with np.printoptions(**{key: value}):
                np.array2string(np.arange(2.0))
        except (TypeError, ValueError) as error:
            raise ValueError(f"print options: {entry!r}: {error}") from None
        options[key] = value
    return options


def values_text(variable: Variable, part: np.ndarray | None, options: Mapping[str, Any]) -> str:
    """Return the values of a variable, or of `part` of it, as NumPy prints them with `options`.

    If NumPy summarizes the variable, only the elements in the summary are read.
    """
    threshold = options.get("threshold", np.get_printoptions()["threshold"])
    with np.printoptions(**options):
        if part is None and variable.size > threshold and 0 < variable.ndim <= _MAX_AXES:
            edge = np.get_printoptions()["edgeitems"]
            with np.printoptions(threshold=0):
                return printable_lines(str(_read_summary(variable, edge)))
        values = variable.read() if part is None else part
        if values.dtype == object:
            value = values.item()
            return integer_text(value) if isinstance(value, int) else repr(value)
        return printable_lines(str(values))


_MAX_AXES = 8


def _read_summary(variable: Variable, edge: int) -> np.ndarray:
    """Return a small array with the same NumPy summary as the variable: its edges, with one element between them."""
    pieces = [
        [slice(0, edge + 1), slice(length - edge, None)] if length > 2 * edge + 1 else [slice(None)]
        for length in variable.shape
    ]
    lengths = [min(length, 2 * edge + 1) for length in variable.shape]
    result = np.empty(lengths, variable.dtype)
    for corner in itertools.product(*(range(len(axis)) for axis in pieces)):
        source = tuple(axis[i] for axis, i in zip(pieces, corner, strict=True))
        values = variable[source]
        into = tuple(
            slice(None) if len(axis) == 1 else slice(0, edge + 1) if i == 0 else slice(edge + 1, None)
            for axis, i in zip(pieces, corner, strict=True)
        )
        result[into] = values
    return result


def printable_lines(text: str) -> str:
    """Escape control characters, except for line breaks."""
    return "\n".join(map(printable, text.split("\n")))
