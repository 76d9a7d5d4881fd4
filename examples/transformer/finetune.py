"""Fine-tune the trained transformer on source code with LoRA, and save the adapters alone.

Run ``python examples/transformer/finetune.py runs/base adapters``. One device is enough, whatever trained the base.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import pytreesaver as pts
from data import batch_of, code
from model import Params, loss_of, new_params

RANK = 4


def with_adapters(params: Params) -> Params:
    """Return the parameters with two small matrices beside each matrix of the attention."""

    def adapted(layer: Params, key: jax.Array) -> Params:
        layers, rows, columns = layer["w"].shape
        lora_a = jax.random.normal(key, (layers, rows, RANK)) * rows**-0.5
        return layer | {"lora_a": lora_a, "lora_b": jnp.zeros((layers, RANK, columns))}

    blocks = params["blocks"]
    keys = jax.random.split(jax.random.key(1), 2)
    attention = {name: adapted(blocks["attention"][name], key) for name, key in zip(("qkv", "out"), keys)}
    return params | {"blocks": blocks | {"attention": attention}}


def restore_base(run: str) -> Params:
    """Restore the parameters of the newest checkpoint onto one device. The optimizer's state is not read."""
    restored = pts.restore(run, like={"params": jax.eval_shape(new_params)}, only="params")
    return restored["params"]


def is_adapter(path: Any, leaf: Any) -> str:
    return "adapter" if str(path[-1].key).startswith("lora_") else "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run directory of train.py")
    parser.add_argument("adapters", help="where to save the adapters")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()

    params = with_adapters(restore_base(arguments.run))
    labels = jax.tree_util.tree_map_with_path(is_adapter, params)
    optimizer = optax.partition({"adapter": optax.adam(1e-2), "base": optax.set_to_zero()}, labels)

    @partial(jax.jit, donate_argnums=1)
    def train_step(params: Params, opt_state: Any, tokens: jax.Array) -> tuple[Params, Any]:
        updates, opt_state = optimizer.update(jax.grad(loss_of)(params, tokens), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    text, opt_state = code(), optimizer.init(params)
    evaluate, fixed = jax.jit(loss_of), batch_of(text, 0, size=64)
    print(f"before: loss {evaluate(params, fixed):.4f}")
    for step in range(1, arguments.steps + 1):
        params, opt_state = train_step(params, opt_state, batch_of(text, step))
    print(f"after:  loss {evaluate(params, fixed):.4f}")
    path = pts.save(params, arguments.adapters, only="**/lora_*", overwrite=True)
    print(f"saved {len(pts.list_variables(path))} variables to {path}")


if __name__ == "__main__":
    main()
