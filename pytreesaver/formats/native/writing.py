"""Write or overwrite a native checkpoint atomically."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from pytreesaver.formats.indexed.data import WriteOptions, write_data
from pytreesaver.formats.indexed.directory import DataWriter, DirectoryLayout, write_directory, write_files
from pytreesaver.formats.indexed.index import FORMAT_NAME, Index, encode_index, header_checksum
from pytreesaver.formats.native.files import INDEX_NAME, REPLACEABLE_FILES, read_index, recognizes
from pytreesaver.formats.protocol import TreeContents

_DATA_NAME = "data-00000-of-00001"


def write(path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False) -> None:
    """Write a checkpoint directory. See `pytreesaver.formats.Format.write`."""
    write_directory(path, contents, LAYOUT, overwrite=overwrite, durable=durable, in_background=in_background)


def write_into(directory: Path, contents: TreeContents) -> None:
    """Write the files of a checkpoint durably into an existing directory, whose own name is not synced."""
    with ExitStack() as locks:
        writer = DataWriter(directory, "", WriteOptions(durable=True, in_background=True), locks, [], [])
        write_files(writer, LAYOUT, INDEX_NAME, contents)


def _write_data(writer: DataWriter, contents: TreeContents) -> bytes:
    name = f"{_DATA_NAME}-{writer.token}.safetensors" if writer.token else f"{_DATA_NAME}.safetensors"
    written: list[Index] = []
    writer.write(
        name,
        lambda descriptor: written.append(write_data(descriptor, name, contents, writer.options, _header_metadata)),
    )
    return encode_index(written[0])


def _header_metadata(index: Index) -> Mapping[str, str]:
    # The header identifies its contents, so that an index is never used with the data of another checkpoint.
    return {"format": FORMAT_NAME, "content_id": header_checksum(index.checksums.encode())}


def _listed_files(path: Path) -> list[str]:
    return [file.name for file in read_index(path).files]


LAYOUT = DirectoryLayout(INDEX_NAME, REPLACEABLE_FILES, recognizes, _listed_files, _write_data)
