"""The sample run for the pictures of the documentation: a small transformer with the same values on every machine."""

import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import pytreesaver as pts

STEPS = range(0, 10_001, 250)
SECONDS_APART = 600.0


def sample_run(directory: Path) -> None:
    """Save 41 checkpoints. One variable of the last checkpoint contains NaN."""
    random = np.random.default_rng(0)
    params = _parameters(random)
    now = started = time.time() - 2.5 * 3600 - SECONDS_APART * len(STEPS)
    policy = pts.KeepLast(4) | pts.KeepEverySteps(2000) | pts.KeepBest(1, "loss")
    with pts.CheckpointManager(directory, policy=policy, block=True, clock=lambda: now) as manager:
        for i, step in enumerate(STEPS):
            now = started + SECONDS_APART * i
            rate = 0.03 * np.exp(-step / 4000)
            _add_noise(params, random, rate)
            if step == STEPS[-1]:
                params["layers"]["layer_7"]["mlp"]["up"][3, :5] = np.nan
            state = {"params": params, "embed": jnp.ones((512, 64), jnp.bfloat16), "step": step}
            loss = 0.4 + 2.6 * np.exp(-step / 2500) + 0.05 * random.random()
            metrics = {"loss": float(loss), "accuracy": float(1 - loss / 3.5)}
            manager.save(step, state, metrics=metrics, metadata={"lr": 1e-3})


def _parameters(random: np.random.Generator) -> dict[str, Any]:
    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape).astype(np.float32)

    def layer() -> dict[str, Any]:
        return {
            "attention": {name: normal(64, 64) for name in ("query", "key", "value", "out")},
            "mlp": {"up": normal(64, 256), "down": normal(256, 64)},
            "norm": {"scale": np.ones(64, np.float32)},
        }

    return {"layers": {f"layer_{i}": layer() for i in range(12)}, "head": normal(64, 512)}


def _add_noise(tree: dict[str, Any], random: np.random.Generator, rate: float) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _add_noise(value, random, rate)
        else:
            scale = np.float32(rate * (3 if name == "up" else 1))
            tree[name] = value + scale * random.normal(0, 0.1, value.shape).astype(np.float32)
