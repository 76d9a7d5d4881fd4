"""The table of docs/reliability.md, from what the campaigns have counted."""

import fcntl
import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).parents[2] / "docs"
_RESULTS = _DOCS / "reliability.json"
_PAGE = _DOCS / "reliability.md"

WHAT = {
    "kills": "The process killed at every call that changes the disk",
    "power cuts on ext4": "The power cut at every such call on ext4, and right after each use returned",
    "power cuts on xfs": "The same on xfs",
    "power cuts on btrfs": "The same on btrfs, on a copy of the image of the disk",
    "simulated power cuts": "States of a simulated disk: subsets and prefixes of what was not synced",
    "failing calls": "Every call fails once, with each error that it may have, or moves half of the bytes",
    "full disks": "Disks of many sizes that are too small",
    "damage": "Each bit flipped, each length truncated, each file replaced, in each format",
    "concurrency": "Uses by several processes and threads at once, with forks and signals",
    "planted bugs": "Bugs planted in the library, which the tests have to catch",
    "fuzzing": "Inputs of the fuzzers, with checksums recomputed: a value or a named error",
}
"""What each campaign tries, in the order of the table."""


def why_not() -> str:
    """Return why nothing can be recorded, or nothing."""
    files = [file for file in (_PAGE, _RESULTS) if file.exists() and not os.access(file, os.W_OK)]
    return f"{files[0]} cannot be written; it is to have the results" if files else ""


def heading() -> dict[str, Any]:
    """Return the date, the system and the commit of a run that begins now."""
    commit = _git("rev-parse", "--short", "HEAD")
    is_changed = bool(_git("status", "--porcelain", "--", "pytreesaver", "tests"))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "system": f"Linux {os.uname().release.split('-')[0]}",
        "commit": f"{commit}, changed" if is_changed else commit,
    }


def _git(*arguments: str) -> str:
    """Return what git says, or nothing if this is no checkout."""
    command = ["git", "-C", str(_DOCS.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def write(name: str, record: Mapping[str, Any]) -> str:
    """Add what a campaign has found to the results, and write the table, unless a fuller run is there. Say which."""
    with _PAGE.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several campaigns may run at once
        results = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {}
        if name in results and is_fuller(results[name], record):
            return f"docs/reliability.md keeps the fuller result of {results[name]['date']}; this one is not recorded"
        results[name] = dict(record)
        _RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        page = _replaced(file.read(), "results", table(results))
        if "peers" in results:
            page = _replaced(page, "peers", table_of_peers(results["peers"]))
        file.seek(0)
        file.write(page)
        file.truncate()
    return "recorded in docs/reliability.md"


def is_fuller(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether an old result is of more points than a new one: of the fuzzers, of more inputs.

    Example:
        >>> is_fuller({"step": 4, "tried": 90}, {"step": 10, "tried": 30})
        True
    """
    if "step" not in new:
        return bool(old["tried"] > new["tried"])
    return bool(old.get("step", 1) < new["step"])


def _replaced(page: str, mark: str, text: str) -> str:
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{text}\n{end}{after}"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of our own campaigns.

    Example:
        >>> run = {"date": "2026-01-31", "system": "Linux 6.1", "commit": "1a2b3c4"}
        >>> print(table({"kills": {"tried": 1200, "held": 1200, **run}}))
        | what was tried | tried | held | date | commit | on |
        |---|---|---|---|---|---|
        | The process killed at every call that changes the disk | 1,200 | 1,200 | 2026-01-31 | 1a2b3c4 | Linux 6.1 |
        <BLANKLINE>
    """
    lines = ["| what was tried | tried | held | date | commit | on |", "|---|---|---|---|---|---|"]
    for name, what in WHAT.items():
        if name in results:
            found = results[name]
            if found.get("step", 1) > 1:
                what = f"{what} (one point in {found['step']})"
            numbers = f"{found['tried']:,} | {found['held']:,}"
            lines.append(f"| {what} | {numbers} | {found['date']} | {found.get('commit', '')} | {found['system']} |")
    return "\n".join(lines) + "\n"


def table_of_peers(record: Mapping[str, Any]) -> str:
    """Return the table of other libraries."""
    lines = ["| library | kills held | power cuts held | flipped bits silently wrong |", "|---|---|---|---|"]
    for name, found in sorted(record["libraries"].items(), key=lambda item: not item[0].startswith("pytreesaver")):
        bits = found["bits"]
        held = [" of ".join(map(str, found[key])) if key in found else "not tried" for key in ("kills", "power cuts")]
        wrong = f"{bits.get('silently wrong', 0):,} of {sum(bits.values()):,}"
        lines.append(f"| {name} | {held[0]} | {held[1]} | {wrong} |")
    lines.append(f"\nMeasured on {record['date']}, {record['system']}.")
    return "\n".join(lines) + "\n"
