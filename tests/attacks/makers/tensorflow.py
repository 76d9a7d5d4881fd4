"""Attacks on checkpoints of TensorFlow: the table of an index, the messages in it, and the data files."""

import functools
import json

from attacks.attack import LISTED, TREE, Attack, allowed, saved
from attacks.makers.native_trees import WITH_TEMPLATE
from attacks.sealing import END_OF_TABLE, ONE_RESTART, block, footer, sealed_index, sealed_lines, table_of_block

from pytreesaver._io.checksums.crc32c import crc32c, masked
from pytreesaver.formats.tensorflow.bundle import slice_key
from pytreesaver.formats.tensorflow.messages import Entry, Extent, encode_entry, encode_header
from pytreesaver.formats.tensorflow.strings import encode_strings
from pytreesaver.formats.tensorflow.table import encode_varint, read_table, write_table

LEVELDB = "https://github.com/google/leveldb/blob/main/doc/table_format.md"
BUNDLE = "https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto"
PROTOBUF = "https://protobuf.dev/programming-guides/encoding"
DATA = TREE["w"].tobytes()
HEADER = (b"", encode_header(1))
W = Entry(1, (2, 3), 0, 0, 24, masked(crc32c(DATA)))
TINY = Entry(1, (1,), 0, 0, 4, masked(crc32c(bytes(4))))
PARTS = (*LISTED, "diff", "template", "only", "slice")
UNUSABLE = (*PARTS, "verify")


def table(*entries, header=HEADER):
    """Return an index with the tensor ``w`` and other entries."""
    return write_table([header, *sorted([(b"w", encode_entry(W)), *entries])])


def of_index(rule, index, message, source=BUNDLE, data=DATA, works=(), error="CorruptCheckpointError"):
    """Return a checkpoint with this index."""
    return Attack({".index": index, ".data-00000-of-00001": data}, rule, message, error, works, source)


def of_entry(rule, entry, message, name=b"b"):
    """Return a checkpoint with one more tensor."""
    message_bytes = entry if isinstance(entry, bytes) else encode_entry(entry)
    return of_index(rule, table((name, message_bytes)), message)


FORMAT = "This gives a sequence of blocks, each with a type and a crc"
SORTED = "The sequence of key/value pairs in the file are stored in sorted order and partitioned into data blocks"
FOOTER = "a fixed length footer that contains the BlockHandle of the metaindex and index blocks"
HANDLE = "BlockHandle: offset: varint64, size: varint64"
RESTARTS = "an array of restart points, and their number"
SNAPPY = "type: 0 none, 1 snappy"
NAMED_TWICE = "There is one entry per data block"
GOOD = table()


def _named_many_times():
    big = block(bytes(1 << 10))
    names = [(b"%05d" % i, encode_varint(0) + encode_varint(len(big) - 5)) for i in range(200)]
    entries = b"".join(
        b"\0" + encode_varint(len(key)) + encode_varint(len(value)) + key + value for key, value in names
    )
    index, empty = block(entries + ONE_RESTART), block(ONE_RESTART)
    return big + empty + index + footer([(len(big), len(empty) - 5), (len(big) + len(empty), len(index) - 5)])


def _growing_keys():
    return b"\0\0\0" + b"".join(encode_varint(length) + b"\1\0" + b"a" for length in range(4_000))


TABLES = {
    "of-47-bytes": of_index(FOOTER, END_OF_TABLE.rjust(47, b"\0"), "", LEVELDB),
    "another-end": of_index(FOOTER, GOOD[:-1] + b"\0", "another end", LEVELDB),
    "end-with-other-bytes": of_index(FOOTER, GOOD[:-10] + b"\1" + GOOD[-9:], "a damaged end", LEVELDB),
    "handle-without-end": of_index(FOOTER, b"\x80" * 40 + END_OF_TABLE, "a number", LEVELDB),
    "number-without-end": of_index(HANDLE, table_of_block(b"\x80" * 30 + ONE_RESTART), "a number", LEVELDB),
    "key-longer-than-its-block": of_index(
        SORTED, table_of_block(b"\0\x7f\0a" + ONE_RESTART), "beyond the end of its", LEVELDB
    ),
    "value-longer-than-its-block": of_index(
        SORTED, table_of_block(b"\0\1\x7fa" + ONE_RESTART), "beyond the end of its", LEVELDB
    ),
    "prefix-that-no-key-has": of_index(
        SORTED, table_of_block(b"\5\1\0a" + ONE_RESTART), "beyond the end of its", LEVELDB
    ),
    "keys-out-of-order": of_index(
        SORTED, write_table([HEADER, (b"w", encode_entry(W)), (b"a", encode_entry(TINY))]), "order", LEVELDB
    ),
    "one-key-twice": of_index(
        SORTED, write_table([HEADER, (b"w", encode_entry(W)), (b"w", encode_entry(W))]), "order", LEVELDB
    ),
    "keys-that-grow-without-end": of_index(
        SORTED, table_of_block(_growing_keys() + ONE_RESTART), "much longer than the table", LEVELDB
    ),
    "more-restarts-than-bytes": of_index(RESTARTS, table_of_block(b"\xff\xff\xff\x7f"), "restarts", LEVELDB),
    "block-of-two-bytes": of_index(RESTARTS, table_of_block(b"\0\0"), "restarts", LEVELDB),
    "unknown-compression": of_index(SNAPPY, table_of_block(ONE_RESTART, 7), "unknown kind 7", LEVELDB),
    "bomb": of_index(SNAPPY, table_of_block(encode_varint(1 << 40) + b"\0a", 1), "claims to decompress", LEVELDB),
    "no-valid-compression": of_index(
        SNAPPY, table_of_block(encode_varint(20) + b"\xff\xff\xff", 1), "decompress", LEVELDB
    ),
    "wrong-checksum": of_index(FORMAT, bytes([GOOD[0] ^ 1]) + GOOD[1:], "checksum does not match", LEVELDB),
    "block-beyond-the-file": of_index(
        HANDLE, GOOD[:-48] + (encode_varint(1 << 40) * 4).ljust(40, b"\0") + END_OF_TABLE, "beyond the end of", LEVELDB
    ),
    "block-that-is-named-many-times": of_index(NAMED_TWICE, _named_many_times(), "", LEVELDB),
}

HEADERS = 'Special header that is associated with a bundle. TODO: keyed by ""'
SHARDS = "Number of data files in the bundle."
VERSIONS = "Versioning of the tensor bundle format."
PLACE = "offset, size: where the serialized bytes of the tensor are"
SHAPE = "TensorShapeProto: -1 in a dimension is unknown"
STRINGS = "strings: varint64 lengths, their checksum, and the bytes"
SLICES = "If present, this entry represents a partitioned tensor; slices are in entries of their own"
WIRE = "wire types: 0 VARINT, 1 I64, 2 LEN, 5 I32"
KEYS = "Protobuf field strings and map keys of tensors are UTF-8"
MESSAGES = {
    "no-header": of_index(HEADERS, write_table([(b"w", encode_entry(W))]), "without the header"),
    "no-entries": of_index(HEADERS, write_table([]), "without the header"),
    "no-data-files": of_index(SHARDS, table(header=(b"", b"\x1a\2\x08\1")), "0 data files"),
    "data-files-below-zero": of_index(
        SHARDS, table(header=(b"", b"\x08" + encode_varint((1 << 64) - 1))), "-1 data files"
    ),
    "a-million-data-files": of_index(SHARDS, table(header=(b"", encode_header(1_000_000))), "1000000 data files"),
    "byte-order-7": of_index(HEADERS, table(header=(b"", b"\x08\1\x10\7")), "byte order 7"),
    "later-version": of_index(VERSIONS, table(header=(b"", b"\x08\1\x1a\4\x08\5\x10\5")), "does not know"),
    "later-version-of-bytes": of_index(VERSIONS, table(header=(b"", b"\x08\1\x1a\4\x08\1\x12\0")), ""),
    "version-that-is-a-number": of_index(VERSIONS, table(header=(b"", b"\x08\1\x18\1")), "in place of bytes"),
    "file-that-does-not-exist": of_entry(PLACE, TINY._replace(shard=3), "impossible place"),
    "offset-below-zero": of_entry(PLACE, TINY._replace(offset=(1 << 64) - 5), "impossible place"),
    "offset-near-the-limit": of_entry(PLACE, TINY._replace(offset=(1 << 63) - 2), "impossible place"),
    "offset-beyond-the-file": of_index(
        PLACE, table((b"b", encode_entry(TINY._replace(offset=1 << 40)))), "bytes, found", works=LISTED
    ),
    "fewer-bytes-than-numbers": of_entry(SHAPE, TINY._replace(shape=(1 << 40,)), "in 4 bytes"),
    "more-bytes-than-numbers": of_entry(SHAPE, TINY._replace(nbytes=8), "in 8 bytes"),
    "shape-of-124-bits": of_entry(SHAPE, TINY._replace(shape=(1 << 62, 1 << 62)), "shape"),
    "shape-of-65-axes": of_entry(SHAPE, TINY._replace(shape=(1,) * 65), "shape"),
    "length-below-zero": of_entry(SHAPE, TINY._replace(shape=((1 << 64) - 1,)), "shape"),
    "shape-of-unknown-rank": of_entry(SHAPE, b"\x08\1\x12\2\x18\1", "unknown rank"),
    "more-strings-than-bytes": of_entry(STRINGS, Entry(7, (1 << 40,), 0, 0, 4, 0), "in 4 bytes"),
    "unknown-dtype": of_index(
        "enum DataType",
        table((b"b", encode_entry(TINY._replace(dtype=99)))),
        "99",
        works=UNUSABLE,
        error="UnsupportedLeafError",
    ),
    "slice-that-is-missing": of_entry(SLICES, TINY._replace(slices=((Extent(0, 1),),)), "without one of its slices"),
    "slice-outside-of-its-tensor": of_index(
        SLICES,
        table(
            (b"b", encode_entry(TINY._replace(slices=((Extent(5, 1),),)))),
            (slice_key(b"b", [Extent(5, 1)]), encode_entry(TINY)),
        ),
        "without one of its slices",
    ),
    "slice-of-no-tensor": of_index(
        SLICES, table((slice_key(b"b", [Extent(0, 1)]), encode_entry(TINY))), "of no tensor"
    ),
    "slices-with-a-hole": of_index(
        SLICES,
        table(
            (b"b", encode_entry(TINY._replace(shape=(3,), slices=((Extent(0, 1),), (Extent(2, 1),))))),
            *((slice_key(b"b", [Extent(i, 1)]), encode_entry(TINY)) for i in (0, 2)),
        ),
        "cover",
        works=PARTS,
    ),
    "slices-of-another-dtype": of_index(
        SLICES,
        table(
            (b"b", encode_entry(TINY._replace(slices=((Extent(0, 1),),)))),
            (slice_key(b"b", [Extent(0, 1)]), encode_entry(TINY._replace(dtype=3))),
        ),
        "without one of its slices",
    ),
    "key-that-is-not-utf-8": of_entry(KEYS, TINY, "not UTF-8", b"\xff"),
    "message-that-ends-early": of_entry(WIRE, b"\x12\x7f\0", "beyond the end of its message"),
    "field-of-an-unknown-kind": of_entry(WIRE, b"\x0b\0", "unknown kind 3"),
    "bytes-in-place-of-a-number": of_entry(WIRE, b"\x0a\1a", "in place of a number"),
    "number-in-place-of-bytes": of_entry(WIRE, b"\x08\1\x10\1", "in place of bytes"),
    "number-of-80-bits": of_entry(WIRE, b"\x08" + b"\xff" * 11 + b"\1", "more than 64 bits"),
    "data-without-its-end": of_index(PLACE, GOOD, "bytes, found 23", data=DATA[:-1], works=LISTED),
    "data-with-a-flipped-bit": of_index(
        "crc32c: the CRC32C checksum of the tensor's bytes", GOOD, "w", data=b"\1" + DATA[1:], works=LISTED
    ),
    "no-data": Attack(
        {".index": GOOD, ".meta": b""}, SHARDS, "expected a data file, found none", works=LISTED, source=BUNDLE
    ),
    "good-foreign": of_index(HEADERS, GOOD, "", works=("all",), error=""),
    "data-with-other-bytes": of_index(PLACE, GOOD, "", works=("all",), error="", data=DATA + b"unused"),
}


def _strings(content, shape, checksum):
    return table((b"b", encode_entry(Entry(7, shape, 0, 24, len(content), checksum))))


def of_strings(content, shape, checksum, message):
    """Return a checkpoint with a tensor of strings."""
    return of_index(STRINGS, _strings(content, shape, checksum), message, data=DATA + content, works=PARTS)


def _sealed_strings(lengths, text):
    """Return strings that claim to have some lengths, and the checksums of that."""
    stored_lengths = b"".join(encode_varint(length) for length in lengths)
    checksum = crc32c(b"".join(length.to_bytes(4 if length < 1 << 32 else 8, "little") for length in lengths))
    stored = masked(checksum).to_bytes(4, "little")
    return stored_lengths + stored + text, masked(crc32c(text, crc32c(stored, checksum)))


TWO, OF_TWO = encode_strings([b"ab", b"c"])
HUGE, OF_HUGE = _sealed_strings([1 << 40, 1], b"abc")
OF_STRINGS = {
    "strings-of-other-lengths": of_strings(b"\3\1" + TWO[2:], (2,), OF_TWO, "b"),
    "strings-of-a-huge-length": of_strings(HUGE, (2,), OF_HUGE, "b"),
    "strings-with-a-flipped-bit": of_strings(TWO[:-1] + b"d", (2,), OF_TWO, "b"),
    "strings-with-a-wrong-checksum-of-lengths": of_strings(TWO[:2] + bytes(4) + TWO[6:], (2,), OF_TWO, "b"),
}


@functools.cache
def ours():
    """Return the entries of the sample checkpoint, and its description as JSON data."""
    pairs, description = read_table(saved("", format="tensorflow")[".index"], b"pytreesaver.description")
    return pairs, json.loads(description)


def described(edit=lambda found: None, text=None):
    """Return the sample checkpoint with another description, whose checksums are right."""
    pairs, found = ours()
    found = json.loads(json.dumps(found))
    edit(found)
    others = {b"pytreesaver.description": sealed_index(found) if text is None else text}
    return dict(saved("", format="tensorflow")) | {".index": write_table(pairs, others)}


def _put(key, value):
    return lambda found: found.__setitem__(key, value)


DESCRIPTION = "The additional description is stored where other programs do not look"
FORMATS = "docs/formats.md"


def of_description(edit, message, error="CorruptCheckpointError", works=(), text=None):
    """Return the sample checkpoint with another description."""
    return Attack(described(edit, text), DESCRIPTION, message, error, works, FORMATS)


OURS = {
    "good": allowed(saved("", format="tensorflow"), DESCRIPTION, source=FORMATS),
    "good-resealed": allowed(described(), DESCRIPTION, source=FORMATS),
    "description-of-no-bytes": of_description(_put("names", []), "checksum", text=b""),
    "description-with-a-flipped-bit": of_description(
        _put("names", []), "checksum", text=sealed_index(ours()[1]).replace(b'"w"', b'"v"', 1)
    ),
    "description-of-a-later-version": of_description(_put("version", 2), "version 2", "UnsupportedVersionError"),
    "other-keys": of_description(_put("keys", ["b", "name", "step", "x"]), "the tensors of its description"),
    "fewer-names": of_description(_put("names", ["b"]), "as many as names"),
    "one-name-twice": of_description(_put("names", ["b", "b", "step", "w"]), "different names"),
    "another-shape": of_description(_put("shapes", [[4], [3], [], [3, 2]]), "expected a tensor of its description"),
    "length-below-zero": of_description(_put("shapes", [[4], [3], [], [-2, -3]]), "no negative length"),
    "type-that-does-not-exist": of_description(_put("type_of", [9, 9, 9, 9]), "positions among"),
    "metadata-that-is-a-list": of_description(_put("metadata", [1]), ""),
    "record-that-is-a-list": of_description(_put("record", [1]), ""),
    "models-that-are-a-list": of_description(_put("models", [1]), "an object of models"),
    "structure-of-other-leaves": of_description(_put("structure", {"w": 9}), "structure", works=WITH_TEMPLATE),
    "same-as-a-later-variable": of_description(_put("same_as", {"0": 3}), "same_as"),
    "same-as-another-shape": of_description(_put("same_as", {"3": 0}), ""),
    "file-of-another-size": of_description(_put("files", {"0": [1 << 40, "x"]}), "bytes, found", works=LISTED),
    "file-shorter-than-its-tensors": Attack(
        described(_put("files", {"0": [56, "0" * 16]})) | {".data-00000-of-00001": bytes(56)},
        DESCRIPTION,
        "",
        works=LISTED,
        source=FORMATS,
    ),
    "description-that-is-no-utf-8": of_description(
        _put("names", []), "", text=sealed_lines(sealed_index(ours()[1])[:-32].replace(b'"w"', b'"\xff"', 1))
    ),
    "no-file": of_description(_put("files", {}), ""),
}

ATTACKS = TABLES | MESSAGES | OF_STRINGS | {f"ours-{name}": attack for name, attack in OURS.items()}
