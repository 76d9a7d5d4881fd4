"""One hostile or broken file for every rule of docs/format.md. Each is rejected with an error that names it."""

import json
import os
import sys

import numpy as np
import pytest
import xxhash
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


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def edit(index):
        for key in keys:
            index = index[key]
        index[last] = value

    return edit


HOSTILE = {
    "no format": (lambda index: index.pop("format"), "format"),
    "another format": (put("format", "zip"), 'expected "format": "pytreesaver", found "zip"'),
    "version that is not a number": (put("version", "1"), "version"),
    "no names": (lambda index: index.pop("names"), "names"),
    "names of another type": (put("names", 0, 5), "Expected `str`"),
    "one name twice": (put("names", ["b", "b", "step", "w"]), "more than once"),
    "fewer names than shapes": (put("names", ["b"]), "as many as names"),
    "type that does not exist": (put("type_of", 0, 99), "positions among"),
    "negative type": (put("type_of", 0, -1), "positions among"),
    "unknown kind": (put("types", 0, "kind", "pickle"), "pickle"),
    "unknown dtype": (put("types", 0, "dtype", "float31"), "float31"),
    "dtype of objects": (put("types", 0, "dtype", "object"), "object"),
    "dtype with fields": (put("types", 0, "dtype", "f4,f4"), "f4,f4"),
    "key without implementation": (put("types", 0, {"kind": "key", "dtype": "uint32"}), "implementation"),
    "int of another dtype": (put("types", 0, {"kind": "int", "dtype": "float32"}), "a shape for int"),
    "float with a shape": (put("types", 0, {"kind": "float", "dtype": "float64"}), "a shape for float"),
    "negative length": (put("shapes", 0, [-4]), "no negative length"),
    "shape of 2**124 elements": (put("shapes", 0, [2**62, 2**62]), "fewer than 2\\*\\*63 bytes"),
    "shape of 60,000 axes": (put("shapes", 0, [2**62] * 60_000), "at most 64 axes"),
    "65 axes": (put("shapes", 0, [1] * 65), "at most 64 axes"),
    "empty array of 2**62 elements": (put("shapes", 0, [0, 2**62]), "fewer than"),
    "empty array of 2**63 elements": (put("shapes", 0, [0, 2**63]), "fewer than"),
    "dtype that is an expression": (put("types", 0, "dtype", "(,)f4"), "unknown dtype"),
    "big-endian jax array": (put("types", 0, {"kind": "jax", "dtype": ">float32"}), "a dtype for jax"),
    "jax array of strings": (put("types", 0, {"kind": "jax", "dtype": "U4"}), "a dtype for jax"),
    "version 0": (put("version", 0), "version of at least 1"),
    "metadata that is a list": (put("metadata", [1]), "object of metadata"),
    "one file twice": (lambda index: index["files"].append(index["files"][0]), "different data files"),
    "grid of a number with a leading zero": (put("grids", {"03": [[0, 2], [0, 3]]}), "position of a variable"),
    "grid of a number of 5000 digits": (put("grids", {"1" * 5000: [[0, 2], [0, 3]]}), "position of a variable"),
    "grid of no chunks over an empty array": (
        lambda index: (put("shapes", 0, [0])(index), put("grids", {"0": [[5]]})(index)),
        "a grid for shape",
    ),
    "grid of no chunks": (put("grids", {"3": [[0, 2], [5], [0, 3]]}), "a grid for shape"),
    "larger shape": (put("shapes", 0, [5]), "expected"),
    "file in another directory": (put("files", 0, "name", "../../etc/passwd"), "passwd"),
    "absolute file": (put("files", 0, "name", "/etc/passwd"), "passwd"),
    "file of another kind": (put("files", 0, "name", "index.json"), "index.json"),
    "negative size of a file": (put("files", 0, "nbytes", -1), "header within"),
    "header beyond the file": (put("files", 0, "header_nbytes", 10**9), "header within"),
    "chunk in no file": (put("chunk_files", 0, 7), "positions among 1 files"),
    "missing chunk": (lambda index: index["chunk_offsets"].pop(), "4 chunks"),
    "chunk in the header": (put("chunk_offsets", 0, 8), "expected no overlap"),
    "chunk beyond the file": (put("chunk_offsets", 0, 10**12), "within data-"),
    "overlapping chunks": (
        lambda index: index["chunk_offsets"].__setitem__(0, index["chunk_offsets"][3]),
        "expected no overlap",
    ),
    "chunk beyond its file": (put("chunk_offsets", 0, 2**40), "bytes within"),
    "chunk that ends beyond its file": (
        lambda index: put("chunk_offsets", 0, index["files"][0]["nbytes"] - 1)(index),
        "bytes within",
    ),
    "chunk at 2**63 - 1": (put("chunk_offsets", 0, 2**63 - 1), "bytes within"),
    "chunk at 2**63": (put("chunk_offsets", 0, 2**63), "offsets from 0 to"),
    "chunk before its file": (put("chunk_offsets", 0, -1), "offsets from 0 to"),
    "grid of no variable": (put("grids", {"99": [[0, 2], [0, 3]]}), "position of a variable"),
    "grid of another shape": (put("grids", {"3": [[0, 2], [0, 4]]}), "a grid for shape"),
    "grid with a gap": (put("grids", {"3": [[1, 2], [0, 3]]}), "a grid for shape"),
    "grid that goes back": (put("grids", {"3": [[0, 2, 1, 2], [0, 3]]}), "a grid for shape"),
    "more chunks than offsets": (put("grids", {"3": [[0, 1, 2], [0, 1, 2, 3]]}), "9 chunks, found"),
    "block of no bytes": (put("checksum_block_nbytes", 0), "positive checksum_block_nbytes"),
    "too few checksums": (put("checksums", ""), "checksums of 16 digits"),
    "checksums in other digits": (lambda index: put("checksums", "G" * len(index["checksums"]))(index), "hexadecimal"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_index_that_breaks_a_rule_is_rejected(path, case):
    edit, message = HOSTILE[case]
    rewrite(path, edit)
    for read in (pts.restore, pts.load_checkpoint, pts.verify, pts.list_variables):
        with pytest.raises(pts.CorruptCheckpointError, match=message) as caught:
            read(path)
        assert str(path / "index.json") in str(caught.value)


STRUCTURES = {
    "leaf that does not exist": {"b": 0, "name": 1, "step": 2, "w": 99},
    "leaf used twice": {"b": 0, "name": 1, "step": 2, "w": 2},
    "leaf left out": {"b": 0, "name": 1, "step": 2},
    "float for a leaf": {"b": 0.5},
    "unknown kind of node": {"$exec": "rm -rf /"},
    "tuple of a number": {"$tuple": 5},
    "namedtuple without fields": {"$namedtuple": ["collections:OrderedDict"]},
    "keys that cannot be keys": {"$dict": [[{"$tuple": []}, 0]]},
    "too deep": None,
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_a_structure_that_breaks_a_rule_is_rejected(path, case):
    structure = STRUCTURES[case]
    if structure is None:
        for _ in range(900):
            structure = [structure]
    rewrite(path, put("structure", structure))
    with pytest.raises(pts.CorruptCheckpointError, match=str(path)):
        pts.restore(path)
    template = {"w": TREE["w"], "b": TREE["b"], "step": 0, "name": ""}
    if case != "too deep":
        assert pts.restore(path, like=template)["step"] == 3  # a template needs no stored structure


@pytest.mark.parametrize(
    "structure",
    [
        {"$namedtuple": ["subprocess:Popen", {"args": 0, "b": 1, "c": 2, "d": 3}]},
        {"$dataclass": ["subprocess:Popen", {"args": 0, "b": 1, "c": 2, "d": 3}, {}]},
        {"$node": ["subprocess:Popen", [0, 1, 2, 3], "touch owned"]},
        {"$node": ["os:system", [0, 1, 2, 3], "touch owned"]},
        {"$node": ["this:Anything", [0, 1, 2, 3], None]},
        {"$dataclass": ["antigravity:Anything", {"a": 0, "b": 1, "c": 2, "d": 3}, {}]},
    ],
)
def test_a_structure_cannot_import_or_run_anything(path, structure):
    import subprocess

    assert subprocess.Popen
    rewrite(path, put("structure", structure))
    before = set(sys.modules)
    with pytest.warns(pts.StructureWarning, match="is restored as"):
        pts.restore(path)
    assert not {"this", "antigravity"} & (set(sys.modules) - before)
    assert not os.path.exists("owned")


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


def test_an_index_with_invalid_utf8_is_rejected(path):
    file = path / "index.json"
    body = file.read_bytes().rpartition(b'"checksum"')[0].replace(b'"step"', b'"st\xffp"')
    file.write_bytes(body + f'"checksum":"{xxhash.xxh3_64_hexdigest(body)}"}}\n'.encode())
    for read in (pts.restore, pts.list_variables, pts.verify):
        with pytest.raises(pts.CorruptCheckpointError, match="a damaged one"):
            read(path)


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


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"format":"\xff"}', b'{"format":"pytreesaver"', b"[" * 100_000],
)
def test_content_that_is_not_an_index_is_rejected(path, content):
    (path / "index.json").write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError, match=r"index\.json: expected"):
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


@pytest.mark.parametrize(
    "metadata", [{"$float": "inf"}, {"$int": "0xff"}, {"$slice": [1]}, {"$tuple": []}, [1]], ids=str
)
def test_metadata_that_is_no_dict(path, metadata):
    rewrite(path, put("metadata", metadata))
    for read in (pts.restore, pts.load_checkpoint, pts.verify):
        with pytest.raises(pts.CorruptCheckpointError, match="an object of metadata"):
            read(path)


def test_metadata_with_one_odd_key_is_a_dict(path):
    pts.save(TREE, path, metadata={"$float": "inf"}, overwrite=True)
    assert pts.load_checkpoint(path).metadata == {"$float": "inf"}
