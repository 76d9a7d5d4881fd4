"""Damaged and hostile files of msgpack, and other files that look like them."""

import os
import tarfile
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import pytest
from helpers import message_of
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._io import filesystem
from pytreesaver.testing import assert_trees_equal


def test_a_truncated_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "m.msgpack"
    for content in (
        flax.serialization.to_bytes({"w": np.arange(5), "n": 1, "s": "text"}),
        pts.save({"w": np.arange(5), "n": 1}, tmp_path / "other.msgpack").read_bytes(),
    ):
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(pts.CheckpointError, match=r"m\.msgpack"):
                pts.restore(path)


def test_arrays_of_several_processes_are_named(tmp_path):
    content = flax.serialization.msgpack_serialize({"a": {"w": "//GDAPlaceholder:a/w"}})
    (tmp_path / "checkpoint_1").write_bytes(content)
    message = message_of(pts.UnsupportedLeafError, lambda: pts.restore(tmp_path / "checkpoint_1"))
    assert "a/w: an array of several processes" in message


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content):
    Path("any").write_bytes(content)
    try:
        pts.restore("any", format="msgpack")
    except pts.CheckpointError:
        pass
    os.unlink("any")


# Other files.


def test_a_file_that_is_truncated_while_it_is_read_is_damage(monkeypatch):
    Path("c.msgpack").write_bytes(flax.serialization.to_bytes({f"l{i}": np.ones((100, 100)) for i in range(30)}))
    real, calls = filesystem.read_into, []

    def truncated_meanwhile(descriptor, buffer, offset):
        calls.append(offset)
        if len(calls) == 4:
            Path("c.msgpack").write_bytes(b"")
        return real(descriptor, buffer, offset)

    monkeypatch.setattr(filesystem, "read_into", truncated_meanwhile)
    with pytest.raises(pts.CheckpointError, match=r"c\.msgpack"):
        pts.restore("c.msgpack")


def test_files_that_contain_a_checkpoint_are_none():
    pts.save({"w": np.ones(1)}, "small.msgpack")
    content = Path("small.msgpack").read_bytes()
    pts.save({"w": np.ones(1)}, "native")
    with tarfile.open("archive.tar", "w") as archive:
        archive.add("small.msgpack")
        archive.add("native")
    Path("log.txt").write_text("INFO index " * 10 + '{"format":"pytreesaver","version":1}\n')
    Path("wrapped").write_bytes(b"text " + content)
    for name in ("archive.tar", "log.txt", "wrapped"):
        with pytest.raises(pts.CheckpointNotFoundError):
            pts.restore(name)
        with pytest.raises(pts.CheckpointExistsError):
            pts.save({"w": np.ones(1)}, name, format="msgpack", overwrite=True)
        with pytest.raises(pts.CheckpointNotFoundError):
            pts.remove_checkpoint(name)
    tree = {"a": {"note": "x" * 50 + '{"format":"pytreesaver"}', "blob": content}}
    Path("flax").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert_trees_equal(pts.restore("flax"), tree)


def test_a_single_array_and_an_empty_dict_of_flax_are_read():
    Path("array").write_bytes(flax.serialization.msgpack_serialize(np.arange(3)))
    assert pts.restore("array").tolist() == [0, 1, 2]
    Path("empty").write_bytes(flax.serialization.msgpack_serialize({}))
    assert pts.restore("empty", format="msgpack") == {}


@pytest.mark.parametrize("length", [31, 32, 255, 256, 30_000])
def test_names_of_any_length_keep_their_types(length):
    tree = {"k" * length: (1, 2.0), "w": jax.random.key(0)}
    pts.save(tree, "m.msgpack", overwrite=True)
    assert_trees_equal(pts.restore("m.msgpack"), tree)
    content = bytearray(Path("m.msgpack").read_bytes())
    for position in [*range(min(length, 40) + 80), length + 5, length + 60]:
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        Path("m.msgpack").write_bytes(changed)
        with pytest.raises(pts.CheckpointError):
            pts.verify("m.msgpack")


def test_names_that_cannot_be_read_again_are_refused():
    for tree in ({"k" * 70_000: 1}, {"a" * 70_000: {}, "w": 1}, {"__msgpack_chunked_array__": 1}):
        message = message_of(pts.UnsupportedLeafError, lambda tree=tree: pts.save(tree, "m.msgpack"))
        assert "Flax" in message or "32768 bytes" in message


def test_the_newest_file_of_flax_is_the_one_of_the_last_step():
    Path("run").mkdir()
    for step in (100, 9, 1):  # as a copy may write them
        Path(f"run/checkpoint_{step}").write_bytes(flax.serialization.to_bytes({"w": np.full(2, step)}))
        Path(f"run/step_{step}.msgpack").write_bytes(flax.serialization.to_bytes({"w": np.full(2, step)}))
    assert pts.latest_checkpoint("run").name in ("checkpoint_100", "step_100.msgpack")
    for path in Path("run").glob("checkpoint_*"):
        path.unlink()
    assert pts.restore("run")["w"].tolist() == [100, 100]
    assert sorted(each.step for each in pts.list_checkpoints("run")) == [1, 9, 100]
