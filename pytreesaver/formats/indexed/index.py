"""The index of a checkpoint: everything except the array data, as JSON with a checksum.

docs/format.md is its specification. `decode_index` checks every length, bound and size before anything is allocated.
"""

import itertools
import math
import operator
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pytreesaver._errors import CheckpointError, CorruptCheckpointError, UnsupportedVersionError
from pytreesaver._io.checksums.xxh3 import block_count, checksum
from pytreesaver._io.memory import collection_paused
from pytreesaver._tree.kinds import LeafType, NotPlainError, storage_dtype
from pytreesaver.formats.protocol import Heading
from pytreesaver.formats.rules import MAX_NBYTES, problem_of_objects, problem_of_variables

FORMAT_NAME = "pytreesaver"
VERSION = 1
_FILE_NAME = re.compile(r"data-[0-9a-z-]+\.safetensors")


class DataFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A data file: its name and size, and the size and checksum of its header, including the length before it.

    `shared` is True if the save did not write it, but took it from an earlier checkpoint.
    """

    name: str
    nbytes: int
    header_nbytes: int
    header_checksum: str
    shared: bool = False


class Index(msgspec.Struct):
    """The columns of an index. `chunk_files`, `chunk_offsets` and `checksums` list the chunks variable by variable, in
    the row-major order of its grid. Only variables of several chunks are in `grids`.
    """

    names: list[str]
    types: list[LeafType]
    type_of: list[int]
    shapes: list[tuple[int, ...]]
    grids: dict[str, list[list[int]]]
    files: list[DataFile]
    chunk_files: list[int]
    chunk_offsets: list[int]
    checksum_block_nbytes: int
    checksums: str
    structure: Any
    metadata: Any
    record: Any = None
    same_as: dict[str, int] = {}
    models: Any = None


class Chunk(NamedTuple):
    """A box of an array: its start and shape, where its bytes are stored, and the number of its first checksum."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int
    first_block: int


# The order of the parts in the file: first what people look for.
_PARTS = ("record", "metadata", "models", "structure", "names", "types", "type_of", "shapes", "grids", "files")
_CHUNK_PARTS = ("chunk_files", "chunk_offsets", "checksum_block_nbytes", "checksums")


@collection_paused()
def encode_index(index: Index) -> bytes:
    """Return the index as JSON, one part per line. The last line is the checksum of the others."""
    parts: dict[str, Any] = {"format": FORMAT_NAME, "version": VERSION}
    parts |= {name: getattr(index, name) for name in (*_PARTS, *_CHUNK_PARTS)}
    for name in ("record", "models"):
        if parts[name] is None:
            del parts[name]
    if index.same_as:
        parts["same_as"] = index.same_as
    lines = [b'"%s":%s' % (name.encode(), msgspec.json.encode(value)) for name, value in parts.items()]
    body = b"{" + b",\n".join(lines) + b",\n"
    return body + b'"checksum":"%016x"}\n' % checksum(body)


_TAIL = re.compile(rb'"checksum":"([0-9a-f]{16})"\}\n')
_TAIL_NBYTES = len(b'"checksum":"0123456789abcdef"}\n')


class _Version(msgspec.Struct):
    format: str
    version: int


def is_index(data: bytes) -> bool:
    """Return whether some bytes start like an index."""
    return data.startswith(b'{"format":"%s"' % FORMAT_NAME.encode())


@collection_paused()
def decode_index(data: bytes, where: str, file_name: re.Pattern[str] = _FILE_NAME) -> Index:
    """Decode and check an index. Messages name its file, `where`. The data files must have names like `file_name`.

    Raises:
        UnsupportedVersionError: if the index is intact but has a newer version of the format.
        CorruptCheckpointError: if it is damaged, incomplete or inconsistent.
        RecursionError: if it is intact but the call stack is too deep to decode it here.
    """
    if not data:
        raise CorruptCheckpointError(f"{where}: expected an index, found an empty file")
    body, tail = data[:-_TAIL_NBYTES], _TAIL.fullmatch(data[-_TAIL_NBYTES:])
    intact = tail is not None and int(tail[1], 16) == checksum(body)
    try:
        heading = msgspec.json.decode(data, type=_Version)
        of_version = f"version {heading.version} of the format; this pytreesaver reads versions up to {VERSION}"
        if heading.format != FORMAT_NAME:
            raise _BrokenRuleError(f'expected "format": "{FORMAT_NAME}", found "{heading.format}"')
        if not intact:
            note = f" (it claims {of_version})" if heading.version > VERSION else ""
            raise _BrokenRuleError(f"the checksum of the index does not match: it is damaged or was edited{note}")
        if heading.version > VERSION:
            raise UnsupportedVersionError(f"{where}: has {of_version}; upgrade pytreesaver to read it")
        if heading.version < 1:
            raise _BrokenRuleError(f"expected a version of at least 1, found {heading.version}")
        index = msgspec.json.decode(data, type=Index)
        _check(index, file_name)
    except _BrokenRuleError as error:
        raise CorruptCheckpointError(f"{where}: {error}") from None
    except UnsupportedVersionError:
        raise
    except (msgspec.MsgspecError, NotPlainError, ValueError) as error:
        raise CorruptCheckpointError(f"{where}: expected an index, found a damaged one ({error})") from None
    except RecursionError:
        if intact:
            raise
        raise CorruptCheckpointError(f"{where}: expected an index, found endlessly nested brackets") from None
    return index


class _Parts(msgspec.Struct):
    files: list[DataFile]
    metadata: Any
    record: Any = None


def decode_heading(data: bytes, where: str) -> Heading:
    """Decode the heading of an index. Its other parts are only compared with the checksum.

    Raises what `decode_index` raises.
    """
    tail = _TAIL.fullmatch(data[-_TAIL_NBYTES:])
    parts: _Parts | Index
    try:
        intact = tail is not None and int(tail[1], 16) == checksum(data[:-_TAIL_NBYTES])
        version = msgspec.json.decode(data, type=_Version) if intact else None
        is_known = version is not None and (version.format, version.version) == (FORMAT_NAME, VERSION)
        parts = msgspec.json.decode(data, type=_Parts) if is_known else decode_index(data, where)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        parts = decode_index(data, where)
    shared_nbytes = sum(file.nbytes for file in parts.files if file.shared)
    return Heading(parts.record, parts.metadata, {file.name: file.nbytes for file in parts.files}, shared_nbytes)


class _BrokenRuleError(Exception):
    """An index breaks a rule of the format."""


def _check(index: Index, file_name: re.Pattern[str]) -> None:
    count = len(index.names)
    problem = problem_of_variables(index.names, index.types, index.type_of, index.shapes)
    problem = problem or problem_of_objects(index.metadata, index.record, index.models)
    _require(problem is None, problem or "")
    _require(index.checksum_block_nbytes > 0, "a positive checksum_block_nbytes")
    _require(len({file.name for file in index.files}) == len(index.files), "different data files")
    for file in index.files:
        _require(file_name.fullmatch(file.name) is not None, f"a data file of the checkpoint, found {file.name!r}")
        _require(0 <= file.header_nbytes <= file.nbytes < MAX_NBYTES, f"a header within {file.name}")
    for key, boundaries in index.grids.items():
        known = _POSITION.fullmatch(key) is not None and int(key) < count
        _require(known, f"the position of a variable in grids, found {key[:20]!r}")
        shape = index.shapes[int(key)]
        ascending = all(a < b for axis in boundaries for a, b in itertools.pairwise(axis))
        whole = all(len(axis) > 1 and axis[0] == 0 for axis in boundaries)
        whole = whole and tuple(axis[-1] for axis in boundaries) == shape
        _require(ascending and whole, f"{index.names[int(key)]}: a grid for shape {list(shape)}, found {boundaries}")
    _check_chunks(index)


def check_before_commit(index: Index) -> None:
    """Raise a CheckpointError if a reader would reject an index that was put together from several checkpoints."""
    try:
        _check(index, _FILE_NAME)
    except _BrokenRuleError as error:
        raise CheckpointError(
            f"the new index is invalid ({error}), and was not written: an error of pytreesaver"
        ) from None


def _places(
    index: Index, position: int, first_chunk: Sequence[int], counts: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the files and offsets of the chunks of a variable."""
    part = slice(first_chunk[position], first_chunk[position] + counts[position])
    return index.chunk_files[part], index.chunk_offsets[part]


def _check_same(index: Index, first_chunk: Sequence[int], counts: Sequence[int], nbytes: Sequence[int]) -> None:
    """Reject a variable that is said to be the same as an earlier one, but has another type, shape or place."""
    ends = list(itertools.accumulate((block_count(n, index.checksum_block_nbytes) for n in nbytes), initial=0))

    def checksums(position: int) -> str:
        first = first_chunk[position]
        return index.checksums[16 * ends[first] : 16 * ends[first + counts[position]]]

    for key, earlier in index.same_as.items():
        known = _POSITION.fullmatch(key) is not None and 0 <= earlier < int(key) < len(index.names)
        _require(known, f"the positions of a variable and an earlier one in same_as, found {key[:20]!r}: {earlier}")
        later = int(key)
        alike = (index.type_of[later], index.shapes[later]) == (index.type_of[earlier], index.shapes[earlier])
        alike = alike and index.grids.get(key) == index.grids.get(str(earlier)) and str(earlier) not in index.same_as
        places = [_places(index, position, first_chunk, counts) for position in (later, earlier)]
        alike = alike and (places[0] == places[1] or checksums(later) == checksums(earlier))
        _require(alike, f"{index.names[later]}: the same array as {index.names[earlier]}")


def _require(condition: bool, expected: str) -> None:
    if not condition:
        raise _BrokenRuleError(f"expected {expected}")


_POSITION = re.compile("0|[1-9][0-9]{0,17}")


def _check_chunks(index: Index) -> None:
    counts = chunk_counts(index)
    total = sum(counts)
    found = (len(index.chunk_files), len(index.chunk_offsets))
    _require(found == (total, total), f"{total} chunks, found {found[1]}")
    _require(_all_within(index.chunk_files, len(index.files)), f"positions among {len(index.files)} files")
    _require(_all_within(index.chunk_offsets, MAX_NBYTES), "offsets from 0 to 2**63 - 1")
    nbytes = chunk_nbytes(index)
    blocks = sum(block_count(n, index.checksum_block_nbytes) for n in nbytes)
    _require(len(index.checksums) == 16 * blocks, f"{blocks} checksums of 16 digits")
    _require(re.fullmatch("[0-9a-f]*", index.checksums) is not None, "checksums in lower-case hexadecimal digits")
    if not index.same_as and _are_apart(index, nbytes):
        return
    size = np.array(nbytes, np.int64)
    if index.same_as:
        first_chunk = first_positions(counts)
        _check_same(index, first_chunk, counts, nbytes)
        for key, earlier in index.same_as.items():  # bytes that are shared on purpose overlap nothing
            if _places(index, int(key), first_chunk, counts) == _places(index, earlier, first_chunk, counts):
                size[first_chunk[int(key)] : first_chunk[int(key)] + counts[earlier]] = 0
    if index.files:
        _check_places(index, counts, size)


def _all_within(numbers: Sequence[int], bound: int) -> bool:
    return not numbers or (min(numbers) >= 0 and max(numbers) < bound)


def _are_apart(index: Index, nbytes: Sequence[int]) -> bool:
    """Return whether all chunks are in the only file, and none overlaps another: a fast check of the common case."""
    if len(index.files) != 1:
        return False
    (file,) = index.files
    starts, ends = sorted(index.chunk_offsets), sorted(map(operator.add, index.chunk_offsets, nbytes))
    return all(map(operator.le, [file.header_nbytes, *ends], [*starts, file.nbytes]))


def _check_places(index: Index, counts: Sequence[int], size: np.ndarray) -> None:
    """Reject chunks that are not within their file, or overlap another chunk or the header."""
    file, offset = np.array(index.chunk_files, np.int64), np.array(index.chunk_offsets, np.int64)
    file_nbytes = np.array([each.nbytes for each in index.files], np.int64)[file]
    outside = (offset > file_nbytes) | (size > file_nbytes - np.minimum(offset, file_nbytes))
    used = np.lexsort((offset, file))
    used = used[(size > 0)[used] & ~outside[used]]
    first_in_file = np.diff(file[used], prepend=-1) > 0
    header_nbytes = np.array([each.header_nbytes for each in index.files], np.int64)[file[used]]
    free_from = np.where(first_in_file, header_nbytes, np.roll(offset[used] + size[used], 1))
    shared = np.flatnonzero(offset[used] < free_from)
    if not outside.any() and not shared.size:
        return
    names = [name for name, count in zip(index.names, counts, strict=True) for _ in range(count)]
    if shared.size:
        i = int(shared[0])
        before = "the header" if first_in_file[i] else names[used[i - 1]]
        raise _BrokenRuleError(
            f"{names[used[i]]}: expected no overlap, found its bytes at {offset[used[i]]}, before the end of {before}"
        )
    i = int(outside.argmax())
    raise _BrokenRuleError(f"{names[i]}: expected bytes within {index.files[file[i]].name}, found them at {offset[i]}")


def chunk_counts(index: Index) -> list[int]:
    """Return the number of chunks of each variable."""
    counts = [1] * len(index.names)
    for key, boundaries in index.grids.items():
        counts[int(key)] = math.prod(len(axis) - 1 for axis in boundaries)
    return counts


def chunk_nbytes(index: Index) -> list[int]:
    """Return the size of every chunk in bytes."""
    itemsizes = [storage_dtype(leaf_type).itemsize for leaf_type in index.types]
    kinds = list(zip(index.type_of, index.shapes, strict=True))
    size_of = {(type_of, shape): math.prod(shape) * itemsizes[type_of] for type_of, shape in set(kinds)}
    if not index.grids:
        return [size_of[kind] for kind in kinds]
    sizes: list[int] = []
    for i, kind in enumerate(kinds):
        type_of = kind[0]
        boundaries = index.grids.get(str(i))
        if boundaries is None:
            sizes.append(size_of[kind])
        else:
            lengths = [[b - a for a, b in itertools.pairwise(axis)] for axis in boundaries]
            sizes += [
                math.prod(lengths_of_cell) * itemsizes[type_of] for lengths_of_cell in itertools.product(*lengths)
            ]
    return sizes


def header_checksum(header: bytes) -> str:
    """Return the checksum of the header of a data file in hexadecimal digits, as in the index."""
    return f"{checksum(header):016x}"


def first_positions(counts: Sequence[int]) -> list[int]:
    """Return where the entries of each variable begin in a column with `counts[i]` entries for variable i.

    Example:
        >>> first_positions([1, 4, 2])
        [0, 1, 5]
    """
    return list(itertools.accumulate(counts, initial=0))[:-1]
