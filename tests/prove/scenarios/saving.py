"""Saves of one checkpoint, in every format."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal
from tests.prove.scenarios.scenario import Scenario
from tests.prove.scenarios.trees import found, plain_tree, tree


def save(number, path, *, of=tree, **options):
    pts.save(of(number), path, **options)


def save_in_background(number, path, **options):
    pts.save_async(tree(number), path, **options).result()


def large(number):
    """Return a tree that several threads write, in several slices."""
    return {"w": np.arange(2_300_000.0 + number) + number, "v": np.arange(float(900_000)), "step": number}


def save_again(number, path, durable=True, **options):
    """Save twice over what is there: the data files of TensorFlow get their shortest names with the second save."""
    for _ in range(2 if options.get("format") == "tensorflow" else 1):
        save(number, path, overwrite=True, **options)


def first(path, *, of=tree, like=None, write=save, is_durable=True, is_foreign=False, **options):
    """Return the scenario of a save where there is nothing yet."""
    return Scenario(
        act=partial(write, 1, path, **({"of": of} if write is save else {}), **options),
        found=lambda finished: found(path, {1} if finished else {None, 1}, of=of, like=like),
        again=partial(save_again, 2, path, of=of, **options),
        found_again=lambda: found(path, {2}, of=of, like=like),
        is_durable=is_durable,
        is_foreign=is_foreign,
    )


def over(path, *, of=tree, like=None, write=save, is_foreign=False, **options):
    """Return the scenario of a save over another one."""
    return Scenario(
        before=partial(save, 1, path, of=of, **{k: v for k, v in options.items() if k != "durable"}),
        act=partial(write, 2, path, overwrite=True, **({"of": of} if write is save else {}), **options),
        found=lambda finished: found(path, {2} if finished else {1, 2}, of=of, like=like),
        again=partial(save_again, 3, path, of=of, **options),
        found_again=lambda: found(path, {3}, of=of, like=like),
        is_foreign=is_foreign,
    )


FROZEN = {"frozen": np.arange(40_000.0), "other": np.arange(9_000)}


def partly_frozen(number):
    return {**FROZEN, **tree(number)}


def save_with_base():
    pts.save(partly_frozen(2), "new", base="old")


def found_with_base(finished):
    found("old", {1}, of=partly_frozen)
    found("new", {2} if finished else {None, 2}, of=partly_frozen)


def save_again_with_base():
    pts.save(partly_frozen(3), "new", base="old", overwrite=True)


def function(params, x):
    return x @ params["w"] + params["b"]


def export(overwrite=False):
    params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
    abstract = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    pts.export_model("model", function, abstract, params=params, overwrite=overwrite)


def found_model(finished):
    try:
        model = pts.load_model("model")
    except pts.CheckpointNotFoundError:
        assert not finished
        return
    x = np.ones((4, 2), np.float32)
    assert_trees_equal(np.asarray(model(x)), np.asarray(function(model.params, x)))
    pts.verify("model")


SAVING = {
    "first save": first("model"),
    "first save, new parents": first("runs/a/model"),
    "first save, large, several threads": first("model", of=large),
    "first save, not durable": first("model", durable=False, is_durable=False),
    "first save, in the background": first("model", write=save_in_background),
    "first save, several files": first("model", shard_nbytes=500),
    "overwrite": over("model"),
    "overwrite, large, several threads": over("model", of=large),
    "overwrite, not durable": over("model", durable=False),
    "overwrite, in the background": over("model", write=save_in_background),
    "incremental save": Scenario(
        before=partial(save, 1, "old", of=partly_frozen),
        act=save_with_base,
        found=found_with_base,
        again=save_again_with_base,
    ),
    "safetensors": first("model.safetensors"),
    "safetensors, overwrite": over("model.safetensors"),
    "safetensors, several files": first("model", format="safetensors", shard_nbytes=500),
    "safetensors, several files, overwrite": over("model", format="safetensors", shard_nbytes=500),
    "npz": first("model.npz"),
    "npz, overwrite": over("model.npz"),
    "msgpack": first("model.msgpack"),
    "msgpack, overwrite": over("model.msgpack"),
    "TensorFlow": first("model", of=plain_tree, format="tensorflow"),
    "TensorFlow, overwrite": over("model", of=plain_tree, format="tensorflow"),
    "Orbax": first("model", of=plain_tree, format="orbax", is_foreign=True),
    "Orbax, overwrite": over("model", of=plain_tree, format="orbax", is_foreign=True),
    "export_model": Scenario(act=export, found=found_model, again=partial(export, overwrite=True)),
}
