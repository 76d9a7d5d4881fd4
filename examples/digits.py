"""Train a small flax network on scikit-learn's handwritten digits, stop half-way, and resume to the last bit.

Run ``python examples/digits.py``. It trains for six epochs at one go; then for three, saves, and lets a new process
restore the state and train the other three. Both end with the same parameters, bit for bit.
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

HALF_WAY, WHOLE = "digits/half-way", "digits/whole"
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
        print(f"epoch {epoch + 1}: {float(jnp.mean(jnp.argmax(logits, -1) == labels)):.4f} of the digits are right")
    return {"train": train_state, "shuffle": shuffle, "epoch": until}


def main() -> None:
    print("six epochs at one go")
    pts.save(train(initial_state(), EPOCHS), WHOLE, overwrite=True)
    print("three epochs, and save")
    pts.save(train(initial_state(), EPOCHS // 2), HALF_WAY, overwrite=True)
    sys.stdout.flush()  # or, into a pipe, these lines would come after those of the new process
    subprocess.run([sys.executable, __file__, "resume"], check=True)


def resume() -> None:
    state = pts.restore(HALF_WAY, like=initial_state())
    print(f"restored after epoch {state['epoch']}, three more in a new process")
    resumed = train(state, EPOCHS)
    at_one_go = pts.restore(WHOLE, like=initial_state())
    same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
        *((tree["train"].params, tree["train"].opt_state) for tree in (resumed, at_one_go)),
    )
    if not all(jax.tree.leaves(same)):
        sys.exit("the resumed run differs from the one without a stop")
    print("parameters and optimizer state are the same to the last bit")


if __name__ == "__main__":
    resume() if sys.argv[1:] == ["resume"] else main()
