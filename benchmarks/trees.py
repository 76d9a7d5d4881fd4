"""The trees to save and restore. Their seeds are fixed, so they are the same on every machine."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIB = 1 << 20


def large(scale: float = 1.0) -> Any:
    """Return 1 GiB in 256 leaves of 4 MiB."""
    keys = range(max(int(256 * scale), 1))
    return {f"layer_{i:03}": {"kernel": _floats(1024, 1024, seed=i)} for i in keys}


def many(scale: float = 1.0) -> Any:
    """Return 10,000 leaves of 256 bytes."""
    return small_leaves(max(int(10_000 * scale), 10))


def small_leaves(count: int) -> Any:
    """Return leaves of 256 bytes in blocks of 100."""
    rows = np.asarray(_floats(count, 64))
    return {f"block_{i // 100}": {} for i in range(0, len(rows), 100)} | {
        f"block_{b}": {f"w_{i}": jnp.asarray(rows[b * 100 + i]) for i in range(min(100, len(rows) - b * 100))}
        for b in range(-(-len(rows) // 100))
    }


def tiny(scale: float = 1.0) -> Any:
    """Return 3 small leaves."""
    return {"w": jnp.ones((4, 4)), "b": jnp.zeros(4), "step": jnp.int32(7)}


def state(scale: float = 1.0) -> Any:
    """Return the Adam state of a 12-layer transformer: bfloat16 params, float32 moments."""
    width = max(int(768 * scale**0.5) // 64 * 64, 64)
    params: dict[str, Any] = {"embed": _floats(32_000 * width // 768, width, dtype=jnp.bfloat16)}
    for i in range(12):
        params[f"layer_{i}"] = {
            "attention": {name: _floats(width, width, dtype=jnp.bfloat16, seed=i) for name in ("q", "k", "v", "o")},
            "mlp": {
                "up": _floats(width, 4 * width, dtype=jnp.bfloat16, seed=i),
                "down": _floats(4 * width, width, dtype=jnp.bfloat16, seed=i),
            },
            "norm_0": {"scale": jnp.ones(width, jnp.bfloat16)},
            "norm_1": {"scale": jnp.ones(width, jnp.bfloat16)},
        }
    moments = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    second = jax.tree.map(jnp.square, moments)
    return {"params": params, "mu": moments, "nu": second, "count": jnp.int32(1000)}


def huge_leaf(scale: float = 1.0) -> Any:
    """Return one array of 2 GiB."""
    return {"w": _floats(max(int(2048 * scale), 1), 512 * 512)}


TREES: dict[str, Callable[[float], Any]] = {
    "large": large,
    "many": many,
    "tiny": tiny,
    "state": state,
    "huge leaf": huge_leaf,
}


def _floats(*shape: int, dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    bits = np.random.default_rng(seed).random(shape, np.float32)
    return jax.block_until_ready(jnp.asarray(bits, dtype))


def nbytes(tree: Any) -> int:
    """Return the total size of the arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return {name: leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
