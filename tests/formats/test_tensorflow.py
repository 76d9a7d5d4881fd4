"""TensorFlow's checkpoints: its own samples, exactly; what TensorFlow expects of ours; damage and hostile files.

`tests/data/of_tensorflow` has the samples, and what TensorFlow reads from them. ``make test-tensorflow`` reads files of
pytreesaver with TensorFlow.
"""

import hashlib
import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import message_of
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._io.checksums.crc32c import Crc32cOfRanges, combined, crc32c
from pytreesaver.formats import tensorflow
from pytreesaver.formats.tensorflow.table import read_table
from pytreesaver.testing import FormatConformance, assert_trees_equal, pytrees

SAMPLES = Path(__file__).parents[1] / "data" / "of_tensorflow"
TENSORS = json.loads((SAMPLES / "tensors.json").read_text())
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class TestTensorFlow(FormatConformance):
    format = tensorflow


# TensorFlow's own files.


def digest_of(values, dtype):
    if dtype != "string":
        return hashlib.sha256(values.tobytes()).hexdigest()
    strings = values.reshape(-1).tolist()
    return hashlib.sha256(b"".join(len(each).to_bytes(8, "little") + each for each in strings)).hexdigest()


@pytest.mark.parametrize("prefix", [each for each in TENSORS if not each.startswith("exotic")])
def test_every_tensor_of_a_sample_is_read_exactly(prefix):
    with pts.load_checkpoint(SAMPLES / prefix) as checkpoint:
        for key, tensor in TENSORS[prefix].items():
            if key == GRAPH:
                assert key not in checkpoint
                continue
            variable = checkpoint[key]
            values = variable.read()
            assert list(values.shape) == tensor["shape"], key
            assert digest_of(values, tensor["dtype"]) == tensor["sha256"], key
        checkpoint.verify()
        assert len(checkpoint) >= len(TENSORS[prefix].keys() - {GRAPH})


def test_rare_dtypes_are_read_and_values_of_tensorflow_are_refused_by_name():
    with pts.load_checkpoint(SAMPLES / "exotic.ckpt") as checkpoint:
        for key, tensor in TENSORS["exotic.ckpt"].items():
            if key in checkpoint and "error" not in tensor:
                values = checkpoint[key].read()
                assert digest_of(values, tensor["dtype"]) == tensor["sha256"], key
        dtypes = {name: str(checkpoint[name].dtype) for name in ("float8/e4m3fn", "int4", "qint8", "qint32")}
        assert dtypes == {"float8/e4m3fn": "float8_e4m3fn", "int4": "int4", "qint8": "int8", "qint32": "int32"}
        assert checkpoint["int4"].read().tolist() == [-8, 7, 0]
    tree = pts.restore(SAMPLES / "exotic.ckpt", only=["strings", "scalar"])
    assert tree["strings"]["ending_in_nul"] == [[b"a\0", b""], [b"\0", b"plain"]]  # NumPy would drop the zeros
    assert tree["strings"]["one_long"].tolist() == [b"x" * 300, *[b""] * 9]
    assert tree["scalar"] == {"nul": b"\0\0"}
    message = message_of(pts.UnsupportedLeafError, lambda: pts.restore(SAMPLES / "exotic.ckpt"))
    assert "variant: a tensor of the dtype variant, which only TensorFlow can use" in message


def test_variables_of_objects_have_readable_names():
    names = [name for name, _ in pts.list_variables(SAMPLES / "keras2" / "ckpt-1")]
    assert "model/layer_with_weights-0/kernel" in names
    assert "optimizer/m/model/layer_with_weights-0/kernel" in names
    assert "save_counter" in names
    names = [name for name, _ in pts.list_variables(SAMPLES / "objects" / "ckpt-1")]
    assert names == ["layers/0/w", "layers/1/w", "save_counter", "step", "table/a/b", "table/c.d"]
    names = [name for name, _ in pts.list_variables(SAMPLES / "keras3" / "ckpt-1")]
    assert {"sequential/dense/kernel", "adam/sequential_dense_kernel_momentum", "adam/iteration"} <= set(names)


def test_variables_are_also_found_under_the_names_of_tensorflow():
    path = SAMPLES / "keras3" / "ckpt-1"
    key = "optimizer/_trainable_variables/0/.ATTRIBUTES/VARIABLE_VALUE"
    expected = pts.load_variable(path, "sequential/dense/kernel")
    for name in (key, "optimizer/_trainable_variables/0"):
        assert np.array_equal(pts.load_variable(path, name), expected)
        like = {"kernel": np.zeros((3, 4), np.float32)}
        for rename in ({"kernel": name}, lambda _, name=name: name):
            restored = pts.restore(path, like, rename=rename, unexpected="ignore")
            assert np.array_equal(restored["kernel"], expected)
        assert np.array_equal(pts.init_from_checkpoint(like, path, {name: "kernel"})["kernel"], expected)
        warm = pts.warm_start(like, path, var_name_to_prev_var_name={"kernel": name})
        assert np.array_equal(warm["kernel"], expected)
    assert pts.restore(path, only="head", rename={"head/": "sequential/dense/"})["head"].keys() == {"bias", "kernel"}
    name = "model/layer_with_weights-0/kernel"
    for other in ("dense/kernel", f"{name}/.ATTRIBUTES/VARIABLE_VALUE"):
        found = pts.load_variable(SAMPLES / "keras2" / "ckpt-1", other)
        assert np.array_equal(found, pts.load_variable(SAMPLES / "keras2" / "ckpt-1", name))
    like = {"d": {"kernel": np.zeros((4, 8), np.float32)}}
    restored = pts.restore(SAMPLES / "keras2" / "ckpt-1", like, rename={"d/": "dense/"}, unexpected="ignore")
    assert np.array_equal(restored["d"]["kernel"], pts.load_variable(SAMPLES / "keras2" / "ckpt-1", name))


def test_slots_are_beside_their_variables():
    tree = pts.restore(SAMPLES / "tf1_run")
    assert tree["dense"].keys() == {"bias", "bias/Adam", "bias/Adam_1", "kernel", "kernel/Adam", "kernel/Adam_1"}
    assert tree["global_step"] == 30


def test_a_file_of_version_1_and_a_part_of_a_checkpoint_are_named():
    message = message_of(pts.CheckpointNotFoundError, lambda: pts.restore(SAMPLES / "version_1.ckpt"))
    assert "a TensorFlow checkpoint of version 1" in message
    assert "tf.train.load_checkpoint" in message
    for part in ("index", "meta", "data-00000-of-00001"):
        path = SAMPLES / "tf1_run" / f"model.ckpt-20.{part}"
        message = message_of(pts.CheckpointNotFoundError, lambda path=path: pts.restore(path))
        assert f"pass its prefix, {SAMPLES / 'tf1_run' / 'model.ckpt-20'}" in message


# Reading parts.


@pytest.mark.parametrize(("prefix", "name"), [("partitioned/partitioned.ckpt", "part/axis0"), ("irregular.ckpt", "w")])
def test_slices_are_put_together(prefix, name):
    whole = pts.load_variable(SAMPLES / prefix, name)
    with pts.load_checkpoint(SAMPLES / prefix) as checkpoint:
        assert np.array_equal(checkpoint[name][1:3, 1:], whole[1:3, 1:])
    restored = pts.restore(SAMPLES / prefix, mmap=True)
    for part in name.split("/"):
        restored = restored[part]
    assert np.array_equal(restored, whole)


def test_reading_one_tensor_reads_no_other(tmp_path):
    tree = {"a": np.arange(1 << 16), "b": np.arange(5), "c": "text"}
    path = pts.save(tree, tmp_path / "m", format="tensorflow")
    data = tmp_path / "m.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert pts.load_variable(path, "b").tolist() == [0, 1, 2, 3, 4]
    assert pts.restore(path, only=["b", "c"]).keys() == {"b", "c"}
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.restore(path)
    assert caught.value.damaged == ["a"]
    with pytest.raises(pts.CorruptCheckpointError):
        pts.load_checkpoint(path)["a"][60_000:]  # its checksum is that of the whole tensor
    assert pts.restore(path, verify=False)["a"].size == 1 << 16


def test_large_tensors_are_verified_in_pieces(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (3, 9 << 20), np.uint8)
    path = pts.save({"w": values, "v": values[0]}, tmp_path / "m", format="tensorflow")
    assert_trees_equal(pts.restore(path), {"w": values, "v": values[0]})
    with pts.load_checkpoint(path) as checkpoint:
        assert np.array_equal(checkpoint["w"][1, 100:-100], values[1, 100:-100])
    pts.verify(path)
    mapped = pts.restore(path, mmap=True)
    assert np.array_equal(mapped["w"], values)
    data = tmp_path / "m.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    damaged = "w" if values.nbytes == len(content) else "v"
    for read in (pts.restore, pts.verify, lambda path: pts.restore(path, mmap=True)):
        with pytest.raises(pts.CorruptCheckpointError) as caught:
            read(path)
        assert len(caught.value.damaged) == 1, damaged


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4), st.randoms())
def test_a_checksum_is_that_of_its_parts_in_any_order(content, cuts, random):
    bounds = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    parts = list(pairwise(bounds))
    whole = 0
    for low, high in parts:
        whole = combined(whole, crc32c(content[low:high]), high - low)
    assert whole == crc32c(content)
    random.shuffle(parts)
    checks = Crc32cOfRanges([crc32c(content), 0], [len(content), 5])
    data = np.frombuffer(content, np.uint8)
    results = [checks.is_intact(0, low, data[low:high]) for low, high in parts]
    assert all(results)
    wrong = Crc32cOfRanges([crc32c(content) ^ 1], [len(content)])
    assert [wrong.is_intact(0, low, data[low:high]) for low, high in parts][-1:] in ([], [False])


# Writing.


def test_trees_come_back_and_their_files_are_those_of_tensorflow(tmp_path):
    tree = {
        "params": {"w": jnp.ones((3, 2), jnp.bfloat16), "b": np.zeros(2)},
        "opt": optax.adam(1e-3).init({"w": jnp.ones(3)}),
        "key": jax.random.key(1),
        "texts": np.array([b"a", b"bcd"]),
        "unicode": np.array(["\u00e9", "xyz"]),
        "note": "h\u00e9llo",
        "huge": 2**100,
    }
    path = pts.save(tree, tmp_path / "model-1", format="tensorflow", metadata={"epoch": 1})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model-1.data-00000-of-00001", "model-1.index"]
    assert_trees_equal(pts.restore(path), tree)
    assert pts.load_checkpoint(path).metadata == {"epoch": 1}
    entries, description = read_table((tmp_path / "model-1.index").read_bytes(), b"pytreesaver.description")
    assert [key for key, _ in entries][:3] == [b"", b"huge", b"key"]
    assert json.loads(description)["metadata"] == {"epoch": 1}


@given(pytrees())
def test_every_tree_comes_back(tree):
    try:
        pts.save(tree, "model", format="tensorflow", overwrite=True)
    except pts.UnsupportedLeafError:  # names that TensorFlow cannot have
        return
    assert_trees_equal(pts.restore("model"), tree)


def test_shards_are_of_the_asked_size(tmp_path):
    tree = {f"w{i}": np.full(1000, i, np.uint8) for i in range(5)}
    path = pts.save(tree, tmp_path / "m", format="tensorflow", shard_nbytes=2000)
    sizes = {file.name: file.stat().st_size for file in tmp_path.glob("*.data-*")}
    assert sizes == {f"m.data-0000{i}-of-00003": size for i, size in enumerate([2000, 2000, 1000])}
    assert_trees_equal(pts.restore(path), tree)


def test_an_overwrite_keeps_the_old_data_until_the_new_index_is_there(tmp_path):
    for step in range(4):
        pts.save({"w": np.full(3, step)}, tmp_path / "m", format="tensorflow", overwrite=True)
        names = sorted(file.name for file in tmp_path.iterdir())
        count = 1 + step % 2  # the new data file never has the name of the old one
        assert names == [*(f"m.data-{i:05}-of-{count:05}" for i in range(count)), "m.index"]
        assert pts.restore(tmp_path / "m")["w"].tolist() == [step] * 3


def test_names_that_tensorflow_cannot_have_are_refused_before_anything_is_written(tmp_path):
    tree = {"": 1, "\0x": 2, GRAPH: 3, "fine": 4}
    message = message_of(pts.UnsupportedLeafError, lambda: pts.save(tree, tmp_path / "m", format="tensorflow"))
    assert "3 of 4 variables" in message
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(pts.StructureWarning, match="3 of 4|not converted"):
        pts.convert(pts.save(tree, tmp_path / "native"), tmp_path / "m", format="tensorflow", lossy=True)
    assert pts.restore(tmp_path / "m") == {"fine": 4}


@pytest.mark.parametrize("prefix", [each for each in TENSORS if not each.startswith("exotic")])
def test_a_sample_is_rewritten_with_the_same_tensors(prefix, tmp_path):
    path = pts.convert(SAMPLES / prefix, tmp_path / "again", format="tensorflow")
    assert not pts.diff(SAMPLES / prefix, path).changed
    assert pts.list_variables(path) == pts.list_variables(SAMPLES / prefix)


# Run directories.


def run_of_tensorflow(directory):
    shutil.copytree(SAMPLES / "tf1_run", directory)
    return Path(directory)


def test_a_run_of_tensorflow_is_a_run_directory():
    run = run_of_tensorflow("run")
    assert pts.latest_checkpoint(run) == run / "model.ckpt-30"
    assert next(pts.checkpoints_iterator(run, timeout=0)) == run / "model.ckpt-30"
    assert [(each.path.name, each.step) for each in pts.list_checkpoints(run)] == [
        ("model.ckpt-20", 20),
        ("model.ckpt-30", 30),
    ]
    assert pts.checkpoint_exists(run / "model.ckpt-20")
    assert not pts.checkpoint_exists(run / "model.ckpt-2*")
    (run / "checkpoint").unlink()
    assert pts.latest_checkpoint(run) == run / "model.ckpt-30"
    pts.prune(run, pts.KeepLast(1))
    assert sorted(file.name for file in run.glob("model*")) == [
        f"model.ckpt-30.{part}" for part in ("data-00000-of-00001", "index", "meta")
    ]
    pts.write_report(run, "report.html")
    assert pts.remove_checkpoint(run / "model.ckpt-30")
    assert not list(run.glob("model*"))


def test_a_run_of_tensorflow_is_converted_as_a_whole():
    run = run_of_tensorflow("run")
    pts.convert(run, "native")
    assert [each.step for each in pts.list_checkpoints("native")] == [20, 30]
    assert_trees_equal(pts.restore("native"), pts.restore(run))
    pts.convert("native", "back", format="tensorflow")
    assert pts.latest_checkpoint("back") == Path("back/model.ckpt-30")
    assert_trees_equal(pts.restore("back"), pts.restore(run))


def test_a_saver_goes_on_in_the_run_of_tensorflow():
    run = run_of_tensorflow("run")
    saver = pts.Saver(max_to_keep=2, format="tensorflow")
    saver.save({"w": np.ones(2)}, "run/model.ckpt", 40)
    assert pts.get_checkpoint_state(run).all_model_checkpoint_paths == ["run/model.ckpt-30", "run/model.ckpt-40"]
    assert not list(run.glob("model.ckpt-20*"))


def test_tensorflow_goes_on_in_a_run_of_ours():
    with pts.Saver(max_to_keep=3, format="tensorflow") as saver:
        for step in (1, 2):
            saver.save({"w": np.ones(2)}, "run/model", step)
    time.sleep(0.01)
    for part in ("index", "data-00000-of-00001"):
        Path(f"run/model-3.{part}").write_bytes((SAMPLES / "seed" / f"saver1.ckpt.{part}").read_bytes())
    paths = [f'all_model_checkpoint_paths: "model-{step}"\n' for step in (1, 2, 3)]
    Path("run/checkpoint").write_text(f'model_checkpoint_path: "model-3"\n{"".join(paths)}')
    assert pts.latest_checkpoint("run") == Path("run/model-3")
    with pts.Saver(max_to_keep=3, format="tensorflow") as saver:
        saver.save({"w": np.ones(2)}, "run/model", 4)
        assert [Path(path).name for path in saver.last_checkpoints] == ["model-2", "model-3", "model-4"]
    state = Path("run/checkpoint")
    state.write_text(state.read_text().replace('h: "model-4"', 'h: "model-3"'))  # as a flipped bit would
    with pytest.warns(pts.RetentionWarning, match="expected the contents that were last saved"):
        assert pts.latest_checkpoint("run") == Path("run/model-4")


def test_no_other_format_hides_a_checkpoint_of_tensorflow():
    pts.save({"w": np.ones(3)}, "m", format="tensorflow")
    for options in ({}, {"overwrite": True}, {"format": "npz"}, {"format": "orbax"}):
        with pytest.raises(pts.CheckpointExistsError, match="of the format tensorflow with this prefix"):
            pts.save({"w": np.zeros(2)}, "m", **options)
    assert pts.restore("m")["w"].tolist() == [1] * 3


def test_values_that_only_tensorflow_can_use_are_left_out_on_request():
    pts.verify(SAMPLES / "exotic.ckpt")
    message = message_of(pts.UnsupportedLeafError, lambda: pts.convert(SAMPLES / "exotic.ckpt", "native"))
    assert "1 of 14 variables" in message
    with pytest.warns(pts.StructureWarning, match="variant: a tensor of the dtype variant"):
        pts.convert(SAMPLES / "exotic.ckpt", "native", lossy=True)
    assert "variant" not in pts.restore("native")
    with pytest.raises(
        pts.UnsupportedLeafError, match=r"cannot be copied; .*\n  variant: a tensor of the dtype variant"
    ):
        pts.copy_checkpoint(SAMPLES / "exotic.ckpt", "copy")
    pts.copy_checkpoint(SAMPLES / "exotic.ckpt", "copy", only=~pts.glob("variant"))


def test_an_open_checkpoint_stays_readable_while_it_is_overwritten():
    pts.save({"a": np.ones(2), "s": "v1"}, "m", format="tensorflow")
    with pts.load_checkpoint("m") as checkpoint:
        pts.save({"a": np.zeros(2), "s": "v2"}, "m", format="tensorflow", overwrite=True)
        assert checkpoint["a"].read().tolist() == [1, 1]
        assert checkpoint["s"].read() == "v1"


def test_a_sharded_saver_writes_a_data_file_for_each_device():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    tree = {"w": jax.device_put(jnp.arange(16.0).reshape(8, 2), rows), "b": np.ones(2), "step": 3}
    for block in (True, False):
        with pts.Saver(sharded=True, format="tensorflow") as saver:
            saver.save(tree, "run/m", int(block), block=block)
        assert len(list(Path("run").glob(f"m-{int(block)}.data-*-of-00004"))) == 4
        assert_trees_equal(pts.restore(f"run/m-{int(block)}", tree), tree)
    assert_trees_equal(pts.restore("run")["b"], np.ones(2))
