"""Train the transformer, sharded over all devices. Kill it at any time, and run it again, on other devices too.

Run ``XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/transformer/train.py runs/base``.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

import pytreesaver as pts
from data import batch_of, prose
from model import loss_of, new_mesh, new_params, shardings_of

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))


def new_state() -> dict[str, Any]:
    params = new_params()
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.array(0)}


def train_step(state: dict[str, Any], tokens: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    loss, gradients = jax.value_and_grad(loss_of)(state["params"], tokens)
    updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=50)
    arguments = parser.parse_args()

    mesh = new_mesh()
    shardings = shardings_of(jax.eval_shape(new_state), mesh)
    step_on = jax.jit(train_step, out_shardings=(shardings, None), donate_argnums=0)
    text, rows = prose(), NamedSharding(mesh, PartitionSpec("data"))
    policy = pts.SaveEverySteps(arguments.save_every)
    with pts.CheckpointManager(arguments.run, max_to_keep=3, keep_best=(1, "loss"), save_policy=policy) as manager:
        state = manager.restore_or_init(jax.jit(new_state, out_shardings=shardings))
        first = int(state["step"])
        print(f"starting from step {first} on {len(jax.devices())} devices", flush=True)
        for step in range(first + 1, arguments.steps + 1):
            state, loss = step_on(state, jax.device_put(batch_of(text, step), rows))
            print(f"step {step}: loss {float(loss):.6f}", flush=True)
            manager.save(step, state, metrics={"loss": loss}, force=step == arguments.steps)


if __name__ == "__main__":
    main()
