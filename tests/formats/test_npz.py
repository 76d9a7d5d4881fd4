"""npz archives: those that NumPy wrote are read, and NumPy reads those that pytreesaver writes."""

import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given

import pytreesaver as pts
from pytreesaver.formats import npz
from pytreesaver.formats.npz.writing import npy_header
from pytreesaver.testing import FormatConformance, assert_trees_equal, pytrees


class TestNpzFormat(FormatConformance):
    format = npz


@given(pytrees())
def test_numpy_loads_every_archive(tree):
    assume(jax.tree.leaves(tree))
    path = pts.save(tree, "model.npz", durable=False, overwrite=True)
    with np.load(path) as archive, pts.load_checkpoint(path) as checkpoint:
        assert len(archive.files) == len(checkpoint)
        for entry, (name, variable) in zip(archive.files, checkpoint.items(), strict=True):
            assert entry.replace("\\0", "\0").rstrip("'") == name.rstrip("'")
            assert archive[entry].nbytes == variable.nbytes


def test_the_ending_chooses_the_format():
    tree = {"params": {"w": jnp.ones((2, 3), jnp.bfloat16), "b": np.zeros(3)}, "step": (1, 2.5), "name": "run"}
    path = pts.save(tree, "model.npz", metadata={"epoch": 1})
    assert zipfile.is_zipfile(path)
    assert_trees_equal(pts.restore(path), tree)
    with pts.load_checkpoint(path) as checkpoint:
        assert (checkpoint.format, checkpoint.metadata) == ("npz", {"epoch": 1})
    assert np.load(path)["params/b"].tolist() == [0, 0, 0]
    assert_trees_equal(pts.restore(pts.convert(path, "native")), tree)
    with pts.CheckpointManager("run", max_to_keep=2, format="npz", block=True) as manager:
        for step in range(4):
            manager.save(step, tree)
        assert manager.all_steps() == [2, 3]
        assert_trees_equal(manager.restore(), tree)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_others(save):
    arrays = {
        "params/w": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "params/b": np.arange(3, dtype=">i4"),
        "low": np.ones(3, ml_dtypes.bfloat16),
        "text": np.array(["a", "bc"]),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 4), np.int8),
    }
    save("model.npz", **arrays)
    restored = pts.restore("model.npz")
    assert restored["params"]["w"].tolist() == arrays["params/w"].tolist()
    assert restored["params"]["b"].tolist() == [0, 1, 2]
    assert restored["low"].dtype == ml_dtypes.bfloat16
    assert restored["text"].tolist() == ["a", "bc"]
    assert restored["scalar"] == np.float32(2.5)
    assert restored["empty"].shape == (0, 4)
    assert pts.load_checkpoint("model.npz")["params/w"][1].tolist() == [3, 4, 5]
    like = {"params": {"w": jnp.zeros((2, 3)), "b": np.zeros(3, np.int32)}}
    assert pts.restore("model.npz", like, only="params", cast=True)["params"]["w"].dtype == jnp.float32
    pts.verify("model.npz")


def test_python_objects_are_never_unpickled():
    np.savez("evil.npz", w=np.ones(2), pickled=np.array([{"a": 1}], dtype=object))
    for read in (lambda: pts.restore("evil.npz"), lambda: pts.load_variable("evil.npz", "pickled")):
        with pytest.raises(pts.UnsupportedLeafError, match="pickled: an array of Python objects, which is a pickle"):
            read()
    assert pts.restore("evil.npz", only="w")["w"].tolist() == [1, 1]
    pts.verify("evil.npz")
    for lossy in (False, True):
        with pytest.raises(pts.UnsupportedLeafError) if not lossy else pytest.warns(match="pickled"):
            pts.convert("evil.npz", "good", lossy=lossy)
    assert pts.restore("good")["w"].tolist() == [1, 1]
    with pytest.raises(pts.UnsupportedLeafError, match=r"cannot be copied; .*\n  renamed: an array"):
        pts.copy_checkpoint("evil.npz", "copy", rename={"renamed": "pickled"})
    assert not Path("copy").exists()
    with pytest.warns(match="renamed: an array"):
        pts.convert("evil.npz", "converted", rename={"renamed": "pickled"}, lossy=True)
    assert list(pts.restore("converted")) == ["w"]


def test_damage_is_named():
    np.savez("model.npz", first=np.arange(1000.0), second=np.arange(1000.0))
    content = bytearray(Path("model.npz").read_bytes())
    place = content.index(np.arange(1000.0).tobytes()[800:]) + 8
    content[place] ^= 1
    Path("model.npz").write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.restore("model.npz")
    assert caught.value.damaged == ["first"]
    Path("model.npz").write_bytes(content[:5000])
    with pytest.raises(pts.CorruptCheckpointError, match=r"model\.npz"):
        pts.restore("model.npz")


def test_an_archive_that_claims_to_be_huge_is_refused():
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", npy_header(np.dtype("f8"), (1 << 40,)) + bytes(1000))
        archive.writestr("x.npy", npy_header(np.dtype("f8"), (1 << 60, 1 << 60)))
    with pytest.raises(pts.CorruptCheckpointError, match="w: expected an array of NumPy"):
        pts.restore("bomb.npz")
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", npy_header(np.dtype("f8"), (1 << 40,)) + bytes(1000))
    with pytest.raises(pts.CorruptCheckpointError, match="w: expected an array of NumPy"):
        pts.restore("bomb.npz")


def test_other_zip_archives_are_named():
    with zipfile.ZipFile("model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(pts.CheckpointNotFoundError, match="a file of PyTorch"):
        pts.restore("model.pt")
    with pytest.raises(pts.CheckpointNotFoundError, match="expected an npz archive"):
        pts.restore("model.pt", format="npz")


def test_a_flipped_bit_in_the_comment_does_not_make_it_a_file_of_another_program(tmp_path):
    path = pts.save({"t": (1, "x"), "k": jax.random.key(0)}, tmp_path / "m.npz")
    content = path.read_bytes()
    start = content.rindex(b"pytreesaver description")
    for position in range(start, len(content)):
        for bit in (0, 4):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(pts.CheckpointError):
                pts.verify(path)
