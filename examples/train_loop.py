"""A training loop that can be killed at any time and restarted, and ends with the same parameters, bit for bit.

Run ``python examples/train_loop.py runs/first``, kill it (Ctrl-C, SIGTERM, SIGKILL, a power failure), and run it again.
The state contains everything that the next step depends on: parameters, optimizer, random key, step. Saves are
asynchronous: `save` returns once the next step may donate the state.
"""

import argparse
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pytreesaver as pts

BATCH, INPUTS, HIDDEN, CLASSES = 128, 64, 256, 10

optimizer = optax.adamw(1e-3)


def initial_state() -> dict[str, Any]:
    first, second, loop = jax.random.split(jax.random.key(0), 3)
    params = {
        "hidden": {"w": jax.random.normal(first, (INPUTS, HIDDEN)) / 8, "b": jnp.zeros(HIDDEN)},
        "output": {"w": jax.random.normal(second, (HIDDEN, CLASSES)) / 16, "b": jnp.zeros(CLASSES)},
    }
    return {"params": params, "opt": optimizer.init(params), "key": loop, "step": jnp.array(0)}


def loss_of(params: Any, inputs: jax.Array, labels: jax.Array) -> Any:
    hidden = jax.nn.relu(inputs @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = hidden @ params["output"]["w"] + params["output"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(state: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
    key, now = jax.random.split(state["key"])
    inputs = jax.random.normal(now, (BATCH, INPUTS))  # the batch depends only on the state
    labels = jnp.argmax(inputs[:, :CLASSES], axis=1)
    loss, grads = jax.value_and_grad(loss_of)(state["params"], inputs, labels)
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt": opt, "key": key, "step": state["step"] + 1}, loss


def digest(state: dict[str, Any]) -> str:
    """Return a hash of every bit of the parameters and the optimizer state."""
    hasher = hashlib.sha256()
    for leaf in jax.tree.leaves((state["params"], state["opt"])):
        hasher.update(np.asarray(leaf).tobytes())
    return hasher.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=50)
    arguments = parser.parse_args()

    step_on = jax.jit(train_step, donate_argnums=0)
    loss = jnp.array(jnp.nan)
    with pts.CheckpointManager(
        arguments.run,
        max_to_keep=3,
        keep_best=(1, "loss"),
        save_interval_steps=arguments.save_every,
        save_on_sigterm=True,
    ) as manager:
        state = manager.restore_or_init(initial_state)
        first = int(state["step"])
        print(f"starting from step {first}", flush=True)
        for step in range(first, arguments.steps):
            if manager.should_save(step):
                manager.save(step, state, metrics={"loss": loss})
            state, loss = step_on(state)
            if (step + 1) % 200 == 0:
                print(f"step {step + 1}: loss {float(loss):.4f}", flush=True)
        if first < arguments.steps:
            manager.save(arguments.steps, state, metrics={"loss": loss}, force=True)
    print(f"step {int(state['step'])}: digest of parameters and optimizer state: {digest(state)}")
    for decision in manager.explain():
        print(decision)


if __name__ == "__main__":
    main()
