"""The formats in which a checkpoint can lie on disk: one module for each, all behind the same small protocol."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pytreesaver._tree.boxes import Box
from pytreesaver._tree.kinds import Cells, LeafType, storage_dtype

PINNED_NAME = "pinned"
"""A file of this name in the directory of a checkpoint tells retention to leave that checkpoint alone."""


class TreeContents(NamedTuple):
    """A tree ready to be written, in columns of one entry for each variable.

    `shapes` are those of the stored arrays (`pytreesaver._leaves.leaf_type_of`); `cells` hold the values; `structure`,
    `metadata` and `record` are plain JSON data. The record is what a run directory needs to know of a checkpoint:
    its step, time and metrics; None for a checkpoint outside of any run.
    """

    names: Sequence[str]
    types: Sequence[LeafType]
    shapes: Sequence[tuple[int, ...]]
    cells: Sequence[Cells]
    structure: Any
    metadata: Any
    record: Any = None

    @property
    def nbytes(self) -> int:
        """How many bytes all values have."""
        shapes = zip(self.types, self.shapes, strict=True)
        return sum(storage_dtype(leaf_type).itemsize * math.prod(shape) for leaf_type, shape in shapes)


class Heading(NamedTuple):
    """What is known of a checkpoint without its variables: `record` and `metadata` as in `TreeContents`, and the size
    in bytes that each of its data files should have, by name."""

    record: Any
    metadata: Any
    file_sizes: Mapping[str, int]


class CheckpointReader(Protocol):
    """An open checkpoint: what it holds is known, its arrays are read when asked for. A position is an index into the
    columns `names`, `types`, `shapes` and `nbytes`."""

    path: Path
    format_name: str
    format_version: int
    names: Sequence[str]
    types: Sequence[LeafType]
    shapes: Sequence[tuple[int, ...]]
    nbytes: Sequence[int]
    """How many bytes each stored array has."""
    structure: Any
    """As in `TreeContents`; None if the format keeps none, and then the tree is nested dicts of the names."""
    metadata: Any
    record: Any

    def check(self) -> None:
        """Make sure that every file is there and has its size and heading, without reading the arrays.

        Raises:
            CorruptCheckpointError: naming every file that is not whole.
        """
        ...

    def read(self, positions: Sequence[int], *, verify: bool) -> list[np.ndarray]:
        """The stored arrays at these positions, in memory that nobody else writes to.

        Those of more than 1 MiB have memory of their own, which begins at a multiple of 64 bytes.

        Raises:
            CorruptCheckpointError: naming every variable whose bytes are damaged (only if `verify`) or not there.
        """
        ...

    def read_boxes(
        self,
        position: int,
        boxes: Sequence[Box],
        outputs: Sequence[np.ndarray],
        *,
        verify: bool,
        shape: tuple[int, ...] | None = None,
        assign: Callable[[np.ndarray, np.ndarray], None] = np.copyto,
    ) -> None:
        """Fill each output with one box of a stored array. Little more than the bytes of the boxes is read, once, and
        a bounded part of them is held beside the outputs.

        Args:
            position: which array.
            boxes: parts of it.
            outputs: arrays of the shapes of the boxes.
            verify: compare what is read with its checksums.
            shape: another shape of as many elements, in which the boxes are meant.
            assign: called with a part of an output and the stored values for it, in several threads. It may keep
                neither.

        Raises:
            CorruptCheckpointError: the bytes are damaged (only if `verify`) or not there.
        """
        ...

    def map(self, places: Sequence[tuple[int, Box]], *, verify: bool) -> list[np.ndarray | None]:
        """Boxes of stored arrays, each given as (position, box), as they lie in the file. They may be written to: the
        file does not change.

        None for one that cannot be had in this way: if its bytes do not lie together, or are compressed.

        Raises:
            CorruptCheckpointError: naming every variable whose bytes are damaged (only if `verify`) or not there.
        """
        ...

    def digest(self, position: int) -> Any:
        """A value that is the same for two variables of one type and shape only if their bytes are the same; or None.

        No array is read for it.
        """
        ...

    def verify(self) -> None:
        """Read every byte of every file.

        Raises:
            CorruptCheckpointError: naming every variable whose bytes are damaged.
        """
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class Format(Protocol):
    """One way for a checkpoint to lie on disk."""

    name: str

    def write(
        self, path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False
    ) -> None:
        """Write a checkpoint so that at every moment either the old one or the new one is complete at `path`.

        In the background it may take longer, if that disturbs the rest of the program less.

        Raises:
            CheckpointExistsError: something is at `path` that may not be replaced.
        """
        ...

    def remove(self, path: Path) -> None:
        """Delete the checkpoint at `path` so that at every moment it is there whole or not at all.

        Raises:
            CheckpointExistsError: there is something else in it; nothing was deleted.
            OSError: it could not be removed, and is still there.
        """
        ...

    def remove_unlisted_files(self, path: Path) -> None:
        """Delete what a killed overwrite has left in the checkpoint at `path`, and nothing that a living one writes.

        What is no checkpoint, and what cannot be removed, is left alone.
        """
        ...

    def recognizes(self, path: Path) -> bool:
        """Whether what is at `path` is of this format, complete or damaged. Reads little."""
        ...

    def heading_file(self, path: Path) -> Path:
        """The file that is written last, and whose time is that of the checkpoint at `path`."""
        ...

    def read_heading(self, path: Path) -> Heading:
        """What is known of a checkpoint without its variables. Raises what `open` raises, and reads less."""
        ...

    def open(self, path: Path) -> CheckpointReader:
        """Open a checkpoint.

        Raises:
            CheckpointNotFoundError: there is none.
            CorruptCheckpointError: it contradicts itself.
            UnsupportedVersionError: it is of a newer version.
        """
        ...
