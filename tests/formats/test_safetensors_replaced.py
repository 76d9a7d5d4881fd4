"""safetensors files that are replaced while they are read, or that lie beside files of others."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal


@pytest.mark.parametrize("calls_before", range(2))
def test_a_file_that_is_replaced_while_it_is_opened_is_read_whole(monkeypatch, calls_before):
    save_file({"a": np.array([1.0]), "b": np.array([2.0])}, "model.safetensors")
    save_file({"b": np.array([20.0]), "a": np.array([10.0])}, "new.safetensors")
    real, calls = filesystem.open_existing, []

    def replacing(path):
        calls.append(path)
        if len(calls) == calls_before + 1:
            os.replace("new.safetensors", "model.safetensors")
        return real(path)

    monkeypatch.setattr(filesystem, "open_existing", replacing)
    restored = pts.restore("model.safetensors")
    assert not os.path.exists("new.safetensors")
    assert (restored["a"].item(), restored["b"].item()) in ((1, 2), (10, 20))


def test_a_file_that_is_replaced_while_it_is_open_is_read_as_it_was():
    save_file({"a": np.array([1.0])}, "model.safetensors")
    with pts.load_checkpoint("model.safetensors") as checkpoint:
        save_file({"b": np.array([20.0]), "a": np.array([10.0])}, "new.safetensors")
        os.replace("new.safetensors", "model.safetensors")
        assert checkpoint["a"].read().item() == 1


@pytest.mark.parametrize("options", [{}, {"shard_nbytes": 4000}])
def test_readers_beside_a_writer_never_see_damage(options):
    def tree(i):
        return {f"v{j}": np.full(100 + i % 7, float(i)) for j in range(20)}

    pts.save(tree(0), "model", format="safetensors", **options)
    stop = threading.Event()

    def write():
        i = 0
        while not stop.is_set():
            i += 1
            pts.save(tree(i), "model", format="safetensors", overwrite=True, durable=False, **options)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(150):
            restored = pts.restore("model")
            assert len({float(value) for array in restored.values() for value in array}) == 1
    finally:
        stop.set()
        writer.join()


def test_our_file_beside_a_configuration_keeps_its_structure_and_checksums():
    tree = {"w": np.arange(100.0), "n": 3, "t": (1, 2)}
    for name in ("model.safetensors", "model-00001-of-00001.safetensors"):
        directory = Path(name.removesuffix(".safetensors"))
        path = pts.save(tree, directory / name, metadata={"epoch": 1})
        (directory / "config.json").write_text("{}")
        assert_trees_equal(pts.restore(directory), tree)
        assert pts.load_checkpoint(directory).metadata == {"epoch": 1}
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        with pytest.raises(pts.CorruptCheckpointError, match="damaged"):
            pts.restore(directory)


def test_a_manager_leaves_models_of_others_alone():
    base = Path("run/base")
    base.mkdir(parents=True)
    for name in ("model-00001-of-00001", "model-00001-of-00002", "model-00002-of-00002"):
        save_file({"w": np.ones(2)}, base / f"{name}.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}, "metadata": None}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert pts.restore(base)["w"].tolist() == [1, 1]
    with pts.CheckpointManager("run", block=True) as manager:
        manager.save(1, {"w": np.ones(2)})
    assert len(list(base.iterdir())) == 4


def test_the_index_of_a_model_is_not_the_model():
    pts.save({"w": np.ones(2)}, "model", format="safetensors", shard_nbytes=100)
    with pytest.raises(pts.CheckpointNotFoundError, match="pass its directory, model"):
        pts.restore("model/model.safetensors.index.json")


def test_a_file_that_shrinks_after_its_first_use_is_damaged():
    path = pts.save({"a": np.arange(4096.0), "b": np.arange(4096.0)}, "model.safetensors")
    with pts.load_checkpoint(path) as checkpoint:
        checkpoint["a"].read()
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(pts.CorruptCheckpointError):
            checkpoint["b"].read()


def test_pointers_of_git_lfs_in_a_model_are_named():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
    for name in ("model.safetensors", "model-00001-of-00001.safetensors"):
        directory = Path(name.removesuffix(".safetensors"))
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        (directory / name).write_bytes(pointer)
        with pytest.raises(pts.CorruptCheckpointError, match="run git lfs pull"):
            pts.restore(directory)


def test_a_directory_of_pytorch_is_named():
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("model/pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(pts.CheckpointNotFoundError, match="a directory of a PyTorch model"):
        pts.restore("model")
