"""Reading of Orbax checkpoints of any version, with TensorStore and without Orbax."""

import errno
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointNotFoundError, CorruptCheckpointError, DuplicateNameError, StructureWarning
from pytreesaver._io import filesystem
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.parallel import advance
from pytreesaver._text import SINGLE_LEAF_NAME, duplicates, quoted
from pytreesaver._tree.boxes import Box, box_index
from pytreesaver._tree.kinds import LeafType, storage_dtype
from pytreesaver.formats.description import Description
from pytreesaver.formats.foreign import kind_or_absence
from pytreesaver.formats.native.files import read_heading as native_heading
from pytreesaver.formats.orbax.arrays import (
    WINDOW_NBYTES,
    ArrayStore,
    ReadAhead,
    StoreError,
    chunks_touched,
    read_arrays,
    read_box,
    read_boxes_with_checksum,
)
from pytreesaver.formats.orbax.layout import SIDECAR, TREE_FILE, Layout, layout_of
from pytreesaver.formats.orbax.opening import OrbaxVariable, as_random_key, damage_of, metadata_of, read_tree, record_of
from pytreesaver.formats.orbax.sidecar import checksums_of_files, read_sidecar
from pytreesaver.formats.orbax.tree import joined_structure, structure_of
from pytreesaver.formats.protocol import Heading

NAME = "orbax"
VERSION = 1


class OrbaxReader:
    """An open Orbax checkpoint. See `pytreesaver.formats.CheckpointReader`.

    Orbax stores no checksums of arrays. Damage is noticed where TensorStore notices it: in the nodes of OCDBT, in
    compressed chunks that cannot be decompressed, and in missing chunks.
    """

    format_name = NAME
    format_version = VERSION
    window_nbytes = WINDOW_NBYTES

    def __init__(self, directory: Path, path: Path | None = None, layout: Layout | None = None) -> None:
        """Open the checkpoint in a directory, which is a copy of the one at `path` if that is given."""
        layout = layout_of(directory) if layout is None else layout
        if layout is None:
            raise not_found(directory)
        self.path = directory if path is None else path
        self.on_close: Callable[[], object] | None = None
        self._directory = directory
        self._version = _version_of(directory)
        self._ahead = ReadAhead({})
        self._checksums: Sequence[str] = ()
        self.models: Any = None
        self._files: Mapping[str, tuple[int, str]] = {}
        self.same_as: Mapping[int, int] = {}
        if _has_sidecar(directory):
            if list(layout.trees) != [""]:
                raise CorruptCheckpointError(
                    f"{self.path}: expected the arrays of {SIDECAR}, found {list(layout.trees)}"
                )
            self._open_ours(read_sidecar(directory), layout.trees[""])
        else:
            warn_of_others(self.path, layout)
            self._open_foreign(layout)
        self.types: Sequence[LeafType] = [each.type for each in self._variables]
        self.shapes: Sequence[tuple[int, ...]] = [each.shape for each in self._variables]
        self.nbytes: Sequence[int] = [
            math.prod(each.shape) * storage_dtype(each.type).itemsize for each in self._variables
        ]

    def _open_ours(self, sidecar: Description, directory: Path) -> None:
        """Open the arrays of a checkpoint that pytreesaver wrote, and compare them with what it noted."""
        arrays = ArrayStore(directory, zarr3=False, is_complete=True).open(sidecar.keys)
        types = [sidecar.types[i] for i in sidecar.type_of]
        failed = {
            name: array for name, array in zip(sidecar.names, arrays, strict=True) if isinstance(array, Exception)
        }
        if failed:
            raise self._damage(failed, len(arrays))
        for name, leaf_type, shape, array in zip(sidecar.names, types, sidecar.shapes, arrays, strict=True):
            found = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
            if found != (shape, storage_dtype(leaf_type)):
                message = f"expected {storage_dtype(leaf_type)}{list(shape)}, found {found[1]}{list(found[0])}"
                raise CorruptCheckpointError(f"{self.path}: {quoted(name)}: {message}", damaged=[name])
        self.names: Sequence[str] = sidecar.names
        self.structure, self.metadata, self.record = sidecar.structure, sidecar.metadata, sidecar.record
        self.models = sidecar.models
        self.same_as = {int(position): earlier for position, earlier in sidecar.same_as.items()}
        self._checksums = sidecar.checksums
        self._files = sidecar.files
        self._variables = [
            OrbaxVariable(leaf_type, tuple(shape), None, array)
            for leaf_type, shape, array in zip(types, sidecar.shapes, arrays, strict=True)
        ]

    def _open_foreign(self, layout: Layout) -> None:
        path = self.path
        self.metadata = metadata_of(path, layout)
        self.record = record_of(path, layout)
        names: list[str] = []
        self._variables = []
        structures = {}
        for prefix, directory in layout.trees.items():
            leaves, empty, variables = read_tree(directory)
            try:
                structures[prefix] = structure_of(leaves, empty, len(names))
            except ValueError as error:
                raise CorruptCheckpointError(f"{directory / TREE_FILE}: expected a tree, found {error}") from None
            if prefix in layout.random_keys:
                structures[prefix], variables = as_random_key(
                    structures[prefix], variables, layout.random_keys[prefix], path / prefix
                )
            names += [_joined_name(prefix, leaf.name if leaf.path else None) for leaf in leaves]
            self._variables += variables
        again = duplicates(names)
        if again:
            raise DuplicateNameError(f"{path}: expected distinct variable names, found several leaves named {again}")
        self.names = names
        self.structure = joined_structure(structures) if structures else {}

    def close(self) -> None:
        """Close the checkpoint."""
        self._variables = [each._replace(array=None) for each in self._variables]
        self._ahead = ReadAhead({})
        if self.on_close is not None:
            self.on_close()

    def check(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.check`. Opening the checkpoint has found all arrays."""
        found = filesystem.file_sizes(self._directory)
        wrong = [name for name, (size, _) in self._files.items() if found.get(name) != size]
        if wrong:
            lines = [
                f"{self.path / name}: expected {self._files[name][0]} bytes, found {found.get(name, 'no file')}"
                for name in wrong
            ]
            raise CorruptCheckpointError("\n".join(lines))

    def read(self, positions: Sequence[int], *, verify: bool) -> list[np.ndarray]:
        """See `pytreesaver.formats.CheckpointReader.read`."""
        variables = [self._variables[i] for i in positions]
        arrays = [self._open_array(i) for i in positions if self._variables[i].value is None]
        values = iter(read_arrays(arrays))
        results = [next(values) if each.value is None else each.value.copy() for each in variables]
        failed = {i: value for i, value in zip(positions, results, strict=True) if isinstance(value, Exception)}
        if not failed and verify and self._checksums:
            failed = {
                i: _mismatch() for i, value in zip(positions, results, strict=True) if not self._is_intact(i, value)
            }
        if failed:
            raise self._corrupt(failed)
        return [self._stored(result, position) for result, position in zip(results, positions, strict=True)]

    def _is_intact(self, position: int, values: np.ndarray) -> bool:
        return f"{checksum(np.ascontiguousarray(values).reshape(-1).view(np.uint8)):016x}" == self._checksums[position]

    def _stored(self, values: np.ndarray, position: int) -> np.ndarray:
        dtype = storage_dtype(self.types[position])
        if values.dtype != dtype:  # big-endian
            values = values.astype(dtype)
        return values if values.flags.writeable and values.flags.c_contiguous else values.copy()

    def read_ahead(self, positions: Sequence[int]) -> None:
        """See `pytreesaver.formats.CheckpointReader`."""
        self._ahead = ReadAhead(
            {
                position: self._open_array(position)
                for position in sorted(set(positions))
                if self._variables[position].value is None and self.nbytes[position] <= WINDOW_NBYTES // 2
            }
        )

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
        """See `pytreesaver.formats.CheckpointReader.read_boxes`.

        To reshape an array, and to compare it with its checksum, all of it is read.
        """
        stored_shape = self.shapes[position]
        if self._variables[position].value is not None or shape not in (None, stored_shape):
            (whole,) = self.read([position], verify=verify)
            whole = whole.reshape(stored_shape if shape is None else shape)
            for box, output in zip(boxes, outputs, strict=True):
                assign(output, whole[box_index(box)])
            return
        array = self._open_array(position)
        if position in self._ahead:
            values = self._ahead.take(position)
            if isinstance(values, StoreError):
                raise self._corrupt({position: values})
            if verify and self._checksums and not self._is_intact(position, values):
                raise self._corrupt({position: _mismatch()})
            for box, output in zip(boxes, outputs, strict=True):
                assign(output, values[box_index(box)])
                advance(output.nbytes)
            self._ahead.give_back(values)
            return
        try:
            touched, chunks = chunks_touched(array, boxes)
            if (verify and self._checksums) or touched >= chunks > 0:
                found = read_boxes_with_checksum(array, boxes, outputs, assign)
                if verify and self._checksums and f"{found:016x}" != self._checksums[position]:
                    raise _mismatch()
                return
            for box, output in zip(boxes, outputs, strict=True):
                read_box(array, box, output, assign)
        except StoreError as error:
            raise self._corrupt({position: error}) from None

    def map(self, places: Sequence[tuple[int, Box]], *, verify: bool) -> list[np.ndarray | None]:
        """See `pytreesaver.formats.CheckpointReader.map`. Chunks are compressed, or not aligned."""
        return [None] * len(places)

    def digest(self, position: int) -> Any:
        """See `pytreesaver.formats.CheckpointReader.digest`."""
        return None

    def verify(self) -> None:
        """Read every array, and of a checkpoint of pytreesaver every file.

        See `pytreesaver.formats.CheckpointReader.verify`.
        """
        self.check()
        failed: dict[int, Exception] = {}
        for position in range(len(self.names)):
            if self._variables[position].value is None:
                array = self._open_array(position)
                try:
                    found = read_boxes_with_checksum(array, [], [], np.copyto)
                    if self._checksums and f"{found:016x}" != self._checksums[position]:
                        failed[position] = _mismatch()
                except StoreError as error:
                    failed[position] = error
        if failed:
            raise self._corrupt(failed)
        if self._files:
            checksums = checksums_of_files(self._directory, self._files)
            wrong = [name for name, expected in self._files.items() if checksums.get(name) != expected]
            if wrong:
                raise CorruptCheckpointError(
                    "\n".join(f"{self.path / name}: its checksum does not match: it is damaged" for name in wrong)
                )

    def _open_array(self, position: int) -> Any:
        array = self._variables[position].array
        if array is None:
            raise ValueError(f"{self.path}: the checkpoint was closed; open it again to read more")
        return array

    def _corrupt(self, failed: Mapping[int, Exception]) -> Exception:
        return self._damage({self.names[i]: error for i, error in failed.items()}, len(self.names))

    def _damage(self, failed: Mapping[str, Exception], count: int) -> Exception:
        if _version_of(self._directory) != self._version:
            return OSError(errno.ESTALE, "it was replaced or deleted while it was open; open it again", str(self.path))
        local, shown = str(self._directory), str(self.path)
        failed = {name: StoreError(str(error).replace(local, shown)) for name, error in failed.items()}
        return damage_of(self.path, failed, count)


def _mismatch() -> StoreError:
    return StoreError("the checksum of its bytes does not match")


def _joined_name(prefix: str, name: str | None) -> str:
    return prefix.removesuffix("/") or SINGLE_LEAF_NAME if name is None else f"{prefix}{name}"


def _version_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a checkpoint from one that replaces it, or None if there is none any more."""
    try:
        return filesystem.identity(path)
    except OSError:
        return None


def warn_of_others(path: Path, layout: Layout) -> None:
    """Warn of the items of a checkpoint that are not read."""
    if layout.others:
        items = ", ".join(map(quoted, layout.others))
        warnings.warn(
            f"{path}: items of Orbax that are not trees, arrays or JSON are not read: {items}",
            StructureWarning,
            stacklevel=4,
        )


def _has_sidecar(path: Path) -> bool:
    return filesystem.exists(path / SIDECAR)


def read_heading(path: Path) -> Heading:
    """Return the heading of a checkpoint. See `pytreesaver.formats.Format.read_heading`."""
    layout = layout_of(path)
    if layout is None:
        raise not_found(path)
    if list(layout.natives) == [""]:
        native = native_heading(layout.natives[""])
        return Heading(record_of(path, layout), native.metadata, {})
    if _has_sidecar(path):
        sidecar = read_sidecar(path)
        sizes = {name: size for name, (size, _) in sidecar.files.items()}
        return Heading(sidecar.record, sidecar.metadata, sizes)
    return Heading(record_of(path, layout), metadata_of(path, layout), {})


def not_found(path: Path) -> CheckpointNotFoundError:
    """Return the error for a path that is no Orbax checkpoint."""
    found = kind_or_absence(path)
    return CheckpointNotFoundError(f"{path}: expected an Orbax checkpoint, found {found}")
