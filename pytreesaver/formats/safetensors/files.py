"""The files of a safetensors checkpoint: one file, or a directory of several as Hugging Face writes it."""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, read_fully
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver.formats.protocol import PINNED_NAME, SYSTEM_FILES
from pytreesaver.formats.safetensors.header import looks_like_header
from pytreesaver.formats.single_file import open_regular_file

INDEX_NAME = "model.safetensors.index.json"
_INDEX_SUFFIX = ".safetensors.index.json"
_SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.safetensors")
_WHOLE = ("model.safetensors", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors")

SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}(-[0-9a-f]{16})?\.safetensors")
REPLACEABLE_FILES = re.compile(rf"{SHARD_NAME.pattern}|\.index-[0-9a-f]{{16}}\.tmp")
OWN_FILES = re.compile(rf"{re.escape(INDEX_NAME)}|{PINNED_NAME}|{REPLACEABLE_FILES.pattern}")


def recognizes(path: Path) -> bool:
    """Return whether `path` is a safetensors file, or a directory of Hugging Face with such files.

    Raises:
        OSError: if the system could not look.
    """
    if is_safetensors_file(path):
        return True
    try:
        entries = filesystem.list_directory(path)
    except OSError as error:
        if filesystem.is_absence(error):
            return False
        raise
    found = data_files(path, entries)
    return found is not None and not (is_in_store(path) and _are_unfinished(found))


def _are_unfinished(found: list[str] | Path) -> bool:
    """Return whether files in a store may be those of an interrupted save: it sends the index after the shards."""
    return not isinstance(found, Path) and any(map(_SHARD.fullmatch, found))


def other_files(directory: Path) -> list[str]:
    """Return the names of the files in a directory that pytreesaver would not have written."""
    names = filesystem.list_directory(directory)
    return sorted(name for name in names if not (OWN_FILES.fullmatch(name) or SYSTEM_FILES.fullmatch(name)))


def data_files(directory: Path, entries: list[str]) -> list[str] | Path | None:
    """Return the index of the safetensors files of a model, or without one their names, or None if there are none.

    A directory with other checkpoints beside a single file is not the model itself.
    """
    indexes = sorted(name for name in entries if name.endswith(_INDEX_SUFFIX) and not name.startswith("."))
    if indexes:
        return directory / (INDEX_NAME if INDEX_NAME in indexes else indexes[0])
    whole = [name for name in _WHOLE if name in entries]
    if whole and ("config.json" in entries or "adapter_config.json" in entries):
        return whole[:1]
    shards = sorted(name for name in entries if _SHARD.fullmatch(name) and name.startswith(("model-", "diffusion_")))
    return shards or None


def is_safetensors_file(path: Path) -> bool:
    """Return whether `path` is a file that starts like a safetensors file."""
    descriptor = open_regular_file(path)
    if descriptor is None:
        return False
    head = np.zeros(9, np.uint8)
    try:
        with suppress(EndOfFileError):
            read_fully(descriptor, head, 0)
            return looks_like_header(head.tobytes())
        return False
    finally:
        filesystem.release(descriptor)
