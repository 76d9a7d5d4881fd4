"""A training loop of Orbax whose trees pytreesaver writes and reads: two lines differ from plain Orbax.

Run ``python examples/inside_orbax.py runs/inside``, interrupt it, and run it again: it resumes at the newest step.
Orbax decides when to save and what to delete. pytreesaver writes the trees: fast, with checksums, and with all types.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import pytreesaver as pts
import pytreesaver.orbax

optimizer = optax.adam(1e-2)


def initial_state() -> dict[str, Any]:
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    return {"params": params, "opt": optimizer.init(params), "key": jax.random.key(0)}


@jax.jit
def train_step(state: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
    key, now = jax.random.split(state["key"])
    inputs = jax.random.normal(now, (64, 3))
    targets = inputs @ jnp.array([1.0, -2.0, 3.0]) + 0.5

    def loss_of(params: Any) -> Any:
        return jnp.mean((inputs @ params["w"] + params["b"] - targets) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state["params"])
    updates, opt = optimizer.update(grads, state["opt"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt, "key": key}, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()

    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=100)
    with ocp.CheckpointManager(arguments.run.absolute(), options=options) as manager:
        state, first = initial_state(), 0
        if (newest := manager.latest_step()) is not None:
            state = manager.restore(newest, args=pts.orbax.RestoreArgs(like=state))
            first = newest + 1
        print(f"starting from step {first}", flush=True)
        for step in range(first, arguments.steps):
            state, loss = train_step(state)
            manager.save(step, args=pts.orbax.SaveArgs(state, metadata={"loss": float(loss)}))
        manager.save(arguments.steps - 1, args=pts.orbax.SaveArgs(state), force=True)
        manager.wait_until_finished()
        print(f"kept by Orbax: {manager.all_steps()}")
    print(f"read by pytreesaver: w = {pts.load_variable(arguments.run, 'params/w').round(2).tolist()}")


if __name__ == "__main__":
    main()
