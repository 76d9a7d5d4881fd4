"""Train a flax linen model and resume it bit for bit; then restore its weights alone.

Run ``python examples/frameworks/flax_linen.py runs/linen 100``, then with 200: the second run resumes the first.
"""

import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import pytreesaver as pts


class Network(nn.Module):
    @nn.compact
    def __call__(self, points: jax.Array, training: bool) -> jax.Array:
        hidden = nn.Dense(32, name="hidden")(points)
        hidden = nn.relu(nn.BatchNorm(use_running_average=not training, name="norm")(hidden))
        return nn.Dense(1, name="head")(nn.Dropout(0.1, deterministic=not training)(hidden))[:, 0]


class Training(TrainState):
    batch_stats: Any  # the averages of BatchNorm
    key: jax.Array  # what batches and dropout are drawn with


def new_training() -> Training:
    network = Network()
    variables = network.init(jax.random.key(0), jnp.zeros((1, 2)), training=False)
    return Training.create(apply_fn=network.apply, tx=optax.adam(1e-2), key=jax.random.key(1), **variables)


@jax.jit
def train_step(state: Training) -> tuple[Training, jax.Array]:
    key, for_points, for_dropout = jax.random.split(state.key, 3)
    points = jax.random.uniform(for_points, (64, 2), minval=-1.0)

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        predicted, changed = state.apply_fn(
            variables, points, training=True, mutable="batch_stats", rngs={"dropout": for_dropout}
        )
        return jnp.mean((predicted - jnp.prod(points, axis=1)) ** 2), changed

    (loss, changed), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, key=key, **changed), loss


def main(run: str = "runs/flax_linen", steps: str = "200") -> None:
    with pts.CheckpointManager(run, max_to_keep=2, save_policy=pts.SaveEverySteps(20)) as manager:
        state = manager.restore_or_init(new_training)
        first, last = int(state.step), int(steps)
        print("starting from step", first)
        for step in range(first + 1, last + 1):
            state, loss = train_step(state)
            manager.save(step, state, metrics={"loss": loss}, force=step == last)

    # The variables of the network alone, as a program does that serves the model.
    variables = pts.restore(run, only=["params", "batch_stats"])
    predicted: Any = Network().apply(variables, jnp.full((1, 2), 0.5), training=False)
    print(f"0.5 * 0.5 = {predicted.item():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
