"""Items of random keys, of JAX and NumPy, in checkpoints of Orbax."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import args

import pytreesaver as pts
import pytreesaver.orbax
from pytreesaver.testing import assert_trees_equal


def random_keys():
    typed = jax.random.split(jax.random.key(1), 3)
    return {"typed": typed, "words": jax.random.PRNGKey(2), "tuple": np.random.get_state(), "dict": np_state()}


def np_state():
    return np.random.get_state(legacy=False)


def save_random_keys(state=args.StandardSave):
    keys = random_keys()
    items = {name: args.JaxRandomKeySave(keys[name]) for name in ("typed", "words")}
    items |= {name: args.NumpyRandomKeySave(keys[name]) for name in ("tuple", "dict")}
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        manager.save(1, args=args.Composite(**items, state=state({"w": jnp.ones(2)})))
    return {**keys, "state": {"w": jnp.ones(2)}}


@pytest.mark.parametrize("state", [args.StandardSave, pts.orbax.SaveArgs])
def test_random_keys_are_items_too(state):
    saved = save_random_keys(state)
    assert_trees_equal(pts.restore("run"), saved)
    assert_trees_equal(pts.restore("run", saved), saved)
    assert_trees_equal(pts.restore("run", only="typed"), {"typed": saved["typed"]})
    pts.convert("run/1", "converted")
    assert_trees_equal(pts.restore("converted"), saved)
    assert pts.remove_checkpoint("run/1")


def test_a_random_key_alone_is_the_tree_itself():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        manager.save(1, args=args.JaxRandomKeySave(jax.random.key(1)))
    assert_trees_equal(pts.restore("run"), jax.random.key(1))


def test_a_random_key_of_another_implementation_is_read_as_words():
    save_random_keys()
    with jax.default_prng_impl("rbg"), pytest.warns(pts.StructureWarning, match="typed: the random key is read as an"):
        words = pts.restore("run", only="typed")["typed"]
    assert_trees_equal(words, jax.random.key_data(random_keys()["typed"]))


def test_a_key_saved_by_a_checkpointer_is_the_tree_itself():
    handler = ocp.JaxRandomKeyCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(Path("key").absolute(), args=args.JaxRandomKeySave(jax.random.key(1)))
    assert_trees_equal(pts.restore("key"), jax.random.key(1))


def test_beside_a_random_key_the_default_item_has_a_name():
    with ocp.CheckpointManager(Path("run").absolute()) as manager:
        items = {"default": args.StandardSave({"w": jnp.ones(2)}), "key": args.JaxRandomKeySave(jax.random.key(1))}
        manager.save(1, args=args.Composite(**items))
    assert [name for name, _ in pts.list_variables("run")] == ["default/w", "key"]


@pytest.mark.parametrize("content", ["{}", '{"typed": 1}', '{"legacy": true}', '{"typed": true, "impl": "rbg"}', None])
def test_a_random_key_of_an_unknown_kind_is_not_read(content):
    saved = save_random_keys()
    (file,) = Path("run/1/typed").glob("*_metadata/metadata")
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.warns(
        pts.StructureWarning, match="items of Orbax that are not trees, arrays or JSON are not read: typed"
    ):
        restored = pts.restore("run/1")
    del saved["typed"]
    assert_trees_equal(restored, saved)


def test_damage_of_a_random_key_is_told():
    save_random_keys()
    (file,) = Path("run/1/typed").glob("*_metadata/metadata")
    file.write_text("[")
    with pytest.raises(pts.CorruptCheckpointError, match="run/1/typed/jax_random_key_metadata/metadata: expected JSON"):
        pts.restore("run/1")
    file.write_text('{"typed": true}')
    ocp.PyTreeCheckpointer().save(Path("other").absolute(), jnp.ones(3))
    shutil.rmtree("run/1/typed/jax_random_key")
    shutil.copytree("other", "run/1/typed/jax_random_key")
    with pytest.raises(pts.CorruptCheckpointError, match=r"run/1/typed: expected the words .*, found float32\[3\]"):
        pts.restore("run/1")
