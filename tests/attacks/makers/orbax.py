"""Attacks on checkpoints of Orbax: its JSON files, the arrays of zarr, and what pytreesaver writes beside them."""

import json

from attacks.attack import LISTED, TREE, Attack, allowed
from attacks.makers.native_trees import WITH_TEMPLATE
from attacks.sealing import as_json, sealed_index, xxh3

SOURCE = "https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html"
ZARR = "https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html"
ZARR3 = "https://zarr-specs.readthedocs.io/en/latest/v3/core/v3.0.html"
METADATA = "_METADATA: the names and kinds of all leaves of the tree"
ROOT = "_CHECKPOINT_METADATA: the handlers of the items, the times of the save, and the user's metadata"
ARRAY = "Each array requires configuration metadata to be stored, as an object under the key .zarray"
CHUNKS = "chunks: a list of integers defining the length of each dimension of a chunk of the array"
STRINGS = "_strings.json: the strings of the tree, by their keys"
DATA = TREE["w"].tobytes()
ZARRAY = {
    **{"chunks": [2, 3], "compressor": None, "dimension_separator": ".", "dtype": "<f4", "fill_value": None},
    **{"filters": None, "order": "C", "shape": [2, 3], "zarr_format": 2},
}


def leaf(*keys, kind="np.ndarray", key_type=2):
    """Return what the metadata of a tree say of a leaf."""
    path = [{"key": key, "key_type": key_type} for key in keys]
    return {"key_metadata": path, "value_metadata": {"value_type": kind, "skip_deserialize": False}}


def metadata(changes=None, **leaves):
    """Return the metadata of a tree with the leaf ``w`` and others."""
    tree = {"('w',)": leaf("w"), **leaves}
    whole = {"tree_metadata": tree, "use_zarr3": False, "store_array_data_equal_to_fill_value": True}
    return whole | {"custom_metadata": None} | (changes or {})


COMMITTED = {"item_handlers": None, "metrics": {}, "init_timestamp_nsecs": 10**18, "commit_timestamp_nsecs": 10**18}


def files(tree=None, root=COMMITTED, zarray=ZARRAY, chunk=DATA, **others):
    """Return the files of a checkpoint. JSON may be data or text."""
    named = {"/_METADATA": metadata() if tree is None else tree, "/_CHECKPOINT_METADATA": root, "/w/.zarray": zarray}
    found = {name: value if isinstance(value, bytes) else as_json(value) for name, value in named.items()}
    return {**found, "/w/0.0": chunk, **others}


def orbax(rule, contents, message, works=(), error="CorruptCheckpointError", source=SOURCE):
    """Return a checkpoint of Orbax."""
    return Attack(contents, rule, message, error, works, source)


def of_tree(tree, message, **options):
    """Return a checkpoint with other metadata of the tree."""
    return orbax(METADATA, files(tree), message, **options)


def of_array(changes, message, works=(), **options):
    """Return a checkpoint whose array has other metadata."""
    zarray = changes if isinstance(changes, bytes) else ZARRAY | changes
    return orbax(ARRAY, files(zarray=zarray), message, works, source=ZARR, **options)


READ = ("all",)
TREES = {
    "metadata-of-no-bytes": of_tree(b"", "damaged metadata"),
    "metadata-that-is-no-json": of_tree(b"{", "damaged metadata"),
    "metadata-that-is-no-utf-8": of_tree(b'{"tree_metadata":{"\xff":1}}', "damaged metadata"),
    "metadata-that-is-a-list": of_tree([], "damaged metadata"),
    "metadata-of-brackets": of_tree(b'{"custom_metadata":' + b"[" * 3000, "damaged metadata"),
    "no-tree": of_tree({"use_zarr3": False}, "damaged metadata"),
    "tree-that-is-a-list": of_tree({"tree_metadata": []}, "damaged metadata"),
    "leaf-of-null": of_tree(metadata(b=None), "damaged metadata"),
    "leaf-without-a-path": of_tree(metadata(b={"value_metadata": {}}), "damaged metadata"),
    "leaf-of-an-empty-path": of_tree(metadata(b=leaf()), ""),
    "path-of-floats": of_tree(metadata(b=leaf(1.5)), "damaged metadata"),
    "path-of-150-levels": of_tree(metadata(b=leaf(*["a"] * 150)), "at most 100 levels"),
    "path-of-70-bits": of_tree(metadata(b=leaf("a", 2**70, key_type=1)), ""),
    "path-with-a-surrogate": of_tree(metadata(b=leaf("\ud800")), ""),
    "one-path-twice": of_tree(metadata(b=leaf("w")), "several leaves at w"),
    "leaf-in-a-leaf": of_tree(metadata(b=leaf("w", "x")), "w/x"),
    "position-of-text": of_tree(metadata(b=leaf("a", "x", key_type=1)), ""),
    "positions-with-a-leading-zero": of_tree(metadata(b=leaf("a", "01", key_type=1), c=leaf("a", "1", key_type=1)), ""),
    "array-that-does-not-exist": of_tree(metadata(b=leaf("b")), "b"),
    "array-above": of_tree(metadata(b=leaf("../../secret")), "expected arrays inside it"),
    "absolute-array": of_tree(metadata(b=leaf("/etc")), "expected arrays inside it"),
    "array-with-a-nul": of_tree(metadata(b=leaf("a\0b")), "expected arrays inside it"),
    "string-without-its-file": of_tree(metadata(b=leaf("b", kind="string")), "expected the str b, found none"),
    "strings-that-are-a-list": orbax(STRINGS, files(**{"/_strings.json": b"[]"}), "damaged metadata"),
    "strings-of-numbers": orbax(
        STRINGS, files(metadata(b=leaf("b", kind="string")), **{"/_strings.json": b'{"b":1}'}), "damaged metadata"
    ),
    "string-with-a-surrogate": orbax(
        STRINGS, files(metadata(b=leaf("b", kind="string")), **{"/_strings.json": b'{"b":"\\ud800"}'}), ""
    ),
    "zarr3-of-text": of_tree(metadata({"use_zarr3": "no"}), "damaged metadata"),
    "without-the-description": of_tree(
        metadata({"custom_metadata": {"pytreesaver": "structure, types and checksums are in pytreesaver.json"}}),
        "expected the description of the tree, found no file",
    ),
    "no-metadata": orbax(METADATA, {name: each for name, each in files().items() if name != "/_METADATA"}, ""),
    "root-that-is-a-list": orbax(ROOT, files(root=[]), "expected an object"),
    "root-that-is-no-json": orbax(ROOT, files(root=b"{"), "damaged metadata"),
    "root-of-brackets": orbax(ROOT, files(root=b'{"a":' + b"[" * 3000), "damaged metadata"),
    "root-of-150-levels": orbax(ROOT, files(root={"custom_metadata": json.loads("[" * 150 + "]" * 150)}), "levels"),
    "metrics-of-400-digits": orbax(ROOT, files(root=b'{"metrics":{"loss":1' + b"0" * 400 + b"}}"), ""),
    "times-of-text": orbax(ROOT, files(root={"commit_timestamp_nsecs": "now"}), "", READ, ""),
    "times-of-80-bits": orbax(ROOT, files(root={"commit_timestamp_nsecs": 2**80}), "", READ, ""),
    "handlers-of-numbers": orbax(ROOT, files(root={"item_handlers": [1], "metrics": None}), "", READ, ""),
    "good-foreign": orbax(METADATA, files(), "", READ, ""),
    "unknown-kind": of_tree(
        metadata({"tree_metadata": {"w": leaf("w", kind="torch.Tensor")}}), "", works=READ, error=""
    ),
    "names-of-dollars": of_tree(metadata(b=leaf("$tuple", "x", kind="Dict")), "", works=READ, error=""),
}

ZARR_3 = {
    **{"zarr_format": 3, "node_type": "array", "shape": [2, 3], "data_type": "float32", "fill_value": 0.0},
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
}


def of_zarr3(changes, message, works=(), **options):
    """Return a checkpoint with an array of version 3 of zarr."""
    text = changes if isinstance(changes, bytes) else as_json(ZARR_3 | changes)
    contents = {name: each for name, each in files(metadata({"use_zarr3": True})).items() if not name.startswith("/w")}
    contents |= {"/w/zarr.json": text, "/w/c/0/0": DATA}
    return orbax("zarr.json: the metadata of an array", contents, message, works, source=ZARR3, **options)


ARRAYS = {
    "array-of-no-json": of_array(b"{", "w"),
    "array-of-a-list": of_array(b"[]", "w"),
    "array-of-brackets": of_array(b"[" * 3000, "w"),
    "shape-of-80-bits": of_array({"shape": [2**40, 2**40]}, ""),
    "shape-of-1-tib": of_array(
        {"shape": [2**37, 3], "chunks": [2**37, 3]}, "", (*LISTED, "diff"), error="CheckpointError"
    ),
    "length-below-zero": of_array({"shape": [-2, 3]}, "w"),
    "shape-of-floats": of_array({"shape": [2.5, 3]}, "w"),
    "shape-of-65-axes": of_array({"shape": [1] * 65, "chunks": [1] * 65}, "w"),
    "chunks-of-no-length": of_array({"chunks": [0, 3]}, "w"),
    "chunks-below-zero": of_array({"chunks": [-1, 3]}, "w"),
    "chunks-of-another-rank": of_array({"chunks": [6]}, "w"),
    "chunk-of-8-tib": of_array({"chunks": [2, 2**40]}, "w", LISTED),
    "chunk-of-8-tib-that-is-compressed": of_array(
        {"chunks": [2, 2**40], "compressor": {"id": "zstd", "level": 1}}, "w", LISTED
    ),
    "chunk-of-8-tib-of-a-fill-value": of_array({"chunks": [2, 2**40], "fill_value": 2}, "w", LISTED),
    "a-billion-missing-chunks": orbax(
        CHUNKS,
        files(metadata({"store_array_data_equal_to_fill_value": False}), zarray=ZARRAY | {"shape": [2**37, 3]}),
        "chunks",
        (*LISTED, "diff"),
        "CheckpointError",
        ZARR,
    ),
    "a-billion-chunks": of_array({"shape": [10**6, 1000], "chunks": [1, 1]}, "chunks", (*LISTED, "diff")),
    "unknown-dtype": of_array({"dtype": "<f3"}, "w"),
    "dtype-of-objects": of_array({"dtype": "|O"}, "w"),
    "dtype-with-fields": of_array({"dtype": [["a", "<f4"], ["b", "<f4"]]}, ""),
    "unknown-compressor": of_array({"compressor": {"id": "rar"}}, "w"),
    "unknown-filter": of_array({"filters": [{"id": "pickle"}]}, "w"),
    "order-of-a-number": of_array({"order": 5}, "w"),
    "version-9": of_array({"zarr_format": 9}, "w"),
    "fill-value-of-text": of_array({"fill_value": "much"}, "w"),
    "separator-that-leads-out": of_array({"dimension_separator": "/../"}, "w"),
    "chunk-without-its-end": orbax(CHUNKS, files(chunk=DATA[:-1]), "w", LISTED, source=ZARR),
    "chunk-with-more-bytes": orbax(CHUNKS, files(chunk=DATA + b"\0"), "w", LISTED, source=ZARR),
    "chunk-that-does-not-exist": orbax(
        CHUNKS, {name: each for name, each in files().items() if name != "/w/0.0"}, "w", LISTED, source=ZARR
    ),
    "chunk-that-is-no-zstd": orbax(
        CHUNKS, files(zarray=ZARRAY | {"compressor": {"id": "zstd", "level": 1}}), "w", LISTED, source=ZARR
    ),
    "array-of-the-other-byte-order": orbax(
        CHUNKS, files(zarray=ZARRAY | {"dtype": ">f4"}, chunk=TREE["w"].astype(">f4").tobytes()), "", READ, "", ZARR
    ),
    "zarr3-of-no-json": of_zarr3(b"{", "w"),
    "zarr3-of-80-bits": of_zarr3({"shape": [2**40, 2**40]}, ""),
    "zarr3-without-a-grid": of_zarr3({"chunk_grid": None}, "w"),
    "zarr3-of-empty-chunks": of_zarr3(
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}}, "w"
    ),
    "zarr3-of-a-chunk-of-8-tib": of_zarr3(
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2**40]}}}, "w", LISTED
    ),
    "zarr3-of-an-unknown-codec": of_zarr3({"codecs": [{"name": "pickle"}]}, "w"),
    "zarr3-of-nested-codecs": of_zarr3(
        {
            "codecs": [
                {"name": "sharding_indexed", "configuration": {"chunk_shape": [0, 0], "codecs": [], "index_codecs": []}}
            ]
        },
        "w",
    ),
    "zarr3-good": of_zarr3({}, "", READ, error=""),
}

SIDECAR = (
    'In a checkpoint that was written with `format="orbax"`, the file `pytreesaver.json` describes what Orbax does not'
)
LAST_LINE = "Its last line is the checksum of the lines before."
MARKED = "The custom metadata of Orbax's `_METADATA` say that the file exists."
FORMAT = "docs/format.md"
MARKER = {"pytreesaver": "structure, types and checksums are in pytreesaver.json"}


def _described_files():
    return files(metadata({"custom_metadata": MARKER}))


def description(**changes):
    """Return the description of a tree with one array, as JSON data."""
    contents = _described_files()
    found = {
        **{"names": ["w"], "types": [{"kind": "numpy", "dtype": "float32"}], "type_of": [0], "shapes": [[2, 3]]},
        **{"keys": ["w"], "checksums": [xxh3(DATA)], "structure": {"w": 0}, "metadata": {}, "record": None},
        "files": {name[1:]: [len(each), xxh3(each)] for name, each in contents.items()},
        **{"same_as": {}, "version": 1, "models": None},
    }
    return found | changes


def described(changes, message, rule=SIDECAR, works=(), error="CorruptCheckpointError"):
    """Return a checkpoint with a description of pytreesaver, which may be text."""
    text = changes if isinstance(changes, bytes) else sealed_index(description(**changes))
    contents = {**_described_files(), "/pytreesaver.json": text}
    return Attack(contents, rule, message, error, works)


OPEN = ("list_variables", "restore", "template", "only", "variables", "slice", "mmap", "copy_checkpoint", "convert")
OURS = {
    "good": allowed({**_described_files(), "/pytreesaver.json": sealed_index(description())}, SIDECAR),
    "no-bytes": described(b"", "checksum does not match", LAST_LINE),
    "wrong-checksum": described(sealed_index(description()).replace(b'"w"', b'"v"', 1), "checksum does not", LAST_LINE),
    "without-its-line-feed": described(sealed_index(description())[:-1], "checksum does not match", LAST_LINE),
    "no-json": described(b'{"names' + sealed_index({}), "", LAST_LINE),
    "later-version": described({"version": 2}, "version 2", error="UnsupportedVersionError"),
    "more-names": described({"names": ["w", "v"]}, "as many as names"),
    "fewer-checksums": described({"checksums": []}, "as many as names"),
    "type-that-does-not-exist": described({"type_of": [1]}, "positions among"),
    "unknown-dtype": described({"types": [{"kind": "numpy", "dtype": "object"}]}, "object"),
    "another-shape": described({"shapes": [[3, 2]]}, "expected float32[3, 2], found float32[2, 3]"),
    "another-dtype": described({"types": [{"kind": "numpy", "dtype": "int32"}]}, "expected int32[2, 3], found float32"),
    "bool-of-a-float": described({"types": [{"kind": "bool", "dtype": "float32"}]}, ""),
    "key-of-no-array": described({"keys": ["v"]}, "w"),
    "key-above": described({"keys": ["../secret"]}, ""),
    "structure-of-other-leaves": described({"structure": {"w": 9}}, "structure", works=WITH_TEMPLATE),
    "metadata-that-is-a-list": described({"metadata": [1]}, ""),
    "record-that-is-a-list": described({"record": [1]}, ""),
    "models-that-are-a-list": described({"models": [1]}, "an object of models"),
    "same-as-itself": described({"same_as": {"0": 0}}, "same_as"),
    "checksum-of-other-data": described({"checksums": ["0" * 16]}, "w", works=LISTED),
    "file-that-does-not-exist": described({"files": {"x": [1, "0" * 16]}}, "x", works=OPEN),
    "file-of-another-size": described({"files": {"_METADATA": [1, "0" * 16]}}, "_METADATA", works=OPEN),
    "file-with-another-checksum": described({"files": {"w/0.0": [24, "0" * 16]}}, "w/0.0", works=(*OPEN, "diff")),
    "file-above": described({"files": {"../secret": [1, "0" * 16]}}, "secret", works=OPEN),
    "description-beside-no-marker": Attack(
        {**files(), "/pytreesaver.json": sealed_index(description(files={}))}, MARKED, error="", works=READ
    ),
}

ATTACKS = TREES | ARRAYS | {f"ours-{name}": attack for name, attack in OURS.items()}
