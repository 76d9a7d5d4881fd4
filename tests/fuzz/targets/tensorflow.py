"""Checkpoints of TensorFlow: the table of the index, and its messages."""

import functools
import zlib
from pathlib import Path

from attacks.attack import saved
from attacks.makers import tensorflow
from attacks.sealing import block, table_of_block
from fuzz.execution import Target, used
from fuzz.mutations import changed_bytes, changed_message
from fuzz.targets.native import decoded, resealed
from fuzz.targets.workspace import laid_out

from pytreesaver.formats.tensorflow.bundle import DESCRIPTION_KEY, decode_bundle
from pytreesaver.formats.tensorflow.messages import (
    Entry,
    Extent,
    decode_entry,
    decode_header,
    decode_object_graph,
    encode_entry,
)
from pytreesaver.formats.tensorflow.table import DamagedTableError, read_table, write_table

KERAS = min((Path(__file__).parents[2] / "data" / "of_tensorflow").glob("keras*/*.index"))


@functools.cache
def samples():
    """Return the files of checkpoints: of pytreesaver, and of TensorFlow."""
    sliced = tensorflow.TINY._replace(shape=(2,), slices=((Extent(0, 1),), (Extent(1, 1),)))
    parts = [(tensorflow.slice_key(b"b", [Extent(i, 1)]), encode_entry(tensorflow.TINY)) for i in (0, 1)]
    strings = (b"s", encode_entry(Entry(7, (2,), 0, 24, len(tensorflow.TWO), tensorflow.OF_TWO)))
    mixed = tensorflow.table((b"b", encode_entry(sliced)), *parts, strings)
    of_keras = {path.name.removeprefix(KERAS.stem): path.read_bytes() for path in KERAS.parent.glob(f"{KERAS.stem}.*")}
    return [
        saved("", format="tensorflow"),
        {".index": mixed, ".data-00000-of-00001": tensorflow.DATA + tensorflow.TWO},
        of_keras,
    ]


def mutate_table(content, random):
    """Return another table: other keys, entries, blocks or description, with the right checksums."""
    kind = random.random()
    pairs, description = read_table(content, DESCRIPTION_KEY)
    if kind < 0.05 or not pairs:
        return changed_bytes(content, random)
    if kind < 0.2:
        plain = content[: max(content.find(block(bytes(4) + b"\1\0\0\0")), 8) - 5]
        return table_of_block(changed_bytes(plain, random), random.choice((0, 0, 0, 1, 7)))
    if kind < 0.4 and description is not None:
        return write_table(pairs, {DESCRIPTION_KEY: resealed(description, random)})
    i = random.randrange(len(pairs))
    key, value = pairs[i]
    change = random.randrange(6)
    if change == 0:
        del pairs[i]
    elif change == 1:
        pairs.insert(i, (changed_bytes(key, random)[:60], value))
    elif change == 2:
        pairs[i] = (key, pairs[random.randrange(len(pairs))][1])
    else:
        pairs[i] = (key, changed_message(value, random))
    if random.random() < 0.8:
        pairs = sorted(dict(pairs).items())
    return write_table(pairs, None if description is None or random.random() < 0.1 else {DESCRIPTION_KEY: description})


def run_table(content):
    """Decode an index. If it is accepted, or for some others, use the checkpoint in all ways."""
    is_accepted = decoded(decode_bundle, content, "m.index")
    if not is_accepted and zlib.crc32(content) % 32:
        return
    number = 0 if DESCRIPTION_KEY in content else 2 if b"OBJECT_GRAPH" in content else 1
    path = laid_out(f"tensorflow-{number}/m", tuple(samples()[number].items()))
    path.with_name("m.index").write_bytes(content)
    used(path, content)


@functools.cache
def table():
    """Return the target of the table."""
    return Target([files[".index"] for files in samples()], run_table, mutate_table, 100)


def run_message(content):
    """Decode a message as each kind of message."""
    for decode in (decode_entry, decode_header, decode_object_graph):
        try:
            decode(content)
        except DamagedTableError:
            pass


def message_seeds():
    """Return messages of all kinds."""
    pairs = [pair for files in samples() for pair in read_table(files[".index"])[0]]
    return sorted({value for _, value in pairs[:40]})


@functools.cache
def messages():
    """Return the target of the messages."""
    return Target(message_seeds(), run_message, changed_message, 400)
