"""Attacks on the index of the native format: one or more for each sentence of docs/format.md about it."""

import json

from attacks.attack import LISTED, Attack, saved
from attacks.sealing import sealed_index, sealed_lines, with_header, xxh3

DATA = "/data-00000-of-00001.safetensors"


def index():
    """Return the index of the sample checkpoint, which may be changed."""
    return json.loads(saved()["/index.json"])


def put(*keys_and_value):
    """Return a function that sets a value in an index."""
    *keys, last, value = keys_and_value

    def edit(found):
        for key in keys:
            found = found[key]
        found[last] = value

    return edit


def edited(rule, edit, message, error="CorruptCheckpointError", works=()):
    """Return the sample checkpoint with another index, whose checksum is right."""
    changed = index()
    edit(changed)
    return with_text(rule, sealed_index(changed), message, error, works)


def with_text(rule, text, message, error="CorruptCheckpointError", works=()):
    """Return the sample checkpoint with another text as its index. Data that nobody may look at is left out."""
    return Attack((saved() if works else {}) | {"/index.json": text}, rule, message, error, works)


def _text(old=b"", new=b""):
    """Return the index with a part replaced, and the right checksum."""
    body = saved()["/index.json"].rpartition(b'"checksum"')[0]
    assert old in body
    return sealed_lines(body.replace(old, new, 1))


JSON = "The index is UTF-8 JSON of at most 4 GiB **(check)**"
FORMAT = '`"pytreesaver"` **(check)**'
VERSION = "`1`; a reader MUST reject a larger version, and one below 1 **(check)**"
RECORD = "only in checkpoints of a run directory and copies of them: an object **(check)**"
METADATA = "an object **(check)**: the user's metadata as *plain values*"
MODELS = "may be absent: an object **(check)** of functions, by name"
NAMES = "the variable names, all different **(check)**"
TYPES = 'the distinct types: `{"kind", "dtype", "weak_type"?, "key_impl"?}`'
TYPE_OF = "for each name, a position in `types` **(check)**"
SHAPES = "at most 64 axes, no negative length, and fewer than 2**63 bytes, not counting axes of length 0 **(check)**"
CHUNK_FILES = "for each chunk, a position in `files` **(check)**"
OFFSETS = "for each chunk, the offset of its first byte from the start of the file"
BLOCK = "the number of bytes that one checksum covers: 1048576; positive **(check)**"
CHECKSUMS = "16 lower-case hexadecimal digits for each block of each chunk **(check)**"
FILE_NAMES = r"match `data-[0-9a-z-]+\.safetensors` and are all different **(check)**"
SIZES = "`header_nbytes` is the size of its header, including the 8 bytes of its length"
COMPARE = (
    "Before a reader reads from a file, it MUST compare `nbytes` with the size of the file, and `header_checksum` with "
    "the checksum of the header"
)
POSITION = "There, the position is in plain decimal digits **(check)**"
GRID = "each axis has a list of boundaries that ascend from 0 to the length of the axis **(check)**"
ONE_ENTRY = "have exactly one entry per chunk **(check)**"
OVERLAP = "Each chunk is stored after the header, within the file, and overlaps no other chunk **(check)**"
SAME_AS = (
    "has the type, shape, grid and chunks of the earlier variable, which is not in `same_as` itself **(check)**, so "
    "that its bytes are stored once"
)
END = 'The file ends with exactly `"checksum":"0123456789abcdef"}` and a line feed **(check)**'
KINDS = "Arrays of kind `jax` contain numbers or bools, in little-endian order **(check)**"
DTYPES = "Dtypes have the names that NumPy and ml_dtypes use"

TEXTS = {
    "empty": with_text(JSON, b"", "found an empty file"),
    "one-bracket": with_text(JSON, b"{", "expected an index"),
    "null": with_text(JSON, b"null", "expected an index"),
    "list": with_text(JSON, b"[]", "expected an index"),
    "utf-16": with_text(JSON, b"\xff\xfe", "expected an index"),
    "utf-8-damaged": with_text(JSON, _text(b'"step"', b'"st\xffp"'), "a damaged one"),
    "utf-8-damaged-in-metadata": with_text(JSON, _text(b'"metadata":{}', b'"metadata":{"a":"\xff"}'), "a damaged one"),
    "surrogate-in-a-name": with_text(JSON, _text(b'["b",', b'["\\ud800",'), "a damaged one"),
    "format-that-is-no-utf-8": with_text(JSON, b'{"format":"\xff"}', "expected an index"),
    "format-alone": with_text(JSON, b'{"format":"pytreesaver"', "expected an index"),
    "nested-brackets": with_text(JSON, b"[" * 10_000, "expected an index"),
    "sealed-brackets": with_text(
        JSON, sealed_lines(b'{"format":"pytreesaver","version":1,"x":' + b"[" * 3000 + b","), "", "CheckpointError"
    ),
    "number-of-5000-digits": with_text(JSON, _text(b'"version":1', b'"version":' + b"9" * 5000), ""),
    "without-its-end": with_text(END, saved()["/index.json"][:-60], "truncated"),
    "upper-case-checksum": with_text(END, saved()["/index.json"][:-20].upper() + saved()["/index.json"][-20:], ""),
    "no-line-feed": with_text(END, saved()["/index.json"][:-1], "the checksum of the index does not match"),
    "text-after-its-end": with_text(END, saved()["/index.json"] + b"\n", "the checksum of the index does not match"),
    "wrong-checksum": with_text(
        'The checksum of the index** covers all bytes before the `"checksum"` key',
        saved()["/index.json"].replace(b'"step"', b'"stop"', 1),
        "the checksum of the index does not match",
    ),
    "checksum-key-before-its-end": with_text(END, _text()[:-1] + b" \n", "checksum"),
}

KEYS = {
    "no-format": edited(FORMAT, lambda index: index.pop("format"), "format"),
    "another-format": edited(FORMAT, put("format", "zip"), 'expected "format": "pytreesaver", found "zip"'),
    "version-0": edited(VERSION, put("version", 0), "version of at least 1"),
    "version-2": edited(VERSION, put("version", 2), "reads versions up to 1", "UnsupportedVersionError"),
    "version-of-text": edited(VERSION, put("version", "1"), "version"),
    "version-beyond-64-bits": edited(VERSION, put("version", 2**70), "version", "UnsupportedVersionError"),
    "record-list": edited(RECORD, put("record", [1]), "an object as the record"),
    "metadata-list": edited(METADATA, put("metadata", [1]), "object of metadata"),
    "metadata-of-a-number": edited(METADATA, put("metadata", {"$float": "inf"}), "an object of metadata"),
    "metadata-of-an-int": edited(METADATA, put("metadata", {"$int": "0xff"}), "an object of metadata"),
    "metadata-of-a-slice": edited(METADATA, put("metadata", {"$slice": [1]}), "an object of metadata"),
    "metadata-of-a-tuple": edited(METADATA, put("metadata", {"$tuple": []}), "an object of metadata"),
    "models-list": edited(MODELS, put("models", [1]), "an object of models"),
    "no-names": edited(NAMES, lambda index: index.pop("names"), "names"),
    "name-of-another-type": edited(NAMES, put("names", 0, 5), "Expected `str`"),
    "one-name-twice": edited(NAMES, put("names", ["b", "b", "step", "w"]), "more than once"),
    "fewer-names-than-shapes": edited(TYPE_OF, put("names", ["b"]), "as many as names"),
    "no-type-for-a-name": edited(TYPE_OF, put("type_of", [0, 1, 2]), "as many as names"),
    "type-that-does-not-exist": edited(TYPE_OF, put("type_of", 0, 99), "positions among"),
    "type-below-zero": edited(TYPE_OF, put("type_of", 0, -1), "positions among"),
}

OF_TYPES = {
    "unknown-kind": edited(TYPES, put("types", 0, "kind", "pickle"), "pickle"),
    "unknown-dtype": edited(DTYPES, put("types", 0, "dtype", "float31"), "float31"),
    "dtype-of-objects": edited(DTYPES, put("types", 0, "dtype", "object"), "object"),
    "dtype-with-fields": edited(DTYPES, put("types", 0, "dtype", "f4,f4"), "f4,f4"),
    "dtype-that-is-an-expression": edited(DTYPES, put("types", 0, "dtype", "(,)f4"), "unknown dtype"),
    "dtype-of-huge-strings": edited(DTYPES, put("types", 0, "dtype", "U999999999999"), "unknown dtype"),
    "dtype-with-a-surrogate": edited(DTYPES, put("types", 0, "dtype", "f\ud8004"), "a damaged one"),
    "key-without-implementation": edited(TYPES, put("types", 0, {"kind": "key", "dtype": "uint32"}), "implementation"),
    "int-of-another-dtype": edited(
        "`int64`, shape `[]`; or `uint8`, shape `[n]`",
        put("types", 0, {"kind": "int", "dtype": "float32"}),
        "a shape for int",
    ),
    "float-with-a-shape": edited(
        "`bool`, `float64`, `complex128`; shape `[]`",
        put("types", 0, {"kind": "float", "dtype": "float64"}),
        "a shape for float",
    ),
    "big-endian-jax-array": edited(KINDS, put("types", 0, {"kind": "jax", "dtype": ">float32"}), "a dtype for jax"),
    "jax-array-of-strings": edited(KINDS, put("types", 0, {"kind": "jax", "dtype": "U4"}), "a dtype for jax"),
    "jax-array-of-dates": edited(KINDS, put("types", 0, {"kind": "jax", "dtype": "datetime64[ns]"}), "a dtype for jax"),
}

OF_SHAPES = {
    "length-below-zero": edited(SHAPES, put("shapes", 0, [-4]), "no negative length"),
    "shape-of-124-bits": edited(SHAPES, put("shapes", 0, [2**62, 2**62]), "fewer than 2**63 bytes"),
    "shape-of-500-axes": edited(SHAPES, put("shapes", 0, [2**62] * 500), "at most 64 axes"),
    "shape-of-65-axes": edited(SHAPES, put("shapes", 0, [1] * 65), "at most 64 axes"),
    "empty-array-of-62-bits": edited(SHAPES, put("shapes", 0, [0, 2**62]), "fewer than"),
    "empty-array-of-63-bits": edited(SHAPES, put("shapes", 0, [0, 2**63]), "fewer than"),
    "length-of-300-digits": edited(SHAPES, put("shapes", 0, [10**300]), ""),
    "length-that-is-a-float": edited(SHAPES, put("shapes", 0, [4.5]), "Expected `int`"),
    "larger-shape": edited(SHAPES, put("shapes", 0, [5]), "expected"),
}


def _no_chunks_over_an_empty_array(found):
    found["shapes"][0] = [0]
    found["grids"] = {"0": [[5]]}


def _two_chunks_of_w(found):
    found["grids"] = {"3": [[0, 1, 2], [0, 3]]}
    start = found["chunk_offsets"][3]
    found["chunk_files"].append(0)
    found["chunk_offsets"][3:] = [start, start + 12]
    found["checksums"] = found["checksums"][:48] + "0" * 32


def _grids_of_two_that_overlap(found):
    _two_chunks_of_w(found)
    found["chunk_offsets"][4] -= 4


CHUNKS = {
    "position-with-a-leading-zero": edited(POSITION, put("grids", {"03": [[0, 2], [0, 3]]}), "position of a variable"),
    "position-of-5000-digits": edited(POSITION, put("grids", {"1" * 5000: [[0, 2]]}), "position of a variable"),
    "position-in-arabic-digits": edited(POSITION, put("grids", {"٣": [[0, 2], [0, 3]]}), "position of a variable"),
    "position-with-a-sign": edited(POSITION, put("grids", {"+3": [[0, 2], [0, 3]]}), "position of a variable"),
    "grid-of-no-variable": edited(POSITION, put("grids", {"4": [[0, 2], [0, 3]]}), "position of a variable"),
    "grid-of-no-chunks-over-an-empty-array": edited(GRID, _no_chunks_over_an_empty_array, "a grid for shape"),
    "grid-of-no-chunks": edited(GRID, put("grids", {"3": [[0, 2], [5], [0, 3]]}), "a grid for shape"),
    "grid-of-another-shape": edited(GRID, put("grids", {"3": [[0, 2], [0, 4]]}), "a grid for shape"),
    "grid-with-a-gap": edited(GRID, put("grids", {"3": [[1, 2], [0, 3]]}), "a grid for shape"),
    "grid-that-goes-back": edited(GRID, put("grids", {"3": [[0, 2, 1, 2], [0, 3]]}), "a grid for shape"),
    "grid-with-an-empty-cell": edited(GRID, put("grids", {"3": [[0, 0, 2], [0, 3]]}), "a grid for shape"),
    "grid-without-axes": edited(GRID, put("grids", {"3": []}), "a grid for shape"),
    "more-chunks-than-offsets": edited(ONE_ENTRY, put("grids", {"3": [[0, 1, 2], [0, 1, 2, 3]]}), "9 chunks, found"),
    "missing-chunk": edited(ONE_ENTRY, lambda index: index["chunk_offsets"].pop(), "4 chunks"),
    "one-more-chunk": edited(ONE_ENTRY, lambda index: index["chunk_files"].append(0), "4 chunks"),
    "chunk-in-no-file": edited(CHUNK_FILES, put("chunk_files", 0, 7), "positions among 1 files"),
    "chunk-in-a-file-below-zero": edited(CHUNK_FILES, put("chunk_files", 0, -1), "positions among 1 files"),
    "no-files": edited(CHUNK_FILES, put("files", []), "positions among 0 files"),
    "chunk-in-the-header": edited(OVERLAP, put("chunk_offsets", 0, 8), "expected no overlap"),
    "chunk-beyond-the-file": edited(OVERLAP, put("chunk_offsets", 0, 2**40), "bytes within"),
    "chunk-that-ends-beyond-its-file": edited(
        OVERLAP, put("chunk_offsets", 0, index()["files"][0]["nbytes"] - 1), "bytes within"
    ),
    "chunk-at-63-bits": edited(OVERLAP, put("chunk_offsets", 0, 2**63 - 1), "bytes within"),
    "overlapping-chunks": edited(OVERLAP, put("chunk_offsets", 0, index()["chunk_offsets"][3]), "expected no overlap"),
    "overlap-of-one-byte": edited(OVERLAP, put("chunk_offsets", 1, index()["chunk_offsets"][3] + 23), "no overlap"),
    "overlap-within-a-grid": edited(OVERLAP, _grids_of_two_that_overlap, "expected no overlap"),
    "offset-of-64-bits": edited(OFFSETS, put("chunk_offsets", 0, 2**63), "offsets from 0 to"),
    "offset-below-zero": edited(OFFSETS, put("chunk_offsets", 0, -1), "offsets from 0 to"),
    "block-of-no-bytes": edited(BLOCK, put("checksum_block_nbytes", 0), "positive checksum_block_nbytes"),
    "block-below-zero": edited(BLOCK, put("checksum_block_nbytes", -1), "positive checksum_block_nbytes"),
    "no-checksums": edited(CHECKSUMS, put("checksums", ""), "checksums of 16 digits"),
    "blocks-without-checksums": edited(CHECKSUMS, put("checksum_block_nbytes", 1), "checksums of 16 digits"),
    "checksums-in-other-digits": edited(CHECKSUMS, put("checksums", "G" * 64), "hexadecimal"),
    "checksums-in-arabic-digits": edited(CHECKSUMS, put("checksums", "٣" * 64), "hexadecimal"),
    "checksums-in-upper-case": edited(CHECKSUMS, put("checksums", "A" * 64), "hexadecimal"),
    "grid-with-wrong-checksums": edited(CHECKSUMS, _two_chunks_of_w, "1 of 4 variables damaged:\n  w", works=LISTED),
}

FILES = {
    "one-file-twice": edited(
        FILE_NAMES, lambda index: index["files"].append(index["files"][0]), "different data files"
    ),
    "file-in-another-directory": edited(FILE_NAMES, put("files", 0, "name", "../../etc/passwd"), "passwd"),
    "absolute-file": edited(FILE_NAMES, put("files", 0, "name", "/etc/passwd"), "passwd"),
    "file-of-another-kind": edited(FILE_NAMES, put("files", 0, "name", "index.json"), "index.json"),
    "file-with-a-line-feed": edited(FILE_NAMES, put("files", 0, "name", f"{DATA[1:]}\n"), "a data file"),
    "file-with-a-nul": edited(FILE_NAMES, put("files", 0, "name", "data-0\0.safetensors"), "a data file"),
    "file-without-a-name": edited(FILE_NAMES, put("files", 0, "name", ""), "a data file"),
    "size-below-zero": edited(SIZES, put("files", 0, "nbytes", -1), "header within"),
    "size-of-64-bits": edited(SIZES, put("files", 0, "nbytes", 2**63), "header within"),
    "header-beyond-the-file": edited(SIZES, put("files", 0, "header_nbytes", 10**9), "header within"),
    "header-below-zero": edited(SIZES, put("files", 0, "header_nbytes", -1), "header within"),
    "larger-file-than-there-is": edited(
        COMPARE, put("files", 0, "nbytes", 2**40), "expected 1099511627776 bytes, found", works=LISTED
    ),
    "wrong-header-checksum": edited(
        COMPARE, put("files", 0, "header_checksum", "0" * 16), "its header is damaged", works=LISTED
    ),
    "header-checksum-of-text": edited(
        COMPARE, put("files", 0, "header_checksum", "\u0663"), "its header is damaged", works=LISTED
    ),
}


def _same(found, key="3", earlier=0):
    found["same_as"] = {key: earlier}


SAME = {
    "same-as-another-shape": edited(SAME_AS, _same, "the same array as b"),
    "same-as-a-later-variable": edited(SAME_AS, lambda index: _same(index, "0", 3), "an earlier one in same_as"),
    "same-as-itself": edited(SAME_AS, lambda index: _same(index, "3", 3), "an earlier one in same_as"),
    "same-as-below-zero": edited(SAME_AS, lambda index: _same(index, "3", -1), "an earlier one in same_as"),
    "same-as-of-no-variable": edited(SAME_AS, lambda index: _same(index, "9", 0), "an earlier one in same_as"),
    "same-as-another-place": edited(
        SAME_AS, lambda index: (put("shapes", 3, [4])(index), put("same_as", {"3": 0})(index)), "the same array as b"
    ),
}


def _of_data(rule, content, message, works=LISTED):
    """Return the sample checkpoint with another data file."""
    return Attack(saved() | {DATA: content}, rule, message, works=works)


def _flipped(content, *positions):
    changed = bytearray(content)
    for position in positions:
        changed[position] ^= 4
    return bytes(changed)


XXH3 = "`checksums` concatenates the checksums of all blocks of all chunks, in the order of the chunks"
SAMPLE = saved()[DATA]
DATA_FILES = {
    "data-of-one-byte-less": _of_data(COMPARE, SAMPLE[:-1], f"expected {len(SAMPLE)} bytes, found {len(SAMPLE) - 1}"),
    "data-of-one-byte-more": _of_data(
        COMPARE, SAMPLE + b"\0", f"expected {len(SAMPLE)} bytes, found {len(SAMPLE) + 1}"
    ),
    "data-of-no-bytes": _of_data(COMPARE, b"", "bytes, found 0"),
    "no-data": Attack(
        {"/index.json": saved()["/index.json"]}, COMPARE, "expected a data file, found none", works=LISTED
    ),
    "header-with-a-flipped-bit": _of_data(COMPARE, _flipped(SAMPLE, 20), "its header is damaged"),
    "data-with-a-flipped-bit": _of_data(
        XXH3,
        _flipped(SAMPLE, *(start for start in index()["chunk_offsets"])),
        "4 of 4 variables damaged",
        (*LISTED, "diff"),
    ),
    "w-with-a-flipped-bit": _of_data(
        XXH3, _flipped(SAMPLE, index()["chunk_offsets"][3]), "1 of 4 variables damaged:\n  w", (*LISTED, "diff")
    ),
}


def in_another_order():
    """Return the sample checkpoint with its arrays the other way round in the data file."""
    changed, data = index(), SAMPLE[:4096]
    nbytes = [16, 3, 8, 24]
    for position in sorted(range(4), key=lambda i: -changed["chunk_offsets"][i]):
        start = changed["chunk_offsets"][position]
        changed["chunk_offsets"][position] = len(data)
        data += SAMPLE[start : start + nbytes[position]]
    return {"/index.json": sealed_index(changed), DATA: data}


def renamed_tensors():
    """Return the sample checkpoint with other names of tensors in the data file, and a right checksum of the header."""
    text = SAMPLE[8:4096].replace(b'"w":', b'"q":')
    header = with_header(text)
    changed = index()
    changed["files"][0]["header_checksum"] = xxh3(header)
    return saved() | {"/index.json": sealed_index(changed), DATA: header + SAMPLE[4096:]}


ATTACKS = TEXTS | KEYS | OF_TYPES | OF_SHAPES | CHUNKS | FILES | SAME | DATA_FILES
