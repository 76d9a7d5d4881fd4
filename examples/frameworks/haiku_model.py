"""Train a Haiku model and resume it bit for bit; then restore its weights alone.

Run ``python examples/frameworks/haiku_model.py runs/haiku 100``, then with 200: the second run resumes the first.
"""

import sys
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import pytreesaver as pts


def forward(points: jax.Array, training: bool) -> jax.Array:
    hidden = hk.Linear(32, name="hidden")(points)
    hidden = jax.nn.relu(hk.BatchNorm(True, True, 0.9, name="norm")(hidden, is_training=training))
    if training:
        hidden = hk.dropout(hk.next_rng_key(), 0.1, hidden)
    return hk.nets.MLP([16, 1], name="head")(hidden)[:, 0]


network = hk.transform_with_state(forward)
optimizer = optax.adam(1e-2)


def new_training() -> dict[str, Any]:
    params, averages = network.init(jax.random.key(0), jnp.zeros((1, 2)), training=True)
    state = {"params": params, "state": averages, "opt_state": optimizer.init(params)}
    return state | {"key": jax.random.key(1), "step": jnp.array(0)}  # the key draws batches and dropout


@jax.jit
def train_step(state: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
    key, for_points, for_dropout = jax.random.split(state["key"], 3)
    points = jax.random.uniform(for_points, (64, 2), minval=-1.0)

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        predicted, averages = network.apply(params, state["state"], for_dropout, points, training=True)
        return jnp.mean((predicted - jnp.prod(points, axis=1)) ** 2), averages

    (loss, averages), gradients = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
    updates, opt_state = optimizer.update(gradients, state["opt_state"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "state": averages, "opt_state": opt_state, "key": key, "step": state["step"] + 1}, loss


def main(run: str = "runs/haiku", steps: str = "200") -> None:
    with pts.CheckpointManager(run, max_to_keep=2, save_policy=pts.SaveEverySteps(20)) as manager:
        state = manager.restore_or_init(new_training)
        first, last = int(state["step"]), int(steps)
        print("starting from step", first)
        for step in range(first + 1, last + 1):
            state, loss = train_step(state)
            manager.save(step, state, metrics={"loss": loss}, force=step == last)

    # The weights and averages alone, as a program does that serves the model.
    saved = pts.restore(run, only=["params", "state"])
    predicted, _ = network.apply(saved["params"], saved["state"], None, jnp.full((1, 2), 0.5), training=False)
    print(f"0.5 * 0.5 = {predicted.item():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
