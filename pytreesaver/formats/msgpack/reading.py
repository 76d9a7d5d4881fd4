"""Reading of trees in msgpack, those of pytreesaver by their index, and those of Flax."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pytreesaver._errors import CorruptCheckpointError, UnsupportedLeafError
from pytreesaver._io import filesystem
from pytreesaver._io.files import EndOfFileError, RawFile, read_fully
from pytreesaver._text import SINGLE_LEAF_NAME, duplicates, quoted
from pytreesaver._tree.kinds import (
    PYTHON_TYPES,
    LeafType,
    cell_bytes,
    dtype_from_name,
    python_leaf_type,
    stored_array,
)
from pytreesaver._tree.plain import encode_value
from pytreesaver.formats.foreign import record_of_file
from pytreesaver.formats.indexed.index import DataFile, Index, decode_heading, decode_index
from pytreesaver.formats.indexed.mixed import MixedVariable, mixed_reader
from pytreesaver.formats.indexed.reader import IndexedReader
from pytreesaver.formats.msgpack.decoding import DamagedMessageError, StoredArray, decode_tree
from pytreesaver.formats.msgpack.encoding import CHUNKED
from pytreesaver.formats.msgpack.files import read_index, refuse_others
from pytreesaver.formats.protocol import CheckpointReader, Heading, open_unchanged
from pytreesaver.formats.rules import is_shape

NAME = "msgpack"
VERSION = 1
_NO_NAME = re.compile("")
_PLACEHOLDER = "//GDAPlaceholder:"


def open_file(path: Path) -> CheckpointReader:
    """Open a file. See `pytreesaver.formats.Format.open`."""
    refuse_others(path)
    return open_unchanged(lambda: filesystem.fingerprint(path), lambda: _open_file(path))


def _open_file(path: Path) -> CheckpointReader:
    found = read_index(path)
    return _open_foreign(path) if found is None else _open_described(path, *found)


def read_heading(path: Path) -> Heading:
    """Return the heading of a file. See `pytreesaver.formats.Format.read_heading`."""
    refuse_others(path)
    found = read_index(path)
    if found is None:
        return Heading(record_of_file(path), encode_value({}, classes=False), filesystem.file_sizes(path))
    text, end = found
    heading = decode_heading(text, str(path))
    return heading._replace(file_sizes={"": end + sum(heading.file_sizes.values())})


# Files of pytreesaver.


def _open_described(path: Path, text: bytes, end: int) -> CheckpointReader:
    index = decode_index(text, str(path), _NO_NAME)
    if len(index.files) != 1:
        raise CorruptCheckpointError(f"{path}: expected one file in its index, found {len(index.files)}")
    nbytes, skeleton = index.files[0].nbytes, index.files[0].header_checksum
    index.files = [DataFile(path.name, end + nbytes, 0, "")]
    index.chunk_offsets = [end + offset for offset in index.chunk_offsets]
    return _DescribedReader(path, index, (end - len(text), end), skeleton)


class _DescribedReader(IndexedReader):
    """A reader that also verifies what is between the arrays.

    Args:
        path: the file.
        index: its index.
        text: where the text of the index is.
        skeleton: the checksum of what is neither an array nor the index.
    """

    def __init__(self, path: Path, index: Index, text: tuple[int, int], skeleton: str) -> None:
        super().__init__(path, index, [path], format_name=NAME, format_version=VERSION)
        self._text = text
        self._skeleton = skeleton

    def verify(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.verify`."""
        super().verify()
        chunks = [chunk for position in range(len(self.names)) for chunk in self._files.chunks(position)]
        known = sorted([self._text, *((chunk.offset, chunk.offset + chunk.nbytes) for chunk in chunks if chunk.nbytes)])
        checksum, position = xxhash.xxh3_64(), 0
        descriptor = self._files.descriptor(0)
        for start, stop in [*known, (self._files.index.files[0].nbytes,) * 2]:
            gap = np.empty(start - position, np.uint8)
            try:
                read_fully(descriptor, gap, position)
            except EndOfFileError:
                raise self._files.truncated(0, filesystem.file_size(descriptor)) from None
            checksum.update(gap)  # type: ignore[arg-type]  # an ndarray is a buffer
            position = stop
        if f"{checksum.intdigest():016x}" != self._skeleton:
            raise CorruptCheckpointError(f"{self.path}: what is between the arrays does not match its checksum")


# Files of Flax.


def _open_foreign(path: Path) -> CheckpointReader:
    descriptor = filesystem.open_existing(path)
    file = RawFile(descriptor)  # it is released with the last reference to it
    try:
        size = filesystem.file_size(descriptor)
        try:
            tree = decode_tree(descriptor)
        except DamagedMessageError as error:
            raise CorruptCheckpointError(f"{path}: expected a tree in msgpack, found {error}") from None
        variables: list[MixedVariable] = []
        problems: dict[str, str] = {}
        structure = _structure(path, tree, "", descriptor, variables, problems)
        if problems:
            lines = "\n".join(f"  {quoted(name)}: {problem}" for name, problem in problems.items())
            raise UnsupportedLeafError(f"{path}: cannot be read:\n{lines}")
        again = duplicates([variable.name for variable in variables])
        if again:
            raise CorruptCheckpointError(f"{path}: expected different names, found {again} more than once")
        return mixed_reader(
            path,
            [DataFile(path.name, size, 0, "")],
            variables,
            structure=structure,
            record=record_of_file(path),
            close=file.close,
            format_name=NAME,
            format_version=VERSION,
        )
    except BaseException:
        file.close()
        raise


def _structure(
    path: Path,
    node: Any,
    name: str,
    descriptor: int,
    variables: list[MixedVariable],
    problems: dict[str, str],
) -> Any:
    """Return the structure of a tree. Append its variables to `variables`, and what cannot be read to `problems`."""
    if node is None:
        return None
    if isinstance(node, dict) and CHUNKED not in node:
        children = [
            (key, _structure(path, child, f"{name}/{key}" if name else str(key), descriptor, variables, problems))
            for key, child in node.items()
        ]
        plain = all(type(key) is str and not key.startswith("$") for key, _ in children)
        return dict(children) if plain else {"$dict": [[encode_value(key), child] for key, child in children]}
    if isinstance(node, list):
        return [
            _structure(path, child, f"{name}/{i}" if name else str(i), descriptor, variables, problems)
            for i, child in enumerate(node)
        ]
    problem = _problem_of(node)
    if problem:
        problems[name] = problem
        return 0
    variables.append(_variable(path, name or SINGLE_LEAF_NAME, node, descriptor))
    return len(variables) - 1


def _problem_of(node: Any) -> str | None:
    if isinstance(node, str) and node.startswith(_PLACEHOLDER):
        return "an array of several processes, which is in another directory; restore it with Flax"
    if isinstance(node, dict | StoredArray) or type(node) in PYTHON_TYPES:
        return None
    return f"a value of the type {type(node).__name__}, which Flax does not write"


def _variable(path: Path, name: str, node: Any, descriptor: int) -> MixedVariable:
    if isinstance(node, dict):
        return _chunked_variable(path, name, node, descriptor)
    if isinstance(node, StoredArray):
        if node.problem:
            raise _damaged_array(path, name, node.problem)
        leaf_type = LeafType("numpy_scalar" if node.is_scalar and not node.shape else "numpy", node.dtype)
        return MixedVariable(name, leaf_type, node.shape, [(0, node.offset)])
    leaf_type, shape = python_leaf_type(node)
    return MixedVariable(
        name, leaf_type, shape, load=lambda: stored_array(cell_bytes(node, leaf_type).copy(), leaf_type, shape)
    )


def _damaged_array(path: Path, name: str, problem: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{path}: {quoted(name)}: expected an array, found {problem}", damaged=[name])


def _chunked_variable(path: Path, name: str, node: Mapping[str, Any], descriptor: int) -> MixedVariable:
    """Return the variable of an array of more than 1 GiB, which is in pieces."""
    try:
        shape, pieces = _shape_and_pieces(node)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged_array(path, name, f"pieces that do not fit together ({error})") from None
    leaf_type = LeafType("numpy", pieces[0].dtype)

    def load() -> np.ndarray:
        return stored_array(_read_pieces(path, name, descriptor, pieces), leaf_type, shape)

    return MixedVariable(name, leaf_type, shape, load=load)


def _shape_and_pieces(node: Mapping[str, Any]) -> tuple[tuple[int, ...], list[StoredArray]]:
    shape = tuple(int(node["shape"][str(i)]) for i in range(len(node["shape"])))
    pieces: list[StoredArray] = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    problem = next((piece.problem for piece in pieces if piece.problem), "")
    if problem:
        raise ValueError(problem)
    dtypes = {piece.dtype for piece in pieces}
    if len(dtypes) != 1:
        raise ValueError(f"the dtypes {sorted(dtypes)}")
    itemsize = dtype_from_name(pieces[0].dtype).itemsize
    if not is_shape(shape, itemsize) or math.prod(shape) * itemsize != sum(piece.nbytes for piece in pieces):
        raise ValueError(f"{sum(piece.nbytes for piece in pieces)} bytes of {list(shape[:9])}")
    return shape, pieces


def _read_pieces(path: Path, name: str, descriptor: int, pieces: Sequence[StoredArray]) -> np.ndarray:
    memory = filesystem.new_memory(sum(piece.nbytes for piece in pieces))
    position = 0
    for piece in pieces:
        try:
            read_fully(descriptor, memory[position : position + piece.nbytes], piece.offset)
        except EndOfFileError:
            raise CorruptCheckpointError(f"{path}: {quoted(name)}: the file ends before it", damaged=[name]) from None
        position += piece.nbytes
    return memory
