"""Saves and restores of several processes beside Orbax, in one run: ``make bench-processes``.

Each contestant runs in all processes; the time of an operation is that of the slowest process.
"""

import argparse
import gc
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import scratch_directory, touch_memory

COUNTS = (1, 2, 4)
DEVICES = 8


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of processes")
    parser.add_argument("--scale", type=float, default=1.0, help="scale the size of the large tree by this factor")
    parser.add_argument("--directory", type=Path, help="scratch directory, on the disk to measure")
    parser.add_argument("--member", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.member is not None:
        rank, count, address = int(given.member[0]), int(given.member[1]), given.member[2]
        return measure(rank, count, address, given.directory, given.rounds, given.scale)
    with scratch_directory(given.directory) as directory:
        for count in given.counts:
            run_processes(count, directory, given.rounds, given.scale)
    return None


def run_processes(count: int, directory: Path, rounds: int, scale: float) -> None:
    """Run the measurements with some processes. The first prints the results."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    options = ["--rounds", str(rounds), "--scale", str(scale), "--directory", str(directory)]
    members = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.processes", *options, "--member", str(rank), str(count), address],
            env=environment,
        )
        for rank in range(count)
    ]
    for member in members:
        if member.wait():
            raise SystemExit(member.returncode)


def measure(rank: int, count: int, address: str, directory: Path, rounds: int, scale: float) -> None:
    """Measure in one of the processes."""
    import jax
    import orbax.checkpoint as ocp
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec

    import pytreesaver as pts

    if count > 1:
        jax.distributed.initialize(address, num_processes=count, process_id=rank)
    mesh = jax.make_mesh((2, DEVICES // 2), ("x", "y"))

    def put(array: np.ndarray, *spec: Any) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    side = int(4096 * scale**0.5) // 16 * 16
    random = np.random.default_rng(0)
    block = random.normal(size=(side, side)).astype(np.float32)
    large = {f"two_axes_{i}": put(block + i, "x", "y") for i in range(4)}
    large |= {f"one_axis_{i}": put(block + i, "x") for i in range(2)} | {
        f"replicated_{i}": put(block) for i in range(2)
    }
    other = {name: put(block, None, "y") for name in large}
    small = {f"leaf_{i}": put(random.normal(size=256).astype(np.float32)) for i in range(2000)}

    def together(seconds: float) -> float:
        if count == 1:
            return seconds
        return float(np.max(multihost_utils.process_allgather(np.array(seconds))))

    def timed(action: Callable[[], Any]) -> float:
        gc.collect()
        touch_memory(sum(x.nbytes for x in large.values()) * 3 // 2)
        if count > 1:
            multihost_utils.sync_global_devices("begin")
        begin = time.perf_counter()
        result = action()
        jax.block_until_ready(result)
        return together(time.perf_counter() - begin)

    def clear(path: Path) -> Path:
        if count > 1:
            multihost_utils.sync_global_devices("clear")
        if rank == 0:
            shutil.rmtree(path, ignore_errors=True)
        if count > 1:
            multihost_utils.sync_global_devices("cleared")
        return path

    def abstract(tree: Any) -> Any:
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in tree.items()}

    async_orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    sync_orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def blocked_and_total(tree: Any) -> dict[str, list[float]]:
        ours, theirs = clear(directory / "ours-async"), clear(directory / "theirs-async")
        pending: list[Any] = []
        result = {"blocked": [timed(lambda: pending.append(pts.save_async(tree, ours)))]}
        pending[0].result()
        result["blocked"].append(timed(lambda: async_orbax.save(theirs, args=ocp.args.StandardSave(tree))))
        async_orbax.wait_until_finished()
        return result

    def one_round(name: str, tree: Any, others: Any) -> dict[str, list[float]]:
        ours, theirs = clear(directory / f"ours-{name}"), clear(directory / f"theirs-{name}")
        times = {
            "save": [
                timed(lambda: pts.save(tree, ours)),
                timed(lambda: sync_orbax.save(theirs, args=ocp.args.StandardSave(tree))),
            ]
        } | blocked_and_total(tree)
        times["restore"] = both_restored(ours, theirs, abstract(tree))
        times["restore with another sharding"] = both_restored(ours, theirs, abstract(others))
        return times

    def both_restored(ours: Path, theirs: Path, like: Any) -> list[float]:
        return [
            timed(lambda: pts.restore(ours, like)),
            timed(lambda: sync_orbax.restore(theirs, args=ocp.args.StandardRestore(like))),
        ]

    for name, tree, others in [("large", large, other), ("small", small, small)]:
        rows: dict[str, list[list[float]]] = {}
        for number in range(rounds + 1):
            found = one_round(name, tree, others)
            for what, pair in found.items():
                if number:  # the first round warms up
                    rows.setdefault(what, []).append(pair)
        if rank:
            continue
        payload = sum(x.nbytes for x in tree.values())
        written = sum(file.stat().st_size for file in (directory / f"ours-{name}").glob("data-*"))
        files = len(list((directory / f"ours-{name}").iterdir()))
        print(
            f"{count} processes, {name}: {len(tree)} leaves, {payload >> 20} MiB; data files have "
            f"{written / payload:.3f} x the payload, {files} files",
            flush=True,
        )
        for what, pairs in rows.items():
            ours_ms, theirs_ms = (sorted(pair[i] * 1e3 for pair in pairs) for i in (0, 1))
            ratio = statistics.median(theirs_ms) / statistics.median(ours_ms)
            print(
                f"  {what:30} {statistics.median(ours_ms):8.1f} ms ({ours_ms[0]:.1f}-{ours_ms[-1]:.1f})   Orbax "
                f"{statistics.median(theirs_ms):8.1f} ms ({theirs_ms[0]:.1f}-{theirs_ms[-1]:.1f})   {ratio:5.1f} x",
                flush=True,
            )
    async_orbax.close()


if __name__ == "__main__":
    main()
