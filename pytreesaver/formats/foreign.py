"""What other libraries' checkpoints look like, so that messages can say whose file or directory was found."""

import re
from pathlib import Path

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_fully

_ORBAX_NAMES = {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "ocdbt.process_0"}
_STEP = re.compile(r"(?:.*_)?([0-9]+)")
_HEADS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it"),
    (b"PK\x03\x04", "a zip archive, such as a file of PyTorch or NumPy (.npz)"),
    (b"\x80\x02", "a pickle, which could run any code when it is read"),
    (b"\x80\x03", "a pickle, which could run any code when it is read"),
    (b"\x80\x04", "a pickle, which could run any code when it is read"),
    (b"\x80\x05", "a pickle, which could run any code when it is read"),
    (b"\x93NUMPY", "a NumPy file (.npy)"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file itself; run git lfs pull"),
    (b"<!DOCTYPE html", "an HTML page"),
    (b"<html", "an HTML page"),
)


def foreign_kind(path: Path) -> str | None:
    """Return what a file or directory of another library looks like, in words, or None if that is unknown.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3)}, "overwritten") / "weights.h5"
        >>> _ = path.write_bytes(b"\\x89HDF\\r\\n\\x1a\\n...")
        >>> foreign_kind(path)
        'an HDF5 file, as Keras writes it'
    """
    try:
        if filesystem.is_directory(path):
            return _kind_of_directory(path)
        return _kind_of_file(path) if filesystem.is_regular_file(path) else _kind_of_prefix(path)
    except OSError:  # this is only a hint
        return None


def _kind_of_directory(path: Path) -> str | None:
    names = filesystem.list_directory(path)
    if _ORBAX_NAMES & set(names) or ("checkpoint" in names and path.name.startswith("checkpoint_")):
        return "an Orbax checkpoint"
    if any(name.endswith(".index") for name in names) and any(".data-0" in name for name in names):
        return "a directory of TensorFlow checkpoints"
    if "saved_model.pb" in names:
        return "a SavedModel of TensorFlow"
    if "model.safetensors" in names or "model.safetensors.index.json" in names:
        return "a model of Hugging Face"
    steps = foreign_steps(path)
    return f"a directory of {steps[0]} checkpoints, with the steps {', '.join(map(str, steps[1]))}" if steps else None


def _kind_of_file(path: Path) -> str | None:
    descriptor = filesystem.open_existing(path)
    try:
        size = filesystem.file_size(descriptor)
        if size == 0:
            return "an empty file"
        head = np.zeros(min(64, size), np.uint8)
        read_fully(descriptor, head, 0)
    except EndOfFileError:
        return None
    finally:
        filesystem.release(descriptor)
    content = head.tobytes()
    if len(content) > 8 and content[8:9] == b"{" and int.from_bytes(content[:8], "little") < size:
        return "a safetensors file"
    if re.fullmatch(r"checkpoint_[0-9]+|.*\.msgpack", path.name):
        return "a msgpack file of Flax"
    return next((kind for start, kind in _HEADS if content.startswith(start)), None)


def _kind_of_prefix(path: Path) -> str | None:
    if filesystem.is_regular_file(path.with_name(f"{path.name}.index")):
        return "a TensorFlow checkpoint"
    return None


def foreign_steps(directory: Path) -> tuple[str, list[int]] | None:
    """Return the library whose steps a directory contains, and the steps, or None if there are none.

    Raises:
        OSError: if the system could not look.
    """
    found: dict[str, list[int]] = {}
    for name in filesystem.list_directory(directory):
        match = _STEP.fullmatch(name.removesuffix(".index").replace("-", "_"))
        if match is None or name.startswith("."):
            continue
        if name.endswith(".index"):
            found.setdefault("TensorFlow", []).append(int(match[1]))
        elif filesystem.is_directory(directory / name):
            inside = set(filesystem.list_directory(directory / name))
            items = [directory / name / item for item in inside if filesystem.is_directory(directory / name / item)]
            if inside & _ORBAX_NAMES or any(_ORBAX_NAMES & set(filesystem.list_directory(item)) for item in items):
                found.setdefault("Orbax", []).append(int(match[1]))
        elif name.startswith("checkpoint_"):
            found.setdefault("Flax", []).append(int(match[1]))
    return next(((library, sorted(steps)) for library, steps in found.items()), None)
