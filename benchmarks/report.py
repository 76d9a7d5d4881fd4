"""The results as a page: a table for each tree, and bars of how many times longer each peer takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Times

Row = Mapping[str, Any]

_INTRODUCTION = """# Benchmarks

`make bench` measures all of this again, on your machine, and writes this page. Contestants take turns in one run,
{rounds} rounds (two for those who take longer than five seconds): medians, with the lowest and the highest in brackets.
In the last column pytreesaver is 1: above that, the contestant takes longer, or more. Times of a shared machine are
noisy; ratios from one run say more than milliseconds. `make bench-check` compares such ratios with the bounds in
`benchmarks/bounds.toml`.

{machine}

## What is like for like

* **Durable.** *save, durable* compares those that have their data on the disk when they return. Orbax syncs its arrays,
  but neither its JSON files nor the names of its directories. safetensors, flax and equinox sync nothing: they are in
  *save, not durable*.
* **Checksums.** pytreesaver computes a checksum of every byte that it saves, and checks it in all rows but those that
  say *unverified*. None of the peers notices a flipped bit in an array.
* **raw** is the limit: a plain loop that writes or reads the same bytes with space reserved, slices on two threads,
  huge pages and, from a cold cache, direct reads; without names, structure or checksums. It gives a single buffer back.
* **restore** gives JAX arrays; flax msgpack gives NumPy arrays. Each contestant restores what it has saved itself, with
  the saved tree as its template where it takes one. *cold* is with the cache of the operating system emptied.
* **Background saves** of pytreesaver copy nothing on the CPU. The price is in *donating step after that*: a step that
  donates arrays which are being saved finds their memory taken, and allocates anew. `save_async(..., copy=True)`
  trades this for the time of a copy; Orbax copies too.
* **Memory** is the peak of a process of its own.

![How many times longer the peers take](benchmarks.svg)
"""


def write_report(results: Mapping[str, Any], docs: Path) -> None:
    """Write docs/benchmarks.md and docs/benchmarks.svg."""
    (docs / "benchmarks.md").write_text(page(results))
    _plot(results["rows"], docs / "benchmarks.svg")


def page(results: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    machine, rows = results["machine"], results["rows"]
    about = (
        f"{machine['date']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
        f"JAX {machine['jax']} on {machine['backend']}"
        + ("." if machine["scale"] == 1 else f"; every tree smaller by a factor of {machine['scale']:g}.")
    )
    lines = [_INTRODUCTION.format(rounds=machine["rounds"], machine=about), *_where_peers_win(rows)]
    for tree in dict.fromkeys(row["tree"] for row in rows):
        lines += ["", f"## {tree}: {_TREES[tree]}" if tree in _TREES else f"## {tree}", ""]
        lines += ["| | | | pytreesaver is 1 |", "|---|---|---|---|"]
        shown = None
        for row in (row for row in rows if row["tree"] == tree):
            ratio = ratio_to_ours(row, rows)
            heading, shown = "" if row["operation"] == shown else f"**{row['operation']}**", row["operation"]
            lines.append(f"| {heading} | {row['contestant']} | {_value(row)} | {_ratio(ratio)} |")
    return "\n".join(lines) + "\n"


_TREES = {
    "large": "1 GiB in 256 arrays",
    "many": "10,000 arrays of 256 bytes",
    "tiny": "3 small arrays",
    "state": "an Adam state of a transformer of 12 layers, bfloat16 and float32",
    "huge leaf": "one array of 2 GiB",
}
_UNITS = {"s": (1e3, " ms"), "bytes": (1 / (1 << 20), " MiB"), "files": (1, ""), "of 1": (100, " %")}


def _value(row: Row) -> str:
    factor, unit = _UNITS[row["unit"]]
    if row["unit"] == "s" and row["highest"] < 1e-3:
        factor, unit = 1e6, " µs"
    median, lowest, highest = (f"{row[field] * factor:.4g}" for field in Times._fields)
    return f"{median}{unit}" if lowest == highest else f"{median}{unit} ({lowest} to {highest})"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}"


def ratio_to_ours(row: Row, rows: Sequence[Row], ours: str = "pytreesaver") -> float | None:
    """How many times as much a contestant takes as pytreesaver does for the same; None where that says nothing."""
    if row["unit"] in ("of 1", "files") or row["operation"].startswith("peak"):
        return None
    for each in rows:
        if (each["tree"], each["operation"], each["contestant"]) == (row["tree"], row["operation"], ours):
            return float(row["median"] / each["median"])
    return None


def _is_peer(contestant: str) -> bool:
    return not contestant.startswith(("pytreesaver", "raw", "no save"))


def _where_peers_win(rows: Sequence[Row]) -> list[str]:
    wins = []
    for row in rows:
        ratio = ratio_to_ours(row, rows)
        if ratio is not None and ratio < 0.95 and _is_peer(row["contestant"]):
            wins.append(f"* {row['tree']}, {row['operation']}: {row['contestant']} takes {ratio:.2g} of what we take.")
    return ["", "## Where a peer wins", "", *(wins or ["Nowhere in this run."])]


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "pytreesaver"  # the same results give the same file
    operations = ("save, durable", "save, not durable", "restore, warm", "restore, cold", "save in background, blocked")
    groups = [
        group for group in dict.fromkeys((row["tree"], row["operation"]) for row in rows) if group[1] in operations
    ]
    names = list(dict.fromkeys(row["contestant"] for row in rows if (row["tree"], row["operation"]) in groups))
    peers = [name for name in names if name == "raw" or _is_peer(name)]
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(groups) + 1.5), layout="constrained")
    height = 0.85 / len(peers)
    for i, peer in enumerate(peers):
        ratios = {
            (row["tree"], row["operation"]): ratio_to_ours(row, rows) for row in rows if row["contestant"] == peer
        }
        there = [g for g, group in enumerate(groups) if ratios.get(group)]
        found = [ratios[groups[g]] or 1.0 for g in there]
        places = [g + i * height for g in there]
        bars = axes.barh(places, [ratio - 1 for ratio in found], height, left=1, label=peer, align="edge")
        axes.bar_label(bars, [f"{ratio:.2g}" for ratio in found], padding=2, fontsize=6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("time, where pytreesaver is 1 (to the right: slower than pytreesaver; to the left: faster)")
    axes.set_yticks([g + 0.43 for g in range(len(groups))], [f"{tree}: {operation}" for tree, operation in groups])
    axes.invert_yaxis()
    axes.legend(loc="upper left")
    axes.margins(y=0.01)
    figure.savefig(path, metadata={"Date": None})
