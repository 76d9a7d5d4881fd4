"""States of Flax, Equinox, Haiku and Optax, restored with and without a template."""

import dataclasses
import enum
import subprocess
import sys

import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal

PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(3, 2), "bias": jnp.zeros(2, jnp.bfloat16)}}


@flax.struct.dataclass
class Statistics:
    mean: jax.Array
    count: int
    label: str = flax.struct.field(pytree_node=False, default="x")


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Config:
    layers: int
    name: str


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(x))


def linen_variables():
    return Network().init(jax.random.key(0), jnp.ones((1, 2)))


def nnx_model():
    return nnx.Sequential(
        nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.1, rngs=nnx.Rngs(1)),
    )


def haiku_state():
    def forward(x):
        return hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(hk.Linear(3)(x), is_training=True)

    return hk.transform_with_state(forward).init(jax.random.key(0), jnp.ones((1, 2)))


STATES = {
    "equinox MLP": lambda: eqx.filter(eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(0)), eqx.is_array),
    "equinox convolution": lambda: eqx.filter(eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(0)), eqx.is_array),
    "flax.struct": lambda: Statistics(jnp.ones(3), 7, "é"),
    "flax linen variables": linen_variables,
    "flax FrozenDict": lambda: flax.core.freeze(linen_variables()),
    "flax nnx state": lambda: nnx.split(nnx_model())[1],
    "flax nnx pure dict": lambda: nnx.to_pure_dict(nnx.split(nnx_model())[1]),
    "flax nnx optimizer": lambda: nnx.state(nnx.Optimizer(nnx_model(), optax.adam(0.1), wrt=nnx.Param)),
    "flax nnx rngs": lambda: nnx.state(nnx.Rngs(0, dropout=1)),
    "haiku params and state": haiku_state,
    "optax adamw": lambda: optax.adamw(1e-3).init(PARAMS),
    "optax chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.1, 10))
    ).init(PARAMS),
    "optax inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(1e-3).init(PARAMS),
    "optax MultiSteps": lambda: optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 3).init(PARAMS),
    "optax masked": lambda: optax.masked(optax.adam(0.1), {"dense": {"kernel": True, "bias": False}}).init(PARAMS),
    "optax partition": lambda: optax.partition(
        {"a": optax.adam(0.1), "b": optax.set_to_zero()}, {"dense": {"kernel": "a", "bias": "b"}}
    ).init(PARAMS),
    "optax adafactor": lambda: optax.adafactor(0.1).init(PARAMS),
    "optax apply_if_finite": lambda: optax.apply_if_finite(optax.lion(0.1), 3).init(PARAMS),
}


@pytest.mark.parametrize("name", STATES)
def test_states_are_restored_exactly(name):
    state = STATES[name]()
    pts.save(state, "state")
    assert_trees_equal(pts.restore("state"), state)
    assert_trees_equal(pts.restore("state", like=state), state)
    arrays_only = jax.tree.map(jnp.asarray, state)
    if not any(isinstance(leaf, int) for leaf in jax.tree.leaves(state)):
        assert_trees_equal(pts.restore("state", like=jax.eval_shape(lambda: arrays_only)), arrays_only)


def train_state():
    return TrainState.create(apply_fn=Network().apply, params=PARAMS, tx=optax.adam(0.1))


def test_a_train_state_is_restored_into_a_template_with_its_functions():
    state = train_state()
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    stepped = state.apply_gradients(grads=gradients)
    pts.save(stepped, "state")
    restored = pts.restore("state", like=state)
    assert_trees_equal(restored, stepped)
    assert restored.tx is state.tx
    assert_trees_equal(restored.apply_gradients(grads=gradients), stepped.apply_gradients(grads=gradients))


def test_a_train_state_without_a_template_is_a_dict_with_a_warning():
    pts.save(train_state(), "state")
    with pytest.warns(pts.StructureWarning) as caught:
        restored = pts.restore("state")
    (warning,) = caught
    assert warning.filename == __file__
    text = str(warning.message)
    assert (
        "flax.training.train_state:TrainState is restored as a dict of its fields: its static field 'apply_fn'" in text
    )
    assert "static field 'tx'" in text
    assert type(restored) is dict
    assert_trees_equal(restored["params"], PARAMS)
    assert type(restored["opt_state"][0]) is optax.ScaleByAdamState


def test_an_nnx_module_is_restored_into_a_template():
    model = nnx_model()
    pts.save(model, "model")
    assert_trees_equal(nnx.state(pts.restore("model", like=nnx_model())), nnx.state(model))


RESTORE_WITHOUT_IMPORTS = """
import pickle, sys, warnings
import numpy as np
import pytreesaver as pts
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tree = pts.restore("state", as_numpy=True)
assert "optax" not in sys.modules
(warning,) = caught
adam, empty = tree["optimizer"]
assert type(adam).__name__ == "ScaleByAdamState" and adam._fields == ("count", "mu", "nu")
assert type(empty).__name__ == "EmptyState" and empty == ()
assert type(tree["statistics"]) is dict, tree["statistics"]
print(warning.category.__name__, warning.message)
"""


def test_classes_that_are_not_imported_are_replaced_with_one_warning():
    tree = {"optimizer": (optax.adam(1e-3).init(PARAMS)[0], optax.EmptyState()), "statistics": Statistics(1, 2)}
    pts.save(tree, "state")
    run = subprocess.run([sys.executable, "-c", RESTORE_WITHOUT_IMPORTS], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("StructureWarning state was restored without a template")
    assert run.stdout.count("ScaleByAdamState is restored as a namedtuple of the same fields: it is not imported") == 1
    assert "EmptyState is restored as a namedtuple" in run.stdout
    assert "Statistics is restored as a dict of its fields: it is not imported" in run.stdout


def test_a_class_whose_fields_have_changed_is_replaced(monkeypatch):
    pts.save({"s": Statistics(jnp.ones(1), 2), "o": optax.EmptyState()}, "state")

    @flax.struct.dataclass
    class Changed:
        mean: jax.Array

    Changed.__module__, Changed.__qualname__ = Statistics.__module__, Statistics.__qualname__
    monkeypatch.setattr(sys.modules[__name__], "Statistics", Changed)
    with pytest.warns(pts.StructureWarning, match=r"its class rejects the stored fields .*'count'"):
        restored = pts.restore("state")
    assert restored["s"].keys() == {"mean", "count", "label"}
    assert restored["o"] == optax.EmptyState()


def test_static_values_of_all_supported_types_are_restored():
    spec = jax.sharding.PartitionSpec("x", None)
    values = (np.dtype(">f4"), np.float16, jnp.bfloat16, ..., slice(1, None), spec, {1}, Color.RED, Config(3, "é"))
    tree = Statistics(jnp.ones(1), 1, values)
    pts.save(tree, "state")
    assert pts.restore("state").label == values
