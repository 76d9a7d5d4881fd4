"""Checkpoints of Orbax: all JSON files of one directory are an input, as one object of their texts."""

import functools
import json
import shutil

import msgspec
from attacks.makers import orbax as maker
from attacks.sealing import sealed_index
from fuzz.execution import Target, used
from fuzz.json_mutations import encode, mutated, parse
from fuzz.mutations import changed_bytes
from fuzz.targets.native import resealed
from fuzz.targets.workspace import place


def as_input(files):
    """Return the files of a checkpoint as one text: of the names and contents, of which each byte is a character."""
    return json.dumps({name: content.decode("latin-1") for name, content in files.items()}).encode()


def run(content):
    """Use a directory with these files."""
    try:
        files = json.loads(content)
        files = {name: text.encode("latin-1") for name, text in files.items()}
    except (ValueError, AttributeError, RecursionError):
        return
    path = place("orbax/m")
    shutil.rmtree(path, ignore_errors=True)
    for name, text in files.items():
        if name in NAMES:
            file = path / name[1:]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)
    used(path, content)


def seeds():
    """Return checkpoints of both versions of zarr, with strings, and one of pytreesaver."""
    strings = maker.metadata(
        b=maker.leaf("b", kind="string"), n=maker.leaf("n", kind="None"), e=maker.leaf("l", 0, kind="Dict")
    )
    zarr3 = maker.of_zarr3({}, "").files
    ours = {**maker._described_files(), "/pytreesaver.json": sealed_index(maker.description())}
    keys = {"array_metadatas": [{"array_metadata": {"param_name": "w", "ext_metadata": {"random_key_impl": "fry"}}}]}
    of_keys = {"/array_metadatas/process_0": json.dumps(keys).encode()}
    items = {f"/state{name}": text for name, text in maker.files().items() if "CHECKPOINT" not in name}
    items |= {
        "/_CHECKPOINT_METADATA": b'{"item_handlers":{"state":"a"}}',
        "/metrics/metrics": b'{"loss":1.5,"note":"x"}',
    }
    aggregate = msgspec.msgpack.encode({"w": "PLACEHOLDER://w", "b": {"n": 3, "0": [W, None]}})
    return [
        as_input(items),
        as_input(
            {name: text for name, text in maker.files().items() if "METADATA" not in name} | {"/checkpoint": aggregate}
        ),
        as_input(maker.files()),
        as_input(maker.files(strings, **{"/_strings.json": b'{"b":"text"}'}, **of_keys)),
        as_input(zarr3),
        as_input(ours),
    ]


W = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(([2], "float32", b"abcd" * 2)))
NAMES = {
    *("/_METADATA", "/_CHECKPOINT_METADATA", "/w/.zarray", "/w/0.0", "/w/zarr.json", "/w/c/0/0", "/pytreesaver.json"),
    *("/_strings.json", "/array_metadatas/process_0", "/checkpoint", "/manifest.ocdbt"),
    *("/state/_METADATA", "/state/w/.zarray", "/state/w/0.0", "/metrics/metrics"),
}


def mutate(content, random):
    """Return a checkpoint with another file; the description of pytreesaver has the right checksum."""
    files = {name: text.encode("latin-1") for name, text in json.loads(content).items()}
    name = random.choice([each for each in files if not each.endswith("0")] or list(files))
    text = files[name]
    kind = random.random()
    if kind < 0.1 or name == "/checkpoint":
        files[name] = changed_bytes(text, random)
    elif kind < 0.13:
        del files[name]
    elif kind < 0.16:
        files[random.choice(sorted(NAMES))] = text
    elif name == "/pytreesaver.json":
        files[name] = resealed(text, random)
    else:
        files[name] = encode(mutated(parse(text), random))
    return as_input(files)


@functools.cache
def orbax():
    """Return the target of Orbax's JSON files."""
    return Target(seeds(), run, mutate, 60)
