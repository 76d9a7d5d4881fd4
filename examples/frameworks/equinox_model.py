"""Train an Equinox model and resume it bit for bit; then restore the model alone.

Run ``python examples/frameworks/equinox_model.py runs/equinox 100``, then with 200: the second run resumes the first.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import pytreesaver as pts

optimizer = optax.adam(1e-2)


class Training(eqx.Module):
    model: eqx.nn.MLP
    opt_state: optax.OptState
    key: jax.Array  # what batches are drawn with
    step: jax.Array


def new_model() -> eqx.nn.MLP:
    return eqx.nn.MLP(2, "scalar", 32, 2, jax.nn.tanh, key=jax.random.key(0))


def new_training() -> Training:
    model = new_model()
    return Training(model, optimizer.init(eqx.filter(model, eqx.is_inexact_array)), jax.random.key(1), jnp.array(0))


def loss_of(model: eqx.nn.MLP, points: jax.Array) -> jax.Array:
    return jnp.mean((jax.vmap(model)(points) - jnp.prod(points, axis=1)) ** 2)


@eqx.filter_jit
def train_step(state: Training) -> tuple[Training, jax.Array]:
    key, for_points = jax.random.split(state.key)
    points = jax.random.uniform(for_points, (64, 2), minval=-1.0)
    loss, gradients = eqx.filter_value_and_grad(loss_of)(state.model, points)
    updates, opt_state = optimizer.update(gradients, state.opt_state)
    return Training(eqx.apply_updates(state.model, updates), opt_state, key, state.step + 1), loss


def main(run: str = "runs/equinox", steps: str = "200") -> None:
    with pts.CheckpointManager(run, max_to_keep=2, save_policy=pts.SaveEverySteps(20)) as manager:
        state = manager.restore_or_init(new_training)
        first, last = int(state.step), int(steps)
        print("starting from step", first)
        for step in range(first + 1, last + 1):
            state, loss = train_step(state)
            manager.save(step, state, metrics={"loss": loss}, force=step == last)

    # The model alone. Nothing is computed for the template.
    template = eqx.filter_eval_shape(new_model)
    model = pts.restore(run, like={"model": template}, only="model")["model"]
    print(f"0.5 * 0.5 = {model(jnp.full(2, 0.5)).item():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
