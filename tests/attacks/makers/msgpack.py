"""Attacks on files of msgpack: trees of Flax, and those with the index of pytreesaver."""

import json
import math

import msgspec
from attacks.attack import LISTED, TREE, Attack, allowed, saved
from attacks.sealing import sealed_index, xxh3

SPEC = "https://github.com/msgpack/msgpack/blob/master/spec.md"
FLAX = "https://flax.readthedocs.io/en/stable/api_reference/flax.serialization.html"
MAGIC = b"pytreesaver index of msgpack, 1\n"
EXTENSION = "Applications can use 0 to 127 to store application-specific type information"
ARRAYS = "an array is an extension of type 1: its shape, the name of its dtype, and its bytes"
SCALARS = "a scalar of NumPy is an extension of type 3, a complex number one of type 2"
FORMAT = "a value of an object whose length exceeds that of the file is invalid"
TEXTS = "str is a UTF-8 string"
PIECES = "an array of more than 2**30 bytes is a map of its pieces"
PLACEHOLDER = "an array of several processes is a placeholder, which names a directory"


def ext(kind, content):
    """Return an extension."""
    return b"\xc9" + len(content).to_bytes(4, "big") + bytes([kind]) + content


def array(shape, dtype, content):
    """Return an array as Flax writes it."""
    return ext(1, msgspec.msgpack.encode((shape, dtype, content)))


W = array([2, 3], "float32", TREE["w"].tobytes())


def of_value(rule, value, message, error="CorruptCheckpointError", source=FLAX):
    """Return a tree with the array ``w``, and another value."""
    works = () if error else ("all",)
    return Attack({".msgpack": b"\x82\xa1w" + W + b"\xa1b" + value}, rule, message, error, works, source)


def pieces(**fields):
    """Return the map of an array in pieces."""
    return msgspec.msgpack.encode({"__msgpack_chunked_array__": True, **fields})


def whole(rule, content, message, error="CorruptCheckpointError", works=(), source=SPEC):
    """Return a file with these contents."""
    return Attack({".msgpack": content}, rule, message, error, works, source)


OF_FLAX = {
    "fewer-bytes-than-numbers": of_value(ARRAYS, array([1 << 40], "float32", b"abcd"), "in 4 bytes"),
    "length-below-zero": of_value(ARRAYS, array([-1], "float32", b""), "in 0 bytes"),
    "shape-of-124-bits": of_value(ARRAYS, array([1 << 62, 1 << 62], "float32", b""), "in 0 bytes"),
    "empty-array-of-124-bits": of_value(ARRAYS, array([0, 1 << 62, 1 << 62], "float32", b""), "in 0 bytes"),
    "shape-of-65-axes": of_value(ARRAYS, array([1] * 65, "int8", b"a"), "in 1 bytes"),
    "shape-of-bools": of_value(ARRAYS, array([True], "int8", b"a"), "without a shape"),
    "shape-that-is-a-number": of_value(ARRAYS, array(1, "int8", b"a"), "without a shape"),
    "unknown-dtype": of_value(ARRAYS, array([1], "float33", b"abcd"), "unknown dtype"),
    "dtype-of-objects": of_value(ARRAYS, array([1], "object", b"12345678"), "object"),
    "dtype-with-fields": of_value(ARRAYS, array([1], "f4,f4", b"12345678"), "unknown dtype"),
    "dtype-of-a-number": of_value(ARRAYS, array([1], 5, b"abcd"), "without the name of a dtype"),
    "dtype-of-huge-strings": of_value(ARRAYS, array([1], "str99999999", b"abcd"), ""),
    "no-array": of_value(ARRAYS, ext(1, b"\xc0"), "without a shape"),
    "array-of-brackets": of_value(ARRAYS, ext(1, b"\x93" + b"\x91" * 3000), "levels"),
    "array-in-an-array": of_value(ARRAYS, ext(1, b"\x93" + W + b"\xa1a\xc4\0"), "without a shape"),
    "scalar-of-two": of_value(SCALARS, ext(3, msgspec.msgpack.encode(([2], "int8", b"ab"))), "", ""),
    "complex-of-text": of_value(SCALARS, ext(2, msgspec.msgpack.encode(("a", "b"))), "no pair of numbers"),
    "complex-of-huge-numbers": of_value(SCALARS, ext(2, msgspec.msgpack.encode((2**64 - 1, 1e308))), "", ""),
    "unknown-extension": of_value(EXTENSION, ext(9, b"a"), "unknown extension type 9", source=SPEC),
    "extension-below-zero": of_value(EXTENSION, b"\xd6\xff\0\0\0\0", "unknown extension type", source=SPEC),
    "extension-beyond-the-file": of_value(FORMAT, b"\xc9\xff\xff\xff\xff\1", "the end of the file", source=SPEC),
    "endless-lists": of_value(FORMAT, b"\x91" * 3000 + b"\xc0", "levels", source=SPEC),
    "endless-maps": of_value(FORMAT, b"\x81\xa1a" * 3000 + b"\xc0", "levels", source=SPEC),
    "more-elements-than-bytes": of_value(FORMAT, b"\xdd\xff\xff\xff\xff", "in fewer bytes", source=SPEC),
    "more-keys-than-bytes": of_value(FORMAT, b"\xdf\xff\xff\xff\xff", "in fewer bytes", source=SPEC),
    "text-beyond-the-file": of_value(FORMAT, b"\xdb\xff\xff\xff\xffa", "the end of the file", source=SPEC),
    "bytes-beyond-the-file": of_value(FORMAT, b"\xc6\xff\xff\xff\xffa", "the end of the file", source=SPEC),
    "never-used": of_value(FORMAT, b"\xc1", "unknown kind 0xc1", source=SPEC),
    "text-that-is-no-utf-8": of_value(TEXTS, b"\xa2\xff\xff", "not UTF-8", source=SPEC),
    "key-that-is-a-list": of_value(TEXTS, b"\x81\x90\1", "a key of the type list", source=SPEC),
    "key-that-is-an-array": of_value(TEXTS, b"\x81" + W + b"\1", "a key of the type", source=SPEC),
    "int-of-64-bits-without-a-sign": of_value(FORMAT, b"\xcf" + b"\xff" * 8, "", "", source=SPEC),
    "pieces-of-no-array": of_value(PIECES, pieces(shape={"0": 5}), "pieces"),
    "pieces-of-another-size": of_value(PIECES, pieces(shape={"0": 5}, chunks={}), "pieces"),
    "pieces-of-a-huge-shape": of_value(PIECES, pieces(shape={"0": 1 << 62, "1": 1 << 62}, chunks={}), "pieces"),
    "pieces-of-text": of_value(PIECES, pieces(shape={"0": 1}, chunks={"0": "a"}), "pieces"),
    "pieces-in-lists": of_value(PIECES, pieces(shape=[1], chunks=[1]), "pieces"),
    "placeholder": of_value(
        PLACEHOLDER,
        msgspec.msgpack.encode("//GDAPlaceholder:../../etc"),
        "an array of several processes",
        "UnsupportedLeafError",
    ),
    "one-name-twice": whole(TEXTS, b"\x83\xa1w" + W + b"\x01\x01\xa11\x02", "different names"),
    "bytes-after-its-end": whole(FORMAT, b"\x81\xa1w" + W + b"\xc0", "bytes after its end"),
    "without-its-end": whole(FORMAT, (b"\x81\xa1w" + W)[:-1], "the end of the file in a value"),
    "good-foreign": whole(FORMAT, b"\x81\xa1w" + W, "", "", ("all",)),
    "names-like-paths": whole(TEXTS, b"\x84\xa1w" + W + b"\xa2..\x81\xa2..\1\xa1/\2\xa0\3", "", "", ("all",)),
    "keys-of-all-kinds": whole(
        TEXTS, b"\x85\xa1w" + W + b"\x01\xa1a\xc3\xa1b\xc0\xa1c\xca\x7f\xc0\0\0\xa1d", "", "", ("all",)
    ),
}


def resealed(edit, content=None):
    """Return the sample checkpoint with another index, whose checksum is right."""
    original = saved(".msgpack")[".msgpack"]
    start = original.index(MAGIC) + len(MAGIC)
    length = int.from_bytes(original[start : start + 8], "little")
    index = json.loads(original[start + 8 : start + 8 + length])
    edit(index)
    rest = original[start + 8 + length :] if content is None else content
    nbytes = len(sealed_index(index))
    size = (len(MAGIC) + 8 + nbytes).to_bytes(4, "big")
    head = original[: start - len(MAGIC) - 4] + size + MAGIC + nbytes.to_bytes(8, "little")
    if index["files"]:
        index["files"][0]["header_checksum"] = xxh3(head + _without_arrays(index, rest))
    return {".msgpack": head + sealed_index(index) + rest}


def _without_arrays(index, rest):
    """Return what is between the arrays, which one checksum covers."""
    sizes = {"float32": 4, "uint8": 1, "int64": 8}
    gaps, position = b"", 0
    columns = zip(index["chunk_offsets"], index["type_of"], index["shapes"])
    for start, type_of, shape in sorted(columns):
        gaps += rest[position:start]
        position = start + math.prod(shape) * sizes[index["types"][type_of]["dtype"]]
    return gaps + rest[position:]


def _length(nbytes):
    original = saved(".msgpack")[".msgpack"]
    start = original.index(MAGIC) + len(MAGIC)
    return {".msgpack": original[:start] + nbytes.to_bytes(8, "little") + original[start + 8 :]}


OUR_SOURCE = "docs/formats.md"
HIDDEN = "under a key that the map of a msgpack file has twice"
READS = (*LISTED, "restore", "template", "only", "variables", "slice", "mmap", "diff", "copy_checkpoint", "convert")
OURS = {
    "good": allowed(saved(".msgpack"), HIDDEN, source=OUR_SOURCE),
    "good-resealed": allowed(resealed(lambda index: None), HIDDEN, source=OUR_SOURCE),
    "index-beyond-the-file": Attack(_length(1 << 40), HIDDEN, "the end of the file", source=OUR_SOURCE),
    "index-of-64-bits": Attack(_length((1 << 64) - 1), HIDDEN, "the end of the file", source=OUR_SOURCE),
    "index-of-no-bytes": Attack(_length(0), HIDDEN, "an empty file", source=OUR_SOURCE),
    "index-with-a-flipped-bit": Attack(
        {".msgpack": saved(".msgpack")[".msgpack"].replace(b'"w"', b'"v"', 1)},
        HIDDEN,
        "does not match",
        source=OUR_SOURCE,
    ),
    "magic-with-a-flipped-bit": Attack(
        {".msgpack": saved(".msgpack")[".msgpack"].replace(MAGIC, MAGIC.replace(b"x", b"y"), 1)},
        HIDDEN,
        "a damaged one",
        source=OUR_SOURCE,
    ),
    "no-files": Attack(resealed(lambda index: index.update(files=[])), HIDDEN, "", source=OUR_SOURCE),
    "file-beyond-the-file": Attack(
        resealed(lambda index: index["files"][0].update(nbytes=1 << 40)),
        HIDDEN,
        "bytes, found",
        works=LISTED,
        source=OUR_SOURCE,
    ),
    "offset-beyond-the-file": Attack(
        resealed(lambda index: index["chunk_offsets"].__setitem__(0, 1 << 40)),
        HIDDEN,
        "bytes within",
        source=OUR_SOURCE,
    ),
    "array-with-a-flipped-bit": Attack(
        {".msgpack": saved(".msgpack")[".msgpack"].replace(TREE["w"].tobytes(), bytes(24))},
        HIDDEN,
        "1 of 4 variables damaged:\n  w",
        works=(*LISTED, "diff"),
        source=OUR_SOURCE,
    ),
    "names-that-other-programs-see": Attack(
        {".msgpack": saved(".msgpack")[".msgpack"].replace(b"\xa4step", b"\xa4stop")},
        HIDDEN,
        "",
        works=READS,
        source=OUR_SOURCE,
    ),
}

ATTACKS = OF_FLAX | {f"ours-{name}": attack for name, attack in OURS.items()}
