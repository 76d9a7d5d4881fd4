"""The index of the native format, and the functions in it."""

import base64
import functools
import json
import tempfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from attacks.attack import files_of, saved
from attacks.makers.native_trees import ALLOWED
from attacks.sealing import sealed_lines
from fuzz.execution import Target, tried, used
from fuzz.json_mutations import encode, mutated, parse
from fuzz.mutations import changed_bytes
from fuzz.targets.workspace import laid_out

import pytreesaver as pts
from pytreesaver.formats.indexed.index import decode_heading, decode_index

ODD = {
    "w": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
    "b": ([np.arange(4.0)] * 2, [None], {3: 1.5, 2: b"ab"}),
    **{"big": 2**70, "text": np.array(["a", "bc"]), "none": np.zeros((0, 2)), "z": 1 + 2j, "flag": True},
}
METADATA = {"note": (1, float("nan"), {2: {3}}, b"x"), "n": 2**80}


@functools.cache
def samples():
    """Return the files of checkpoints of several kinds."""
    return [saved(), files_of(ODD, metadata=METADATA), ALLOWED["w-in-two-chunks"].files]


def resealed(text, random):
    """Return another index or description, mostly with the right checksum."""
    body = text.rpartition(b'"checksum"')[0]
    kind = random.random()
    if kind < 0.05 or not body:
        return changed_bytes(text, random)
    if kind < 0.15:
        return sealed_lines(changed_bytes(body, random))
    found = parse(text)
    found[:] = [pair for pair in found if pair[0] != "checksum"]
    return sealed_lines(encode(mutated(found, random))[:-1] + b",")


def decoded(decode, *arguments):
    """Call a function of the library, and return whether it accepts an input.

    One that lacks stack counts as accepted: it may be called with less, and the public functions say so.
    """
    try:
        return tried(decode, *arguments) is not None
    except RecursionError:
        return True


def sample_of(content, files, name):
    """Return the path of the sample that an index is like, by the size of a data file in it."""
    sizes = [max(len(each) for path, each in sample.items() if name not in path) for sample in files]
    found = next((i for i, size in enumerate(sizes) if b":%d" % size in content.replace(b" ", b"")), 0)
    return found, tuple(files[found].items())


def run_index(content):
    """Decode an index. If it is accepted, or for some others, use the checkpoint in all ways."""
    is_accepted = decoded(decode_index, content, "index.json")
    if not is_accepted and zlib.crc32(content) % 64:
        return
    number, files = sample_of(content, samples(), "index.json")
    path = laid_out(f"native-{number}/model", files)
    (path / "index.json").write_bytes(content)
    decoded(decode_heading, content, "index.json")
    tried(pts.list_checkpoints, path.parent)
    used(path, content)


@functools.cache
def index():
    """Return the target of the index."""
    return Target([files["/index.json"] for files in samples()], run_index, resealed, 250)


@functools.cache
def model():
    """Return the files of a small model."""
    params = {"w": jnp.ones((2, 2))}
    with tempfile.TemporaryDirectory() as directory:
        path = pts.export_model(Path(directory) / "m", lambda p, x: x @ p["w"], jnp.ones((3, 2)), params=params)
        return {f"/{file.name}": file.read_bytes() for file in sorted(Path(path).iterdir())}


def mutate_models(text, random):
    """Return other functions: other fields, or other code that is compressed rightly."""
    found = parse(text)
    if random.random() < 0.4:
        fields = found[0][1]
        i = next(i for i, (key, _) in enumerate(fields) if key == "exported")
        code = changed_bytes(zlib.decompress(base64.b64decode(fields[i][1])), random)
        fields[i] = ("exported", base64.b64encode(zlib.compress(code)).decode())
        return encode(found)
    return encode(mutated(found, random))


def with_part(text, name, value):
    """Return an index with another part, given as text."""
    parts = {key: each for key, each in json.loads(text).items() if key not in (name, "checksum")}
    lines = b"".join(b'"%s":%s,' % (key.encode(), json.dumps(each).encode()) for key, each in parts.items())
    return sealed_lines(b"{" + lines + b'"%s":%s,' % (name.encode(), value))


def run_models(content):
    """Put functions into the index of a model, and load it."""
    path = laid_out("models/model", tuple(model().items()))
    (path / "index.json").write_bytes(with_part(model()["/index.json"], "models", content))
    try:
        tried(pts.load_model, path)
    except ValueError as error:  # as documented
        if "devices, and there are" not in str(error):
            raise
    tried(pts.restore, path)


@functools.cache
def models():
    """Return the target of models."""
    return Target([json.dumps(json.loads(model()["/index.json"])["models"]).encode()], run_models, mutate_models, 30)
