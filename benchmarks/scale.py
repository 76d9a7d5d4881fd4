"""The plan and the meeting of a save at sizes that no machine here has, in one process: ``make bench-scale``.

The shardings, the arrays and the coordinator are imitations; the code that plans, meets and writes the index is not.
"""

import argparse
import resource
import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from pytreesaver._checkpoint.saving import sharing
from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES, block_count
from pytreesaver._io.processes.coordinator import Processes
from pytreesaver._io.processes.meeting import PARTS, Meeting
from pytreesaver._tree.kinds import LeafType
from pytreesaver.formats.indexed.data import new_index, stored_chunks
from pytreesaver.formats.indexed.index import DataFile, chunk_nbytes, decode_index, encode_index
from pytreesaver.formats.indexed.parts import FileLimits, WrittenFile, joined_index, plan_files
from pytreesaver.formats.indexed.together import _Part
from pytreesaver.formats.protocol import TreeContents


class Device(NamedTuple):
    """A device of a process."""

    id: int
    process_index: int


class Sharding:
    """A sharding of the first axis over the first `shards` of some processes, or a replication over all of them."""

    def __init__(self, processes: int, shards: int) -> None:
        self.processes, self.shards = processes, shards

    def devices_indices_map(self, shape: tuple[int, ...]) -> Mapping[Device, tuple[slice, ...]]:
        """Return the index of each device."""
        length = -(-shape[0] // self.shards)
        rest = tuple(slice(0, n) for n in shape[1:])
        return {
            Device(rank, rank): (slice(rank % self.shards * length, (rank % self.shards + 1) * length), *rest)
            for rank in range(self.processes)
        }


class Array:
    """An array of which this process has one shard."""

    is_fully_addressable = False

    def __init__(self, shape: tuple[int, ...], sharding: Sharding) -> None:
        self.shape, self.sharding, self.ndim = shape, sharding, len(shape)
        self.size = int(np.prod(shape))
        self.addressable_shards = [
            Shard(index) for _, index in [next(iter(sharding.devices_indices_map(shape).items()))]
        ]

    def addressable_data(self, position: int) -> "Data":
        """Return the memory of a shard."""
        return self.addressable_shards[position].data


class Shard:
    """The shard of process 0."""

    def __init__(self, index: tuple[slice, ...]) -> None:
        self.index = index
        self.data = Data(tuple(part.stop - part.start for part in index))


class Data(NamedTuple):
    """The memory of a shard, which nobody reads."""

    shape: tuple[int, ...]


class Store:
    """A coordinator in memory that counts."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.calls = self.sent = 0

    def put(self, key: str, value: bytes, *, replace: bool = False) -> None:
        """Set a key."""
        self.calls += 1
        self.sent += len(value)
        self.values[key] = value

    def get(self, key: str, seconds: float) -> bytes | None:
        """Return a value."""
        self.calls += 1
        return self.values.get(key)

    def list(self, directory: str) -> dict[str, bytes]:
        """Return the values of a directory."""
        self.calls += 1
        return {key: value for key, value in self.values.items() if key.startswith(directory)}

    def delete(self, key: str) -> None:
        """Forget."""
        self.calls += 1


def simulate(leaves: int, processes: int, shards: int) -> dict[str, float]:
    """Return what process 0 of a save needs: seconds, messages and bytes."""
    kind = LeafType("jax", "float32")
    shape = (4096, 64)
    sharding = Sharding(processes, shards)
    array = Array(shape, sharding)
    names = [f"layers/{i // 16}/block/parameter_{i % 16}" for i in range(leaves)]
    contents = TreeContents(names, [kind] * leaves, [shape] * leaves, [], {"names": []}, {})
    begin = time.perf_counter()
    shared = sharing.shared_contents(contents, [array] * leaves, 0, processes)
    planned = time.perf_counter()
    assert shared.shared is not None
    index = new_index(shared)
    sizes = chunk_nbytes(index)
    stored = stored_chunks(index)
    plans = plan_files(stored, sizes, shared.shared.writers, [0] * len(stored), FileLimits())
    divided = time.perf_counter()
    blocks = {size: block_count(size, BLOCK_NBYTES) for size in set(sizes)}
    store = Store()
    meeting = Meeting(Processes(0, processes, store), "save", "simulated")
    own: list[WrittenFile] = []
    for number, plan in enumerate(plans):
        file = DataFile(
            f"data-{number:05}-of-{len(plans):05}.safetensors", sum(sizes[i] for i in plan.chunks), 0, "0" * 16
        )
        offsets = np.concatenate([[0], np.cumsum([sizes[i] for i in plan.chunks])[:-1]]).astype(int).tolist()
        checksums = "0" * 16 * sum(blocks[sizes[i]] for i in plan.chunks)
        written = WrittenFile(file, plan.chunks, offsets, checksums)
        if plan.writer == 0:
            own.append(written)
        else:
            message = msgspec.msgpack.encode(_Part(shared.shared.digest, [], [written]))
            store.values[f"{meeting._directory}/{PARTS}/{plan.writer}"] = meeting._call + message
            store.sent += len(message)
    for rank in range(1, processes):  # those that write nothing
        message = msgspec.msgpack.encode(_Part(shared.shared.digest, [], []))
        store.values.setdefault(f"{meeting._directory}/{PARTS}/{rank}", meeting._call + message)
    ready = time.perf_counter()
    messages = meeting.gather(PARTS, b"", "write their parts")
    parts = [msgspec.msgpack.decode(message, type=_Part) for message in messages[1:]]
    gathered = time.perf_counter()
    whole = joined_index(index, stored, [*own, *(file for part in parts for file in part.files)])
    text = encode_index(whole)
    written_at = time.perf_counter()
    decode_index(text, "index.json")
    return {
        "chunks": len(stored),
        "plan": planned - begin,
        "divide": divided - planned,
        "gather": gathered - ready,
        "tables": store.sent,
        "index": len(text),
        "encode": written_at - gathered,
        "decode": time.perf_counter() - written_at,
        "calls": store.calls + 3 * processes,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=4_500_000, help="do not simulate more chunks than this")
    given = parser.parse_args()
    print(
        "| leaves | processes | shards of a leaf | chunks | plan | divide | tables sent | gather "
        "| index | write | read |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for leaves, processes, shards in [
        (10_000, 64, 64),
        (100_000, 1024, 1),
        (1_000_000, 4096, 1),
        (1_000_000, 4096, 4),
        (1_000, 4096, 4096),
    ]:
        if leaves * shards > given.most:
            continue
        found = simulate(leaves, processes, shards)
        print(
            f"| {leaves:,} | {processes:,} | {shards:,} | {found['chunks']:,} | {found['plan']:.1f} s "
            f"| {found['divide']:.1f} s "
            f"| {found['tables'] / 1e6:.0f} MB | {found['gather']:.1f} s | {found['index'] / 1e6:.0f} MB "
            f"| {found['encode']:.1f} s | {found['decode']:.1f} s |",
            flush=True,
        )
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()
