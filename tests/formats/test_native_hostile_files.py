"""Hostile and broken checkpoints that no small file can show: `tests/attacks/` has one for every rule of the format."""

import json
import os
import sys

import numpy as np
import pytest
from attacks.makers.native import put
from helpers import rewrite

import pytreesaver as pts
from pytreesaver.formats.indexed import verifying

TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32), "step": 3, "name": "run"}


@pytest.fixture
def path(tmp_path):
    return pts.save(TREE, tmp_path / "model")


def test_the_helper_makes_valid_indexes(path):
    rewrite(path, lambda index: index.update(metadata={"edited": True}))
    assert pts.restore(path)["step"] == 3
    with pts.load_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"edited": True}


def test_static_fields_build_no_instances_of_unregistered_classes(path):
    structure = {
        "$dataclass": [
            "pytreesaver.testing._strategies:Layer",
            {"kernel": {"$tuple": [0, 1]}, "bias": {"$tuple": [2, 3]}},
            {"activation": {"$dataclass": ["subprocess:Popen", {}]}, "axes": None},
        ]
    }
    rewrite(path, put("structure", structure))
    with pytest.warns(pts.StructureWarning, match="dict of its fields"):
        assert pts.restore(path)["axes"] is None


def test_invalid_utf8_in_a_stored_str_is_reported(path):
    data = path / "data-00000-of-00001.safetensors"
    content = data.read_bytes()
    assert content.count(b"run") == 1
    data.write_bytes(content.replace(b"run", b"\xff\xff\xff"))
    with pytest.raises(pts.CorruptCheckpointError, match="name") as caught:
        pts.restore(path)
    assert caught.value.damaged == ["name"]
    with pytest.raises(pts.CorruptCheckpointError, match="name: the stored bytes are not a valid str") as caught:
        pts.restore(path, verify=False)
    assert caught.value.damaged == ["name"]


def test_a_fifo_is_rejected_without_blocking(path):
    (path / "index.json").unlink()
    os.mkfifo(path / "index.json")
    with pytest.raises(pts.CheckpointIOError, match="Not a regular file"):
        pts.restore(path)


def test_an_index_of_an_impossible_size_is_not_read(path):
    os.truncate(path / "index.json", 8 << 40)
    with pytest.raises(pts.CorruptCheckpointError, match="found a file of 8796093022208 bytes"):
        pts.restore(path)


def test_a_lazily_imported_module_is_not_loaded(tmp_path, path, monkeypatch):
    import importlib.util

    (tmp_path / "lazy_module.py").write_text("open('owned', 'w').close()\nclass Thing: pass\n")
    spec = importlib.util.spec_from_file_location("lazy_module", tmp_path / "lazy_module.py")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lazy_module", module)
    spec.loader.exec_module(module)
    rewrite(path, put("structure", {"$node": ["lazy_module:Thing", [0, 1, 2, 3], None]}))
    with pytest.warns(pts.StructureWarning, match="not imported"):
        pts.restore(path)
    assert not os.path.exists("owned")


def test_an_index_of_a_newer_version_is_rejected(path):
    rewrite(path, put("version", 2))
    with pytest.raises(pts.UnsupportedVersionError, match=r"version 2 .* reads versions up to 1") as caught:
        pts.restore(path)
    assert isinstance(caught.value, ValueError)
    # After an edit by hand, the message starts with the wrong checksum.
    file = path / "index.json"
    file.write_text(file.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(pts.CorruptCheckpointError, match=r"checksum.*version 3"):
        pts.restore(path)


def test_damage_names_every_damaged_variable(path):
    data = path / "data-00000-of-00001.safetensors"
    index = json.loads((path / "index.json").read_text())
    content = bytearray(data.read_bytes())
    for name in ("w", "step"):
        content[index["chunk_offsets"][index["names"].index(name)]] ^= 4
    data.write_bytes(content)
    for read in (pts.restore, pts.verify):
        with pytest.raises(pts.CorruptCheckpointError, match="2 of 4 variables damaged:\n  step\n  w") as caught:
            read(path)
        assert caught.value.damaged == ["step", "w"]
    with pts.load_checkpoint(path) as checkpoint:
        assert checkpoint["b"].read().tolist() == [1, 1, 1, 1]
        with pytest.raises(pts.CorruptCheckpointError, match="w"):
            checkpoint["w"][0]
    assert pts.restore(path, verify=False)["b"].tolist() == [1, 1, 1, 1]


def test_truncated_data_names_the_missing_variables(path):
    data = path / "data-00000-of-00001.safetensors"
    size = data.stat().st_size
    os.truncate(data, size - 1)
    with pytest.raises(pts.CorruptCheckpointError, match=f"expected {size} bytes, found {size - 1}") as caught:
        pts.restore(path)
    assert len(caught.value.damaged) == 1
    os.truncate(data, 0)
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.verify(path)
    assert caught.value.damaged == ["b", "name", "step", "w"]
    data.unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="expected a data file, found none"):
        pts.restore(path)
    assert len(pts.list_variables(path)) == 4


def test_a_damaged_header_does_not_hide_damaged_variables(path):
    data = path / "data-00000-of-00001.safetensors"
    content = bytearray(data.read_bytes())
    content[20] ^= 1
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError, match="its header is damaged") as caught:
        pts.verify(path)
    assert caught.value.damaged == ["name"]


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 1 - 4096])
def test_a_grid_larger_than_its_file_is_damage_and_allocates_no_memory(tmp_path, size):
    path = pts.save({"w": np.zeros(4, np.uint8)}, tmp_path / "model")

    def edit(index):
        index["shapes"][0] = [size]
        index["grids"] = {"0": [[0, 1, size]]}
        start = index["chunk_offsets"][0]
        index["chunk_files"], index["chunk_offsets"] = [0, 0], [start, start + 1]
        index["checksum_block_nbytes"] = 2**63 - 1
        index["checksums"] *= 2
        index["files"][0]["nbytes"] = start + size

    rewrite(path, edit)
    with pytest.raises(pts.CorruptCheckpointError, match=r"expected \d+ bytes, found") as caught:
        pts.restore(path)
    assert caught.value.damaged == ["w"]


@pytest.mark.parametrize("mmap", [False, True])
def test_damage_in_two_data_files_is_reported_together(tmp_path, mmap):
    path = pts.save({name: np.arange(5.0) + i for i, name in enumerate("abc")}, tmp_path / "model")
    (data,) = path.glob("*.safetensors")
    for name in ("data-second", "data-third"):
        (path / f"{name}.safetensors").write_bytes(data.read_bytes())

    def edit(index):
        for i, name in enumerate(("data-second", "data-third"), 1):
            index["files"].append(index["files"][0] | {"name": f"{name}.safetensors"})
            index["chunk_files"][i] = i

    rewrite(path, edit)
    assert pts.restore(path, mmap=mmap)["c"][0] == 2
    data.unlink()
    content = bytearray((path / "data-third.safetensors").read_bytes())
    (start,) = [json.loads((path / "index.json").read_text())["chunk_offsets"][2]]
    content[start] ^= 1
    (path / "data-third.safetensors").write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError, match="expected a data file, found none") as caught:
        pts.restore(path, mmap=mmap)
    assert caught.value.damaged == ["a", "c"]


def test_a_file_truncated_during_verify_is_damage(path, monkeypatch):
    (data,) = path.glob("*.safetensors")
    reader = pts.load_checkpoint(path)
    real = verifying.read_ranges

    def cut_before(*args):
        os.truncate(data, data.stat().st_size - 1)
        return real(*args)

    monkeypatch.setattr(verifying, "read_ranges", cut_before)
    with reader, pytest.raises(pts.CorruptCheckpointError, match="bytes, found"):
        reader.verify()


def test_metadata_with_one_odd_key_is_a_dict(path):
    pts.save(TREE, path, metadata={"$float": "inf"}, overwrite=True)
    assert pts.load_checkpoint(path).metadata == {"$float": "inf"}
