"""Attacks on directories of safetensors files: with Hugging Face's index, and with that of pytreesaver."""

import functools
import json

from attacks.attack import LISTED, TREE, Attack, allowed, saved
from attacks.sealing import as_json, sealed_index, sealed_metadata, with_header

SOURCE = "https://huggingface.co/docs/transformers/big_models#shard-metadata"
INDEX = "/model.safetensors.index.json"
FIRST, SECOND = "/model-00001-of-00002.safetensors", "/model-00002-of-00002.safetensors"


def shard(**arrays):
    """Return a safetensors file of arrays of float32."""
    header, data = {}, b""
    for name, array in arrays.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": place}
        data += array.tobytes()
    return with_header(as_json(header), data)


FILES = {FIRST: shard(w=TREE["w"]), SECOND: shard(b=TREE["b"])}
WEIGHTS = {"w": FIRST[1:], "b": SECOND[1:]}
MAP = "weight_map: a mapping of the names of the parameters to the files that store them"
TOTAL = "metadata: only the total size of the model for now"
ALL_FILES = "each shard is in the directory of the index"


def of_index(rule, index, message, files=FILES, works=()):
    """Return a directory with an index, which is JSON data or text."""
    text = index if isinstance(index, bytes) else as_json(index)
    error = "" if works == ("all",) else "CorruptCheckpointError"
    return Attack({INDEX: text, **files}, rule, message, error, works, SOURCE)


def of_map(weights, message, rule=MAP, files=FILES, works=()):
    """Return a directory with a map of weights."""
    return of_index(rule, {"metadata": {"total_size": 40}, "weight_map": weights}, message, files, works)


FOREIGN = {
    "no-json": of_index(MAP, b"{", "a damaged one"),
    "index-of-no-bytes": of_index(MAP, b"", "a damaged one"),
    "index-that-is-a-list": of_index(MAP, [], "a damaged one"),
    "index-of-brackets": of_index(MAP, b'{"weight_map":' + b"[" * 3000, "a damaged one"),
    "no-map": of_index(MAP, {"metadata": {}}, "weight_map"),
    "map-that-is-a-list": of_map([FIRST[1:]], "a damaged one"),
    "map-of-numbers": of_map({"w": 1}, "a damaged one"),
    "map-of-null": of_map({"w": None}, "a damaged one"),
    "metadata-that-is-a-list": of_index(TOTAL, {"metadata": [], "weight_map": WEIGHTS}, "a damaged one"),
    "metadata-of-150-levels": of_index(
        TOTAL, {"metadata": {"a": json.loads("[" * 150 + "]" * 150)}, "weight_map": WEIGHTS}, "levels"
    ),
    "file-above": of_map({"w": "../secret"}, "in the same directory"),
    "absolute-file": of_map({"w": "/etc/passwd"}, "in the same directory"),
    "directory-above": of_map({"w": ".."}, "in the same directory"),
    "directory-itself": of_map({"w": "."}, "in the same directory"),
    "file-below": of_map({"w": "a/b"}, "in the same directory"),
    "file-without-a-name": of_map({"w": ""}, "in the same directory"),
    "file-with-a-nul": of_map({"w": "a\0b"}, "in the same directory"),
    "file-of-300-characters": of_map({"w": "a" * 300}, "in the same directory"),
    "file-of-255-wide-characters": of_map({"w": "ä" * 255}, ""),
    "file-that-is-the-index": of_map({"w": INDEX[1:]}, ""),
    "file-that-does-not-exist": of_map(WEIGHTS | {"c": "model-3.safetensors"}, "expected a data file, found none"),
    "tensor-that-no-file-has": of_map(WEIGHTS | {"c": FIRST[1:]}, "its files lack"),
    "tensor-in-another-file": of_map(WEIGHTS | {"b": FIRST[1:]}, "its files lack"),
    "tensor-in-two-files": of_map(
        WEIGHTS, "found one in several", ALL_FILES, {FIRST: FILES[FIRST], SECOND: shard(b=TREE["b"], w=TREE["w"])}
    ),
    "shard-without-its-end": of_map(WEIGHTS, "truncated", ALL_FILES, {FIRST: FILES[FIRST][:-1], SECOND: FILES[SECOND]}),
    "shard-of-no-bytes": of_map(WEIGHTS, "", ALL_FILES, {FIRST: b"", SECOND: FILES[SECOND]}),
    "good-foreign": of_map(WEIGHTS, "", works=("all",)),
    "no-metadata": of_index(TOTAL, {"weight_map": WEIGHTS}, "", works=("all",)),
    "wrong-total": of_index(TOTAL, {"metadata": {"total_size": -5}, "weight_map": WEIGHTS}, "", works=("all",)),
    "metadata-of-objects": of_index(
        TOTAL, {"metadata": {"a": {"$b": [1.5]}}, "weight_map": WEIGHTS}, "", works=("all",)
    ),
    "no-index": Attack(FILES, ALL_FILES, error="", works=("all",), source=SOURCE),
    "no-index-and-a-missing-shard": Attack(
        {FIRST: FILES[FIRST]}, ALL_FILES, "missing: model-00002-of-00002", source=SOURCE
    ),
    "no-index-and-many-shards": Attack(
        {"/model-00001-of-99999.safetensors": FILES[FIRST]}, ALL_FILES, "missing: model-00002", source=SOURCE
    ),
}


@functools.cache
def ours():
    """Return the sample checkpoint in two files."""
    return saved("", format="safetensors", shard_nbytes=30)


def resealed(edit_index=lambda index: None, edit=lambda whole: None, files=None):
    """Return the sample checkpoint in several files with another index, whose checksums are right."""
    whole = json.loads(ours()[INDEX])
    index = json.loads(whole["metadata"]["pytreesaver.index"])
    edit_index(index)
    whole["metadata"]["pytreesaver.index"] = sealed_index(index).decode()
    edit(whole)
    return dict(ours()) | {INDEX: sealed_metadata(as_json(whole))} | (files or {})


def _without_index():
    return {name: content for name, content in ours().items() if name != INDEX}


KEYS = "It has these keys, the first one first **(check)**"
IN_A_DIRECTORY = "In a directory, `files` and offsets are as in `index.json`."
CONTENT = (
    "In a directory, each data file has `pytreesaver.content` in its metadata, with the xxh3 of the text of its "
    "checksums, so that a data file without its index is not taken for another program's."
)
OURS = {
    "good": allowed(ours(), KEYS),
    "good-resealed": allowed(resealed(), KEYS),
    "another-checksum": Attack(
        dict(ours()) | {INDEX: ours()[INDEX].replace(b'"pt"', b'"pu"')}, KEYS, "its checksum does not match"
    ),
    "no-checksum": Attack(
        resealed(edit=lambda whole: whole["metadata"].pop("pytreesaver.checksum")), KEYS, "its checksum does not match"
    ),
    "no-description": Attack(
        resealed(edit=lambda whole: whole.update(metadata={})), CONTENT, "expected the index of pytreesaver"
    ),
    "no-index": Attack(_without_index(), CONTENT, "expected the index of pytreesaver"),
    "file-above": Attack(
        resealed(lambda index: index["files"][0].update(name="../secret.safetensors")), IN_A_DIRECTORY, "secret"
    ),
    "file-of-another-size": Attack(
        resealed(lambda index: index["files"][0].update(nbytes=1 << 40)),
        IN_A_DIRECTORY,
        "bytes, found",
        works=(*LISTED, "only", "slice", "template"),
    ),
    "chunk-in-no-file": Attack(
        resealed(lambda index: index["chunk_files"].__setitem__(0, 9)), IN_A_DIRECTORY, "positions among"
    ),
    "data-file-of-other-data": Attack(
        dict(ours()) | {name: content[:-1] + bytes([content[-1] ^ 1]) for name, content in _without_index().items()},
        IN_A_DIRECTORY,
        "variables damaged",
        works=(*LISTED, "diff"),
    ),
    "no-data-files": Attack({INDEX: ours()[INDEX]}, IN_A_DIRECTORY, "expected a data file, found none", works=LISTED),
}

ATTACKS = FOREIGN | {f"ours-{name}": attack for name, attack in OURS.items()}
