"""What this process knows of checkpoints that it has written or verified, so that later ones can share their files.

Nothing here keeps an array alive.
"""

import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytreesaver._io.checksums.xxh3 import block_count
from pytreesaver._tree.kinds import LeafType
from pytreesaver.formats.indexed.index import Index, chunk_counts, chunk_nbytes, first_positions

FileVersion = tuple[int, int, int, int]
"""What tells a file from one that replaced it, or that was modified; see `pytreesaver._io.filesystem.version`."""

UNIQUE_NAME: FileVersion = (0, 0, 0, 0)
"""In place of the version of an object that this process has written, under a name that no other one ever gets."""

MIN_COMPARED_NBYTES = 64 << 10
"""Chunks of this size or more are compared by their bytes if they are not the same arrays."""

_SAMPLE_NBYTES = 64


def sample_of(data: np.ndarray) -> bytes:
    """Return some bytes of a chunk, uint8[n]. Those of another chunk are likely to differ if the chunks do."""
    middle = data.nbytes // 2
    return data[middle : middle + _SAMPLE_NBYTES].tobytes()


@dataclass(frozen=True, eq=False)
class KnownCheckpoint:
    """A checkpoint whose data files a later one may share.

    Attributes:
        path: where it is.
        index: its index. A chunk of which this process knows nothing is in the file -1.
        versions: for each data file what tells it from others; None if this process does not know.
        is_durable: whether the data files are known to survive a power failure.
        verified: the positions of the variables whose bytes this process has verified; None if it has written the files
            that are in `versions`.
        leaves: for each variable a weak reference to the array of JAX that was saved or restored; None for others.
        samples: the results of `sample_of` for chunks of at least `MIN_COMPARED_NBYTES`, as far as they are known.
    """

    path: Path
    index: Index
    versions: Sequence[FileVersion | None]
    is_durable: bool
    verified: Sequence[int] | None
    leaves: Sequence["weakref.ref[Any] | None"]
    samples: Mapping[int, bytes]

    @functools.cached_property
    def positions(self) -> dict[str, int]:
        """The position of each variable."""
        return {name: i for i, name in enumerate(self.index.names)}

    @functools.cached_property
    def types(self) -> list[LeafType]:
        """The type of each variable."""
        return [self.index.types[i] for i in self.index.type_of]

    @functools.cached_property
    def sizes(self) -> list[int]:
        """The size of each chunk in bytes."""
        return chunk_nbytes(self.index)

    @functools.cached_property
    def first_chunk(self) -> list[int]:
        """The number of the first chunk of each variable."""
        return first_positions(chunk_counts(self.index))

    @functools.cached_property
    def trusted(self) -> list[bool]:
        """Whether this process has written or verified the bytes of each chunk."""
        if self.verified is None:
            is_known = [version is not None for version in self.versions]
            return [file >= 0 and is_known[file] for file in self.index.chunk_files]
        trusted = [False] * len(self.index.chunk_files)
        ends = [*self.first_chunk[1:], len(trusted)]
        for position in self.verified:
            begin, end = self.first_chunk[position], ends[position]
            trusted[begin:end] = [True] * (end - begin)
        return trusted

    def pass_on(self, later: "KnownCheckpoint") -> None:
        """Give what was computed about the variables to a later checkpoint, whose variables have the same types."""
        for name in ("positions", "types", "sizes", "first_chunk"):
            if name in self.__dict__:
                later.__dict__[name] = self.__dict__[name]

    @functools.cached_property
    def checksums(self) -> list[str]:
        """The checksums of each chunk, as they are in the index."""
        block = self.index.checksum_block_nbytes
        text, result, begin = self.index.checksums, [], 0
        for size in self.sizes:
            end = begin + 16 * block_count(size, block)
            result.append(text[begin:end])
            begin = end
        return result


MOST_REMEMBERED_VARIABLES = 20_000
"""A checkpoint of more variables is remembered only if a save asks for it, since that takes memory."""

_MOST_REMEMBERED = 2
_MOST_REMEMBERED_ON_REQUEST = 16
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)
_remembered: OrderedDict[Path, KnownCheckpoint] = OrderedDict()
_remembered_on_request: OrderedDict[Path, KnownCheckpoint] = OrderedDict()


def remember(known: KnownCheckpoint, *, on_request: bool) -> None:
    """Remember a checkpoint, beside what is known of the same one, and in place of another one at its path.

    Args:
        known: the checkpoint.
        on_request: whether the caller wants to save incrementally. Few others are remembered.
    """
    plain = msgspec.structs.replace(known.index, structure=None, metadata={}, record=None, models=None)
    later = replace(known, index=plain)
    known.pass_on(later)
    with _lock:
        earlier = _remembered_on_request.get(known.path)
        if earlier is not None and _is_same_checkpoint(earlier, known):
            later, on_request = _joined(earlier, later, newer_first=on_request), True
        elif not on_request and len(known.index.names) > MOST_REMEMBERED_VARIABLES:
            _remembered.pop(known.path, None)
            _remembered_on_request.pop(known.path, None)
            return
        _remembered.pop(known.path, None)
        _remembered_on_request.pop(known.path, None)
        table, most = (
            (_remembered_on_request, _MOST_REMEMBERED_ON_REQUEST) if on_request else (_remembered, _MOST_REMEMBERED)
        )
        table[known.path] = later
        while len(table) > most:
            table.popitem(last=False)


def _is_same_checkpoint(a: KnownCheckpoint, b: KnownCheckpoint) -> bool:
    columns = ("names", "types", "type_of", "shapes", "files", "chunk_files", "chunk_offsets", "checksums")
    are_alike = all(getattr(a.index, name) == getattr(b.index, name) for name in columns)
    return are_alike and all(
        one == other or UNIQUE_NAME in (one, other) for one, other in zip(a.versions, b.versions, strict=True)
    )


def _joined(earlier: KnownCheckpoint, later: KnownCheckpoint, *, newer_first: bool) -> KnownCheckpoint:
    """Return what is known of one checkpoint from two occasions, such as a save and a restore of a part."""
    first, second = (later.leaves, earlier.leaves) if newer_first else (earlier.leaves, later.leaves)
    leaves = [a if a is not None and a() is not None else b for a, b in zip(first, second, strict=True)]
    verified = None
    if earlier.verified is not None and later.verified is not None:
        verified = sorted({*earlier.verified, *later.verified})
    versions = zip(earlier.versions, later.versions, strict=True)
    joined = replace(
        later,
        versions=[UNIQUE_NAME if UNIQUE_NAME in (old, new) else new for old, new in versions],
        leaves=leaves,
        verified=verified,
        is_durable=earlier.is_durable or later.is_durable,
        samples={**earlier.samples, **later.samples},
    )
    earlier.pass_on(joined)
    return joined


def recall(path: Path) -> KnownCheckpoint | None:
    """Return what this process knows of the checkpoint at an absolute path, or None."""
    with _lock:
        return _remembered_on_request.get(path) or _remembered.get(path)


def forget(path: Path) -> None:
    """Forget the checkpoint at an absolute path."""
    with _lock:
        _remembered.pop(path, None)
        _remembered_on_request.pop(path, None)
