"""The same faults for other libraries, each used as its documentation shows."""

import pickle
import random
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pytreesaver as pts
from tests.prove.campaigns import kills, power_cuts
from tests.prove.faults import disk
from tests.prove.faults.shim import CHANGES, Action, Fault
from tests.prove.faults.worker import Outcome, Worker
from tests.prove.scenarios.scenario import Scenario


def tree(number):
    return {"w": np.arange(3000, dtype=np.float32) + number, "b": np.full(7, number, np.int16)}


class Peer(NamedTuple):
    """Another library: how it saves a tree over an earlier one, and how it restores it."""

    save: Callable[[Any, Path], Any]
    restore: Callable[[Path], Any]


def _orbax_manager(path):
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(path.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1))


def _orbax_save(value, path):
    import orbax.checkpoint as ocp

    with _orbax_manager(path) as manager:
        manager.save(int(value["b"][0]), args=ocp.args.StandardSave(value))


def _orbax_restore(path):
    import orbax.checkpoint as ocp

    with _orbax_manager(path) as manager:
        return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(tree(0)))


def _safetensors_save(value, path):
    import safetensors.numpy

    safetensors.numpy.save_file(value, path)


def _safetensors_restore(path):
    import safetensors.numpy

    return safetensors.numpy.load_file(path)


def _flax_save(value, path):
    from flax import serialization

    path.write_bytes(serialization.to_bytes(value))


def _flax_restore(path):
    from flax import serialization

    return serialization.from_bytes(tree(0), path.read_bytes())


def _equinox_save(value, path):
    import equinox

    equinox.tree_serialise_leaves(path, value)


def _equinox_restore(path):
    import equinox

    return equinox.tree_deserialise_leaves(path, tree(0))


def _npz_restore(path):
    with np.load(path) as archive:
        return dict(archive)


def _pickle_save(value, path):
    with path.open("wb") as file:
        pickle.dump(value, file)


PEERS = {
    "pytreesaver": Peer(lambda value, path: pts.save(value, path, overwrite=True), pts.restore),
    "pytreesaver, safetensors": Peer(
        lambda value, path: pts.save(value, path, overwrite=True, format="safetensors"), pts.restore
    ),
    "Orbax": Peer(_orbax_save, _orbax_restore),
    "safetensors": Peer(_safetensors_save, _safetensors_restore),
    "flax": Peer(_flax_save, _flax_restore),
    "Equinox": Peer(_equinox_save, _equinox_restore),
    "NumPy npz": Peer(lambda value, path: np.savez(path.open("wb"), **value), _npz_restore),
    "pickle": Peer(_pickle_save, lambda path: pickle.loads(path.read_bytes())),
}


def _is(found, number: int) -> bool:
    wanted = tree(number)
    return set(found) == set(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def _found(peer: Peer, path: Path, finished: bool) -> None:
    found = peer.restore(path)
    assert _is(found, 2) or (not finished and _is(found, 1)), "neither the old nor the new tree"


def scenario(peer: Peer) -> Scenario:
    """Return the scenario of a save over an earlier one."""
    path = Path("model.safetensors")
    return Scenario(
        before=lambda: peer.save(tree(1), path), act=lambda: peer.save(tree(2), path), found=partial(_found, peer, path)
    )


SCENARIOS = {name: scenario(peer) for name, peer in PEERS.items()}
_TABLE = f"{__name__}:SCENARIOS"


def _check_killed(name: str, outcome: Outcome) -> None:
    if outcome.status != "killed":
        raise RuntimeError(f"{name}: {outcome.status} without a fault: {outcome.text}")


def _killed(worker: Worker, name: str, root: Path) -> list[bool]:
    held = []
    while True:
        fault = Fault(Action.KILL, CHANGES, len(held) + 1)
        outcome = worker.run(name, kills.empty(root), "before", "act", fault=fault)
        if outcome.status == "done":
            return held
        _check_killed(name, outcome)
        held.append(worker.run(name, root, "check:no").status == "done")


def _cut(worker: Worker, name: str, mounted: disk.Disk, times: int) -> list[bool]:
    held = []
    for number in range(times):
        root = kills.empty(mounted.root / f"time-{number}")
        steps = ("sync", "before", "sync", "act", f"cut_power:{mounted.root}")
        outcome = worker.run(name, root, *steps, fault=Fault(*power_cuts.NEVER))
        _check_killed(name, outcome)
        mounted.come_back()
        held.append(root.exists() and worker.run(name, root, "check:yes").status == "done")
    return held


def flipped(peer: Peer, directory: Path, count: int) -> Counter[str]:
    """Flip random bits, one at a time. Return how often the tree was right, the error was told, or neither."""
    chance, path = random.Random(0), directory / "model.safetensors"
    peer.save(tree(2), path)
    files = sorted(each for each in [path, *path.rglob("*")] if each.is_file())
    sizes = [each.stat().st_size for each in files]
    outcomes: Counter[str] = Counter()
    for file in chance.choices(files, weights=sizes, k=count):
        content = file.read_bytes()
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcomes["right" if _is(peer.restore(path), 2) else "silently wrong"] += 1
        except Exception:
            outcomes["error"] += 1
        file.write_bytes(content)
    return outcomes


def run(name: str, times: int = 20, bits: int = 2000) -> dict[str, Any]:
    """Return what held for one library: kills during an overwrite, power cuts right after it, flipped bits."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, Worker(_TABLE) as worker:
        held = _killed(worker, name, Path(directory) / "root")
        result["kills"] = [sum(held), len(held)]
        if not disk.why_not("ext4"):
            with disk.Disk("ext4") as mounted:
                held = _cut(worker, name, mounted, times)
            result["power cuts"] = [sum(held), len(held)]
        shutil.rmtree(Path(directory) / "root")
        result["bits"] = dict(flipped(PEERS[name], Path(directory), bits))
    return result


def has_held(found: dict[str, Any]) -> bool:
    """Return whether nothing was lost, and nothing wrong was read, in the results of one library."""
    is_whole = all(found[key][0] == found[key][1] for key in ("kills", "power cuts") if key in found)
    return is_whole and not found["bits"].get("silently wrong")
