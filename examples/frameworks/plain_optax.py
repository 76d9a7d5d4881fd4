"""Train a dict of arrays with optax and resume it bit for bit; then restore a part, and change the optimizer.

Run ``python examples/frameworks/plain_optax.py runs/optax 100``, then with 200: the second run resumes the first.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

import pytreesaver as pts

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.03, 500)))


def new_params() -> dict[str, Any]:
    for_hidden, for_head = jax.random.split(jax.random.key(0))
    return {
        "hidden": {"w": jax.random.normal(for_hidden, (2, 32)), "b": jnp.zeros(32)},
        "head": {"w": jax.random.normal(for_head, (32,)) / 8, "b": jnp.zeros(())},
    }


def new_state() -> dict[str, Any]:
    params = new_params()
    return {"params": params, "opt_state": optimizer.init(params), "key": jax.random.key(1), "step": jnp.array(0)}


def predict(params: dict[str, Any], points: jax.Array) -> jax.Array:
    hidden = jax.nn.tanh(points @ params["hidden"]["w"] + params["hidden"]["b"])
    predicted: jax.Array = hidden @ params["head"]["w"] + params["head"]["b"]
    return predicted


def loss_of(params: dict[str, Any], points: jax.Array) -> jax.Array:
    return jnp.mean((predict(params, points) - jnp.prod(points, axis=1)) ** 2)


@jax.jit
def train_step(state: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
    key, for_points = jax.random.split(state["key"])
    points = jax.random.uniform(for_points, (64, 2), minval=-1.0)
    loss, gradients = jax.value_and_grad(loss_of)(state["params"], points)
    updates, opt_state = optimizer.update(gradients, state["opt_state"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "key": key, "step": state["step"] + 1}, loss


def main(run: str = "runs/optax", steps: str = "200") -> None:
    with pts.CheckpointManager(run, max_to_keep=2, save_policy=pts.SaveEverySteps(20)) as manager:
        state = manager.restore_or_init(new_state)
        first, last = int(state["step"]), int(steps)
        print("starting from step", first)
        for step in range(first + 1, last + 1):
            state, loss = train_step(state)
            manager.save(step, state, metrics={"loss": loss}, force=step == last)

    # The weights alone, with another optimizer that starts from them.
    params = pts.restore(run, like={"params": new_params()}, only="params")["params"]
    fresh = optax.sgd(1e-3, momentum=0.9).init(params)
    print(f"0.5 * 0.5 = {predict(params, jnp.full((1, 2), 0.5)).item():.3f}, {len(jax.tree.leaves(fresh))} momenta")


if __name__ == "__main__":
    main(*sys.argv[1:])
