"""Attacks on what the native index says of the tree: structures, plain values, models; and what is allowed."""

import base64

import numpy as np
from attacks.attack import LISTED, TREE, Attack, allowed, files_of, saved
from attacks.makers.native import DATA, OVERLAP, SAMPLE, edited, in_another_order, index, put, renamed_tensors
from attacks.sealing import sealed_index, xxh3

LEAVES = "the leaf at that position; each position occurs exactly once"
DICTS = "dict with keys of type str, none of which begins with `$`"
CLASSES = "A reader MUST NOT import anything to find it."
DEPTH = "Trees and plain values are at most 100 levels deep."
VALUES = "Other values are objects with a single key"
RECORD = {
    **{"step": None, "time": None, "metrics": {}, "state_file": None},
    **{"serial": 0, "name": "", "predecessor": None, "retention": {"from": "another program"}},
}
PARTS = (*LISTED, "template", "only", "slice", "verify")
# A template needs no stored structure.
WITH_TEMPLATE = (*LISTED, "template", "variables", "slice", "verify", "diff")
# What does not look at the metadata.
METADATA = (*LISTED, "restore", "template", "only", "mmap", "diff")


def tree(rule, structure, message="", works=WITH_TEMPLATE):
    """Return a checkpoint with another structure."""
    return edited(rule, put("structure", structure), message, works=works)


def nested(levels, inner):
    """Return a list in a list in a list."""
    for _ in range(levels):
        inner = [inner]
    return inner


WHOLE = {"b": 0, "name": 1, "step": 2, "w": 3}
STRUCTURES = {
    "leaf-that-does-not-exist": tree(LEAVES, WHOLE | {"w": 99}, "structure"),
    "leaf-below-zero": tree(LEAVES, WHOLE | {"w": -1}, "structure"),
    "leaf-used-twice": tree(LEAVES, WHOLE | {"w": 2}, "structure"),
    "leaf-left-out": tree(LEAVES, {"b": 0, "name": 1, "step": 2}, "structure"),
    "leaf-of-70-bits": tree(LEAVES, WHOLE | {"w": 2**70}, "structure"),
    "float-for-a-leaf": tree(LEAVES, {"b": 0.5}, "node"),
    "bool-for-a-leaf": tree(LEAVES, {"b": 0, "name": True, "step": 2, "w": 3}, "node"),
    "text-for-a-tree": tree(LEAVES, "b", "node"),
    "unknown-kind-of-node": tree(DICTS, {"$exec": "rm -rf /"}, "node"),
    "tuple-of-a-number": tree(DICTS, {"$tuple": 5}, "node"),
    "namedtuple-without-fields": tree(DICTS, {"$namedtuple": ["collections:OrderedDict"]}, "node"),
    "namedtuple-of-a-number": tree(DICTS, {"$namedtuple": [7, WHOLE]}, "node"),
    "dataclass-without-static-fields": tree(DICTS, {"$dataclass": ["a:B", WHOLE]}, "node"),
    "keys-that-cannot-be-keys": tree(DICTS, {"$dict": [[[], 0], [1, 1], [2, 2], [3, 3]]}, "expected a dict key"),
    "dict-of-numbers": tree(DICTS, {"$dict": [0, 1, 2, 3]}, "node"),
    "one-key-twice": tree(DICTS, {"$dict": [["w", 0], ["w", 1], ["b", 2], ["c", 3]]}, "duplicate key"),
    "defaultdict-of-a-module": tree(DICTS, {"$defaultdict": ["os", [["w", 0], ["b", 1]]]}, "node"),
    "tree-of-900-levels": edited(DEPTH, put("structure", nested(900, WHOLE)), "", works=WITH_TEMPLATE),
}


def value(encoded, message=""):
    """Return a checkpoint with a value in its metadata."""
    return edited(VALUES, put("metadata", {"x": encoded}), message, works=METADATA)


PLAIN = {
    "int-that-is-none": value({"$int": "x"}),
    "int-of-a-list": value({"$int": [1]}),
    "float-of-few-digits": value({"$float": "12"}),
    "float-of-a-number": value({"$float": 1}),
    "complex-of-one-number": value({"$complex": [1]}),
    "complex-of-text": value({"$complex": ["a", "b"]}),
    "bytes-that-are-no-base64": value({"$bytes": "*"}),
    "str-that-is-no-utf-8": value({"$str": base64.b64encode(b"\xff").decode()}),
    "set-of-lists": value({"$set": [[1]]}),
    "dict-of-a-list-key": value({"$dict": [[[1], 2]]}),
    "dict-of-numbers-in-place-of-pairs": value({"$dict": [1]}),
    "tuple-that-is-null": value({"$tuple": None}),
    "value-of-150-levels": value(nested(150, 0)),
    "value-of-600-levels": value(nested(600, 0)),
    "unknown-tag": value({"$exec": "rm -rf /"}),
    "opaque": value({"$opaque": "a lambda"}),
    "enum-of-a-module": value({"$enum": ["signal:Signals", "SIGKILL"]}),
    "dataclass-in-metadata": value({"$dataclass": ["subprocess:Popen", {"args": "ls"}]}),
    "slice-of-four": value({"$slice": [1, 2, 3, 4]}),
    "dtype-that-is-none": value({"$dtype": "float31"}),
}

MODEL = {
    "signature": "(float32[2]) -> float32[2]",
    "parameters": ["w"],
    "arguments": [0],
    "argument_names": ["0"],
    "result": 0,
    "platforms": ["cpu"],
    "devices": 1,
    "calling_convention": 10,
    "jax": "0.10.0",
    "exported": "",
}
MODELS = "A function in `models` takes the variables `parameters`, in this order"
MODEL_FIELDS = "what `jax.export.Exported.serialize` returned, compressed with zlib, in base64"


def model(changes, rule=MODELS):
    """Return a checkpoint with a function, which only `load_model` reads."""
    changed = index() | {"models": {"call": MODEL | changes}}
    return allowed(saved() | {"/index.json": sealed_index(changed)}, rule)


OF_MODELS = {
    "function-of-no-variable": model({"parameters": ["nothing"]}),
    "function-without-code": model({}, MODEL_FIELDS),
    "function-that-is-no-base64": model({"exported": "*"}, MODEL_FIELDS),
    "function-that-is-no-zlib": model({"exported": "AAAA"}, MODEL_FIELDS),
    "function-of-a-later-convention": model({"calling_convention": 10**6}),
    "function-of-a-damaged-result": model({"result": {"$exec": 1}}),
}

OWNED = {
    "class-that-runs-a-program": {"$namedtuple": ["subprocess:Popen", {"args": 0, "b": 1, "c": 2, "d": 3}]},
    "dataclass-that-runs-a-program": {"$dataclass": ["subprocess:Popen", {"args": 0, "b": 1, "c": 2, "d": 3}, {}]},
    "node-that-runs-a-program": {"$node": ["subprocess:Popen", [0, 1, 2, 3], "touch owned"]},
    "function-of-the-system": {"$node": ["os:system", [0, 1, 2, 3], "touch owned"]},
    "module-that-is-imported": {"$node": ["this:Anything", [0, 1, 2, 3], None]},
    "dataclass-of-an-imported-module": {"$dataclass": ["antigravity:Any", {"a": 0, "b": 1, "c": 2, "d": 3}, {}]},
}
NOT_IMPORTED = {
    name: allowed(saved() | {"/index.json": sealed_index(index() | {"structure": structure})}, CLASSES)
    for name, structure in OWNED.items()
}


def _changed(edit):
    changed = index()
    edit(changed)
    return saved() | {"/index.json": sealed_index(changed)}


def _str_that_is_no_utf_8():
    """Return a checkpoint whose checksums are right, with a str that is not UTF-8."""
    changed = index()
    start = changed["chunk_offsets"][1]
    data = SAMPLE[:start] + b"\xff\xff\xff" + SAMPLE[start + 3 :]
    checksum = xxh3(b"\xff\xff\xff")
    changed["checksums"] = changed["checksums"][:16] + checksum + changed["checksums"][32:]
    return {"/index.json": sealed_index(changed), DATA: data}


def _grid():
    changed = index()
    start = changed["chunk_offsets"][3]
    changed["grids"] = {"3": [[0, 1, 2], [0, 3]]}
    changed["chunk_files"].append(0)
    changed["chunk_offsets"][3:] = [start, start + 12]
    rows = [SAMPLE[start : start + 12], SAMPLE[start + 12 : start + 24]]
    changed["checksums"] = changed["checksums"][:48] + "".join(map(xxh3, rows))
    return saved() | {"/index.json": sealed_index(changed)}


def _same_in(changed):
    changed["names"].append("also")
    for column in ("type_of", "shapes", "chunk_files", "chunk_offsets"):
        changed[column].append(changed[column][3])
    changed["checksums"] += changed["checksums"][-16:]
    changed["same_as"] = {"4": 3}
    changed["structure"]["also"] = 4


ALLOWED = {
    "good": allowed(saved(), "A checkpoint is a directory"),
    "unknown-keys": allowed(
        _changed(lambda found: found.update(zzz=[1] * 9, more="x")), "Readers ignore unknown keys."
    ),
    "tensors-of-other-names": allowed(renamed_tensors(), "Readers of this format MUST NOT use these names"),
    "arrays-in-another-order": allowed(in_another_order(), "readers MUST NOT rely on any order"),
    "w-in-two-chunks": allowed(_grid(), "each axis has a list of boundaries that ascend from 0"),
    "one-array-twice": allowed(_changed(_same_in), "so that its bytes are stored once"),
    "metadata-with-an-odd-key": allowed(
        _changed(put("metadata", {"$dict": [["$float", "inf"]]})), "`$dict` | [[key, value], …]"
    ),
    "tree-of-90-levels": allowed(_changed(put("structure", nested(90, WHOLE))), DEPTH),
    "file-that-is-shared": allowed(
        _changed(put("files", 0, "shared", True)), "Such a file may have bytes that belong to no chunk."
    ),
    "names-of-control-characters": allowed(
        files_of(TREE | {"\x1b[31m/\n": np.ones(2), "../..": np.ones(1), "\0": 1, "": {"": 2}}),
        "A tensor has the name of its variable.",
    ),
    "tuple-beside-a-key": allowed(_changed(put("structure", {"$tuple": [0, 1], "x": [2, 3]})), DICTS),
    "record-of-nulls": allowed(_changed(put("record", RECORD)), "the step; may be null"),
}

CONTENTS = {
    "str-that-is-no-utf-8-in-data": Attack(
        _str_that_is_no_utf_8(), "UTF-8, lone surrogates encoded as if they were characters", "name", works=PARTS
    ),
    "array-twice-without-same-as": edited(
        OVERLAP, lambda found: (_same_in(found), found.pop("same_as")), "expected no overlap"
    ),
}

ATTACKS = STRUCTURES | PLAIN | OF_MODELS | NOT_IMPORTED | CONTENTS | ALLOWED
