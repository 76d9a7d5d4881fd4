"""Write sample checkpoints with one version of pytreesaver, for the tests of all later versions.

    python tests/data/write_samples.py tests/data/VERSION

Run it once for each version that changes what is written. Existing samples are never rewritten.
"""

import collections
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import pytreesaver as pts


class Moments(NamedTuple):
    """A namedtuple, like the states of optax."""

    mu: Any
    nu: Any


def sample_tree() -> Any:
    """Return a tree with leaves and containers of every kind."""
    return {
        "params": {"dense_0": {"kernel": jnp.arange(12, dtype=jnp.float32).reshape(3, 4), "bias": jnp.zeros(4)}},
        "opt_state": (Moments([jnp.ones(2, jnp.bfloat16)], None), ()),
        "half": jnp.array([0.5, -0.0, jnp.nan], jnp.float8_e4m3fn),
        "nibbles": jnp.array([-8, 7], jnp.int4),
        "complex": jnp.array([1 + 2j], jnp.complex64),
        "rng": jax.random.key(7),
        "ordered": collections.OrderedDict(b=np.arange(3, dtype=">i2"), a=np.array(["x", "yz"])),
        "default": collections.defaultdict(list, {1: True, 2: 2**80, 30: "text"}),
        "numbers": [1, 0.1, 1j, False, b"bytes", np.float16(1.5), ml_dtypes.bfloat16(3)],
        "empty": np.zeros((0, 3)),
        "none_key": {None: 3},
        "flags": {True: 1, False: 0},
    }


def sharded_tree() -> Any:
    """Return two arrays on a mesh of four devices: sharded along both axes, and replicated along one."""
    mesh = jax.make_mesh((2, 2), ("x", "y"), devices=jax.devices()[:4])
    cut = jax.NamedSharding(mesh, jax.P("x", "y"))
    replicated = jax.NamedSharding(mesh, jax.P("x"))
    return {
        "cut": jax.device_put(jnp.arange(32.0).reshape(4, 8), cut),
        "replicated": jax.device_put(jnp.arange(6), replicated),
    }


def write_samples(directory: Path) -> None:
    """Write a checkpoint, a sharded one, and a run directory of each kind of saver."""
    metadata = {"note": "naïve", "nested": {"sizes": (1, 2), "when": None}}
    pts.save(sample_tree(), directory / "plain", metadata=metadata)
    pts.save(sharded_tree(), directory / "sharded")
    with pts.CheckpointManager(
        directory / "managed", max_to_keep=2, keep_best=(1, "loss"), keep_every_n_steps=100, clock=_clock()
    ) as manager:
        for step, loss in ((50, 0.5), (100, 0.4), (150, 0.1), (200, 0.3), (250, 0.3)):
            manager.save(step, {"w": np.full(3, step)}, metrics={"loss": loss}, metadata={"epoch": step // 50})
            manager.wait_until_finished()
        manager.pin(100)
    with pts.CheckpointManager(
        directory / "policy",
        policy=pts.KeepLast(1) | pts.KeepSteps([2]) | pts.KeepBest(1, "acc", "max"),
        clock=_clock(),
    ) as manager:
        for step, acc in ((1, 0.5), (2, 0.1), (3, 0.9), (4, 0.8)):
            manager.save(step, {"w": np.full(3, step)}, metrics={"acc": acc})
            manager.wait_until_finished()
    with pts.Saver(max_to_keep=2, keep_checkpoint_every_n_hours=0.02, clock=_clock()) as saver:
        for step in (1, 2, 3, 4, 5):
            saver.save({"w": np.full(3, step)}, directory / "saved" / "model", global_step=step)


def _clock() -> Any:
    minutes = iter(range(1, 1000))
    return lambda: 1_700_000_000.0 + 60 * next(minutes)


if __name__ == "__main__":
    import write_samples as importable  # the classes are recorded under a name that the test can import

    importable.write_samples(Path(sys.argv[1]))
