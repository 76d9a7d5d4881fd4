"""Orbax checkpoints: those that Orbax wrote are read, and those that pytreesaver writes are restored by Orbax."""

import json
import shutil
import tarfile
from pathlib import Path

import flax.training.checkpoints
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import message_of
from orbax.checkpoint import v1

import pytreesaver as pts
from pytreesaver.formats import orbax
from pytreesaver.testing import FormatConformance, assert_trees_equal

SAMPLES = sorted((Path(__file__).parents[1] / "data" / "orbax").glob("*.tar.gz"))


class TestOrbaxFormat(FormatConformance, max_examples=10):  # Orbax takes 0.1 s for each tree
    format = orbax


# Checkpoints that Orbax wrote.


def state():
    params = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)}}
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "step": 7,
        "rate": 0.5,
        "frozen": True,
        "key": jax.random.key(1),
        "keys": jax.random.split(jax.random.key(2), 3),
        "ids": np.arange(4),
        "fp8": jnp.ones(3, jnp.float8_e4m3fn),
        "int4": jnp.ones(3, jnp.int4),
        "pair": (jnp.zeros(2), [jnp.ones(1)]),
        "none": None,
        "empty": {},
        "nothing": [],
        "a.b": jnp.ones(1),
        "c/d": jnp.ones(2),
    }


def as_orbax_rebuilds(tree):
    """Return what is left of a tree when only Orbax's metadata say what it was."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return as_orbax_rebuilds(tree._asdict()) if tree else None
    if isinstance(tree, dict):
        return {key: as_orbax_rebuilds(value) for key, value in tree.items()}
    return [as_orbax_rebuilds(value) for value in tree] if isinstance(tree, list | tuple) else tree


def by_standard(path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state())


def by_pytree(path):
    ocp.PyTreeCheckpointer().save(path, state())


def by_pytree_without_ocdbt(path):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    ocp.Checkpointer(handler).save(path, args=ocp.args.PyTreeSave({k: v for k, v in state().items() if k != "c/d"}))


def by_zarr3(path):
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True)).save(path, args=ocp.args.PyTreeSave(state()))


def by_manager(path):
    with ocp.CheckpointManager(path.parent) as manager:
        manager.save(int(path.name), args=ocp.args.StandardSave(state()))


def by_v1(path):
    v1.save(path, state())


def by_flax(path):
    flax.training.checkpoints.save_checkpoint(
        path.parent, state(), step=int(path.name.partition("_")[2]), orbax_checkpointer=ocp.PyTreeCheckpointer()
    )


WRITERS = [
    (by_standard, "model"),
    (by_pytree, "model"),
    (by_pytree_without_ocdbt, "model"),
    (by_zarr3, "model"),
    (by_manager, "run/100"),
    (by_v1, "model"),
    (by_flax, "run/checkpoint_30"),
]


@pytest.mark.parametrize(("write", "path"), WRITERS, ids=[write.__name__ for write, _ in WRITERS])
def test_what_orbax_wrote_is_restored_with_and_without_a_template(write, path):
    path = Path(path).absolute()
    write(path)
    expected = state()
    if write is by_pytree_without_ocdbt:
        del expected["c/d"]
    assert_trees_equal(pts.restore(path), as_orbax_rebuilds(expected))
    assert_trees_equal(pts.restore(path, expected), expected)
    assert_trees_equal(pts.restore(path, jax.eval_shape(lambda: state()["params"]), rename={"/": "params/"},
                                   unexpected="ignore"), expected["params"])  # fmt: skip
    assert pts.load_variable(path, "params/dense/kernel").tolist() == [[0, 1, 2], [3, 4, 5]]
    with pts.load_checkpoint(path) as checkpoint:
        assert checkpoint.format == "orbax"
        assert checkpoint["params/dense/kernel"][1, 1:].tolist() == [4, 5]
    pts.verify(path)


def test_v1_stores_strings():
    v1.save(Path("model").absolute(), {"w": jnp.ones(1), "name": "é"})
    assert_trees_equal(pts.restore("model"), {"w": jnp.ones(1), "name": "é"})


BEST = ocp.CheckpointManagerOptions(max_to_keep=3, best_fn=lambda metrics: -metrics["loss"])


def test_items_are_prefixes_and_json_items_are_metadata():
    with ocp.CheckpointManager(Path("run").absolute(), options=BEST) as manager:
        for step in (1, 2):
            items = ocp.args.Composite(
                state=ocp.args.StandardSave({"w": jnp.full(2, step, jnp.int32)}),
                ema=ocp.args.StandardSave({"w": jnp.zeros(2)}),
                data=ocp.args.JsonSave({"position": step, "shard": [1, None]}),
            )
            manager.save(step, args=items, metrics={"loss": 1 / step})
    assert pts.list_variables("run/2") == [("ema/w", (2,)), ("state/w", (2,))]
    assert pts.latest_checkpoint("run") == Path("run/2")
    assert_trees_equal(pts.restore("run", only="state"), {"state": {"w": jnp.full(2, 2, jnp.int32)}})
    checkpoint = pts.load_checkpoint("run/1")
    assert checkpoint.metadata == {"data": {"position": 1, "shard": [1, None]}}
    assert (checkpoint.step, checkpoint.metrics) == (1, {"loss": 1.0})
    listed = pts.list_checkpoints("run")
    assert [(each.step, each.metrics, each.problem) for each in listed] == [
        (1, {"loss": 1.0}, None),
        (2, {"loss": 0.5}, None),
    ]
    assert listed[0].time < listed[1].time
    assert listed[0].nbytes > 1000


@pytest.mark.parametrize("archive", SAMPLES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def test_checkpoints_of_older_versions_are_read(archive):
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 has it
            file.extraction_filter = tarfile.data_filter
        file.extractall("samples")
    expected = json.loads(Path("samples/expected.json").read_text())["expected"]
    checked = 0
    for directory in sorted(Path("samples").iterdir()):
        if directory.name in ("expected.json", "flax_legacy"):
            continue
        has_steps = directory.name.startswith(("manager", "flax"))
        for path in sorted(directory.iterdir()) if has_steps else [directory]:
            with pts.load_checkpoint(path) as checkpoint:
                names = {name.removeprefix("state/"): name for name in checkpoint}
                assert set(names) == set(expected)
                for name, found in expected.items():
                    values = checkpoint[names[name]].read()
                    assert str(values.dtype) == found["dtype"]
                    assert list(values.shape) == found["shape"]
                    assert values.tobytes().hex() == found["hex"]
                    checked += 1
    assert checked == 9 * 16


def test_a_tree_of_which_only_the_structure_file_of_old_versions_is_left():
    by_pytree_without_ocdbt(Path("model").absolute())
    (Path("model") / "_METADATA").unlink()
    aggregate = {"params": {"dense": {"kernel": "PLACEHOLDER://params.dense.kernel"}}, "step": 7, "opt": {"0": None}}
    array = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(([2], "float32", np.ones(2, np.float32).tobytes())))
    (Path("model") / "checkpoint").write_bytes(msgspec.msgpack.encode({**aggregate, "small": array}))
    expected = {
        "params": {"dense": {"kernel": state()["params"]["dense"]["kernel"]}},
        "step": 7,
        "small": np.ones(2, np.float32),
        "opt": {"0": None},
    }
    assert_trees_equal(pts.restore("model"), expected)


def test_an_unfinished_checkpoint_does_not_exist():
    by_standard(Path("model").absolute())
    Path("model").rename("model.orbax-checkpoint-tmp")
    assert not pts.checkpoint_exists("model.orbax-checkpoint-tmp")
    with pytest.raises(pts.CheckpointNotFoundError):
        pts.restore("model.orbax-checkpoint-tmp", format="orbax")


# Damage.


def damaged(path, file, change):
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)
    return message_of(pts.CorruptCheckpointError, lambda: (pts.restore(path), pts.verify(path)))


def flip(content):
    content[len(content) // 2] ^= 4


def test_damage_that_the_format_can_detect_is_an_error_that_names_it():
    source = Path("source").absolute()
    by_standard(source)
    files = ["manifest.ocdbt", "_METADATA", *(str(file.relative_to(source)) for file in source.glob("d/*"))]
    for name in files:
        shutil.rmtree("model", ignore_errors=True)
        shutil.copytree(source, "model")
        change = (lambda content: content.__setitem__(0, 0)) if name == "_METADATA" else flip
        assert "model" in damaged("model", Path("model") / name, change), name
    for name in [str(file.relative_to(source)) for file in source.glob("ocdbt.process_0/d/*")]:
        shutil.rmtree("model", ignore_errors=True)
        shutil.copytree(source, "model")
        (Path("model") / name).unlink()
        try:
            restored = pts.restore("model")
        except pts.CorruptCheckpointError as error:
            assert "model" in str(error)  # noqa: PT017
        else:  # a file that the merged index does not use
            assert_trees_equal(restored, as_orbax_rebuilds(state()))


def test_a_missing_chunk_is_an_error_that_names_the_variable():
    by_pytree_without_ocdbt(Path("model").absolute())
    (Path("model") / "params.dense.kernel" / "0.0").unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="params/dense/kernel") as caught:
        pts.restore("model")
    assert caught.value.damaged == ["params/dense/kernel"]
    (Path("model") / "params.dense.bias" / "0").write_bytes(b"not zstd")
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.restore("model")
    assert set(caught.value.damaged) == {"params/dense/kernel", "params/dense/bias"}
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.verify("model")
    assert set(caught.value.damaged) == {"params/dense/kernel", "params/dense/bias"}
    (Path("model") / "params.dense.kernel" / ".zarray").unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="params/dense/kernel"):
        pts.list_variables("model")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"tree_metadata": 3}',
        b'{"tree_metadata": {"x": {"key_metadata": [{"key": 1.5, "key_type": 2}]}}}',
        b'{"tree_metadata": ' + b"[" * 100_000,
        b'{"tree_metadata": {"x": {"key_metadata": [{"key": "../../etc", "key_type": 2}], "value_metadata": {}}}}',
    ],
)
def test_hostile_metadata_is_refused(content):
    by_pytree_without_ocdbt(Path("model").absolute())
    (Path("model") / "_METADATA").write_bytes(content)
    assert "model" in message_of(pts.CorruptCheckpointError, lambda: pts.restore("model"))


# Checkpoints for Orbax.


def for_orbax():
    tree = state()
    return {name: leaf for name, leaf in tree.items() if name not in ("c/d",)}


def assert_same_values(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if isinstance(other, jax.Array) and jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
            assert one.dtype == other.dtype
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert type(one) is type(other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("path", ["model", "run/100"])
def test_orbax_restores_what_pytreesaver_writes(path):
    tree = for_orbax()
    path = pts.save(tree, path, format="orbax", metadata={"epoch": (1, 2)})
    assert_trees_equal(pts.restore(path), tree)
    assert pts.load_checkpoint(path).metadata == {"epoch": (1, 2)}
    absolute = Path(path).absolute()
    item = absolute / "default" if path.name == "100" else absolute  # a manager of Orbax expects it there
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same_values(checkpointer.restore(item, tree), tree)
        without = checkpointer.restore(item)
        assert_same_values(without["params"], tree["params"])
        assert without["opt"][0]["count"] == 0
    if path == Path("run/100"):
        with ocp.CheckpointManager(absolute.parent) as manager:
            assert manager.all_steps() == [100]
            assert_same_values(manager.restore(100, args=ocp.args.StandardRestore(tree)), tree)
            assert_same_values(manager.restore(100)["params"], tree["params"])


@pytest.mark.parametrize("name", ["", ".", "..", "/", "//", "a/", "a//", "/a", "a/../b", "a//b", " ", "\0", "c\\d"])
def test_any_name_is_stored(name):
    tree = {name: np.arange(3.0), "other": np.arange(2)}
    path = pts.save(tree, "model", format="orbax")
    assert_trees_equal(pts.restore(path), tree)
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same_values(checkpointer.restore(Path(path).absolute()), tree)


def test_sharded_arrays_are_stored_whole():
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    sharding = jax.NamedSharding(mesh, jax.P("x", "y"))
    array = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), sharding)
    path = pts.save({"w": array}, "model", format="orbax")
    assert pts.load_variable(path, "w").tolist() == np.asarray(array).tolist()
    restored = pts.restore(path, {"w": array})
    assert restored["w"].sharding == sharding


def test_what_orbax_cannot_hold_is_listed_before_anything_is_written():
    tree = {
        "name": "run",
        "data": b"x",
        "big": 2**70,
        "complex": 1j,
        "empty": np.zeros((0, 3)),
        "text": np.array(["a"]),
        "uint4": jnp.ones(2, jnp.uint4),
        "fine": np.ones(2),
    }
    with pytest.raises(pts.UnsupportedLeafError) as caught:
        pts.save(tree, "model", format="orbax")
    for name in set(tree) - {"fine"}:
        assert f"\n  {name}: " in str(caught.value)
    assert "7 of 8 variables" in str(caught.value)
    same_place = {
        "a/b": {"a.b": np.ones(2), "a": {"b": np.zeros(2)}},
        "a": {"a": np.ones(2), "a/": np.zeros(3)},
        "''": {"": np.ones(2), "/": np.zeros(3)},
    }
    for name, tree in same_place.items():
        with pytest.raises(pts.UnsupportedLeafError, match=f"Orbax would store it in the same place as {name}; "):
            pts.save(tree, "model", format="orbax")
    for root in ({}, np.ones(2)):
        with pytest.raises(pts.UnsupportedLeafError, match="Orbax holds no"):
            pts.save(root, "model", format="orbax")
    assert not Path("model").exists()


def test_a_checkpoint_of_orbax_itself_is_not_overwritten():
    by_standard(Path("model").absolute())
    with pytest.raises(pts.CheckpointExistsError, match="expected an Orbax checkpoint of pytreesaver"):
        pts.save({"w": np.ones(2)}, "model", format="orbax", overwrite=True)
    assert_trees_equal(pts.restore("model"), as_orbax_rebuilds(state()))
