"""The training program of ``pytreesaver demo``: a small network that learns a curve, in plain JAX.

``python -m pytreesaver._cli.demo_training RUN STEPS`` trains until a step, and saves every 100 steps into RUN. It goes
on from the newest checkpoint there.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp

import pytreesaver as pts

SAVE_EVERY = 100


def initial_state() -> dict[str, Any]:
    """Return the state of step 0: parameters, momentum, a random key and the step."""
    first, second, key = jax.random.split(jax.random.key(0), 3)
    params = {
        "hidden": {"kernel": jax.random.normal(first, (1, 256)) * 3, "bias": jnp.linspace(-3, 3, 256)},
        "output": {"kernel": jax.random.normal(second, (256, 1)) / 16, "bias": jnp.zeros(1)},
    }
    return {"params": params, "momentum": jax.tree.map(jnp.zeros_like, params), "key": key, "step": 0}


def loss_of(params: Any, x: jax.Array) -> jax.Array:
    """Return how far the network is from the curve, at some places."""
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    y = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    return jnp.mean((y - jnp.sin(3 * x)) ** 2)


@jax.jit
def train_step(params: Any, momentum: Any, key: jax.Array) -> tuple[Any, Any, jax.Array, jax.Array]:
    """Return the next parameters, momentum and key, and the loss, for a random batch."""
    key, now = jax.random.split(key)
    x = jax.random.uniform(now, (512, 1), minval=-2, maxval=2)
    loss, gradients = jax.value_and_grad(loss_of)(params, x)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
    params = jax.tree.map(lambda p, m: p - 0.002 * m, params, momentum)
    return params, momentum, key, loss


def train(run: str, steps: int) -> None:
    """Train until a step, from the newest checkpoint of the run if there is one."""
    policy = pts.KeepLast(3) | pts.KeepEverySteps(500) | pts.KeepBest(1, "loss")
    with pts.CheckpointManager(run, policy=policy, save_policy=pts.SaveEverySteps(SAVE_EVERY)) as manager:
        state = manager.restore_or_init(initial_state)
        print(f"starting from step {state['step']}", flush=True)
        while state["step"] < steps:
            params, momentum, key, loss = train_step(state["params"], state["momentum"], state["key"])
            state = {"params": params, "momentum": momentum, "key": key, "step": state["step"] + 1}
            if manager.should_save(state["step"]):
                manager.save(state["step"], state, metrics={"loss": loss})
                print(f"step {state['step']:4}  loss {loss:.5f}", flush=True)


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]))
