"""The `tf.train.Saver` tutorial in JAX: fit a line, save the parameters, restore them in another process.

Run ``python examples/linear_regression.py``. It trains and saves, then starts itself again with the argument
``restore``. The new process knows only the path, and prints the same numbers. A third process does not even have this
code: the function that predicts is in the checkpoint too.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp

import pytreesaver as pts

PATH = "checkpoint/saver1.ckpt"
X = jnp.array([1.0, 2.0, 3.0, 4.0])
Y = jnp.array([2.0, 3.0, 4.0, 5.0])

Params = dict[str, jax.Array]


def predict(params: Params, x: jax.Array) -> jax.Array:
    return params["W"] * x + params["b"]


def loss(params: Params) -> jax.Array:
    return jnp.sum((predict(params, X) - Y) ** 2)


@jax.jit
def step(params: Params) -> Params:
    return jax.tree.map(lambda value, gradient: value - 0.01 * gradient, params, jax.grad(loss)(params))


def show(params: Params) -> None:
    print(f"loss {float(loss(params))!r}   W {params['W'].tolist()}   b {params['b'].tolist()}")


def train() -> None:
    params = {"W": jnp.array([0.3]), "b": jnp.array([-0.3])}
    for _ in range(5000):
        params = step(params)
    print("trained: ", end="")
    show(params)
    (count,) = jax.export.symbolic_shape("count")
    inputs = jax.ShapeDtypeStruct((count,), jnp.float32)
    print("saved to", pts.export_model(PATH, predict, inputs, params=params, overwrite=True))
    print("predicted:", jax.jit(predict)(params, jnp.array([5.0, 6.0, 7.5])).tolist(), flush=True)


def restore() -> None:
    print("restored: ", end="")
    show(pts.restore(PATH))


WITHOUT_THE_CODE = """
import sys
import jax.numpy as jnp
import pytreesaver as pts

model = pts.load_model(sys.argv[1])
print("predicted:", model(jnp.array([5.0, 6.0, 7.5])).tolist())
"""

if __name__ == "__main__":
    if sys.argv[1:] == ["restore"]:
        restore()
    else:
        train()
        subprocess.run([sys.executable, __file__, "restore"], check=True)
        subprocess.run([sys.executable, "-c", WITHOUT_THE_CODE, PATH], check=True)
