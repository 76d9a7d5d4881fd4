"""The engine of pytreesaver inside Orbax: managers, checkpointers, composites, and version 1 of Orbax's API."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import pytreesaver as pts
import pytreesaver.orbax
from pytreesaver.testing import assert_trees_equal


def tree(step=0):
    params = {"w": jnp.full((3, 2), step, jnp.bfloat16), "b": np.arange(3.0)}
    return {"params": params, "opt": optax.adam(1e-3).init(params), "name": "run", "pair": (1, 2.5)}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_manager_saves_and_restores_with_our_engine(asynchronous):
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=asynchronous)
    with ocp.CheckpointManager(Path("run").absolute(), options=options) as manager:
        for step in range(4):
            manager.save(step, args=pts.orbax.SaveArgs(tree(step), metadata={"step": step}))
        manager.wait_until_finished()
        assert manager.all_steps() == [2, 3]
        assert_trees_equal(manager.restore(3, args=pts.orbax.RestoreArgs()), tree(3))
        assert_trees_equal(manager.restore(2, args=pts.orbax.RestoreArgs(like=tree())), tree(2))
        part = manager.restore(2, args=pts.orbax.RestoreArgs(only="params/w"))
        assert_trees_equal(part, {"params": {"w": tree(2)["params"]["w"]}})
    assert_trees_equal(pts.restore("run/3/default"), tree(3))
    assert_trees_equal(pts.restore("run/3"), tree(3))
    assert pts.latest_checkpoint("run") == Path("run/3")
    assert pts.load_checkpoint("run/3/default").metadata == {"step": 3}


def test_a_new_manager_restores_with_the_handler_given():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        manager.save(1, args=pts.orbax.SaveArgs(tree(1)))
    handler = pts.orbax.CheckpointHandler()
    with ocp.CheckpointManager(Path("run").absolute(), item_handlers=handler) as manager:
        assert_trees_equal(manager.restore(1), tree(1))
        assert "w" in str(manager.item_metadata(1))


def test_items_of_a_composite_are_handled_by_ours_and_by_orbax():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        items = ocp.args.Composite(
            state=pts.orbax.SaveArgs(tree(1)),
            other=ocp.args.StandardSave({"x": jnp.ones(2)}),
            config=ocp.args.JsonSave({"a": 1}),
        )
        manager.save(1, args=items)
        manager.wait_until_finished()
        restored = manager.restore(
            1, args=ocp.args.Composite(state=pts.orbax.RestoreArgs(), other=ocp.args.StandardRestore())
        )
    assert_trees_equal(restored["state"], tree(1))
    assert restored["other"]["x"].tolist() == [1, 1]
    assert_trees_equal(pts.restore("run/1/state"), tree(1))


def test_checkpointers_take_the_handler():
    path = Path("model").absolute()
    with ocp.Checkpointer(pts.orbax.CheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=pts.orbax.SaveArgs(tree(1), only="params"))
        assert_trees_equal(checkpointer.restore(path), {"params": tree(1)["params"]})
    assert_trees_equal(pts.restore(path), {"params": tree(1)["params"]})
    pts.verify(path)


def test_the_tree_may_be_donated_while_it_is_saved():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        state = {"w": jnp.ones((512, 512)), "n": np.zeros(1000)}
        manager.save(1, args=pts.orbax.SaveArgs(state))
        state["n"][:] = 7
        jax.jit(lambda w: w + 1, donate_argnums=0)(state["w"])
        manager.wait_until_finished()
        restored = manager.restore(1, args=pts.orbax.RestoreArgs())
    assert restored["w"].sum() == 512 * 512
    assert restored["n"].sum() == 0


def test_errors_are_ours():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        with pytest.raises(pts.UnsupportedLeafError, match="x: "):
            manager.save(1, args=pts.orbax.SaveArgs({"x": object()}))
        manager.save(2, args=pts.orbax.SaveArgs({"x": np.ones(2)}))
        manager.wait_until_finished()
        with pytest.raises(pts.MismatchError, match="y"):
            manager.restore(2, args=pts.orbax.RestoreArgs(like={"y": np.ones(2)}))


def test_version_1_of_the_api():
    context = v1.Context()
    registry = v1.handlers.local_registry()
    context.checkpointables.registry = registry.add(pts.orbax.CheckpointableHandler, checkpointable_name="params")
    path = Path("model").absolute()
    with context:
        v1.save_checkpointables(path, {"params": tree(1)})
        assert_trees_equal(v1.load_checkpointables(path, {"params": tree()})["params"], tree(1))
        assert_trees_equal(v1.load_checkpointables(path)["params"], tree(1))
        pending = v1.save_checkpointables_async(path.with_name("again"), {"params": tree(2)})
        pending.result()
    assert_trees_equal(pts.restore(path / "params"), tree(1))
    assert_trees_equal(pts.restore("again/params"), tree(2))
