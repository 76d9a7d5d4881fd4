"""What is measured of each tree, contestant by contestant."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

import pytreesaver as pts
from benchmarks.measure import (
    Times,
    drop_from_cache,
    import_seconds,
    seconds,
    take_turns,
    touch_memory,
)
from benchmarks.peers import Contestant, contestants, remove
from benchmarks.trees import TREES, nbytes

SLOW_SECONDS = 5.0
"""A contestant that takes longer than this once is measured in two rounds only."""


def measure_all(directory: Path, only: Sequence[str] | None, scale: float, rounds: int) -> dict[str, Any]:
    """All results as plain data: {"machine": ..., "rows": [...]}."""
    rows: list[dict[str, Any]] = []
    for name, make in TREES.items():
        if only and name not in only:
            continue
        print(f"{name} ...", flush=True)
        tree = make(scale)
        bench = _Bench(name, tree, directory, rounds, rows)
        bench.saves(durable=True)
        bench.saves(durable=False)
        bench.restores()
        bench.background_saves()
        if name == "large":
            bench.one_variable()
        del tree, bench
    for module in ("pytreesaver", "orbax.checkpoint"):
        times = sorted(import_seconds(module, "jax") for _ in range(5))
        rows.append(_row("-", "import after jax", module, Times(times[2], times[0], times[-1])))
    return {"machine": {**_machine(), "rounds": rounds}, "rows": rows}


def _machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }


def _row(tree: str, operation: str, contestant: str, times: Times, **more: Any) -> dict[str, Any]:
    print(f"  {operation:24} {contestant:24} {times.median * 1e3:10.2f} ms", flush=True)
    return {"tree": tree, "operation": operation, "contestant": contestant, **times._asdict(), **more}


class _Bench:
    def __init__(self, name: str, tree: Any, directory: Path, rounds: int, rows: list[dict[str, Any]]) -> None:
        self._name = name
        self._tree = tree
        self._nbytes = nbytes(tree)
        self._directory = directory
        self._rounds = rounds
        self._rows = rows
        self._count = 0

    def _new_path(self) -> Path:
        self._count += 1
        return self._directory / f"checkpoint-{self._count}"

    def _add(self, operation: str, times: dict[str, Times], **more: Any) -> None:
        self._rows += [_row(self._name, operation, contestant, each, **more) for contestant, each in times.items()]

    def _turns(self, actions: dict[str, Callable[[], float]]) -> dict[str, Times]:
        fast, slow = {}, {}
        for name, action in actions.items():
            (slow if action() > SLOW_SECONDS else fast)[name] = action  # the first turn warms up, and does not count
        touch = lambda: touch_memory(2 * self._nbytes)  # noqa: E731
        return take_turns(fast, self._rounds, touch) | take_turns(slow, min(2, self._rounds), touch)

    def saves(self, *, durable: bool) -> None:
        """Save to a new path, which is deleted when the clock has stopped."""

        def action(each: Contestant) -> float:
            path = self._new_path()
            taken = seconds(lambda: each.save(self._tree, path))
            remove(path)
            return taken

        actions = {each.name: lambda each=each: action(each) for each in contestants(durable=durable)}
        self._add("save, durable" if durable else "save, not durable", self._turns(actions))

    def restores(self) -> None:
        """Restore what each has saved itself, from a warm and from a cold cache."""
        saved = {}
        for each in {each.name: each for durable in (True, False) for each in contestants(durable=durable)}.values():
            saved[each.name] = each, self._new_path()
            each.save(self._tree, saved[each.name][1])

        def action(name: str) -> float:
            each, path = saved[name]
            return seconds(lambda: jax.block_until_ready(each.restore(path, self._tree)))

        ours = saved["pytreesaver"][1]
        more = {
            "pytreesaver, mmap": lambda: seconds(lambda: pts.restore(ours, self._tree, mmap=True)),
            "pytreesaver, mmap, unverified": lambda: seconds(
                lambda: pts.restore(ours, self._tree, mmap=True, verify=False)
            ),
            "pytreesaver, to NumPy": lambda: seconds(lambda: pts.restore(ours, as_numpy=True)),
        }
        warm: dict[str, Callable[[], float]] = {name: lambda name=name: action(name) for name in saved}
        self._add("restore, warm", self._turns(warm | more))
        paths = [path for _, path in saved.values()]
        if self._nbytes >= 64 << 20 and drop_from_cache(paths):

            def cold(name: str) -> float:
                drop_from_cache([saved[name][1]])
                return action(name)

            self._add("restore, cold", self._turns({name: lambda name=name: cold(name) for name in saved}))
        for path in paths:
            remove(path)

    def background_saves(self) -> None:
        """How long a save in the background blocks its caller, and how long it takes in all."""
        commits: dict[str, list[float]] = {}

        def action(each: Contestant) -> float:
            path = self._new_path()
            begin = time.perf_counter()
            assert each.start is not None
            wait = each.start(self._tree, path)
            blocked = time.perf_counter() - begin
            wait()
            commits.setdefault(each.name, []).append(time.perf_counter() - begin)
            remove(path)
            return blocked

        able = [each for each in contestants(durable=True) if each.start is not None]
        self._add("save in background, blocked", self._turns({e.name: lambda e=e: action(e) for e in able}))
        for name, taken in commits.items():
            ordered = sorted(taken)
            times = Times(ordered[len(ordered) // 2], ordered[0], ordered[-1])
            self._add("save in background, in all", {name: times})

    def one_variable(self) -> None:
        """One variable of the tree, from a path."""
        ours = pts.save(self._tree, self._new_path(), durable=False)
        name, _ = pts.list_variables(ours)[-1]
        part = {"layer_000": self._tree["layer_000"]}
        actions: dict[str, Callable[[], float]] = {
            "pytreesaver": lambda: seconds(lambda: pts.load_variable(ours, name)),
            "pytreesaver, restore(only=)": lambda: seconds(lambda: pts.restore(ours, only="layer_000")),
            "pytreesaver, open and list": lambda: seconds(lambda: pts.list_variables(ours)),
        }
        theirs = self._new_path()
        peer = next((each for each in contestants(durable=True) if each.name == "orbax"), None)
        if peer is not None:
            import orbax.checkpoint as ocp

            peer.save(self._tree, theirs)

            def partial() -> Any:
                with ocp.PyTreeCheckpointer() as checkpointer:
                    return checkpointer.restore(
                        theirs.absolute(), args=ocp.args.PyTreeRestore(part, partial_restore=True)
                    )

            actions["orbax, partial restore"] = lambda: seconds(partial)
        self._add("one 4 MiB variable", self._turns(actions))
        remove(ours)
        remove(theirs)
