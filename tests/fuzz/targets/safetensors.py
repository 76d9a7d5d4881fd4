"""safetensors: files of other programs and of pytreesaver, and Hugging Face's index of several."""

import functools
import json
import zlib
from pathlib import Path

from attacks.attack import TREE, files_of, saved
from attacks.makers import hugging_face as directories
from attacks.sealing import as_json, sealed_metadata, split_header, with_header
from fuzz.execution import Target, tried, used
from fuzz.json_mutations import Object, encode, mutated, parse
from fuzz.mutations import changed_bytes
from fuzz.targets.native import METADATA, ODD, decoded, resealed
from fuzz.targets.workspace import laid_out, place

import pytreesaver as pts
from pytreesaver.formats.safetensors.header import decode_header

INDEX = "pytreesaver.index"


def foreign():
    """Return files of other programs."""
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b/c": {"dtype": "BF16", "shape": [8], "data_offsets": [24, 40]},
        "empty": {"dtype": "I64", "shape": [0, 3], "data_offsets": [40, 40]},
    }
    return [with_header(as_json(header), TREE["w"].tobytes() + TREE["b"].tobytes()), with_header(b"{}", b"")]


def mutate_file(content, random):
    """Return a file with another header, whose length is right."""
    text, data = split_header(content)
    kind = random.random()
    if kind < 0.1:
        return changed_bytes(content, random)
    if kind < 0.2:
        return with_header(changed_bytes(text, random), data)
    return with_header(encode(mutated(parse(text), random)), changed_bytes(data, random) if kind < 0.3 else data)


def run_file(content):
    """Use a file from memory and, if its header is accepted, from a path."""
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    is_accepted = decoded(decode_header, text, len(data), Path("x.safetensors"))
    tried(pts.from_bytes, content)
    if is_accepted or zlib.crc32(content) % 16 == 0:
        path = place("file/x.safetensors")
        path.write_bytes(content)
        used(path, content)


@functools.cache
def file():
    """Return the target of files of other programs."""
    return Target(foreign(), run_file, mutate_file, 250)


def _with_index(metadata, random):
    """Change the index of pytreesaver in metadata. Raise a StopIteration if there is none."""
    i = next(i for i, (key, _) in enumerate(metadata) if key == INDEX)
    metadata[i] = (INDEX, resealed(metadata[i][1].encode(), random).decode("utf-8", "replace"))


def mutate_ours(content, random):
    """Return a file of pytreesaver with another index or header, whose checksums are right."""
    text, data = split_header(content)
    header = parse(text)
    kind = random.random()
    if kind < 0.05:
        return changed_bytes(content, random)
    if kind < 0.75:
        _with_index(next(value for key, value in header if key == "__metadata__"), random)
    elif kind < 0.9:
        header = mutated(header, random)
    else:
        data = changed_bytes(data, random)
    return with_header(sealed_metadata(encode(header)), data)


@functools.cache
def our_file():
    """Return the target of files of pytreesaver."""
    odd = files_of(ODD, ".safetensors", metadata=METADATA)
    return Target([each[".safetensors"] for each in (saved(".safetensors"), odd)], run_file, mutate_ours, 100)


def run_hugging_face(content):
    """Use a directory with this index."""
    files = [directories.FILES, directories.ours()]
    number = 1 if INDEX.encode() in content else 0
    path = laid_out(f"hub-{number}/model", tuple(files[number].items()))
    (path / "model.safetensors.index.json").write_bytes(content)
    used(path, content)


def mutate_hugging_face(text, random):
    """Return another index; that of pytreesaver in it has the right checksums."""
    if random.random() < 0.05:
        return changed_bytes(text, random)
    whole = parse(text)
    metadata = next((value for key, value in whole if key == "metadata"), Object())
    if INDEX.encode() in text and random.random() < 0.8:
        _with_index(metadata, random)
        return sealed_metadata(encode(whole))
    return sealed_metadata(encode(mutated(whole, random)))


@functools.cache
def hugging_face():
    """Return the target of Hugging Face's index."""
    weights = {"metadata": {"total_size": 40}, "weight_map": directories.WEIGHTS}
    seeds = [json.dumps(weights).encode(), directories.ours()[directories.INDEX]]
    return Target(seeds, run_hugging_face, mutate_hugging_face, 100)
