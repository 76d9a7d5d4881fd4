"""A reader for formats that load whole arrays: parts are cut from them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CorruptCheckpointError, UnsupportedLeafError
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.parallel import advance
from pytreesaver._text import quoted
from pytreesaver._tree.boxes import Box, box_index
from pytreesaver._tree.kinds import LeafType, storage_dtype
from pytreesaver.formats.damage import joined_damage
from pytreesaver.formats.description import Description


class LoadedReader:
    """An open checkpoint whose arrays are loaded one by one. See `pytreesaver.formats.CheckpointReader`.

    Args:
        path: the checkpoint.
        description: its columns. Those of a file of another program have no checksums.
        load: returns the array with a key, with the dtype of its type, in memory of its own. Raises a
            CorruptCheckpointError, or an UnsupportedLeafError if only another program can use it.
        check_file: raises a CorruptCheckpointError unless the file as a whole is intact; called by `verify`.
        close: closes the file.
        format_name: the name of its format.
    """

    format_version = 1

    def __init__(
        self,
        path: Path,
        description: Description,
        load: Callable[[str, LeafType, tuple[int, ...]], np.ndarray],
        *,
        check_file: Callable[[], None],
        close: Callable[[], None],
        format_name: str,
    ) -> None:
        self.path = path
        self.format_name = format_name
        self.names: Sequence[str] = description.names
        self.types: Sequence[LeafType] = [description.types[i] for i in description.type_of]
        self.shapes: Sequence[tuple[int, ...]] = description.shapes
        self.nbytes: Sequence[int] = [
            int(np.prod(shape, dtype=np.int64)) * storage_dtype(leaf_type).itemsize
            for shape, leaf_type in zip(self.shapes, self.types, strict=True)
        ]
        self.structure = description.structure
        self.metadata = description.metadata
        self.record, self.models = description.record, description.models
        self.same_as: Mapping[int, int] = {int(key): earlier for key, earlier in description.same_as.items()}
        self.unreadable: Mapping[str, str] = {}
        self._keys = description.keys
        self._checksums = description.checksums
        self._load = load
        self._check_file = check_file
        self._close = close
        self._is_closed = False

    def close(self) -> None:
        """Close the file."""
        if not self._is_closed:
            self._is_closed = True
            self._close()

    def check(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.check`. Opening the file has compared its size."""

    def read(self, positions: Sequence[int], *, verify: bool) -> list[np.ndarray]:
        """See `pytreesaver.formats.CheckpointReader.read`."""
        arrays = []
        damage: list[CorruptCheckpointError] = []
        for position in positions:
            try:
                arrays.append(self._read(position, verify))
            except CorruptCheckpointError as error:
                damage.append(self._damage_of(position, error))
        if damage:
            raise joined_damage(self, damage)
        return arrays

    def _damage_of(self, position: int, error: CorruptCheckpointError) -> CorruptCheckpointError:
        """Return an error of one variable with its name."""
        name = self.names[position]
        message = f"{error}\n{self.path}: 1 of {len(self.names)} variables damaged:\n  {quoted(name)}"
        return CorruptCheckpointError(message, damaged=[name])

    def _read(self, position: int, verify: bool) -> np.ndarray:
        if self._is_closed:
            raise ValueError(f"{self.path}: the checkpoint was closed; open it again to read more")
        array = self._load(self._keys[position], self.types[position], self.shapes[position])
        advance(array.nbytes)
        if verify and self._checksums[position]:
            found = f"{checksum(array.reshape(-1).view(np.uint8)):016x}"
            if found != self._checksums[position]:
                raise CorruptCheckpointError(
                    f"{self.path}: {quoted(self.names[position])}: its checksum does not match"
                )
        return array

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
        """See `pytreesaver.formats.CheckpointReader.read_boxes`. The whole array is read."""
        (array,) = self.read([position], verify=verify)
        whole = array if shape is None else array.reshape(shape)
        for box, output in zip(boxes, outputs, strict=True):
            assign(output, whole[box_index(box)])

    def map(self, places: Sequence[tuple[int, Box]], *, verify: bool) -> list[np.ndarray | None]:
        """See `pytreesaver.formats.CheckpointReader.map`."""
        return [None] * len(places)

    def digest(self, position: int) -> Any:
        """See `pytreesaver.formats.CheckpointReader.digest`."""
        return self._checksums[position] or None

    def verify(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.verify`."""
        damage: list[CorruptCheckpointError] = []
        for position in range(len(self.names)):
            try:
                self.read([position], verify=True)
            except CorruptCheckpointError as error:
                damage.append(error)
            except UnsupportedLeafError:  # only another program can use it
                continue
        if damage:
            raise joined_damage(self, damage)
        self._check_file()
