"""The measurements for each tree and contestant."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax

import pytreesaver as pts
from benchmarks import further
from benchmarks.loops import next_donating_step, step_rate_during_saves
from benchmarks.measure import Times, drop_from_cache, import_seconds, seconds, spread, take_turns, touch_memory
from benchmarks.memory import peaks
from benchmarks.peers import Contestant, contestants, copying, remove
from benchmarks.trees import TREES, nbytes, small_leaves

Action = Callable[[], float]
"""Runs once and returns its duration in seconds."""

_SLOW_SECONDS = 5.0
"""A contestant whose first run takes longer is measured in only two rounds."""
_LARGE_NBYTES = 64 << 20
"""The minimum size of a tree for measurements of cold reads and memory."""


PARTS = ("saves", "restores", "background", "loop", "variable", "memory", "incremental", "models", "growth", "imports")
"""The parts of the benchmarks. The first six are measured for each tree that they apply to."""


def measure_all(
    directory: Path, scale: float, rounds: int, trees: Sequence[str] = tuple(TREES), parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """Run the benchmarks and return the results as plain data: {"machine": ..., "rows": [...]}."""
    bench = _Bench(directory, scale, rounds)
    for name in trees:
        print(f"{name} ...", flush=True)
        bench.measure_tree(name, TREES[name](scale), parts)
    for part, measure in (("incremental", further.incremental), ("models", further.models)):
        if part in parts:
            bench.measure_further(measure(directory, scale, rounds))
    if "growth" in parts:
        bench.measure_growth()
    if "imports" in parts:
        bench.measure_imports()
    return {"machine": {**_machine(), "rounds": rounds, "scale": scale}, "rows": bench.rows}


def _machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }


class _Bench:
    """Runs measurements and collects the results in `rows`."""

    def __init__(self, directory: Path, scale: float, rounds: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._directory = directory
        self._scale = scale
        self._rounds = rounds
        self._count = 0

    def measure_tree(self, name: str, tree: Any, parts: Sequence[str]) -> None:
        """Run the selected parts for one tree."""
        if "saves" in parts:
            self._saves(name, tree, durable=True)
            self._saves(name, tree, durable=False)
        if "restores" in parts:
            self._restores(name, tree)
        if "background" in parts:
            self._background_saves(name, tree)
        if "variable" in parts and name == "large":
            self._one_variable(name, tree)
        if "loop" in parts and name in ("large", "state"):
            self._training_loop(name, tree)
        if "memory" in parts and nbytes(tree) >= _LARGE_NBYTES:
            del tree
            self._memory(name)

    def measure_further(self, rows: Iterable[further.Row]) -> None:
        """Add measurements of another module."""
        for tree, operation, results, unit in rows:
            self._add(tree, operation, results, unit)

    def _new_path(self) -> Path:
        self._count += 1
        return self._directory / f"checkpoint-{self._count}"

    @contextmanager
    def _saved(self, tree: Any) -> Iterator[dict[str, tuple[Contestant, Path]]]:
        """Save the tree with every contestant, and delete what they saved when the block ends."""
        saved: dict[str, tuple[Contestant, Path]] = {}
        for each in _all_contestants():
            saved[each.name] = each, self._new_path()
            each.save(tree, saved[each.name][1])
        try:
            yield saved
        finally:
            for _, path in saved.values():
                remove(path)

    def _add(self, tree: str, operation: str, results: Mapping[str, Times], unit: str = "s") -> None:
        for contestant, times in results.items():
            median = f"{times.median * 1e3:12.2f} ms" if unit == "s" else f"{times.median:12.5g} {unit}"
            print(f"  {operation:34} {contestant:28} {median}", flush=True)
            row = {"tree": tree, "operation": operation, "contestant": contestant, "unit": unit}
            self.rows.append({**row, **times._asdict()})

    def _turns(self, actions: Mapping[str, Action], size: int) -> dict[str, Times]:
        fast: dict[str, Action] = {}
        slow: dict[str, Action] = {}
        for name, action in actions.items():
            (slow if action() > _SLOW_SECONDS else fast)[name] = action  # the first run is a warm-up and does not count
        touch = lambda: touch_memory(2 * size)  # noqa: E731
        return take_turns(fast, self._rounds, touch) | take_turns(slow, min(2, self._rounds), touch)

    def _saves(self, name: str, tree: Any, *, durable: bool) -> None:
        """Measure saves to a new path, which is deleted after the clock has stopped."""

        def action(each: Contestant) -> float:
            path = self._new_path()
            taken = seconds(lambda: each.save(tree, path))
            remove(path)
            return taken

        actions = {each.name: partial(action, each) for each in contestants(durable=durable)}
        self._add(name, "save, durable" if durable else "save, not durable", self._turns(actions, nbytes(tree)))

    def _restores(self, name: str, tree: Any) -> None:
        """Measure restores from a warm and a cold cache, and the size on disk. Contestants restore their own files."""
        with self._saved(tree) as saved:
            ours = saved["pytreesaver"][1]

            def warm(each: Contestant, path: Path) -> float:
                return seconds(lambda: jax.block_until_ready(each.restore(path, tree)))

            def cold(each: Contestant, path: Path) -> float:
                drop_from_cache([path])
                restore = each.restore_cold or each.restore
                return seconds(lambda: jax.block_until_ready(restore(path, tree)))

            actions: dict[str, Action] = {who: partial(warm, *each) for who, each in saved.items()}
            actions |= {
                "pytreesaver, to NumPy": lambda: seconds(lambda: pts.restore(ours, as_numpy=True)),
                "pytreesaver, mmap": lambda: seconds(lambda: pts.restore(ours, tree, mmap=True)),
                "pytreesaver, mmap, unverified": lambda: seconds(
                    lambda: pts.restore(ours, tree, mmap=True, verify=False)
                ),
            }
            self._add(name, "restore, warm", self._turns(actions, nbytes(tree)))
            if nbytes(tree) >= _LARGE_NBYTES and drop_from_cache([ours]):
                actions = {who: partial(cold, *each) for who, each in saved.items()}
                self._add(name, "restore, cold", self._turns(actions, nbytes(tree)))
            files = {who: _files(path) for who, (_, path) in saved.items()}
            self._add(name, "size on disk", {who: spread([sum(sizes)]) for who, sizes in files.items()}, "bytes")
            self._add(name, "number of files", {who: spread([len(sizes)]) for who, sizes in files.items()}, "files")

    def _background_saves(self, name: str, tree: Any) -> None:
        """Measure how long an asynchronous save blocks its caller, and its total duration."""
        commits: dict[str, list[float]] = {}

        def action(each: Contestant) -> float:
            path = self._new_path()
            begin = time.perf_counter()
            assert each.start is not None
            save = each.start(tree, path)
            blocked = time.perf_counter() - begin
            save.wait()
            commits.setdefault(each.name, []).append(time.perf_counter() - begin)
            remove(path)
            return blocked

        asynchronous = {each.name: partial(action, each) for each in _asynchronous_contestants()}
        # Here the total duration of a save is slow, not the blocking part that `_turns` would look at.
        rounds = min(2, self._rounds) if nbytes(tree) < _LARGE_NBYTES and len(jax.tree.leaves(tree)) > 1000 else None
        blocked = take_turns(asynchronous, rounds or self._rounds, lambda: touch_memory(nbytes(tree)))
        self._add(name, "background save, time blocked", blocked)
        self._add(name, "background save, total time", {who: spread(taken) for who, taken in commits.items()})

    def _training_loop(self, name: str, tree: Any) -> None:
        asynchronous = [*_asynchronous_contestants(), copying()]
        kept, lost = step_rate_during_saves(asynchronous, tree, self._new_path, self._rounds)
        self._add(name, "training speed during a save", kept, "of 1")
        self._add(name, "training time lost per save", lost)
        blocked, taken = next_donating_step(asynchronous, tree, self._new_path, self._rounds)
        self._add(name, "time blocked before a donating step", blocked)
        self._add(name, "donating step during the save", taken)

    def _one_variable(self, name: str, tree: Any) -> None:
        """Measure reading one variable of the tree from a path."""
        first = next(iter(tree))
        with self._saved(tree) as saved:
            ours = saved["pytreesaver"][1]
            variable, _ = pts.list_variables(ours)[-1]
            actions: dict[str, Action] = {
                "pytreesaver": lambda: seconds(lambda: pts.load_variable(ours, variable)),
                "pytreesaver, restore(only=)": lambda: seconds(lambda: pts.restore(ours, only=first)),
            }
            if "orbax" in saved:
                part = {first: tree[first]}
                theirs = saved["orbax"][1]
                actions["orbax, partial restore"] = lambda: seconds(lambda: _partial_restore(theirs, part))
            self._add(name, "read a variable of 4 MiB", self._turns(actions, 0))
            listing: dict[str, Action] = {"pytreesaver": lambda: seconds(lambda: pts.list_variables(ours))}
            if "orbax" in saved:
                listing["orbax, metadata"] = lambda: seconds(lambda: _metadata(theirs))
            self._add(name, "list variables", self._turns(listing, 0))

    def _memory(self, name: str) -> None:
        found = {each.name: peaks(each.name, name, self._scale, self._directory) for each in _all_contestants()}
        for what, operation in (
            ("save", "peak memory above the tree, saving"),
            ("restore", "peak memory above the result, restoring"),
        ):
            results = {who: spread([peak[what]]) for who, peak in found.items() if peak is not None}
            self._add(name, operation, results, "bytes")

    def measure_growth(self) -> None:
        """Measure the cost per leaf in trees of 100 to 100,000 leaves, above the cost of a tree of one leaf."""
        single: dict[str, float] = {}
        for count in 1, 100, 1_000, 10_000, 100_000:
            times = self._turns(self._small_leaf_actions(small_leaves(count)), 0)
            if count == 1:
                single = {what: three.median for what, three in times.items()}
                continue
            each = {what: Times(*((value - single[what]) / count for value in three)) for what, three in times.items()}
            self._add("cost per leaf of 256 bytes", f"{count:,} leaves", each)

    def _small_leaf_actions(self, tree: Any) -> dict[str, Action]:
        path = pts.save(tree, self._new_path())

        def save() -> float:
            target = self._new_path()
            taken = seconds(lambda: pts.save(tree, target, durable=False))
            remove(target)
            return taken

        return {
            "save, not durable": save,
            "restore": lambda: seconds(lambda: pts.restore(path, tree)),
            "restore, to NumPy": lambda: seconds(lambda: pts.restore(path, as_numpy=True)),
        }

    def measure_imports(self) -> None:
        """Measure imports in a process that has already imported JAX."""
        for module in ("pytreesaver", "orbax.checkpoint", "safetensors.flax"):
            times = spread(import_seconds(module, "jax") for _ in range(5))
            self._add("imports", "import after jax", {module.partition(".")[0]: times})


def _all_contestants() -> list[Contestant]:
    return list({each.name: each for durable in (False, True) for each in contestants(durable=durable)}.values())


def _asynchronous_contestants() -> list[Contestant]:
    return [each for each in contestants(durable=True) if each.start is not None]


def _files(path: Path) -> list[int]:
    """Return the sizes of the files that a contestant saved at a path."""
    paths = [path, Path(f"{path}.eqx")]
    files = [file for each in paths for file in ([each] if each.is_file() else each.rglob("*")) if file.is_file()]
    return [file.stat().st_size for file in files]


def _partial_restore(path: Path, part: Any) -> Any:
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(part, partial_restore=True))


def _metadata(path: Path) -> Any:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.metadata(path.absolute())
