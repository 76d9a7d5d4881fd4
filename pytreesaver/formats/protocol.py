"""The protocol that every checkpoint format implements."""

import math
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from pytreesaver._errors import CheckpointExistsError, UnsupportedLeafError
from pytreesaver._text import quoted
from pytreesaver._tree.boxes import Box
from pytreesaver._tree.kinds import Cells, LeafType, storage_dtype

PINNED_NAME = "pinned"
"""Retention never deletes a checkpoint whose directory contains a file of this name."""

SYSTEM_FILES = re.compile(
    r"\.DS_Store|\.AppleDouble|\.localized|\._.*|Icon\r|\.directory|@eaDir|\.nfs.*|\.fuse_hidden.*|[Tt]humbs\.db"
    r"|[Dd]esktop\.ini|\.ipynb_checkpoints|\..*\.sw[a-p]"
)
"""What file managers, network file systems, editors and notebooks leave in directories. It is deleted with them."""


def pin_of(path: Path, *, is_directory: bool) -> Path:
    """Return the file that pins a checkpoint: in its directory, or beside a checkpoint that is a single file.

    Example:
        >>> pin_of(Path("run/model-1"), is_directory=True), pin_of(Path("run/model-1"), is_directory=False)
        (PosixPath('run/model-1/pinned'), PosixPath('run/.model-1.pinned'))
    """
    return path / PINNED_NAME if is_directory else path.with_name(f".{path.name}.{PINNED_NAME}")


class SharedWriting(NamedTuple):
    """How the processes of a program share the writing of a tree. All of them compute the same.

    Attributes:
        rank: the number of this process.
        writers: the number of the process that writes each cell, variable by variable.
        copies: the positions of the variables of which every process has its own copy, which should be equal.
        digest: a checksum of the names, types, shapes and shardings of the tree.
        nbytes: the size in bytes of what this process writes.
        describe: returns the text that `digest` stands for: a line for each variable, by its name.
    """

    rank: int
    writers: Sequence[int]
    copies: Sequence[int]
    digest: str
    nbytes: int
    describe: Callable[[], Mapping[str, str]]


class TreeContents(NamedTuple):
    """A flattened tree to write, in columns with one entry for each variable.

    Attributes:
        names: the names of the variables.
        types: their types.
        shapes: the shapes of the stored arrays; see `pytreesaver._tree.leaves.leaf_type_of`.
        cells: their values.
        structure: the containers of the tree, as plain JSON data.
        metadata: the user's metadata, as plain JSON data.
        record: the step, time and metrics of the checkpoint, as plain JSON data; None outside of a run directory.
        same_as: {position: earlier position} of the variables that are the same array object as an earlier one. A
            format may store such an array once.
        shared: how several processes share the writing; None if this process has all values and writes them alone.
        leaves: for each variable a weak reference to its array of JAX, or None; empty if they do not matter.
        models: the exported functions, as plain JSON data; see `pytreesaver._checkpoint.models`. None for none.
        unchanged: {position: position in an earlier checkpoint} of variables that are the same arrays as there.
        changed: the positions of the others, if the tree is so much alike that the format may take a shorter way.
    """

    names: Sequence[str]
    types: Sequence[LeafType]
    shapes: Sequence[tuple[int, ...]]
    cells: Sequence[Cells]
    structure: Any
    metadata: Any
    record: Any = None
    same_as: Mapping[int, int] = {}
    shared: SharedWriting | None = None
    leaves: Sequence["weakref.ref[Any] | None"] = ()
    unchanged: Mapping[int, int] = {}
    models: Any = None
    changed: Sequence[int] | None = None

    def part(self, positions: Sequence[int]) -> "TreeContents":
        """Return some variables, without the structure, metadata and record: what one data file of several holds."""
        names, types = [self.names[i] for i in positions], [self.types[i] for i in positions]
        shapes, cells = [self.shapes[i] for i in positions], [self.cells[i] for i in positions]
        return TreeContents(names, types, shapes, cells, structure=None, metadata={})

    @property
    def nbytes(self) -> int:
        """The total size of the values in bytes; with several processes, of those that this one writes."""
        if self.shared is not None:
            return self.shared.nbytes
        shapes = zip(self.types, self.shapes, strict=True)
        return sum(storage_dtype(leaf_type).itemsize * math.prod(shape) for leaf_type, shape in shapes)


def refuse_unsupported(contents: TreeContents, problems: Mapping[str, str], format_name: str) -> None:
    """Raise an UnsupportedLeafError that names every variable that a format cannot hold, if there are any."""
    if problems:
        count = f"{len(problems)} of {len(contents.names)} variables" if contents.names else "the tree"
        lines = "\n".join(f"  {quoted(name)}: {problem}" for name, problem in problems.items())
        raise UnsupportedLeafError(f'{count} cannot be saved with format="{format_name}":\n{lines}')


def refuse_other_files(path: Path, others: Sequence[str]) -> None:
    """Raise a CheckpointExistsError if the directory of a checkpoint to delete contains files of others."""
    if others:
        raise CheckpointExistsError(
            f"{path}: the checkpoint to delete also contains other files: {', '.join(others[:3])}; "
            "move them elsewhere first"
        )


class Heading(NamedTuple):
    """What a checkpoint stores besides its variables: `record` and `metadata` as in `TreeContents`, and the expected
    size of each data file in bytes, by name; that of a checkpoint that is a single file is called ``""``. The
    `shared_nbytes` of them were not written by the save, but taken from an earlier checkpoint."""

    record: Any
    metadata: Any
    file_sizes: Mapping[str, int]
    shared_nbytes: int = 0


class CheckpointReader(Protocol):
    """An open checkpoint. Opening it reads everything but the arrays. A position is an index into the columns `names`,
    `types`, `shapes` and `nbytes`. In a format without names, `names` are the positions, and an attribute
    `is_positional` is True: then the variables are matched with the leaves of a template in their order.

    A reader may have attributes: `models`, as in `TreeContents`; `other_names`, {another name: name}, of names that
    other programs use; `unreadable`, {name: reason}, of variables of which reading raises an UnsupportedLeafError;
    `shared_nbytes`, as in `Heading`; and a method `remember`, as in `pytreesaver.formats.native.base`. One that
    decompresses several arrays in parallel may have an attribute `window_nbytes`, how many bytes of them should be read
    together, and a method ``read_ahead(positions)``, called with those that `read_boxes` is going to read."""

    path: Path
    format_name: str
    format_version: int
    names: Sequence[str]
    types: Sequence[LeafType]
    shapes: Sequence[tuple[int, ...]]
    nbytes: Sequence[int]
    """The size of each stored array in bytes."""
    metadata: Any
    record: Any
    same_as: Mapping[int, int]
    """As in `TreeContents`; empty if the format stores no such information."""

    @property
    def structure(self) -> Any:
        """As in `TreeContents`. A format that stores none returns nested dicts of the names."""
        ...

    def check(self) -> None:
        """Check that every file exists and has the expected size and header, without reading the arrays.

        Raises:
            CorruptCheckpointError: naming every missing or damaged file.
        """
        ...

    def read(self, positions: Sequence[int], *, verify: bool) -> list[np.ndarray]:
        """Read the stored arrays at these positions. The caller owns their memory and may write to it.

        The memory of an array of more than 1 MiB is not shared with others and is aligned to 64 bytes.

        Raises:
            CorruptCheckpointError: naming every variable whose bytes are missing or, if `verify`, damaged.
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
        """Read one box of a stored array into each output.

        Little more than the bytes of the boxes is read, each once. Memory beyond the outputs is bounded.

        Args:
            position: the position of the array.
            boxes: parts of it.
            outputs: arrays of the shapes of the boxes.
            verify: compare the bytes read with their checksums.
            shape: the shape to which the boxes refer, with as many elements as the stored shape.
            assign: called with a part of an output and the stored values for it, from several threads. It must not
                keep references to them.

        Raises:
            CorruptCheckpointError: if the bytes are missing or, if `verify`, damaged.
        """
        ...

    def map(self, places: Sequence[tuple[int, Box]], *, verify: bool) -> list[np.ndarray | None]:
        """Memory-map boxes of stored arrays, each specified as (position, box), copy-on-write.

        The result is None for a box that cannot be mapped: its bytes are not contiguous, or are compressed.

        Raises:
            CorruptCheckpointError: naming every variable whose bytes are missing or, if `verify`, damaged.
        """
        ...

    def digest(self, position: int) -> Any:
        """Return a value that is equal for two variables of one type and shape only if their bytes are equal, or None.

        Reads no arrays.
        """
        ...

    def verify(self) -> None:
        """Read every byte of every file and compare it with its checksum.

        Raises:
            CorruptCheckpointError: naming every damaged variable.
        """
        ...

    def close(self) -> None:
        """Close the files."""
        ...


def other_names_in(reader: CheckpointReader) -> Mapping[str, str]:
    """Return {another name: name} of the variables of an open checkpoint that other programs call otherwise."""
    others: Mapping[str, str] = getattr(reader, "other_names", {})
    return others


R = TypeVar("R", bound=CheckpointReader)


def open_unchanged(version: Callable[[], Any], open: Callable[[], R]) -> R:
    """Return a reader that was opened while nothing changed: otherwise its files may belong to two checkpoints.

    Args:
        version: returns what changes when the checkpoint is replaced.
        open: opens it.
    """
    while True:
        before = version()
        reader = open()
        try:
            if version() == before:
                return reader
        except BaseException:
            reader.close()
            raise
        reader.close()  # another program has replaced it meanwhile


class Format(Protocol):
    """A checkpoint format.

    A format may have an attribute `writes_to_stores`, which is True if `write` takes the paths of object stores. For
    another format, the files are written to a temporary directory and sent from there, the heading file last, or as
    its function `prepare_upload` says, if it has one: that takes the path of the checkpoint in the temporary directory,
    and returns the names of all files in the order in which they are sent. `write` may have the arguments
    `shard_nbytes`, `sharded` and `meeting`; see `pytreesaver.formats.native.writing.write`. A format whose checkpoints
    can share data files has a function `unchanged_since`; see `pytreesaver.formats.native.unchanged_since`.
    """

    name: str

    def unsupported(self, contents: TreeContents) -> Mapping[str, str]:
        """Return what the format cannot hold: the reason for each such variable, by name. Writes nothing."""
        ...

    def write(
        self, path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False
    ) -> None:
        """Write a checkpoint atomically: at every moment, either the old or the new one is complete at `path`.

        Args:
            path: where to write it.
            contents: the tree.
            overwrite: replace an existing checkpoint.
            durable: sync the files and their directory, so that the checkpoint survives a power failure.
            in_background: prefer to disturb the rest of the program less over finishing early.

        Raises:
            CheckpointExistsError: if `path` exists and may not be replaced.
        """
        ...

    def remove(self, path: Path) -> None:
        """Delete a checkpoint atomically: at every moment, it is complete or does not exist.

        Raises:
            CheckpointExistsError: if its directory contains other files. Nothing is deleted then.
            OSError: if it could not be deleted. It is intact then.
        """
        ...

    def remove_unlisted_files(self, path: Path) -> None:
        """Delete leftovers of interrupted overwrites from the checkpoint at `path`, but no files of a live writer.

        Does nothing if `path` is not a checkpoint, and keeps files that cannot be deleted.
        """
        ...

    def recognizes(self, path: Path) -> bool:
        """Return whether `path` is a checkpoint of this format, intact or damaged. Reads little."""
        ...

    def heading_file(self, path: Path) -> Path:
        """Return the file that a save writes last. Its modification time is that of the checkpoint at `path`.

        It is found by its name, without opening a file. If there is none, the path of a file that does not exist is
        returned: `path` may be a checkpoint of another format, or none.
        """
        ...

    def read_heading(self, path: Path) -> Heading:
        """Read the heading of the checkpoint at `path`. Raises what `open` raises, and reads less."""
        ...

    def open(self, path: Path) -> CheckpointReader:
        """Open a checkpoint.

        Raises:
            CheckpointNotFoundError: if `path` is not a checkpoint.
            CorruptCheckpointError: if its index is damaged or inconsistent.
            UnsupportedVersionError: if it has a newer version of the format.
        """
        ...
