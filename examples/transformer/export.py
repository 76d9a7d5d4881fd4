"""Put the base, the adapters and the function that uses them into one checkpoint, which needs no code of the model.

Run ``python examples/transformer/export.py runs/base adapters served``.
"""

import sys

import jax
import jax.numpy as jnp

import pytreesaver as pts
from finetune import restore_base, with_adapters
from model import CONTEXT, Params, logits_of


def next_byte(params: Params, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """Return the logits of the byte after the first `length` bytes. The model does not see those after them."""
    return logits_of(params, tokens[None])[0, length - 1]


def main(run: str, adapters: str, target: str) -> None:
    params = pts.restore(adapters, like=with_adapters(restore_base(run)), only="**/lora_*")
    tokens, length = jax.ShapeDtypeStruct((CONTEXT,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    path = pts.export_model(target, next_byte, tokens, length, params=params, overwrite=True)
    print(f"exported {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters to {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
