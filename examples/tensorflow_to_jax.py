"""Restore a checkpoint of a TensorFlow 1 program into a JAX model and its optimizer, and go on training.

Run ``python examples/tensorflow_to_jax.py``. It takes a checkpoint that TensorFlow wrote and that ships with the tests:
a dense layer, and the slots of its Adam optimizer. TensorFlow is not needed. Another one may be passed: the prefix of
a checkpoint, or a directory of them.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import pytreesaver as pts

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "of_tensorflow" / "tf1_run"
optimizer = optax.adam(0.1)

# What the leaves of the state are called in the checkpoint: TensorFlow keeps the moments of Adam in slots.
RENAME = [
    (r"params/(.*)", r"\1"),
    (r"opt/0/mu/(.*)", r"\1/Adam"),
    (r"opt/0/nu/(.*)", r"\1/Adam_1"),
    (r"opt/0/count", "global_step"),
]


def initial_state() -> dict[str, Any]:
    params = {"dense": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}
    return {"params": params, "opt": optimizer.init(params)}


def loss_of(params: dict[str, Any], inputs: jax.Array) -> jax.Array:
    outputs = inputs @ params["dense"]["kernel"] + params["dense"]["bias"]
    return jnp.mean((outputs - 1.0) ** 2)


@jax.jit
def train_step(state: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
    loss, gradients = jax.value_and_grad(loss_of)(state["params"], jnp.eye(4))
    updates, opt = optimizer.update(gradients, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default=SAMPLE, type=Path, help="a checkpoint of TensorFlow, or a directory")
    path = parser.parse_args().path
    print("variables:", ", ".join(name for name, _ in pts.list_variables(path)))
    # TensorFlow's step is an int64, optax's an int32. The powers of beta have no place in optax.
    state = pts.restore(path, initial_state(), rename=RENAME, cast=True, unexpected="ignore")
    print(f"restored: step {state['opt'][0].count}, loss {loss_of(state['params'], jnp.eye(4)):.4f}")
    for _ in range(30):
        state, _ = train_step(state)
    print(f"trained:  step {state['opt'][0].count}, loss {loss_of(state['params'], jnp.eye(4)):.4f}")
    print("saved:   ", pts.save(state, "checkpoint/from_tensorflow", overwrite=True))


if __name__ == "__main__":
    main()
