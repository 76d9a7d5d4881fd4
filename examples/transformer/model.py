"""A small decoder-only transformer on bytes: parameters, forward pass, loss, and how the parameters are sharded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BYTES, CONTEXT, WIDTH, HEADS, LAYERS = 256, 64, 64, 4, 2

Params = dict[str, Any]


def new_params(seed: int = 0) -> Params:
    """Return the parameters. Those of all blocks are stacked: their arrays have one more axis, which is the first."""
    keys = iter(jax.random.split(jax.random.key(seed), 7))

    def matrix(*shape: int) -> dict[str, jax.Array]:
        return {"w": jax.random.normal(next(keys), shape) * shape[-2] ** -0.5}

    return {
        "embed": matrix(BYTES, WIDTH),
        "positions": matrix(CONTEXT, WIDTH),
        "blocks": {
            "norm_1": jnp.ones((LAYERS, WIDTH)),
            "attention": {"qkv": matrix(LAYERS, WIDTH, 3 * WIDTH), "out": matrix(LAYERS, WIDTH, WIDTH)},
            "norm_2": jnp.ones((LAYERS, WIDTH)),
            "mlp": {"up": matrix(LAYERS, WIDTH, 4 * WIDTH), "down": matrix(LAYERS, 4 * WIDTH, WIDTH)},
        },
        "norm": jnp.ones(WIDTH),
        "head": matrix(WIDTH, BYTES),
    }


def linear(layer: Params, x: jax.Array) -> jax.Array:
    y: jax.Array = x @ layer["w"]
    if "lora_a" in layer:  # finetune.py adds these
        y += x @ layer["lora_a"] @ layer["lora_b"]
    return y


def normalize(scale: jax.Array, x: jax.Array) -> jax.Array:
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def attend(layer: Params, x: jax.Array) -> jax.Array:
    batch, length, _ = x.shape
    q, k, v = jnp.split(linear(layer["qkv"], x).reshape(batch, length, HEADS, -1), 3, axis=-1)
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return linear(layer["out"], mixed.reshape(batch, length, WIDTH))


def apply_block(x: jax.Array, block: Params) -> tuple[jax.Array, None]:
    x += attend(block["attention"], normalize(block["norm_1"], x))
    x += linear(block["mlp"]["down"], jax.nn.gelu(linear(block["mlp"]["up"], normalize(block["norm_2"], x))))
    return x, None


def logits_of(params: Params, tokens: jax.Array) -> jax.Array:
    """Return the logits of the byte after each byte: int32[batch, length] -> float32[batch, length, 256]."""
    x = params["embed"]["w"][tokens] + params["positions"]["w"][: tokens.shape[1]]
    x, _ = jax.lax.scan(apply_block, x, params["blocks"])
    return linear(params["head"], normalize(params["norm"], x))


def loss_of(params: Params, tokens: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_of(params, tokens[:, :-1]), tokens[:, 1:])
    return jnp.mean(losses)


def new_mesh() -> Mesh:
    """Return a mesh of all devices: two groups that share out the batch, each with all the parameters."""
    return Mesh(np.array(jax.devices()).reshape(2, -1), ("data", "model"))


def shardings_of(tree: Any, mesh: Mesh) -> Any:
    """Return a sharding for each leaf: the columns of matrices are divided, all else is replicated.

    The moments of Adam have the names of the parameters that they belong to, so that they are placed alike.
    """

    def sharding_of(path: Any, leaf: Any) -> NamedSharding:
        is_matrix = getattr(path[-1], "key", None) == "w"
        axes = (*[None] * (leaf.ndim - 1), "model") if is_matrix else ()
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(sharding_of, tree)
