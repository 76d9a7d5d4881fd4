"""The entries of CHANGELOG.md. ``python -m tests.release.changelog v1.2.3`` prints the notes of a release."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
_HEADING = re.compile(r"## (?P<version>\d+\.\d+\.\d+(?:rc\d+)?) \((?P<date>unreleased|\d{4}-\d{2}-\d{2})\)")


class Entry(NamedTuple):
    """What has changed in a version. `date` is None until it is released."""

    version: str
    date: str | None
    notes: str


def entries(text: str) -> list[Entry]:
    """Return the entries of a changelog in the order in which they are there, which is newest first.

    Raises:
        ValueError: if a heading is not ``## VERSION (YYYY-MM-DD)`` or ``## VERSION (unreleased)``.
    """
    found = []
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]:
        heading, _, notes = part.partition("\n")
        match = _HEADING.fullmatch(heading)
        if not match:
            raise ValueError(f"expected '## 1.2.3 (2026-01-31)' or '## 1.2.3 (unreleased)', found {heading!r}")
        date = match["date"]
        found.append(Entry(match["version"], None if date == "unreleased" else date, notes.strip()))
    return found


def notes_to_release(text: str, version: str) -> str:
    """Return the notes of a version that is to be released: those of the newest entry, which has to have a date.

    Raises:
        ValueError: if the changelog is not ready for it.
    """
    newest = next(iter(entries(text)), None)
    if newest is None or newest.version != version:
        found = "no entry" if newest is None else newest.version
        raise ValueError(f"the newest entry of the changelog: expected {version}, found {found}")
    if newest.date is None:
        raise ValueError(f"the entry of {version} in the changelog: expected a date, found 'unreleased'")
    if not newest.notes:
        raise ValueError(f"the entry of {version} in the changelog: expected notes, found none")
    return newest.notes


if __name__ == "__main__":
    try:
        print(notes_to_release(CHANGELOG.read_text(encoding="utf-8"), sys.argv[1].removeprefix("v")))
    except ValueError as error:
        sys.exit(f"CHANGELOG.md: {error}")
