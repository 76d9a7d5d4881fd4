"""Saving into file objects and bytes, and casting while saving."""

import io
import os
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoint.saving import spread
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal, pytrees

TREE = {"w": jnp.arange(600_000.0), "b": (np.ones(3), 7), "name": "digits", "key": jax.random.key(3)}


@given(pytrees())
def test_any_tree_comes_back_from_bytes(tree):
    data = pts.to_bytes(tree, metadata={"a": 1})
    assert type(data) is bytes
    assert_trees_equal(pts.from_bytes(data), tree)
    assert_trees_equal(pts.from_bytes(bytearray(data), tree), tree)


def test_bytes_are_the_file_that_save_writes():
    pts.save(TREE, "model.safetensors")
    data = pts.to_bytes(TREE)
    with open("model.safetensors", "rb") as file:
        assert file.read() == data
    assert safetensors.numpy.load(data)["w"].shape == (600_000,)


def test_options_of_saving_and_restoring():
    data = pts.to_bytes(TREE, only="b/**", cast="float16", metadata={"loss": 0.5})
    assert_trees_equal(pts.from_bytes(data), {"b": (np.ones(3, np.float16), 7)})
    assert pts.from_bytes(pts.to_bytes(TREE), only="name") == {"name": "digits"}
    with pytest.raises(pts.MismatchError, match="other"):
        pts.from_bytes(data, like={"other": 1})


class Reads(io.BytesIO):
    total = 0

    def read(self, size=-1):
        data = super().read(size)
        self.total += len(data)
        return data


def test_a_file_object_is_read_where_it_is_needed():
    file = Reads()
    file.write(b"before")
    pts.save(TREE, file)
    file.seek(6)
    assert_trees_equal(pts.restore(file, only="b/**"), {"b": TREE["b"]})
    assert file.total < 10_000
    file.seek(6)
    assert_trees_equal(pts.restore(file), TREE)
    assert file.read() == b""  # it is left at its end


def test_a_file_on_the_disk():
    with open("model.bin", "wb", buffering=0) as file:
        assert pts.save(TREE, file) is None
    with open("model.bin", "rb") as file:
        assert_trees_equal(pts.restore(file, TREE), TREE)
    os.rename("model.bin", "model.safetensors")
    pts.verify("model.safetensors")


def test_a_pipe_and_a_socket():
    reading, writing = os.pipe()
    thread = threading.Thread(target=lambda: save_and_close(os.fdopen(writing, "wb")))
    thread.start()
    with os.fdopen(reading, "rb") as file:
        assert_trees_equal(pts.restore(file), TREE)
    thread.join()
    left, right = socket.socketpair()
    thread = threading.Thread(target=lambda: save_and_close(left.makefile("wb", buffering=0)) or left.close())
    thread.start()
    with right, right.makefile("rb") as file:
        assert_trees_equal(pts.restore(file), TREE)
    thread.join()


def save_and_close(file):
    with file:
        pts.save(TREE, file)


def test_damage_and_truncation_are_found():
    data = bytearray(pts.to_bytes(TREE))
    damaged = data.copy()
    damaged[-1000] ^= 1
    with pytest.raises(pts.CorruptCheckpointError, match="w"):
        pts.from_bytes(damaged)
    assert pts.from_bytes(damaged, only="name") == {"name": "digits"}
    for end in (0, 5, 100, 5000, len(data) - 1):
        with pytest.raises(pts.CorruptCheckpointError, match="<bytearray>"):
            pts.from_bytes(data[:end])
    for other in (b"not a checkpoint at all", b"PK\x03\x04 a zip", b""):
        with pytest.raises(pts.CorruptCheckpointError, match="expected the bytes of a safetensors file"):
            pts.from_bytes(other)
    with pytest.raises(pts.CorruptCheckpointError, match="<BytesIO>"):
        pts.restore(io.BytesIO(data[:-1]))


def test_wrong_arguments():
    with pytest.raises(TypeError, match="binary file"):
        pts.save(TREE, io.StringIO())
    with pytest.raises(TypeError, match="binary file"):
        pts.restore(io.StringIO("text"))
    with pytest.raises(TypeError, match="contiguous bytes"):
        pts.from_bytes(memoryview(pts.to_bytes(TREE))[::2])
    with pytest.raises(TypeError, match="path"):
        pts.restore(b"model")
    with pytest.raises(ValueError, match="timeout"):
        pts.save(TREE, io.BytesIO(), timeout=-3)
    with pytest.raises(TypeError, match="expected bytes, found 'model'"):
        pts.from_bytes("model")
    with pytest.raises(ValueError, match="are for paths"):
        pts.save(TREE, io.BytesIO(), overwrite=True)
    with pytest.raises(ValueError, match="for a file object"):
        pts.restore(io.BytesIO(), format="npz")
    with pytest.raises(pts.UnsupportedLeafError):
        pts.to_bytes({"w": object()})


def test_an_error_of_the_file_is_raised():
    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(pts.CheckpointIOError, match="No space left"):
        pts.save(TREE, Full())


@pytest.mark.parametrize(("answer", "message"), [(None, "takes no more"), (0, "has written 0"), (-1, "has written -1")])
def test_a_file_that_takes_nothing_is_an_error(answer, message):
    class Stuck(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            return answer

    with pytest.raises(pts.CheckpointIOError, match=message):
        pts.save(TREE, Stuck())


def test_a_pipe_that_does_not_block_is_not_cut_short():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "wb", buffering=0) as file, pytest.raises(pts.CheckpointIOError, match="takes no more"):
        pts.save(TREE, file)
    os.close(reading)


def test_a_file_whose_write_returns_nothing():
    class Quiet:
        data = b""

        def write(self, part):
            self.data += bytes(part)

    file = Quiet()
    pts.save(TREE, file)
    assert_trees_equal(pts.from_bytes(file.data), TREE)


def test_no_engine_of_object_stores_is_needed():
    code = (
        "import sys; sys.modules['obstore'] = None; import pytreesaver as pts; "
        "print(pts.from_bytes(pts.to_bytes({'w': 1})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "{'w': 1}\n"


@pytest.mark.parametrize("save", [pts.save, lambda *a, **o: pts.save_async(*a, **o).result()])
@pytest.mark.parametrize("path", ["model", "model.safetensors", "model.npz"])
def test_a_cast_rounds_as_a_restore_does(save, path):
    generator = np.random.default_rng(0)
    tree = {
        "jax": jnp.asarray(generator.normal(size=5000), jnp.float32),
        "numpy": generator.normal(size=(20, 30)),
        "scalar": np.float32(0.1),
        "ints": np.arange(5),
        "count": 3,
        "ratio": 0.1,
    }
    save(tree, path, cast="bfloat16")
    found = pts.restore(path)
    pts.save(tree, "exact")
    assert_trees_equal(found, pts.restore("exact", cast="bfloat16"))
    assert found["jax"].dtype == ml_dtypes.bfloat16
    assert (found["ints"].dtype, found["ratio"]) == (np.int64, 0.1)


def test_a_cast_of_sharded_arrays():
    x = jax.device_put(jnp.arange(64.0).reshape(8, 8) / 3, spread("x"))
    pts.save({"x": x}, "model", cast=jnp.float16)
    assert_trees_equal(pts.restore("model", as_numpy=True), {"x": np.asarray(x.astype(jnp.float16))})


@pytest.mark.parametrize("save", [pts.save, pts.save_async])
def test_numbers_that_cannot_be_cast_are_all_named_and_nothing_is_written(save):
    tree = {"fine": jnp.ones(3), "large": jnp.array([1.0, 1e30]), "huge": np.array([1e300])}
    with pytest.raises(pts.MismatchError) as caught:
        save(tree, "model", cast="float16")
    assert list(caught.value.dtype) == ["huge", "large"]
    assert "large: expected float16, found float32 (1e+30" in str(caught.value)
    assert not os.path.exists("model")
    with pytest.raises(TypeError, match="cast"):
        save(tree, "model", cast="int8")
    with pytest.raises(pts.MismatchError, match="2 variables of the tree to save to BytesIO"):
        pts.save(tree, io.BytesIO(), cast="float16")


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=20))
def test_a_cast_of_any_floats(values):
    array = np.array(values, np.float32)
    expected = array.astype(ml_dtypes.bfloat16)
    try:
        data = pts.to_bytes({"w": array}, cast="bfloat16")
    except pts.MismatchError:
        assert np.isinf(expected.astype(np.float32)[np.isfinite(array)]).any()
        return
    assert_trees_equal(pts.from_bytes(data), {"w": expected})


def test_an_incremental_save_of_casts():
    tree = {"w": jnp.arange(100_000.0) / 7, "v": jnp.ones(10)}
    pts.save(tree, "first", cast="bfloat16")
    pts.save(tree, "second", base="first", cast="bfloat16")
    with pts.load_checkpoint("second") as checkpoint:
        assert checkpoint.shared_nbytes > 200_000
    restored = pts.restore("second", cast="float32")
    pts.save(restored, "third", base="second")
    assert_trees_equal(pts.restore("third"), restored)


def test_a_cast_on_restore_is_not_taken_for_the_stored_values():
    with jax.enable_x64(True):
        tree = {"w": jnp.arange(100_000.0, dtype=jnp.float64) / 7}
        pts.save(tree, "first")
        rounded = pts.restore("first", cast="float32")
        pts.save(rounded, "second", base="first", cast="float64")
        assert_trees_equal(pts.restore("second"), {"w": rounded["w"].astype(jnp.float64)})
