"""Train a small flax network on scikit-learn's handwritten digits, stop halfway, and resume bit for bit.

Run ``python examples/digits.py``. It first trains for six epochs without interruption. Then it trains for three epochs
and saves, and a new process restores the state and trains for the other three. Both runs end with identical parameters.
"""

import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import pytreesaver as pts

HALFWAY, COMPLETE = "digits/halfway", "digits/complete"
EPOCHS = 6
BATCH = 128


class Network(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.Dense(64)(images)))


def initial_state() -> dict[str, Any]:
    network = Network()
    params = network.init(jax.random.key(0), jnp.zeros((1, 64)))
    train_state = TrainState.create(apply_fn=network.apply, params=params, tx=optax.adamw(1e-3))
    return {"train": train_state, "shuffle": jax.random.key(1), "epoch": 0}


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> TrainState:
    def loss(params: dict[str, Any]) -> jax.Array:
        logits = state.apply_fn(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def train(state: dict[str, Any], until: int) -> dict[str, Any]:
    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    train_state, shuffle, first = state["train"], state["shuffle"], state["epoch"]
    for epoch in range(first, until):
        shuffle, now = jax.random.split(shuffle)
        order = jax.random.permutation(now, len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            train_state = train_step(train_state, images[batch], labels[batch])
        logits = train_state.apply_fn(train_state.params, images)
        print(f"epoch {epoch + 1}: {float(jnp.mean(jnp.argmax(logits, -1) == labels)):.4f} accuracy")
    return {"train": train_state, "shuffle": shuffle, "epoch": until}


def main() -> None:
    print("train for six epochs")
    pts.save(train(initial_state(), EPOCHS), COMPLETE, overwrite=True)
    print("train for three epochs and save")
    pts.save(train(initial_state(), EPOCHS // 2), HALFWAY, overwrite=True)
    sys.stdout.flush()  # otherwise, in a pipe, these lines would appear after those of the new process
    subprocess.run([sys.executable, __file__, "resume"], check=True)


def resume() -> None:
    state = pts.restore(HALFWAY, like=initial_state())
    print(f"restored after epoch {state['epoch']}, train for three more in a new process")
    resumed = train(state, EPOCHS)
    uninterrupted = pts.restore(COMPLETE, like=initial_state())
    same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
        *((tree["train"].params, tree["train"].opt_state) for tree in (resumed, uninterrupted)),
    )
    if not all(jax.tree.leaves(same)):
        sys.exit("the resumed run differs from the uninterrupted run")
    print("parameters and optimizer state are bit-for-bit identical")


if __name__ == "__main__":
    resume() if sys.argv[1:] == ["resume"] else main()
