"""What other libraries' checkpoints look like, so that messages can say whose file or directory was found."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver._tree.plain import encode_value
from pytreesaver.formats.places import files_beside, index_file, may_be_prefix

_ORBAX_NAMES = {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "ocdbt.process_0"}
_STEP = re.compile(r"(?:.*_)?([0-9]+)")
_LIBRARIES = {
    "ckpt": "PyTorch Lightning",
    "pt": "PyTorch",
    "pth": "PyTorch",
    "eqx": "Equinox",
    "msgpack": "Flax",
    "h5": "Keras",
    "keras": "Keras",
}
_STEP_FILE = re.compile(
    rf"(?:.*[-_.=])?(?:ckpt|checkpoint|step|epoch|iter|iteration)[-_=]?(?:[0-9]+[-_]step=)?([0-9]{{1,18}})"
    rf"\.({'|'.join(_LIBRARIES)})",
    re.IGNORECASE,
)
_END_OF_TABLE = bytes.fromhex("57fb808b247547db")
_OF_TENSORFLOW = re.compile(r"(.+)\.(?:index|meta|data-[0-9]{5}-of-[0-9]{5})", re.DOTALL)
_OF_HUGGING_FACE = re.compile(r"(model|pytorch_model|adapter_model).*\.(safetensors|bin)")
_PICKLE = (
    "a pickle, which could run any code when it is read; pytreesaver reads no pickles: convert it where it was made, "
    "to safetensors"
)
_PAGE = "an HTML page, perhaps the error page of a download; download the file again"
_HDF5 = (
    "an HDF5 file, as Keras writes it; load it with Keras, and save its variables with "
    "pytreesaver.save({v.path: v.numpy() for v in model.variables}, path)"
)
_HEADS = (
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"\x93NUMPY", "a NumPy file (.npy); load it with numpy.load and save a tree"),
    (b"GGUF", "a GGUF file; its quantized weights have no JAX dtype: use the model in its original format"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file itself; run git lfs pull"),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"<?xml", "an XML page, perhaps the error page of a download; download the file again"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"(\xb5/\xfd", "a file that zstd compressed; unpack it first"),
)
_ZIPS = (
    (
        re.compile(rb"(?:.*/)?data\.pkl|.*/\.format_version|.*/version|.*/byteorder"),
        "a file of PyTorch (.pt, .bin); "
        "it contains a pickle, which could run any code: convert it where it was made, to safetensors",
    ),
    (
        re.compile(rb"metadata\.json|config\.json|model\.weights\.h5"),
        "a model of Keras (.keras); load it with Keras, and save its variables with "
        "pytreesaver.save({v.path: v.numpy() for v in model.variables}, path)",
    ),
)


def foreign_kind(path: Path) -> str | None:
    """Return what a file or directory of another library looks like, in words, or None if that is unknown.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "overwritten") / "weights.h5"
        >>> _ = path.write_bytes(b"\\x89HDF\\r\\n\\x1a\\n...")
        >>> foreign_kind(path).partition(";")[0]
        'an HDF5 file, as Keras writes it'
    """
    try:
        if filesystem.is_directory(path):
            return _kind_of_directory(path)
        return _kind_of_file(path) if filesystem.is_regular_file(path) else _kind_of_prefix(path)
    except OSError:  # this is only a hint
        return None


def kind_or_absence(path: Path) -> str:
    """Return what is at a path, in words, also if it is nothing, or of no known library."""
    return foreign_kind(path) or ("something else" if filesystem.exists(path) else "nothing")


def _kind_of_directory(path: Path) -> str | None:
    names = filesystem.list_directory(path)
    if _ORBAX_NAMES & set(names) or ("checkpoint" in names and path.name.startswith("checkpoint_")):
        return "an Orbax checkpoint"
    if any(name.endswith(".index") for name in names) and any(".data-0" in name for name in names):
        prefixes = sorted(name.removesuffix(".index") for name in names if name.endswith(".index"))
        listed = ", ".join(str(path / prefix) for prefix in prefixes[-5:])
        return f"a directory of TensorFlow checkpoints; pass one of them: {'..., ' * (len(prefixes) > 5)}{listed}"
    if "saved_model.pb" in names:
        variables = path / "variables" / "variables"
        return f"a SavedModel of TensorFlow; pass the prefix of its variables, {variables}"
    if any(re.fullmatch(r"pytorch_model.*\.bin|.*\.(pt|pth)", name) for name in names):
        return (
            "a directory of a PyTorch model; its files contain pickles, which could run any code: convert them where "
            "they were made, to safetensors"
        )
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if files:
        listed = ", ".join(str(path / name) for name in files[:5])
        return f"a directory of safetensors files; pass one of them: {listed}{', ...' * (len(files) > 5)}"
    steps = foreign_steps(path)
    return f"a directory of {steps[0]} checkpoints, with the steps {', '.join(map(str, steps[1]))}" if steps else None


def _kind_of_file(path: Path) -> str | None:
    descriptor = filesystem.open_existing(path)
    try:
        size = filesystem.file_size(descriptor)
        if size == 0:
            return "an empty file; the program that wrote it, or a download, was interrupted"
        head, tail = np.zeros(min(512, size), np.uint8), np.zeros(min(8, size), np.uint8)
        read_fully(descriptor, head, 0)
        read_fully(descriptor, tail, size - tail.nbytes)
    except EndOfFileError:
        return None
    finally:
        filesystem.release(descriptor)
    content = head.tobytes()
    if content.startswith(b"PK\x03\x04"):
        return _kind_of_zip(content)
    start = content.lstrip().lower() if content.lstrip().startswith(b"<") else content
    kind = next((kind for beginning, kind in _HEADS if start.startswith(beginning)), None)
    if path.name.endswith(".eqx"):
        return f"a damaged file of Equinox of {size} bytes"
    if kind is None and (of_tensorflow := _OF_TENSORFLOW.fullmatch(path.name)):
        prefix = path.with_name(of_tensorflow[1])
        return f"a file of a TensorFlow checkpoint; pass its prefix, {prefix}"
    if kind is None and path.name.endswith(".safetensors.index.json"):
        return f"the index of a model of several safetensors files; pass its directory, {path.parent}"
    if kind is None and tail.tobytes() == _END_OF_TABLE:
        return (
            "a TensorFlow checkpoint of version 1, which TensorFlow wrote before 2017; to convert it, read it with "
            "tf.train.load_checkpoint of TensorFlow and save a dict of its arrays with pytreesaver"
        )
    if kind is None and content[257:262] == b"ustar":
        kind = "a tar archive; unpack it first"
    if kind is None and path.name.endswith(".safetensors"):
        return f"a damaged safetensors file of {size} bytes; perhaps its download was interrupted: download it again"
    if kind is None and re.fullmatch(r"checkpoint_[0-9]+|.*\.msgpack", path.name):
        return f"a damaged msgpack file of {size} bytes; perhaps its download was interrupted: download it again"
    return kind


def _kind_of_zip(head: bytes) -> str:
    length = int.from_bytes(head[26:28], "little")
    entry = head[30 : 30 + length]
    kind = next((kind for pattern, kind in _ZIPS if pattern.fullmatch(entry)), None)
    return (
        kind or "a zip archive; unpack it first, or if it is of PyTorch, convert it where it was made, to safetensors"
    )


def _kind_of_prefix(path: Path) -> str | None:
    if not may_be_prefix(path) or not (files := files_beside(path)):
        return None
    index = index_file(path)
    return "a TensorFlow checkpoint" if index in files else f"files of a TensorFlow checkpoint without {index.name}"


def record_of_file(path: Path) -> Any:
    """Return the record of a file of another library: the step that its name ends in, or None."""
    step = step_of_name(path.name)
    return None if step is None else foreign_record(step)


def step_of_name(name: str) -> int | None:
    """Return the step that the name of a file ends in, or None.

    Example:
        >>> step_of_name("checkpoint_100"), step_of_name("step-7.msgpack"), step_of_name("model.msgpack")
        (100, 7, None)
    """
    match = _ENDS_IN_STEP.fullmatch(name)
    return int(match[1]) if match else None


_ENDS_IN_STEP = re.compile(r"(?:.*[_=-])?([0-9]{1,18})(?:\.[a-z]+)?", re.DOTALL)


def foreign_record(
    step: int | None, time: float | None = None, metrics: Mapping[str, float] = MappingProxyType({})
) -> Any:
    """Return the record of a checkpoint that no saver of pytreesaver tracks, as plain JSON data."""
    record = {
        "step": step,
        "time": time,
        "metrics": dict(metrics),
        "state_file": None,
        "serial": 0,
        "name": "",
        "predecessor": None,
    }
    return encode_value(record, classes=False)


def foreign_steps(directory: Path) -> tuple[str, list[int]] | None:
    """Return the library whose steps a directory contains, and the steps, or None if there are none.

    Raises:
        OSError: if the system could not look.
    """
    found: dict[str, list[int]] = {}
    for name in filesystem.list_directory(directory):
        match = _STEP.fullmatch(name.removesuffix(".index").replace("-", "_"))
        of_file = _STEP_FILE.fullmatch(name)
        if of_file is not None and filesystem.is_regular_file(directory / name):
            found.setdefault(_LIBRARIES[of_file[2]], []).append(int(of_file[1]))
        if match is None or name.startswith("."):
            continue
        if name.endswith(".index"):
            found.setdefault("TensorFlow", []).append(int(match[1]))
        elif filesystem.is_directory(directory / name):
            inside = set(filesystem.list_directory(directory / name))
            is_model = "index.json" not in inside and any(_OF_HUGGING_FACE.fullmatch(each) for each in inside)
            if is_model and re.fullmatch(r"checkpoint[-_][0-9]+", name):
                found.setdefault("Hugging Face", []).append(int(match[1]))
                continue
            items = [directory / name / item for item in inside if filesystem.is_directory(directory / name / item)]
            if inside & _ORBAX_NAMES or any(_ORBAX_NAMES & set(filesystem.list_directory(item)) for item in items):
                found.setdefault("Orbax", []).append(int(match[1]))
        elif name.startswith("checkpoint_"):
            found.setdefault("Flax", []).append(int(match[1]))
    return next(((library, sorted(steps)) for library, steps in found.items()), None)
