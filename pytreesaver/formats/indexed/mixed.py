"""A reader of files in which most variables are bytes at known places, and the others have to be decoded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pytreesaver._io.reading import RangeChecks
from pytreesaver._tree.kinds import LeafType
from pytreesaver._tree.plain import encode_value
from pytreesaver.formats.description import Description
from pytreesaver.formats.indexed.index import DataFile, Index
from pytreesaver.formats.indexed.reader import IndexedReader
from pytreesaver.formats.protocol import CheckpointReader
from pytreesaver.formats.readers.joined import JoinedContents, JoinedReader
from pytreesaver.formats.readers.loaded import LoadedReader

_NO_BLOCKS = 1 << 62
"""More bytes than a chunk has: each chunk has one checksum, if any."""


class MixedVariable(NamedTuple):
    """A variable of such a file.

    Attributes:
        name, type, shape: as in `pytreesaver.formats.TreeContents`.
        chunks: where its bytes are, in C order: for each chunk the number of the file, and the offset.
        boundaries: those of the grid of its chunks, if there are several.
        load: returns its stored array instead, with memory of its own; raises what the `load` of `LoadedReader` raises.
    """

    name: str
    type: LeafType
    shape: tuple[int, ...]
    chunks: Sequence[tuple[int, int]] = ()
    boundaries: list[list[int]] | None = None
    load: Callable[[], np.ndarray] | None = None


def mixed_reader(
    path: Path,
    files: Sequence[DataFile],
    variables: Sequence[MixedVariable],
    *,
    structure: Any,
    metadata: Any = None,
    record: Any = None,
    same_as: Mapping[int, int] | None = None,
    new_checks: Callable[[], RangeChecks] | None = None,
    close: Callable[[], None] = lambda: None,
    format_name: str,
    format_version: int,
) -> CheckpointReader:
    """Return a reader.

    Args:
        path: the checkpoint.
        files: its data files, beside it, or the checkpoint itself.
        variables: its variables.
        structure: as in `pytreesaver.formats.TreeContents`, or a function that returns it.
        metadata: as in `pytreesaver.formats.TreeContents`; None for none.
        record: as in `pytreesaver.formats.TreeContents`.
        same_as: as in `pytreesaver.formats.TreeContents`; None for none.
        new_checks: as in `pytreesaver.formats.indexed.reader.IndexedReader`; chunks without bytes do not count.
        close: called when the reader is closed, or at once if nothing needs to be loaded.
        format_name: the name of the format.
        format_version: the version of the format.
    """
    metadata = encode_value({}, classes=False) if metadata is None else metadata
    stored = [variable for variable in variables if variable.load is None]
    loaded = [variable for variable in variables if variable.load is not None]
    chunks = [chunk for variable in stored for chunk in variable.chunks]
    types: dict[LeafType, int] = {}
    index = Index(
        names=[variable.name for variable in stored],
        types=[],
        type_of=[types.setdefault(variable.type, len(types)) for variable in stored],
        shapes=[variable.shape for variable in stored],
        grids={str(i): each.boundaries for i, each in enumerate(stored) if each.boundaries is not None},
        files=list(files),
        chunk_files=[file for file, _ in chunks],
        chunk_offsets=[offset for _, offset in chunks],
        checksum_block_nbytes=_NO_BLOCKS,
        checksums="",
        structure=structure,
        metadata=metadata,
        record=record,
        same_as={} if loaded or not same_as else {str(key): earlier for key, earlier in same_as.items()},
    )
    index.types = list(types)
    paths = [path.with_name(file.name) for file in files]
    named: Any = {"format_name": format_name, "format_version": format_version}
    arrays = IndexedReader(path, index, paths, new_checks=new_checks, **named)
    if not loaded:
        close()
        return arrays
    places, counts = [], {"stored": 0, "loaded": 0}
    for variable in variables:
        reader = "stored" if variable.load is None else "loaded"
        places.append((reader, counts[reader]))
        counts[reader] += 1
    names = [variable.name for variable in variables]
    contents = JoinedContents(names, places, arrays.structure, metadata, record, same_as or {})
    readers: dict[str, CheckpointReader] = {
        "stored": arrays,
        "loaded": _loaded_reader(path, loaded, close, format_name),
    }
    return JoinedReader(path, readers, contents, **named)


def _loaded_reader(
    path: Path, variables: Sequence[MixedVariable], close: Callable[[], None], format_name: str
) -> LoadedReader:
    types: dict[LeafType, int] = {}
    description = Description(
        names=[variable.name for variable in variables],
        types=[],
        type_of=[types.setdefault(variable.type, len(types)) for variable in variables],
        shapes=[variable.shape for variable in variables],
        keys=[str(i) for i in range(len(variables))],
        checksums=[""] * len(variables),
        structure=None,
        metadata=None,
    )
    description.types = list(types)

    loads = [variable.load for variable in variables if variable.load is not None]

    def load(key: str, leaf_type: LeafType, shape: tuple[int, ...]) -> np.ndarray:
        return loads[int(key)]()

    return LoadedReader(path, description, load, check_file=lambda: None, close=close, format_name=format_name)
