"""Opening of safetensors files, with or without the index of pytreesaver in their metadata."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytreesaver._errors import CheckpointNotFoundError, CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES
from pytreesaver._io.files import EndOfFileError, read_file, read_fully
from pytreesaver._text import NotJSONError, decode_json, quoted
from pytreesaver._tree.kinds import LeafType, NotPlainError
from pytreesaver._tree.plain import encode_value
from pytreesaver._tree.restructure import structure_of_names
from pytreesaver.formats.indexed.header import LENGTH_NBYTES
from pytreesaver.formats.indexed.index import DataFile, Index, decode_heading, decode_index
from pytreesaver.formats.indexed.reader import IndexedReader
from pytreesaver.formats.protocol import Heading
from pytreesaver.formats.safetensors.embedded import CONTENT_KEY, embedded_index, is_ours
from pytreesaver.formats.safetensors.files import INDEX_NAME, SHARD_NAME, data_files
from pytreesaver.formats.safetensors.header import (
    Header,
    Version,
    decode_header,
    header_text_of,
    looks_like_header,
    read_header_text,
)

NAME = "safetensors"
VERSION = 1
_MAX_JSON_NBYTES = 1 << 30
_NO_NAME = re.compile("")


def open_file(path: Path, file: Path | None = None) -> IndexedReader:
    """Open a single safetensors file: the checkpoint itself, or the `file` in the directory `path`."""
    source = path if file is None else file
    return _opened(filesystem.open_existing(source), path, source)


def open_stream(descriptor: int, name: Path) -> IndexedReader:
    """Open a single safetensors file that is open already, and is closed with the reader. Messages call it `name`."""
    try:
        head = np.zeros(min(filesystem.file_size(descriptor), LENGTH_NBYTES + 1), np.uint8)
        read_fully(descriptor, head, 0)
        if not looks_like_header(head.tobytes()):
            raise CorruptCheckpointError(
                f"{name}: expected the bytes of a safetensors file, found others, or none of them: the first are "
                f"{head.tobytes()!r}"
            )
    except BaseException:
        filesystem.release(descriptor)
        raise
    return _opened(descriptor, name, name)


def _opened(descriptor: int, path: Path, file: Path) -> IndexedReader:
    """Return the reader of an open file, which is closed with it."""
    try:
        text, data_nbytes = header_text_of(descriptor, file)
        index = _index_of_file(file, decode_header(text, data_nbytes, file))
    except BaseException:
        filesystem.release(descriptor)
        raise
    return _reader(path, index, [file], [descriptor])


def _index_of_file(file: Path, header: Header) -> Index:
    if not is_ours(header.text, header.metadata):
        return _index_of([(file.name, header)], header.metadata)
    embedded = embedded_index(header.text, header.metadata, str(file))
    index = decode_index(embedded, str(file), _NO_NAME)
    if [each.nbytes for each in index.files] != [header.data_nbytes]:
        expected = sum(each.nbytes for each in index.files)
        raise CorruptCheckpointError(f"{file}: expected {expected} bytes of data, found {header.data_nbytes}")
    index.files = [DataFile(file.name, header.nbytes + header.data_nbytes, header.nbytes, "")]
    index.chunk_offsets = [header.nbytes + offset for offset in index.chunk_offsets]
    return index


def _decoded(file: Path) -> tuple[Header, Version]:
    text, data_nbytes, version = read_header_text(file)
    return decode_header(text, data_nbytes, file), version


def open_directory(path: Path) -> IndexedReader:
    """Open a directory of safetensors files, with the index of Hugging Face or of pytreesaver, or with none."""
    while True:
        reader, is_current = _open_directory(path)
        try:
            if is_current():
                return reader
        except BaseException:
            reader.close()
            raise
        reader.close()  # another program has replaced files since the headers or the index were read


def _open_directory(path: Path) -> tuple[IndexedReader, Callable[[], bool]]:
    """Open a directory. Also return a function that tells whether the open files belong together."""
    found = data_files(path, filesystem.list_directory(path))
    if found is None:
        raise CheckpointNotFoundError(f"{path}: expected a directory with safetensors files of a model, found none")
    if isinstance(found, Path):
        text, metadata, weight_map = read_json_index(found)
        if is_ours(text, metadata):
            index = decode_index(embedded_index(text, metadata, str(found)), str(found), SHARD_NAME)
            reader = _reader(path, index, [path / file.name for file in index.files])
            json_index = found
            return reader, lambda: not reader.lacks_files or read_json_index(json_index)[0] == text
        names = list(dict.fromkeys(weight_map.values()))
    else:
        metadata, weight_map, names = {}, {}, found
        _refuse_missing_shards(path, names)
    headers, versions = [], []
    for name in names:
        header, version = _read_header(path / name, weight_map)
        headers.append((name, header))
        versions.append(version)
    if len(headers) == 1 and is_ours(headers[0][1].text, headers[0][1].metadata):
        return open_file(path, path / names[0]), lambda: True
    if any(CONTENT_KEY in header.metadata for _, header in headers):
        raise CorruptCheckpointError(
            f"{path / INDEX_NAME}: expected the index of pytreesaver, which its data files belong to, found "
            f"{'a damaged one' if isinstance(found, Path) else 'none'}"
        )
    tensors_of = {name: header.tensors for name, header in headers}
    stored = {tensor for tensors in tensors_of.values() for tensor in tensors}
    missing = [tensor for tensor, name in weight_map.items() if tensor not in tensors_of[name]]
    if missing:
        lines = "".join(f"\n  {quoted(name)}" for name in missing)
        raise CorruptCheckpointError(
            f"{found}: names tensors that its files lack\n{path}: {len(missing)} of {len(weight_map)} variables "
            f"damaged:{lines}",
            damaged=missing,
        )
    if len(stored) < sum(len(header.tensors) for _, header in headers):
        raise CorruptCheckpointError(f"{path}: expected each tensor in one file, found one in several")
    if len(headers) == 1 and not metadata:
        metadata = headers[0][1].metadata
    reader = _reader(path, _index_of(headers, metadata), [path / name for name in names])
    return reader, lambda: reader.file_versions == versions


def read_heading(path: Path, *, is_file: bool) -> Heading:
    """Return the heading of a checkpoint. Raises what `open_file` and `open_directory` raise."""
    if is_file:
        header, _ = _decoded(path)
        sizes = {"": header.nbytes + header.data_nbytes}
        if not is_ours(header.text, header.metadata):
            return Heading(None, encode_value(header.metadata, classes=False), sizes)
        heading = decode_heading(embedded_index(header.text, header.metadata, str(path)), str(path))
        return heading._replace(file_sizes=sizes)
    found = data_files(path, filesystem.list_directory(path))
    if isinstance(found, Path):
        text, metadata, _ = read_json_index(found)
        if is_ours(text, metadata):
            return decode_heading(embedded_index(text, metadata, str(found)), str(found))
    reader = open_directory(path)
    reader.close()
    return Heading(reader.record, reader.metadata, reader.file_sizes)


def _reader(path: Path, index: Index, files: Sequence[Path], descriptors: Sequence[int] | None = None) -> IndexedReader:
    return IndexedReader(path, index, files, format_name=NAME, format_version=VERSION, descriptors=descriptors)


def _read_header(file: Path, weight_map: Mapping[str, str]) -> tuple[Header, Version]:
    try:
        return _decoded(file)
    except OSError as error:
        if not filesystem.is_absence(error):
            raise
        names = [tensor for tensor, name in weight_map.items() if name == file.name]
        lines = "".join(f"\n  {quoted(name)}" for name in names)
        raise CorruptCheckpointError(
            f"{file}: expected a data file, found none\n{file.parent}: {len(names)} of {len(weight_map)} variables "
            f"damaged:{lines}",
            damaged=names,
        ) from None


def _refuse_missing_shards(path: Path, names: Sequence[str]) -> None:
    for name in names:
        prefix, _, count = name.removesuffix(".safetensors").rpartition("-of-")
        if not count.isdigit() or not prefix:
            continue
        wanted = {f"{prefix[:-5]}{i + 1:05}-of-{count}.safetensors" for i in range(min(int(count), 100_000))}
        lacking = sorted(wanted - set(names))
        if lacking:
            listed = ", ".join(lacking[:3])
            raise CorruptCheckpointError(f"{path}: expected {int(count)} files like {name}; missing: {listed}")


class _JsonIndex(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, Any] | None = None


def read_json_index(file: Path) -> tuple[bytes, dict[str, Any], dict[str, str]]:
    """Return the text, the metadata and the files of the tensors of an index like ``model.safetensors.index.json``."""
    descriptor = filesystem.open_existing(file)
    try:
        if filesystem.file_size(descriptor) > _MAX_JSON_NBYTES:
            raise CorruptCheckpointError(
                f"{file}: expected an index, found a file of more than {_MAX_JSON_NBYTES} bytes"
            )
        text = read_file(descriptor)
    except EndOfFileError as error:
        raise CorruptCheckpointError(f"{file}: a part of it could not be read") from error
    finally:
        filesystem.release(descriptor)
    try:
        index = decode_json(text, _JsonIndex)
        encode_value(index.metadata or {}, classes=False)
    except (NotJSONError, NotPlainError) as error:
        raise CorruptCheckpointError(
            f"{file}: expected an index of safetensors files, found a damaged one ({error})"
        ) from None
    for name in set(index.weight_map.values()):
        if name in (".", "..") or not _PLAIN_NAME.fullmatch(name):
            raise CorruptCheckpointError(f"{file}: expected names of files in the same directory, found {name[:60]!r}")
    return text, index.metadata or {}, index.weight_map


_PLAIN_NAME = re.compile(r"[^/\0]{1,255}")


def _index_of(headers: Sequence[tuple[str, Header]], metadata: Mapping[str, Any]) -> Index:
    """Return an index without checksums of files from other programs. The leaves are NumPy arrays."""
    names: list[str] = []
    types: dict[LeafType, int] = {}
    type_of: list[int] = []
    shapes: list[tuple[int, ...]] = []
    chunk_files: list[int] = []
    offsets: list[int] = []
    for number, (_, header) in enumerate(headers):
        for name, info in header.tensors.items():
            names.append(name)
            type_of.append(types.setdefault(LeafType("numpy", info.dtype_name), len(types)))
            shapes.append(tuple(info.shape))
            chunk_files.append(number)
            offsets.append(header.nbytes + info.data_offsets[0])
    return Index(
        names=names,
        types=list(types),
        type_of=type_of,
        shapes=shapes,
        grids={},
        files=[DataFile(name, header.nbytes + header.data_nbytes, header.nbytes, "") for name, header in headers],
        chunk_files=chunk_files,
        chunk_offsets=offsets,
        checksum_block_nbytes=BLOCK_NBYTES,
        checksums="",
        structure=lambda: structure_of_names(names),
        metadata=encode_value(dict(metadata), classes=False),
    )
