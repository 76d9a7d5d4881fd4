"""Attacks on single safetensors files: of other programs, and with the index of pytreesaver in their metadata."""

import functools
import json

import numpy as np
from attacks.attack import LISTED, TREE, Attack, allowed, saved
from attacks.sealing import as_json, sealed_index, sealed_metadata, split_header, with_header

README = "https://github.com/huggingface/safetensors#format"
DATA = TREE["w"].tobytes()
W = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def of_header(rule, header, message, data=DATA, works=()):
    """Return a file with a header, which is JSON data or text."""
    text = header if isinstance(header, bytes) else as_json(header)
    error = "" if works == ("all",) else "CorruptCheckpointError"
    return Attack({".safetensors": with_header(text, data)}, rule, message, error, works, README)


def of_w(rule, changes, message, data=DATA):
    """Return a file whose tensor ``w`` has another entry in the header."""
    return of_header(rule, {"w": W | changes}, message, data)


LENGTH = "8 bytes: N, an unsigned little-endian 64-bit integer, containing the size of the header"
HEADER = "N bytes: a JSON UTF-8 string representing the header"
BRACE = "The header data MUST begin with a { character (0x7B)"
PADDING = "The header data MAY be trailing padded with whitespace (0x20)"
FIELDS = 'a dict like {"TENSOR_NAME": {"dtype": "F16", "shape": [1, 16, 256], "data_offsets": [BEGIN, END]}}'
OFFSETS = "data_offsets point to the tensor data relative to the beginning of the byte buffer"
METADATA = "Arbitrary JSON is not allowed, all values must be strings"
TWICE = "Duplicate keys are disallowed"
HOLES = "The byte buffer needs to be entirely indexed, and cannot contain holes"
LIMIT = "there is a limit on the size of the header of 100MB to prevent parsing extremely large JSON"
ENTRY = as_json(W)


def _tensors(**entries):
    return {name: {"dtype": "F32", "shape": shape, "data_offsets": place} for name, (shape, place) in entries.items()}


HEADERS = {
    "no-json": of_header(HEADER, b"{not json", "found a damaged one", b""),
    "json-without-its-end": of_header(HEADER, b'{"w":' + ENTRY, "damaged"),
    "no-utf-8": of_header(HEADER, b'{"w\xff":' + ENTRY + b"}", "damaged"),
    "surrogate-in-a-name": of_header(HEADER, b'{"\\ud800":' + ENTRY + b"}", "damaged"),
    "nul-after-the-header": of_header(PADDING, as_json({"w": W}) + b"\0", "damaged"),
    "endless-brackets": of_header(HEADER, b'{"w":' + b"[" * 3_000, "damaged", b""),
    "entry-of-brackets": of_header(HEADER, b'{"w":' + b"[" * 3_000 + b"]" * 3_000 + b"}", "damaged", b""),
    "no-dtype": of_header(FIELDS, {"w": {"shape": [2, 3], "data_offsets": [0, 24]}}, "dtype"),
    "no-shape": of_header(FIELDS, {"w": {"dtype": "F32", "data_offsets": [0, 24]}}, "shape"),
    "no-offsets": of_header(FIELDS, {"w": {"dtype": "F32", "shape": [2, 3]}}, "data_offsets"),
    "entry-of-null": of_header(FIELDS, {"w": None}, "damaged"),
    "entry-of-a-number": of_header(FIELDS, {"w": 1}, "damaged"),
    "dtype-of-a-number": of_w(FIELDS, {"dtype": 32}, "Expected `str`"),
    "unknown-dtype": of_w(FIELDS, {"dtype": "F31"}, "F31"),
    "dtype-in-lower-case": of_w(FIELDS, {"dtype": "f32"}, "f32"),
    "packed-dtype": of_w(FIELDS, {"dtype": "F4", "shape": [48]}, "F4"),
    "shape-of-text": of_w(FIELDS, {"shape": "23"}, "damaged"),
    "shape-of-floats": of_w(FIELDS, {"shape": [2.5, 3]}, "damaged"),
    "shape-of-bools": of_w(FIELDS, {"shape": [True, 6]}, "damaged"),
    "length-below-zero": of_w(FIELDS, {"shape": [-2, -3]}, "negative length"),
    "shape-of-80-bits": of_w(FIELDS, {"shape": [2**40, 2**40]}, "fewer than 2**63 bytes"),
    "empty-of-124-bits": of_w(
        FIELDS, {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "fewer than 2**63 bytes", b""
    ),
    "length-of-400-digits": of_w(
        FIELDS, {"shape": [10**400, 0], "data_offsets": [0, 0]}, "fewer than 2**63 bytes", b""
    ),
    "shape-of-65-axes": of_w(FIELDS, {"shape": [1] * 64 + [6]}, "64 axes"),
    "name-of-8000-parts": of_header(FIELDS, {"/".join(["a"] * 8000): W}, "100 parts"),
    "three-offsets": of_w(OFFSETS, {"data_offsets": [0, 24, 24]}, "damaged"),
    "offsets-of-floats": of_w(OFFSETS, {"data_offsets": [0, 24.5]}, "damaged"),
    "offset-of-70-bits": of_w(OFFSETS, {"data_offsets": [0, 2**70]}, ""),
    "offsets-below-zero": of_w(OFFSETS, {"data_offsets": [-24, 0]}, "expected its bytes to start at 0"),
    "offsets-the-other-way": of_w(OFFSETS, {"data_offsets": [24, 0]}, "found -24"),
    "other-size-than-its-shape": of_w(OFFSETS, {"shape": [7]}, "found 24"),
    "beyond-the-end": of_w(OFFSETS, {}, "truncated", DATA[:-1]),
    "metadata-of-numbers": of_header(METADATA, {"__metadata__": {"a": 1}, "w": W}, "damaged"),
    "metadata-of-null": of_header(METADATA, {"__metadata__": None, "w": W}, "damaged"),
    "metadata-that-is-a-tensor": of_header(METADATA, {"__metadata__": W}, "damaged"),
    "metadata-that-is-a-list": of_header(METADATA, {"__metadata__": [], "w": W}, "damaged"),
    "one-name-twice": of_header(TWICE, b'{"w":' + ENTRY + b',"w":' + ENTRY + b"}", "w again"),
    "one-name-twice-with-an-escape": of_header(TWICE, b'{"w":' + ENTRY + b',"\\u0077":' + ENTRY + b"}", "w again"),
    "one-field-twice": of_header(TWICE, b'{"w":' + ENTRY[:-1] + b',"data_offsets":[0,24]}}', "again"),
    "metadata-twice": of_header(TWICE, b'{"__metadata__":{},"__metadata__":{"a":"b"},"w":' + ENTRY + b"}", "again"),
    "twice-and-a-number-of-5000-digits": of_header(
        TWICE,
        b'{"w":' + ENTRY[:-1] + b',"data_offsets":[0,24],"n":' + b"1" * 5000 + b'},"w":' + ENTRY + b"}",
        "damaged",
    ),
    "overlap": of_header(HOLES, _tensors(w=([2, 3], [0, 24]), b=([6], [4, 28])), "overlap", DATA + bytes(4)),
    "same-bytes-twice": of_header(HOLES, _tensors(w=([2, 3], [0, 24]), b=([6], [0, 24])), "overlap"),
    "hole": of_header(HOLES, _tensors(w=([2, 3], [0, 24]), b=([1], [28, 32])), "belong to no tensor", DATA + bytes(8)),
    "hole-at-the-start": of_w(HOLES, {"data_offsets": [1, 25]}, "belong to no tensor", b"\0" + DATA),
    "bytes-after-the-end": of_w(HOLES, {}, "expected 24 bytes of data, found 25", DATA + b"\0"),
    "archive-after-the-end": of_w(HOLES, {}, "expected 24 bytes of data", DATA + b"PK\5\6" + bytes(18)),
    "empty-tensor-in-another": of_header(HOLES, _tensors(w=([2, 3], [0, 24]), b=([0], [8, 8])), "overlap"),
    "padded": of_header(PADDING, as_json({"w": W}) + b" " * 50, "", works=("all",)),
    "good-foreign": of_header(FIELDS, {"w": W}, "", works=("all",)),
    "unknown-fields": of_header(FIELDS, {"w": W | {"quantized": [1]}}, "", works=("all",)),
    "names-like-paths": of_header(
        FIELDS, {"w": W} | _tensors(**{"../../etc/passwd": ([0], [24, 24]), "/": ([0], [24, 24])}), "", works=("all",)
    ),
    "names-of-control-characters": of_header(
        FIELDS,
        {"w": W} | _tensors(**{"\x1b[31m": ([0], [24, 24]), "\0": ([0], [24, 24]), "": ([0], [24, 24])}),
        "",
        works=("all",),
    ),
}

LENGTHS = {
    "length-beyond-the-file": Attack(
        {".safetensors": (1000).to_bytes(8, "little") + as_json({"w": W}) + DATA},
        LENGTH,
        "expected a header of 1000 bytes",
        source=README,
    ),
    "length-of-64-bits": Attack(
        {".safetensors": b"\xff" * 8 + as_json({"w": W}) + DATA}, LENGTH, "", "CheckpointNotFoundError", (), README
    ),
    "length-above-the-limit": Attack(
        {".safetensors": (1 << 40).to_bytes(8, "little") + as_json({"w": W}) + DATA},
        LIMIT,
        "",
        "CheckpointNotFoundError",
        (),
        README,
    ),
    "seven-bytes": Attack({".safetensors": b"\2\0\0\0\0\0\0"}, LENGTH, "", "CheckpointNotFoundError", (), README),
    "no-bytes": Attack({".safetensors": b""}, LENGTH, "", "CheckpointNotFoundError", (), README),
    "space-before-the-brace": Attack(
        {".safetensors": with_header(b" " + as_json({"w": W}), DATA)}, BRACE, "", "CheckpointNotFoundError", (), README
    ),
    "list": Attack({".safetensors": with_header(b"[1,2]", b"")}, BRACE, "", "CheckpointNotFoundError", (), README),
}


@functools.cache
def ours():
    """Return the header of the sample checkpoint in one file, as JSON data, and the data."""
    text, data = split_header(saved(".safetensors")[".safetensors"])
    return text, data


def resealed(edit_header=None, edit_index=None, data=None):
    """Return the sample checkpoint in one file with another header or index, whose checksums are right."""
    text, original = ours()
    header = json.loads(text)
    if edit_index is not None:
        index = json.loads(header["__metadata__"]["pytreesaver.index"])
        edit_index(index)
        header["__metadata__"]["pytreesaver.index"] = sealed_index(index).decode()
    if edit_header is not None:
        edit_header(header)
    content = sealed_metadata(as_json(header))
    return {".safetensors": with_header(content, original if data is None else data)}


KEYS = "It has these keys, the first one first **(check)**"
SEAL = "the xxh3 of the text of the header or index, with the 16 digits of this value replaced by zeros"
ONE_FILE = "A single file has one entry in `files` of that index, with an empty name"
TENSORS = "Each variable is one tensor with its name"


def _metadata(edit):
    return lambda header: edit(header["__metadata__"])


def _to_the_end(metadata):
    metadata["pytreesaver.checksum"] = metadata.pop("pytreesaver.checksum")


OURS = {
    "checksum-not-first": Attack(resealed(_metadata(_to_the_end)), KEYS, "its checksum does not match"),
    "no-checksum": Attack(
        resealed(_metadata(lambda found: found.pop("pytreesaver.checksum"))), KEYS, "its checksum does not match"
    ),
    "no-index": Attack(
        resealed(_metadata(lambda found: found.pop("pytreesaver.index"))), KEYS, "its checksum does not match"
    ),
    "another-checksum": Attack(
        {".safetensors": saved(".safetensors")[".safetensors"].replace(b'"pt"', b'"pu"')},
        SEAL,
        "its checksum does not match",
    ),
    "index-of-text": Attack(
        resealed(_metadata(lambda found: found.update({"pytreesaver.index": "nothing"}))),
        "the text of `index.json`",
        "",
    ),
    "two-files": Attack(
        resealed(edit_index=lambda index: index["files"].append(index["files"][0])), ONE_FILE, "different data files"
    ),
    "no-files": Attack(resealed(edit_index=lambda index: index.update(files=[])), ONE_FILE, "positions among 0 files"),
    "file-with-a-name": Attack(
        resealed(edit_index=lambda index: index["files"][0].update(name="data-0.safetensors")), ONE_FILE, "a data file"
    ),
    "file-of-another-size": Attack(
        resealed(edit_index=lambda index: index["files"][0].update(nbytes=1 << 40)), ONE_FILE, "bytes of data, found"
    ),
    "offset-beyond-the-data": Attack(
        resealed(edit_index=lambda index: index["chunk_offsets"].__setitem__(0, 1 << 40)), ONE_FILE, "bytes within"
    ),
    "data-with-a-flipped-bit": Attack(
        resealed(data=bytes(byte ^ 1 for byte in ours()[1])),
        "The bytes of a chunk are divided into blocks",
        "4 of 4 variables damaged",
        works=(*LISTED, "diff"),
    ),
    "data-without-its-end": Attack({".safetensors": saved(".safetensors")[".safetensors"][:-1]}, TENSORS, "truncated"),
    "good": allowed(saved(".safetensors"), KEYS),
    "good-resealed": allowed(resealed(), KEYS),
}

POLYGLOT = np.frombuffer(b"PK\5\6" + bytes(18) + b"\0\0", np.float32)
OTHERS = {
    "archive-in-its-data": allowed(
        {".safetensors": with_header(as_json({"w": W}), POLYGLOT.tobytes())}, FIELDS, source=README
    ),
}

ATTACKS = HEADERS | LENGTHS | {f"ours-{name}": attack for name, attack in OURS.items()} | OTHERS
