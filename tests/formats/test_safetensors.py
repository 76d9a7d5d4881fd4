"""safetensors files and directories that pytreesaver writes: exact, and readable by every reader of safetensors."""

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import pytreesaver as pts
from pytreesaver.formats import safetensors
from pytreesaver.testing import FormatConformance, assert_trees_equal, pytrees, sharded_arrays


class TestSafetensorsFile(FormatConformance):
    format = safetensors


class _Directory:
    """The format with several files."""

    def __getattr__(self, name):
        return getattr(safetensors, name)

    def write(self, path, contents, **options):
        safetensors.write(path, contents, shard_nbytes=1000, **options)


class TestSafetensorsDirectory(FormatConformance):
    format = _Directory()


# Every reader of safetensors loads what pytreesaver writes.


@given(pytrees() | sharded_arrays())
def test_the_safetensors_library_loads_every_file(tree):
    path = pts.save(tree, "model.safetensors", durable=False, overwrite=True)
    with safe_open(path, "numpy") as file:
        # Its NumPy loader knows no 8-bit floats, although they are in the format.
        names = [name for name in file.keys() if not file.get_slice(name).get_dtype().startswith("F8")]  # noqa: SIM118
        assert_same_tensors({name: file.get_tensor(name) for name in names}, path, only=names)


@pytest.mark.parametrize("options", [{}, {"format": "safetensors", "shard_nbytes": 100}])
def test_8_bit_floats_have_their_dtypes(options):
    dtypes = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"}
    tree = {name: jnp.ones((2, 3), name) for name in dtypes}
    path = pts.save(tree, "model" if options else "model.safetensors", **options)
    copy = pts.convert(path, "copy.safetensors")
    with safe_open(copy, "numpy") as file:
        found = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in dtypes}
    assert found == {name: (tag, [2, 3]) for name, tag in dtypes.items()}
    assert_trees_equal(pts.restore(copy), tree)


def test_the_safetensors_library_loads_every_shard():
    tree = {f"layer_{i}": {"w": jnp.full((10, 10), i, jnp.float32), "b": np.zeros(i)} for i in range(5)}
    path = pts.save(tree, "model", format="safetensors", shard_nbytes=900)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in path.glob("*.safetensors"))
    assert files == [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    tensors = {name: load_file(path / file)[name] for name, file in index["weight_map"].items()}
    assert_same_tensors(tensors, path)
    assert_trees_equal(pts.restore(path), tree)


def assert_same_tensors(tensors, path, only=None):
    with pts.load_checkpoint(path) as checkpoint:
        if only is None:
            assert len(tensors) == len(checkpoint)
        for name, variable in checkpoint.items():
            if only is not None and name != "__metadata__" and name not in only:
                continue
            tensor = tensors["__metadata__'" if name == "__metadata__" else name]
            assert tensor.nbytes == variable.nbytes, name
            if variable.dtype != object and variable.read().dtype == tensor.dtype:
                assert tensor.tobytes() == variable.read().tobytes()  # NaNs of bfloat16 are not equal for NumPy


def test_flax_numpy_and_hugging_face_read_the_file():
    params = {"dense": {"kernel": jnp.ones((3, 2), jnp.bfloat16), "bias": np.arange(2, dtype=np.int64)}}
    path = pts.save(params, "model.safetensors", metadata={"epoch": 3})
    with safe_open(path, "flax") as file:
        assert file.metadata()["format"] == "pt"  # Hugging Face's transformers insist on it
        assert file.get_tensor("dense/kernel").dtype == jnp.bfloat16
    assert pts.load_checkpoint(path).metadata == {"epoch": 3}


@given(pytrees())
def test_round_trip(tree):
    assert_trees_equal(pts.restore(pts.save(tree, "model.safetensors", overwrite=True, durable=False)), tree)


def test_one_array_in_two_places_is_one_object_again():
    shared = np.arange(4.0)
    tree = pts.restore(pts.save({"a": shared, "b": shared, "c": np.arange(4.0)}, "model.safetensors"))
    assert tree["a"] is tree["b"] is not tree["c"]
    assert set(load_file("model.safetensors")) == {"a", "b", "c"}


# Files of other programs.


def test_files_of_other_programs_are_restored_as_numpy_arrays():
    tensors = {"model.layers.0.weight": np.ones((2, 3), np.float16), "ids": np.arange(5), "flag": np.array(True)}
    save_file(tensors, "foreign.safetensors", {"origin": "elsewhere"})
    assert_trees_equal(pts.restore("foreign.safetensors"), tensors)
    assert_trees_equal(pts.restore("foreign.safetensors", mmap=True), tensors)
    assert pts.load_checkpoint("foreign.safetensors").metadata == {"origin": "elsewhere"}
    assert pts.list_variables("foreign.safetensors") == [("flag", ()), ("ids", (5,)), ("model.layers.0.weight", (2, 3))]
    like = {"model": {"layers": [{"weight": jax.ShapeDtypeStruct((2, 3), jnp.float32)}]}}
    restored = pts.restore(
        "foreign.safetensors", like, rename=lambda name: name.replace("/", "."), cast=True, unexpected="ignore"
    )
    assert restored["model"]["layers"][0]["weight"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("tag", "dtype"),
    [
        ("F8_E4M3", "float8_e4m3fn"),
        ("F8_E5M2", "float8_e5m2"),
        ("F8_E8M0", "float8_e8m0fnu"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("BF16", "bfloat16"),
        ("C64", "complex64"),
    ],
)
def test_dtypes_that_other_loaders_refuse_are_read(tag, dtype):
    values = np.arange(1, 7).astype(dtype).reshape(2, 3)
    write_safetensors("x.safetensors", {"w": (tag, [2, 3], values.tobytes())})
    (found,) = pts.restore("x.safetensors").values()
    assert found.dtype == dtype
    assert found.tobytes() == values.tobytes()


def write_safetensors(path, tensors):
    entries, offset = {}, 0
    for name, (tag, shape, content) in tensors.items():
        entries[name] = {"dtype": tag, "shape": shape, "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    text = json.dumps(entries).encode()
    content = b"".join(content for _, _, content in tensors.values())
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + content)


def test_a_truncated_download_names_what_is_missing():
    save_file({"a": np.ones(10), "b": np.ones(100)}, "cut.safetensors")
    content = Path("cut.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(content[:-8])
    with pytest.raises(pts.CorruptCheckpointError, match="interrupted download") as caught:
        pts.list_variables("cut.safetensors")
    assert caught.value.damaged == ["b"]
    Path("cut.safetensors").write_bytes(content[:60])
    with pytest.raises(pts.CorruptCheckpointError, match="interrupted download"):
        pts.list_variables("cut.safetensors")


def test_another_program_that_keeps_our_metadata_is_noticed():
    path = pts.save({"w": np.ones(3)}, "model.safetensors")
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    save_file({"w": np.zeros(3)}, path, metadata)
    with pytest.raises(pts.CorruptCheckpointError, match="another program has rewritten the file"):
        pts.restore(path)


# Directories of Hugging Face.


def hugging_face_model():
    directory = Path("hub")
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    save_file({"a": np.ones(3), "b": np.zeros(2)}, directory / "model-00001-of-00002.safetensors")
    save_file({"c": np.arange(4)}, directory / "model-00002-of-00002.safetensors")
    weight_map = {"a": 1, "b": 1, "c": 2}
    index = {
        "metadata": {"total_size": 72},
        "weight_map": {name: f"model-0000{i}-of-00002.safetensors" for name, i in weight_map.items()},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_sharded_model_is_one_checkpoint():
    directory = hugging_face_model()
    expected = {"a": np.ones(3), "b": np.zeros(2), "c": np.arange(4)}
    assert_trees_equal(pts.restore(directory), expected)
    assert_trees_equal(pts.restore(directory, only="c"), {"c": np.arange(4)})
    (directory / "model.safetensors.index.json").unlink()
    assert_trees_equal(pts.restore(directory), expected)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="missing: model-00002-of-00002"):
        pts.restore(directory)


def test_a_model_of_one_file_is_a_checkpoint():
    directory = Path("hub")
    directory.mkdir()
    save_file({"a": np.ones(3)}, directory / "model.safetensors")
    with pytest.raises(pts.CheckpointNotFoundError, match=r"hub/model\.safetensors"):
        pts.restore(directory)
    (directory / "config.json").write_text("{}")
    assert_trees_equal(pts.restore(directory), {"a": np.ones(3)})


def test_what_a_sharded_model_lacks_is_named():
    directory = hugging_face_model()
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="found none") as caught:
        pts.restore(directory)
    assert caught.value.damaged == ["c"]
    save_file({"d": np.arange(4)}, directory / "model-00002-of-00002.safetensors")
    with pytest.raises(pts.CorruptCheckpointError, match="its files lack") as caught:
        pts.restore(directory)
    assert caught.value.damaged == ["c"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b"])
def test_an_index_never_leads_out_of_its_directory(name):
    directory = hugging_face_model()
    index = {"weight_map": {"a": name}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(pts.CorruptCheckpointError, match="in the same directory"):
        pts.restore(directory)


def test_a_model_of_others_is_not_overwritten_or_removed():
    directory = hugging_face_model()
    with pytest.raises(pts.CheckpointExistsError, match=r"config\.json"):
        pts.save({"w": 1}, directory, format="safetensors", shard_nbytes=100, overwrite=True)
    with pytest.raises(pts.CheckpointExistsError, match=r"config\.json"):
        pts.remove_checkpoint(directory)
    assert (directory / "model-00002-of-00002.safetensors").exists()


# Arguments.


def test_the_format_follows_from_the_ending_or_the_argument():
    tree = {"w": np.ones(3)}
    assert pts.save(tree, "a.safetensors").is_file()
    assert pts.save(tree, "b", format="safetensors").is_file()
    assert pts.save(tree, "c.safetensors", format="native").is_dir()
    assert pts.save_async(tree, "d.safetensors").result().is_file()
    for path in ("a.safetensors", "b", "c.safetensors", "d.safetensors"):
        assert_trees_equal(pts.restore(path), tree)
    assert pts.load_checkpoint("b", format="safetensors").format == "safetensors"
    with pytest.raises(
        pts.CheckpointNotFoundError, match=r"expected a checkpoint of the format .safetensors., found one of .native."
    ):
        pts.restore("c.safetensors", format="safetensors")


def test_wrong_arguments_are_refused_before_anything_is_written():
    for options, message in [
        ({"format": "zip"}, 'expected None or "native", "safetensors"'),
        ({"shard_nbytes": 10, "format": "npz"}, 'expected format="native", "safetensors"'),
        ({"shard_nbytes": 0, "format": "safetensors"}, "shard_nbytes"),
        ({"shard_nbytes": "1GB", "format": "safetensors"}, "shard_nbytes"),
    ]:
        for save in (pts.save, pts.save_async):
            with pytest.raises((ValueError, TypeError), match=message):
                save({"w": 1}, "model", **options)
    with pytest.raises(ValueError, match="the path of a directory"):
        pts.save({"w": 1}, "model.safetensors", shard_nbytes=10)
    for name in ("model.npy", "model.PT", "model.h5"):
        with pytest.raises(ValueError, match=r"does not write \.\w+ files; expected a path without the ending"):
            pts.save({"w": 1}, name)
    assert list(Path().iterdir()) == []
    assert pts.save({"w": 1}, "MODEL.SAFETENSORS").is_file()
    assert pts.save({"w": 1}, "model.pt", format="native").is_dir()
    with pts.CheckpointManager("run", checkpoint_name="m.safetensors", block=True) as manager:
        manager.save(1, {"w": 1})
        assert Path("run/m.safetensors-1").is_file()
        assert manager.restore() == {"w": 1}


@pytest.mark.parametrize("nbytes", [(4 << 10) - 8, 4 << 10, (4 << 10) + 8, 100_000])
def test_headers_of_all_lengths_are_read(nbytes):
    empty = json.dumps({"__metadata__": {"x": ""}, "w": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}})
    text = empty.replace('""', f'"{"m" * (nbytes - 8 - len(empty))}"').encode()
    Path("x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"abc")
    assert Path("x.safetensors").stat().st_size == nbytes + 3
    assert pts.restore("x.safetensors")["w"].tobytes() == b"abc"


@pytest.mark.parametrize("read", [pts.restore, pts.load_checkpoint, pts.verify])
def test_a_named_format_has_the_same_rules(read):
    content = b' {"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    Path("x.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    options = {} if read is pts.verify else {"format": "safetensors"}
    with pytest.raises(pts.CheckpointNotFoundError, match=r"x\.safetensors"):
        read("x.safetensors", **options)
