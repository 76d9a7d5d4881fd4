"""The benchmark page: a table for each tree, and a bar chart of times relative to pytreesaver."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Times

Row = Mapping[str, Any]

_INTRODUCTION = """# Benchmarks

`make bench` repeats these measurements on your machine and rewrites this page. All contestants run in turn in each of
{rounds} rounds; those that take longer than five seconds run in two rounds. The tables show the median, and the lowest
and highest value in brackets. The last column is the ratio to pytreesaver: above 1, the contestant is slower or needs
more. Times on a shared machine are noisy; ratios from one run are more reliable than milliseconds. `make bench-check`
compares such ratios with the bounds in `benchmarks/bounds.toml`.

{machine}

## How the comparison is made

* **Durability.** *save, durable* compares contestants that have their data on disk when they return. Orbax syncs its
  arrays, but not its JSON files or directory entries. safetensors, flax and equinox sync nothing; they appear in
  *save, not durable*.
* **Checksums.** pytreesaver computes a checksum of every byte that it saves, and verifies it in all rows except those
  marked *unverified*. None of the peers detects a flipped bit in an array.
* **raw** is the reference: a plain loop that writes or reads the same bytes, with preallocated space, slices on two
  threads, huge pages and, from a cold cache, direct I/O. It has no names, structure or checksums, and it returns a
  single buffer.
* **restore** returns JAX arrays, except that flax msgpack returns NumPy arrays. Each contestant restores what it saved
  itself, with the saved tree as the template if it takes one. *cold* is with an empty page cache.
* **Background saves** of pytreesaver copy nothing on the CPU. The cost appears in *donating step during the save*: a
  step that donates arrays while they are being saved has to allocate new memory. `save_async(..., copy=True)` makes a
  copy instead; Orbax copies too.
* **Incremental saves** are those of `save(base=)`, beside a full save of the same tree. Unchanged arrays are the same
  objects.
* **Models** are those of `load_model`, beside a function that was pickled (by reference: its code must be there), whose
  weights are restored, and that is traced. Both are compiled by XLA in the first call.
* **Memory** is the peak of a separate process.

![Time of each peer relative to pytreesaver](benchmarks.svg)
"""


def write_report(results: Mapping[str, Any], docs: Path) -> None:
    """Write docs/benchmarks.md and docs/benchmarks.svg."""
    (docs / "benchmarks.md").write_text(page(results))
    _plot(results["rows"], docs / "benchmarks.svg")


def page(results: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    machine, rows = results["machine"], results["rows"]
    about = (
        f"{machine['date']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
        f"JAX {machine['jax']} on {machine['backend']}"
        + ("." if machine["scale"] == 1 else f"; every tree scaled by {machine['scale']:g}.")
    )
    lines = [_INTRODUCTION.format(rounds=machine["rounds"], machine=about), *_where_peers_win(rows)]
    for tree in dict.fromkeys(row["tree"] for row in rows):
        lines += ["", f"## {tree}: {_TREES[tree]}" if tree in _TREES else f"## {tree}", ""]
        lines += ["| | | | ratio to pytreesaver |", "|---|---|---|---|"]
        previous = None
        for row in (row for row in rows if row["tree"] == tree):
            ratio = ratio_to_ours(row, rows)
            heading, previous = "" if row["operation"] == previous else f"**{row['operation']}**", row["operation"]
            lines.append(f"| {heading} | {row['contestant']} | {_value(row)} | {_ratio(ratio)} |")
    return "\n".join(lines) + "\n"


_TREES = {
    "large": "1 GiB in 256 arrays",
    "many": "10,000 arrays of 256 bytes",
    "tiny": "3 small arrays",
    "state": "Adam state of a 12-layer transformer, bfloat16 and float32",
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
    """Return the result of a contestant relative to pytreesaver, or None if the ratio is meaningless or unknown."""
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
            wins.append(f"* {row['tree']}, {row['operation']}: {row['contestant']} {ratio:.2g}")
    listed = ["Ratios to pytreesaver below 0.95:", "", *wins] if wins else ["Nowhere in this run."]
    return ["", "## Where a peer is better", "", *listed]


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "pytreesaver"  # identical results produce an identical file
    plotted = ("save, durable", "save, not durable", "restore, warm", "restore, cold", "background save, time blocked")
    groups = [group for group in dict.fromkeys((row["tree"], row["operation"]) for row in rows) if group[1] in plotted]
    names = list(dict.fromkeys(row["contestant"] for row in rows if (row["tree"], row["operation"]) in groups))
    peers = [name for name in names if name == "raw" or _is_peer(name)]
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(groups) + 1.5), layout="constrained")
    height = 0.85 / len(peers)
    for i, peer in enumerate(peers):
        ratios = {
            (row["tree"], row["operation"]): ratio_to_ours(row, rows) for row in rows if row["contestant"] == peer
        }
        present = [g for g, group in enumerate(groups) if ratios.get(group)]
        values = [ratios[groups[g]] or 1.0 for g in present]
        places = [g + i * height for g in present]
        bars = axes.barh(places, [ratio - 1 for ratio in values], height, left=1, label=peer, align="edge")
        axes.bar_label(bars, [f"{ratio:.2g}" for ratio in values], padding=2, fontsize=6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("time relative to pytreesaver (right of 1: slower than pytreesaver; left: faster)")
    axes.set_yticks([g + 0.43 for g in range(len(groups))], [f"{tree}: {operation}" for tree, operation in groups])
    axes.invert_yaxis()
    axes.legend(loc="upper left")
    axes.margins(y=0.01)
    figure.savefig(path, metadata={"Date": None})
