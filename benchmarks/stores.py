"""Saves to and restores from an S3 server on loopback, beside what the engine alone does: ``make bench-stores``.

The server is moto's, a program in Python, so that the rates are those of the server. The ratio to the engine counts.
"""

import argparse
import gc
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def moto_server() -> Iterator[str]:
    """Run moto's S3 server, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], **quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


class PeakMemory:
    """Samples the resident memory of this process every 5 ms."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.start = self.peak = resident_nbytes()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, resident_nbytes())

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def resident_nbytes() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mebibytes", type=int, default=256)
    given = parser.parse_args()
    with moto_server() as url:
        os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        measure(url, given.mebibytes << 20, given.rounds)


def measure(url: str, nbytes: int, rounds: int) -> None:
    """Measure, and print the results."""
    import obstore
    from obstore.store import S3Store

    import pytreesaver as pts

    engine: Any = obstore
    pts.set_store_options("s3://bucket", endpoint=url)
    store = S3Store("bucket", endpoint=url, client_options={"allow_http": True})
    tree = {f"layer_{i}": np.random.default_rng(i).normal(size=nbytes // 32).astype(np.float32) for i in range(8)}
    blob = np.concatenate([each.view(np.uint8) for each in tree.values()])

    def engine_put() -> None:
        engine.put(store, "blob", blob.data, chunk_size=8 << 20, max_concurrency=6)

    def engine_get() -> Any:
        starts = range(0, nbytes, 16 << 20)
        with ThreadPoolExecutor(6) as executor:
            ranges = [executor.submit(engine.get_range, store, "blob", start=s, length=16 << 20) for s in starts]
            return [each.result() for each in ranges]

    actions: dict[str, Callable[[], Any]] = {
        "save": lambda: pts.save(tree, "s3://bucket/model", overwrite=True),
        "engine: put": engine_put,
        "restore": lambda: pts.restore("s3://bucket/model"),
        "engine: ranges of 16 MiB": engine_get,
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    memory: dict[str, int] = {}
    for _ in range(rounds):
        for name, action in actions.items():
            gc.collect()
            with PeakMemory() as peak:
                begin = time.perf_counter()
                result = action()
                times[name].append(time.perf_counter() - begin)
            memory[name] = max(memory.get(name, 0), peak.peak - peak.start)
            del result
    for name, each in times.items():
        median = statistics.median(each)
        above = memory[name] - (nbytes if name in ("restore", "engine: ranges of 16 MiB") else 0)
        print(
            f"{name:26} {median * 1e3:8.0f} ms ({min(each) * 1e3:.0f}-{max(each) * 1e3:.0f}), "
            f"{nbytes / median / 1e6:6.0f} MB/s, memory above the tree {above / (1 << 20):+.0f} MiB"
        )
    for ours, alone in [("save", "engine: put"), ("restore", "engine: ranges of 16 MiB")]:
        ratio = statistics.median(times[alone]) / statistics.median(times[ours])
        print(f"{ours}: {ratio:.0%} of the rate of the engine alone")


if __name__ == "__main__":
    main()
