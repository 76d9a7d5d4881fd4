"""The data files are valid safetensors files, which the readers of safetensors load correctly."""

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

import pytreesaver as pts
from pytreesaver.testing import pytrees, sharded_arrays


def data_file(path):
    (file,) = path.glob("*.safetensors")
    return file


@given(pytrees())
def test_the_safetensors_loader_reads_every_data_file(tree):
    shutil.rmtree("checkpoint", ignore_errors=True)
    path = pts.save(tree, "checkpoint", durable=False)
    tensors = load_file(data_file(path))
    with pts.load_checkpoint(path) as checkpoint:
        assert len(tensors) == len(checkpoint)
        for name, variable in checkpoint.items():
            tensor = tensors["__metadata__'" if name == "__metadata__" else name]
            assert tensor.nbytes == variable.nbytes
            if variable.dtype == object:
                continue
            values = variable.read()
            if values.dtype.byteorder == ">":
                values = values.astype(values.dtype.newbyteorder("<"))
            assert tensor.tobytes() == values.tobytes()
            if tensor.dtype == values.dtype:
                assert tensor.shape == values.shape


@given(st.dictionaries(st.sampled_from("ab"), sharded_arrays(), max_size=2))
def test_each_shard_is_a_tensor_of_its_own(tree):
    shutil.rmtree("checkpoint", ignore_errors=True)
    path = pts.save(tree, "checkpoint", durable=False)
    tensors = load_file(data_file(path))
    for name, array in tree.items():
        shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
        if len(shards) == 1 or array.size == 0:
            assert tensors[name].tobytes() == np.asarray(array).tobytes()
            continue
        for shard in shards:
            bounds = [part.indices(length)[:2] for part, length in zip(shard.index, array.shape, strict=True)]
            box = ", ".join(f"{a}:{b}" for a, b in bounds)
            assert tensors[f"{name}[{box}]"].tobytes() == np.asarray(shard.data).tobytes()


def test_common_dtypes_are_stored_as_themselves():
    tree = {
        name: np.ones(3, name)
        for name in ("bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64")
    }
    tree["bfloat16"] = jnp.ones(3, jnp.bfloat16)
    tensors = load_file(data_file(pts.save(tree, "checkpoint")))
    for name, tensor in tensors.items():
        assert tensor.dtype == name
        assert tensor.tolist() == [1, 1, 1]


def test_large_variables_are_page_aligned():
    tree = {f"odd{i}": np.zeros(i, np.int8) for i in range(1, 9)}
    tree |= {f"page{i}": np.zeros(4096 * i, np.int8) for i in range(1, 4)}
    tree |= {f"line{i}": np.zeros(64 * i, np.int8) for i in range(1, 20, 2)}
    path = pts.save(tree, "checkpoint")
    content = data_file(path).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 4096 == 0
    for name in tree:
        begin = 8 + length + header[name]["data_offsets"][0]
        assert begin % (4096 if name.startswith("page") else 64 if name.startswith("line") else 1) == 0


def test_equal_trees_are_stored_as_equal_bytes():
    tree = {"w": jnp.arange(100.0), "key": jax.random.key(0), "s": "text"}
    first, second = (pts.save(tree, name, metadata={"a": 1}) for name in ("one", "two"))
    for name in ("index.json", "data-00000-of-00001.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_index_is_readable_json():
    path = pts.save({"w": jnp.zeros((2, 3)), "n": (1, None)}, "checkpoint", metadata={"loss": 0.5})
    index = json.loads((path / "index.json").read_text())
    assert index["format"] == "pytreesaver"
    assert index["metadata"] == {"loss": 0.5}
    assert index["names"] == ["n/0", "w"]
    assert index["structure"] == {"w": 1, "n": {"$tuple": [0, None]}}
    assert index["shapes"] == [[], [2, 3]]


def test_safetensors_opens_a_single_tensor():
    path = pts.save({"layer": {"w": np.arange(6).reshape(2, 3)}}, "checkpoint")
    with safe_open(data_file(path), framework="np") as file:
        assert file.metadata()["format"] == "pytreesaver"
        assert file.get_slice("layer/w")[1:].tolist() == [[3, 4, 5]]
