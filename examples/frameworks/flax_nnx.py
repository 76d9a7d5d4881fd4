"""Train a flax NNX model and resume it bit for bit; then restore its weights alone.

Run ``python examples/frameworks/flax_nnx.py runs/nnx 100``, then with 200: the second run resumes the first.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import pytreesaver as pts


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(2, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, points: jax.Array) -> jax.Array:
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(points)))))[:, 0]


def new_training() -> dict[str, Any]:
    model = Network(nnx.Rngs(params=0, dropout=1))
    return {
        "model": model,
        "optimizer": nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param),
        "data": nnx.Rngs(2),  # what the batches are drawn with
    }


def loss_of(model: Network, points: jax.Array) -> jax.Array:
    return jnp.mean((model(points) - jnp.prod(points, axis=1)) ** 2)


@nnx.jit
def train_step(training: dict[str, Any]) -> jax.Array:
    points = jax.random.uniform(training["data"](), (64, 2), minval=-1.0)
    loss, gradients = nnx.value_and_grad(loss_of)(training["model"], points)
    training["optimizer"].update(training["model"], gradients)
    return loss


def main(run: str = "runs/flax_nnx", steps: str = "200") -> None:
    training = new_training()
    with pts.CheckpointManager(run, max_to_keep=2, save_policy=pts.SaveEverySteps(20)) as manager:
        nnx.update(training, manager.restore_or_init(nnx.state(training)))
        first, last = int(training["optimizer"].step[...]), int(steps)
        print("starting from step", first)
        for step in range(first + 1, last + 1):
            loss = train_step(training)
            manager.save(step, nnx.state(training), metrics={"loss": loss}, force=step == last)

    # The weights alone, as a program does that serves the model.
    model = Network(nnx.Rngs(0))
    nnx.update(model, pts.restore(run, like=nnx.state({"model": model}), only="model")["model"])
    model.eval()
    print(f"0.5 * 0.5 = {model(jnp.full((1, 2), 0.5)).item():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
