"""The earlier checkpoint that an incremental save shares files with, as it is on the disk."""

import logging
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import block_count
from pytreesaver._io.memory import collection_paused
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._text import quoted
from pytreesaver.formats.indexed.files import IndexedFiles
from pytreesaver.formats.indexed.index import Index, first_positions
from pytreesaver.formats.indexed.reader import IndexedReader
from pytreesaver.formats.indexed.verifying import damaged_chunks
from pytreesaver.formats.native.files import INDEX_NAME, read_index
from pytreesaver.formats.native.known import FileVersion, KnownCheckpoint, recall, remember

logger = logging.getLogger("pytreesaver")


def known_checkpoint(path: Path) -> KnownCheckpoint:
    """Return what this process knows of the checkpoint at an absolute path, or what can be read of it.

    Raises:
        CheckpointNotFoundError, CorruptCheckpointError: if there is none, or its index is damaged.
    """
    known = recall(path)
    if known is not None and _is_unchanged(known):
        return known
    while True:
        index = read_index(path)
        files = IndexedFiles(path, index, [path / file.name for file in index.files])
        try:
            # It may have been overwritten after its index was read and before its data was opened.
            if len(files.descriptors) < len(index.files) and read_index(path).files != index.files:
                continue
            versions = [_version(files, number) for number in range(len(index.files))]
            break
        finally:
            files.close()
    return KnownCheckpoint(path, index, versions, False, (), [None] * len(index.names), {})


def _is_unchanged(known: KnownCheckpoint) -> bool:
    """Return whether the data files of a checkpoint are still those that this process knows."""
    if is_in_store(known.path):  # where data objects have unique names
        return filesystem.exists(known.path / INDEX_NAME)
    for file, version in zip(known.index.files, known.versions, strict=True):
        found = filesystem.status(known.path / file.name) if version is not None else None
        if version is not None and (found is None or _version_of(found) != version):
            return False
    return True


def _version_of(status: Any) -> FileVersion:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _version(files: IndexedFiles, number: int) -> FileVersion | None:
    try:
        return filesystem.version(files.descriptor(number))
    except CorruptCheckpointError as error:
        logger.warning("%s; an incremental save writes again what it holds", str(error).partition("\n")[0])
        return None


def without_damaged(shared: Mapping[int, int], base: KnownCheckpoint) -> dict[int, int]:
    """Return {chunk: chunk of `base`} without those of which the bytes on the disk are damaged. Reads the untrusted."""
    untrusted = {earlier for earlier in shared.values() if not base.trusted[earlier]}
    if not untrusted:
        return dict(shared)
    index = base.index
    first_blocks = first_positions([block_count(size, index.checksum_block_nbytes) for size in base.sizes])
    files = IndexedFiles(base.path, index, [base.path / file.name for file in index.files])
    try:
        bad = damaged_chunks(files, {first_blocks[chunk] for chunk in untrusted})
    except (CorruptCheckpointError, OSError) as error:
        logger.warning("%s: an incremental save writes everything: %s", base.path, str(error).partition("\n")[0])
        return {chunk: earlier for chunk, earlier in shared.items() if earlier not in untrusted}
    finally:
        files.close()
    damaged = {chunk for chunk in untrusted if first_blocks[chunk] in bad}
    if damaged:
        logger.warning("%s: damaged, and written again: %s", base.path, ", ".join(_names(base, damaged)))
    return {chunk: earlier for chunk, earlier in shared.items() if earlier not in damaged}


def _names(base: KnownCheckpoint, chunks: set[int]) -> list[str]:
    last = [*base.first_chunk[1:], len(base.sizes)]
    bounds = zip(base.index.names, base.first_chunk, last, strict=True)
    return [quoted(name) for name, begin, end in bounds if chunks.intersection(range(begin, end))]


def known_after_saving(
    path: Path,
    index: Index,
    versions: Mapping[str, FileVersion],
    leaves: Sequence["weakref.ref[Any] | None"],
    samples: Mapping[int, bytes],
    *,
    is_durable: bool,
) -> KnownCheckpoint:
    """Return what this process knows of a checkpoint that it has written.

    Args:
        path: the checkpoint.
        index: its index. The chunks that other processes have written are in the file -1.
        versions: the versions of the data files, by name.
        leaves: as in `KnownCheckpoint`.
        samples: as in `KnownCheckpoint`.
        is_durable: as in `KnownCheckpoint`.
    """
    found = [versions.get(file.name) for file in index.files]
    return KnownCheckpoint(path, index, found, is_durable, None, leaves, samples)


class NativeReader(IndexedReader):
    """An open checkpoint in the native format. See `pytreesaver.formats.CheckpointReader`."""

    @property
    def shared_nbytes(self) -> int:
        """The size of the data files that the save did not write, but took from an earlier checkpoint."""
        return sum(file.nbytes for file in self._files.index.files if file.shared)

    @collection_paused()
    def remember(self, positions: Sequence[int], leaves: Sequence[Any], *, on_request: bool) -> None:
        """Remember which arrays have been restored, for the next incremental save.

        Args:
            positions: the positions of variables.
            leaves: for each, the leaf that was made of all of its bytes, after they were verified.
            on_request: as in `pytreesaver.formats.native.known.remember`.
        """
        import jax

        index, versions = self._files.index, self.file_versions
        if len(versions) != len(index.files):
            return
        references: list[weakref.ref[Any] | None] = [None] * len(index.names)
        for position, leaf in zip(positions, leaves, strict=True):
            if isinstance(leaf, jax.Array) and leaf.is_fully_addressable and self._is_as_stored(position, leaf):
                references[position] = weakref.ref(leaf)
        verified = [position for position, reference in enumerate(references) if reference is not None]
        known = KnownCheckpoint(self.path.absolute(), index, versions, False, verified, references, {})
        remember(known, on_request=on_request)

    def _is_as_stored(self, position: int, leaf: Any) -> bool:
        """Return whether a restored leaf has the stored type: otherwise a save may cast it to other bytes."""
        stored = self.types[position]
        return stored.kind == "key" or (stored.kind == "jax" and stored.dtype == leaf.dtype.name)
