"""Writing of a safetensors file, or of a directory of several with the index of Hugging Face."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytreesaver._errors import CheckpointExistsError, UnsupportedLeafError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES, block_count
from pytreesaver._tree.kinds import Cells, grid_cells
from pytreesaver.formats.indexed.data import ALIGNMENT, ChunkTable, WriteOptions, new_index, write_data
from pytreesaver.formats.indexed.directory import DataWriter, DirectoryLayout, write_directory
from pytreesaver.formats.indexed.header import MAX_HEADER_NBYTES
from pytreesaver.formats.indexed.index import Index, chunk_nbytes, decode_index, header_checksum
from pytreesaver.formats.indexed.streaming import data_stream
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.safetensors.embedded import (
    CHECKSUM_KEY,
    CONTENT_KEY,
    embedded_index,
    metadata_with_index,
    sealed,
)
from pytreesaver.formats.safetensors.files import (
    INDEX_NAME,
    REPLACEABLE_FILES,
    SHARD_NAME,
    is_safetensors_file,
    other_files,
    recognizes,
)
from pytreesaver.formats.safetensors.opening import read_json_index
from pytreesaver.formats.single_file import write_single_file

_SMALL_ALIGNMENT = 64  # of the data of trees that are too small to be worth a page of padding
_SMALL_NBYTES = 1 << 20


def write(
    path: Path,
    contents: TreeContents,
    *,
    overwrite: bool,
    durable: bool,
    in_background: bool = False,
    shard_nbytes: int | None = None,
) -> None:
    """Write a safetensors file, or with `shard_nbytes` a directory. See `pytreesaver.formats.Format.write`."""
    contents = _with_whole_cells(contents)
    if shard_nbytes is not None:
        if overwrite and filesystem.is_directory(path) and (others := other_files(path)):
            raise CheckpointExistsError(
                f"{path}: expected a checkpoint to overwrite, found a directory that also contains "
                f"{', '.join(others[:3])}; save elsewhere, or move these files first"
            )
        layout = LAYOUT._replace(write_data=_shard_writer(shard_nbytes))
        write_directory(path, contents, layout, overwrite=overwrite, durable=durable, in_background=in_background)
        return

    def write_contents(descriptor: int, synced: bool) -> None:
        options = WriteOptions(synced, in_background)
        write_data(descriptor, "", ChunkTable.of(contents), options, metadata_with_index, **_options_of_file(contents))

    write_single_file(
        path,
        write_contents,
        what="a safetensors file",
        recognizes=is_safetensors_file,
        overwrite=overwrite,
        durable=durable,
    )


def write_stream(contents: TreeContents, write: Callable[[memoryview], object]) -> int:
    """Write a safetensors file part by part. Return its size in bytes.

    Args:
        contents: the tree.
        write: takes the parts, in order.
    """
    contents = _with_whole_cells(contents)
    index, parts = data_stream("", ChunkTable.of(contents), metadata_with_index, **_options_of_file(contents))
    for part in parts():
        write(part)
    return index.files[0].nbytes


def _options_of_file(contents: TreeContents) -> dict[str, Any]:
    """Return arguments of `write_data` for a single file that has the index."""
    checksums_nbytes = contents.nbytes // BLOCK_NBYTES * 16  # in hexadecimal digits, in the header
    if checksums_nbytes > MAX_HEADER_NBYTES:
        raise UnsupportedLeafError(
            f"expected a header of at most {MAX_HEADER_NBYTES} bytes, found checksums of {checksums_nbytes} bytes for "
            f"arrays of {contents.nbytes} bytes; pass shard_nbytes"
        )
    alignment = ALIGNMENT if contents.nbytes >= _SMALL_NBYTES else _SMALL_ALIGNMENT
    return {"alignment": alignment, "share": False, "with_float8": True, "seal": sealed}


def _with_whole_cells(contents: TreeContents) -> TreeContents:
    return contents._replace(cells=[_whole(*each) for each in zip(contents.cells, contents.shapes, strict=True)])


def _shard_writer(shard_nbytes: int) -> Any:
    def write_shards(writer: DataWriter, contents: TreeContents) -> bytes:
        shards = _split(chunk_nbytes(new_index(contents)), shard_nbytes)
        suffix = f"-{writer.token}" if writer.token else ""
        parts: list[Index] = []
        for number, positions in enumerate(shards):
            name = f"model-{number + 1:05}-of-{len(shards):05}{suffix}.safetensors"
            part = contents.part(positions)
            writer.write(
                name,
                lambda descriptor, name=name, part=part: parts.append(  # type: ignore[misc]
                    write_data(
                        descriptor,
                        name,
                        ChunkTable.of(part),
                        writer.options,
                        _plain_metadata,
                        share=False,
                        with_float8=True,
                    )
                ),
            )
        return _index_text(_joined_index(contents, shards, parts))

    return write_shards


def _plain_metadata(index: Index) -> dict[str, str]:
    return {"format": "pt", CONTENT_KEY: header_checksum(index.checksums.encode())}


def _split(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Return consecutive positions in groups of up to `most` bytes, or of a single larger variable."""
    groups: list[list[int]] = [[]]
    nbytes = 0
    for position, size in enumerate(sizes):
        if groups[-1] and nbytes + size > most:
            groups.append([])
            nbytes = 0
        groups[-1].append(position)
        nbytes += size
    return groups


def _joined_index(contents: TreeContents, shards: Sequence[Sequence[int]], parts: Sequence[Index]) -> Index:
    index = new_index(contents)
    for number, (positions, part) in enumerate(zip(shards, parts, strict=True)):
        index.files += part.files
        index.chunk_files += [number] * len(positions)
        index.chunk_offsets += part.chunk_offsets
        index.checksums += part.checksums
    assert len(index.checksums) == 16 * sum(block_count(n, index.checksum_block_nbytes) for n in chunk_nbytes(index))
    return index


def _index_text(index: Index) -> bytes:
    files = [index.files[i].name for i in index.chunk_files]
    metadata = {**metadata_with_index(index), "total_size": sum(chunk_nbytes(index))}
    content = {"metadata": metadata, "weight_map": dict(zip(index.names, files, strict=True))}
    return sealed(msgspec.json.encode(content))


def is_index_of_ours(path: Path) -> bool:
    """Return whether the index in a directory is one of pytreesaver, and intact. Raises what `listed_files` raises."""
    _, metadata, _ = read_json_index(path / INDEX_NAME)
    listed_files(path)
    return CHECKSUM_KEY in metadata


def listed_files(path: Path) -> list[str]:
    """Return the data files that the index of pytreesaver in a directory lists.

    Raises:
        CorruptCheckpointError: if the index is damaged.
    """
    text, metadata, weight_map = read_json_index(path / INDEX_NAME)
    if CHECKSUM_KEY not in metadata:
        return list(weight_map.values())
    index = decode_index(embedded_index(text, metadata, str(path / INDEX_NAME)), str(path / INDEX_NAME), SHARD_NAME)
    return [file.name for file in index.files]


LAYOUT = DirectoryLayout(INDEX_NAME, REPLACEABLE_FILES, recognizes, listed_files, _shard_writer(5 << 30))


def _whole(cells: Cells, shape: tuple[int, ...]) -> Cells:
    """Return the cells of a sharded array as a single one, so that it becomes a single tensor."""
    return cells if cells.boundaries is None else Cells([_JoinedCells(cells, shape)])


class _JoinedCells:
    """The array that consists of some cells, assembled when it is written."""

    def __init__(self, cells: Cells, shape: tuple[int, ...]) -> None:
        self._cells = cells
        self._shape = shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole: np.ndarray | None = None
        for (start, shape), array in zip(grid_cells(self._cells.boundaries or []), self._cells.arrays, strict=True):
            part = np.asarray(array)
            if whole is None:
                whole = np.empty(self._shape, part.dtype)
            whole[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))] = part
        assert whole is not None
        return whole
