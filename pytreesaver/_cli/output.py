"""Output of the commands: JSON, or text and tables with colours on a terminal."""

import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from pytreesaver._text import integer_text, printable

if TYPE_CHECKING:
    from rich.console import Console


_UNLIMITED_COLUMNS = 10_000  # so that output to a file or a pipe is not wrapped
_ANSI_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}


@cache
def is_coloured() -> bool:
    """Return whether standard output is coloured. Follows https://no-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return is_terminal or bool(os.environ.get("FORCE_COLOR"))


@cache
def columns() -> int:
    """Return the width of standard output: ``COLUMNS``, the width of the terminal, or practically unlimited."""
    if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
        return max(shutil.get_terminal_size().columns, 20)
    return _UNLIMITED_COLUMNS


@cache
def _console() -> "Console":
    from rich.console import Console

    return Console(
        width=columns(),
        force_terminal=is_coloured(),
        no_color=not is_coloured(),
        highlight=False,
        markup=False,
        emoji=False,
    )


def write(text: str = "") -> None:
    """Write a line verbatim. Pass text from a checkpoint through `printable` first."""
    sys.stdout.write(f"{text}\n")


def styled(text: str, style: str) -> str:
    """Return `text`, made `printable`, in a style such as ``"bold red"`` if output is coloured."""
    safe = printable(text)
    if not (style and safe and is_coloured()):
        return safe
    return f"\x1b[{_ansi_codes(style)}m{safe}\x1b[0m"


@cache
def _ansi_codes(style: str) -> str:
    return ";".join(str(_ANSI_CODES[word]) for word in style.split())


def width(text: str) -> int:
    """Return the number of terminal columns that `text` occupies."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def write_table(
    headings: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], *, styles: Sequence[str] = ()
) -> None:
    """Write a table without borders, empty lines or trailing blanks. Cells that do not fit are wrapped.

    `headings` are pairs of a text and ``"left"`` or ``"right"``. `styles` are in the same order, "" for none.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    lines = None if is_coloured() else _plain_lines(headings, cells)
    for line in _rich_lines(headings, cells, styles) if lines is None else lines:
        if line.strip():
            write(line.rstrip())


def _plain_lines(headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> list[str] | None:
    """Return the lines of a table without colours, or None if it does not fit. Rich takes long to import."""
    sides = [side for _, side in headings]
    table = [[heading for heading, _ in headings], *rows]
    widths = [max(map(width, cells)) for cells in zip(*table, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) > columns():
        return None
    lines = []
    for row in table:
        padded = []
        for cell, side, column_width in zip(row, sides, widths, strict=True):
            blanks = " " * (column_width - width(cell))
            padded.append(f"{blanks}{cell}" if side == "right" else f"{cell}{blanks}")
        lines.append("  ".join(padded))
    return lines


def _rich_lines(headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> list[str]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if is_coloured() else None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, (heading, side) in enumerate(headings):
        style = styles[i] if i < len(styles) else ""
        table.add_column(Text(heading), justify="right" if side == "right" else "left", style=style, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    with _console().capture() as captured:
        _console().print(table)
    return captured.get().split("\n")


def write_json(value: Any) -> None:
    """Write a value as JSON. Non-finite floats become the strings "nan", "inf" and "-inf"."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(jsonable(value)), indent=2).decode() + "\n")


def jsonable(value: Any) -> Any:
    """Return a copy of `value` that can be encoded as JSON."""
    match value:
        case None | bool() | str():
            return value if not isinstance(value, str) else value.encode("utf-8", "backslashreplace").decode()
        case float():
            return value if math.isfinite(value) else str(value)
        case int():
            return value if -(1 << 63) <= value < 1 << 64 else integer_text(value)
        case bytes():
            return value.decode("latin-1")
        case complex():
            return [jsonable(value.real), jsonable(value.imag)]
        case Mapping():
            return {jsonable(str(key)): jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [jsonable(item) for item in value]
    return str(value)


_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@lru_cache(1 << 16)
def bytes_text(nbytes: float) -> str:
    """Format a number of bytes with a decimal prefix.

    Example:
        >>> bytes_text(0), bytes_text(1536), bytes_text(1_234_567_890)
        ('0 B', '1.5 kB', '1.2 GB')
    """
    unit = 0
    size = float(nbytes)
    while size >= 999.95 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{int(size)} B"


def count_text(count: int) -> str:
    """Format an integer with thousands separators: ``1,234,567``."""
    return f"{count:,}"


def age_text(seconds: float) -> str:
    """Format an age in its largest unit.

    Example:
        >>> age_text(5), age_text(7300), age_text(86400 * 3.5), age_text(-100)
        ('5 s', '2 h', '3 d', 'in the future')
    """
    if seconds < -1:
        return "in the future"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(max(seconds, 0))} s"


def number_text(value: Any) -> str:
    """Format a number, with six significant digits if it is a float. None becomes "".

    Example:
        >>> number_text(0.123456789), number_text(7), number_text(None)
        ('0.123457', '7', '')
    """
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float | complex) else str(value)
