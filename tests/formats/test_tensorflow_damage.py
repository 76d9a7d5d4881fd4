"""Damaged and hostile checkpoints of TensorFlow, and those of killed processes."""

import gc
import json
import os
import resource
import shutil
import time
from pathlib import Path

import cramjam
import flax.serialization
import numpy as np
import pytest
from helpers import message_of
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._io.checksums.crc32c import crc32c, masked
from pytreesaver.formats.tensorflow.bundle import slice_key
from pytreesaver.formats.tensorflow.messages import Entry, Extent, encode_entry, encode_header
from pytreesaver.formats.tensorflow.strings import encode_strings
from pytreesaver.formats.tensorflow.table import encode_varint, read_table, write_table

SAMPLES = Path(__file__).parents[1] / "data" / "of_tensorflow"
TENSORS = json.loads((SAMPLES / "tensors.json").read_text())
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def small_checkpoint(directory, *, of_tensorflow):
    if of_tensorflow:
        shutil.copytree(SAMPLES / "partitioned", directory)
        return Path(directory) / "partitioned.ckpt"
    tree = {"w": np.arange(3), "s": "text", "t": np.array([b"ab"])}
    return pts.save(tree, Path(directory) / "m", format="tensorflow")


@pytest.mark.parametrize("of_tensorflow", [True, False])
def test_every_flipped_bit_and_every_truncation_is_an_error_by_name(tmp_path, of_tensorflow):
    path = small_checkpoint(tmp_path / "run", of_tensorflow=of_tensorflow)
    files = [file for file in path.parent.iterdir() if file.suffix != ".meta" and file.name != "checkpoint"]
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        step = 1 if len(content) < 700 else 5
        for position in range(0, len(content), step):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            file.write_bytes(changed)
            with pytest.raises(pts.CheckpointError) as caught:
                pts.restore(path)
            assert path.name in str(caught.value)
            with pytest.raises(pts.CheckpointError):
                pts.verify(path)
        for length in range(0, len(content), step):
            file.write_bytes(content[:length])
            with pytest.raises(pts.CheckpointError) as caught:
                pts.restore(path)
            assert path.name in str(caught.value)
        file.write_bytes(content)
    pts.verify(path)


def test_a_missing_data_file_names_its_variables(tmp_path):
    shutil.copytree(SAMPLES / "sharded", tmp_path / "run")
    (tmp_path / "run" / "sharded.ckpt-10.data-00001-of-00003").unlink()
    with pytest.raises(pts.CorruptCheckpointError, match="expected a data file, found none") as caught:
        pts.restore(tmp_path / "run" / "sharded.ckpt-10")
    assert len(caught.value.damaged) == 1
    assert not pts.checkpoint_exists(tmp_path / "run" / "sharded.ckpt-10")


FLOAT = Entry(1, (1,), 0, 0, 4, masked(crc32c(bytes(4))))
HEADER = (b"", encode_header(1))


def table(*entries, header=HEADER):
    return write_table([header, *sorted(entries)])


def damaged(position, byte):
    content = bytearray(table((b"w", encode_entry(FLOAT))))
    content[position] = byte
    return bytes(content)


def block(content, kind=0):
    return content + bytes([kind]) + masked(crc32c(content + bytes([kind]))).to_bytes(4, "little")


def table_of_block(content, kind=0):
    """Return a table with this single data block."""
    data = block(content, kind)
    empty = block(bytes(4) + b"\1\0\0\0")
    handle = encode_varint(0) + encode_varint(len(content))
    index = block(b"\0\1" + bytes([len(handle)]) + b"z" + handle + bytes(4) + b"\1\0\0\0")
    places = [(len(data), len(empty) - 5), (len(data) + len(empty), len(index) - 5)]
    footer = b"".join(encode_varint(number) for place in places for number in place).ljust(40, b"\0")
    return data + empty + index + footer + bytes.fromhex("57fb808b247547db")


ONE_RESTART = bytes(4) + b"\1\0\0\0"


def test_keys_that_grow_without_end_take_bounded_memory(tmp_path):
    entries = b"\0\0\0" + b"".join(
        encode_varint(length) + b"\1\0" + b"a" for length in range(300_000)
    )  # each key is one byte longer than the one before
    (tmp_path / "m.index").write_bytes(table_of_block(entries + ONE_RESTART))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = message_of(pts.CorruptCheckpointError, lambda: pts.restore(tmp_path / "m", format="tensorflow"))
    assert "much longer than the table" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10


def test_a_compressed_index_is_read(tmp_path):
    content, empty = write_table([HEADER, *((f"w{i:03}".encode(), encode_entry(FLOAT)) for i in range(100))]), b""
    entries, _ = read_table(content)
    plain = content[: content.index(block(ONE_RESTART)) - 5]  # the only data block
    assert read_table(table_of_block(bytes(cramjam.snappy.compress_raw(plain)), 1))[0] == entries
    (tmp_path / "m.index").write_bytes(table_of_block(bytes(cramjam.snappy.compress_raw(plain)), 1))
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(4) + empty)
    assert len(pts.restore(tmp_path / "m")) == 100


@given(st.binary(max_size=300), st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_changed_tables_are_read_or_refused(content, position, change):
    whole = bytearray(table((b"w", encode_entry(FLOAT))) if len(content) < 5 else content)
    whole[position : position + len(change)] = change
    try:
        read_table(bytes(whole))
    except ValueError:
        return


def test_numbers_of_the_other_byte_order_are_read(tmp_path):
    values = np.arange(6, dtype=">f4").reshape(2, 3)
    strings, checksum = encode_strings([b"ab"])
    lengths = crc32c((2).to_bytes(4, "big"))
    stored = masked(lengths).to_bytes(4, "big")
    strings = b"\2" + stored + b"ab"
    checksum = masked(crc32c(b"ab", crc32c(stored, lengths)))
    content = values.tobytes() + strings
    entries = [
        (b"s", encode_entry(Entry(7, (), 0, values.nbytes, len(strings), checksum))),
        (b"w", encode_entry(Entry(1, (2, 3), 0, 0, values.nbytes, masked(crc32c(values.tobytes()))))),
    ]
    (tmp_path / "m.index").write_bytes(write_table([(b"", b"\x08\1\x10\1\x1a\2\x08\1"), *entries]))
    (tmp_path / "m.data-00000-of-00001").write_bytes(content)
    tree = pts.restore(tmp_path / "m")
    assert tree["w"].tolist() == values.tolist()
    assert tree["s"] == b"ab"


# Strings, and slices that form no grid.


def write_tensors(prefix, tensors):
    """Write a checkpoint of (key, entry, content) as TensorFlow does."""
    content, entries = b"", []
    for key, entry, part in tensors:
        entries.append((key, encode_entry(entry._replace(offset=len(content), nbytes=len(part)))))
        content += part
    Path(f"{prefix}.data-00000-of-00001").write_bytes(content)
    Path(f"{prefix}.index").write_bytes(table(*entries))


def string_tensor(strings, shape):
    content, checksum = encode_strings(strings)
    return Entry(7, shape, 0, 0, 0, checksum), content


def test_strings_that_numpy_cannot_hold_are_lists_and_quick():
    strings = [b"ab\0"] * 20_000
    write_tensors("m", [(b"s", *string_tensor(strings, (100, 200)))])
    started = time.monotonic()
    assert pts.restore("m") == {"s": [[b"ab\0"] * 200] * 100}
    pts.verify("m")
    assert time.monotonic() - started < 10
    write_tensors("one", [(b"s", *string_tensor([b"\0"], (1,)))])
    assert pts.restore("one") == {"s": [b"\0"]}


def test_lists_of_strings_beside_tensors_of_their_names():
    tensors = [(b"s", *string_tensor([b"a\0", b"b"], (2,))), (b"s/0", *string_tensor([b"c"], ()))]
    write_tensors("m", tensors)
    assert pts.restore("m") == {"s[]": [b"a\0", b"b"], "s": {"0": b"c"}}
    assert [name for name, _ in pts.list_variables("m")] == ["s/0", "s[]/0", "s[]/1"]


@pytest.mark.parametrize("strings", [[], [b"hi", b"other"]])
def test_a_string_of_another_count_is_damage(strings):
    path = pts.save({"a": "hi"}, "m", format="tensorflow")
    pairs, description = read_table(Path("m.index").read_bytes(), b"pytreesaver.description")
    content, checksum = encode_strings(strings)
    (data,) = Path().glob("m.data*")
    data.write_bytes(content)
    entry = Entry(7, (len(strings),), 0, 0, len(content), checksum)
    changed = [pairs[0], (b"a", encode_entry(entry))]
    Path("m.index").write_bytes(write_table(changed, {b"pytreesaver.description": description}))
    for read in (pts.restore, pts.verify):
        with pytest.raises(pts.CorruptCheckpointError) as caught:
            read(path)
        assert caught.value.damaged == ["a"]


def sliced(name, shape, extents, itemsize=1):
    yield name, Entry(4, shape, 0, 0, 0, 0, tuple(extents)), b""
    for each in dict.fromkeys(extents):
        part = tuple(size if one.length is None else one.length for one, size in zip(each, shape, strict=True))
        content = bytes([7]) * int(np.prod(part))
        yield slice_key(name, each), Entry(4, part, 0, 0, 0, masked(crc32c(content))), content


WHOLE = Extent(0, None)
HOLES = {
    "overlaps as large as the hole": (
        (101, 101, 101),
        [(Extent(0, 100), WHOLE, WHOLE), *[(Extent(i, 1),) * 3 for i in range(100)], (Extent(0, 1), WHOLE, WHOLE)],
    ),
    "a hole in a row": ((4, 6), [(Extent(0, 3), WHOLE), (Extent(3, 1), Extent(0, 5)), (Extent(3, 1), Extent(0, 1))]),
}


@pytest.mark.parametrize(("shape", "extents"), HOLES.values(), ids=HOLES)
def test_slices_with_a_hole_are_damage(shape, extents):
    write_tensors("m", sliced(b"t", shape, extents))
    with pytest.raises(pts.CorruptCheckpointError, match=r"cover|too many"):
        pts.restore("m")


def test_many_slices_are_put_together_or_refused_at_once():
    started = time.monotonic()
    write_tensors("m", sliced(b"t", (20_000,), [*((Extent(i, 0),) for i in range(20_000)), (WHOLE,)]))
    assert pts.restore("m")["t"].tolist() == [7] * 20_000
    diagonal = [(Extent(i, 1), Extent(i, 1)) for i in range(999)]
    write_tensors("n", sliced(b"t", (999, 999), [*diagonal, (Extent(0, 500), WHOLE), (Extent(500, 499), WHOLE)]))
    assert (pts.restore("n")["t"] == 7).all()
    assert time.monotonic() - started < 20


def test_blocks_that_are_named_many_times_are_refused(tmp_path):
    builder_of = table((b"w", encode_entry(FLOAT)))
    big = block(bytes(1 << 20))
    names = [(b"%05d" % i, encode_varint(0) + encode_varint(len(big) - 5)) for i in range(2000)]
    for index_entries in (names,):
        index = block(b"".join(
            b"\0" + encode_varint(len(key)) + encode_varint(len(value)) + key + value for key, value in index_entries
        ) + ONE_RESTART)  # fmt: skip
        empty = block(ONE_RESTART)
        places = [(len(big), len(empty) - 5), (len(big) + len(empty), len(index) - 5)]
        footer = b"".join(encode_varint(number) for place in places for number in place).ljust(40, b"\0")
        (tmp_path / "m.index").write_bytes(big + empty + index + footer + builder_of[-8:])
        started = time.monotonic()
        with pytest.raises(pts.CorruptCheckpointError, match=r"m\.index"):
            pts.list_variables(tmp_path / "m")
        assert time.monotonic() - started < 2


def test_every_damaged_variable_of_numbers_and_strings_is_named():
    tree = {"w": np.arange(3), "v": np.ones(2), "s": "text", "t": b"more", "fine": np.zeros((0, 2))}
    path = pts.save(tree, "m", format="tensorflow")
    (data,) = Path().glob("m.data*")
    data.write_bytes(bytes(byte ^ 1 for byte in data.read_bytes()))
    for read in (pts.restore, pts.verify):
        with pytest.raises(pts.CorruptCheckpointError, match="4 of 5 variables damaged") as caught:
            read(path)
        assert sorted(caught.value.damaged) == ["s", "t", "v", "w"]


@pytest.mark.parametrize("ending", ["tensorflow", "msgpack", "npz", "safetensors"])
def test_readers_that_are_dropped_or_closed_twice_leave_no_file_open(ending):
    if ending == "tensorflow":
        path = pts.save({"w": np.arange(3), "s": "text"}, "m", format=ending)
    else:
        path = pts.save({"w": np.arange(3), "s": "text"}, f"m.{ending}")
    if ending == "msgpack":
        path.write_bytes(flax.serialization.to_bytes({"w": np.arange(3), "s": "text"}))
    pts.load_checkpoint(path).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        pts.load_checkpoint(path)["s"].read()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    checkpoint = pts.load_checkpoint(path)
    checkpoint.close()
    with open("mine", "w") as file:
        checkpoint.close()
        file.write("text")
    assert Path("mine").read_text() == "text"
