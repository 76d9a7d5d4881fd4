"""The results as a page: a table for each tree, and bars of how many times longer each peer takes."""

from pathlib import Path
from typing import Any

_INTRODUCTION = """# Benchmarks

Measured by `make bench` in one run, contestant after contestant in turns, {rounds}: medians, with the fastest and the
slowest round in brackets. In the last column the time of pytreesaver is 1: above that, the contestant takes longer.

{machine}

What is like for like: *save, durable* compares those that sync their data before they return; Orbax syncs its arrays,
not the names of its files. *save, not durable* compares those that leave that to the operating system. pytreesaver
computes and checks a checksum of every byte in all rows but *unverified*; no peer does either. *raw* is a plain loop
over the same bytes, with no names and no checksums: the limit. flax msgpack gives NumPy arrays back.

![How many times longer the peers take](benchmarks.svg)
"""


def write_report(results: dict[str, Any], docs: Path) -> None:
    """Write docs/benchmarks.md and docs/benchmarks.svg."""
    machine = results["machine"]
    lines = [
        _INTRODUCTION.format(
            rounds=f"{machine['rounds']} rounds",
            machine=f"{machine['date']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
            f"JAX {machine['jax']} on {machine['backend']}.",
        )
    ]
    rows = results["rows"]
    for tree in dict.fromkeys(row["tree"] for row in rows):
        lines.append(f"\n## {'other' if tree == '-' else tree}\n")
        lines.append("| operation | contestant | ms | pytreesaver is 1 |")
        lines.append("|---|---|---|---|")
        for row in (row for row in rows if row["tree"] == tree):
            ratio = _ratio(row, rows)
            shown = "" if ratio is None else f"{ratio:.3g}"
            median, fastest, slowest = (f"{row[key] * 1e3:.4g}" for key in ("median", "fastest", "slowest"))
            lines.append(f"| {row['operation']} | {row['contestant']} | {median} ({fastest} to {slowest}) | {shown} |")
    (docs / "benchmarks.md").write_text("\n".join(lines) + "\n")
    _plot(rows, docs / "benchmarks.svg")


def _ratio(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    for each in rows:
        if (each["tree"], each["operation"], each["contestant"]) == (row["tree"], row["operation"], "pytreesaver"):
            return float(row["median"] / each["median"])
    return None


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.use("svg")
    groups = [
        (tree, operation)
        for tree, operation in dict.fromkeys((row["tree"], row["operation"]) for row in rows)
        if tree != "-" and operation.startswith(("save,", "restore, warm", "save in background, blocked"))
    ]
    peers = [
        name
        for name in dict.fromkeys(row["contestant"] for row in rows)
        if not name.startswith("pytreesaver") and "," not in name and "." not in name
    ]
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(groups) + 1.5), layout="constrained")
    height = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        ratios = {(row["tree"], row["operation"]): _ratio(row, rows) for row in rows if row["contestant"] == peer}
        places = [g for g, group in enumerate(groups) if ratios.get(group)]
        axes.barh([g + i * height for g in places], [ratios[groups[g]] for g in places], height, label=peer)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("time, where pytreesaver is 1")
    axes.set_yticks([g + 0.4 for g in range(len(groups))], [f"{tree}: {operation}" for tree, operation in groups])
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(path)
