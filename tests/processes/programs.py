"""What the processes of a `Team` do in several tests."""

import hashlib
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import pytreesaver as pts


def mesh():
    count = jax.process_count()
    return jax.make_mesh((count, jax.local_device_count()), ("process", "device"))


SPECS = [
    PartitionSpec(),
    PartitionSpec("process"),
    PartitionSpec("device"),
    PartitionSpec(("process", "device")),
    PartitionSpec(("device", "process")),
    PartitionSpec(None, "process"),
    PartitionSpec("device", "process"),
    PartitionSpec("process", "device"),
]


def values(seed, shape, dtype):
    numbers = np.random.default_rng(seed).integers(0, 120, shape)
    return numbers.astype(dtype)


def put(array, spec):
    sharding = NamedSharding(mesh(), spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def tree_of(description):
    """Return the tree of {name: (seed, shape, dtype, number of its spec, or None for an array of NumPy)}."""
    tree = {}
    for name, (seed, shape, dtype, spec) in description.items():
        array = values(seed, shape, dtype)
        tree[name] = array if spec is None else put(array, SPECS[spec])
    return tree


def digest(tree):
    """Return the checksums of the shards that this process has, by name and position."""
    found = {}
    for name, array in tree.items():
        if isinstance(array, np.ndarray):
            found[name] = hashlib.sha256(array.tobytes()).hexdigest()
            continue
        for shard in array.addressable_shards:
            data = np.asarray(shard.data)
            found[name, str(shard.index)] = (str(data.dtype), data.shape, hashlib.sha256(data.tobytes()).hexdigest())
    return found


def save(description, path, options=None):
    return pts.save(tree_of(description), path, **(options or {}))


def save_in_background(description, path, options=None):
    return pts.save_async(tree_of(description), path, **(options or {})).result()


def restored(description, path, options=None):
    """Return whether what is restored with the shardings of a description has the values of the description."""
    expected = tree_of(description)
    like = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
        for name, x in expected.items()
        if not isinstance(x, np.ndarray)
    }
    like |= {name: x for name, x in expected.items() if isinstance(x, np.ndarray)}
    found = pts.restore(path, like, **(options or {}))
    return digest(found) == digest(expected) and all(
        getattr(found[name], "sharding", None) == getattr(expected[name], "sharding", None) for name in expected
    )


def existing(path):
    return Path(path).exists()


def wait_for_all(name):
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(str(name))


def save_incrementally(path):
    """Save a tree, then twice what has changed, the last time with a manager. Return the steps of the manager."""
    tree = {
        "x": put(values(1, (64, 4096), "float32"), SPECS[3]),
        "y": put(values(2, (64, 4096), "float32"), SPECS[0]),
        "z": put(values(3, (64, 1024), "float32"), SPECS[1]),
        "step": 1,
    }
    pts.save(tree, path / "first")
    tree |= {"z": jax.jit(lambda z: z + 1)(tree["z"]), "step": 2}
    pts.save(tree, path / "second", base=path / "first")
    with pts.CheckpointManager(path / "run", max_to_keep=1, incremental=True) as manager:
        for step in (1, 2, 3):
            manager.save(step, tree | {"step": step})
        manager.wait_until_finished()
        return manager.all_steps()
