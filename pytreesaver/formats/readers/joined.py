"""Several open checkpoints as one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._text import SINGLE_LEAF_NAME
from pytreesaver._tree.boxes import Box
from pytreesaver._tree.kinds import LeafType
from pytreesaver._tree.restructure import joined_structure
from pytreesaver.formats.damage import add_damage, joined_damage
from pytreesaver.formats.protocol import CheckpointReader


def joined_items(
    path: Path,
    readers: Mapping[str, CheckpointReader],
    metadata: Any,
    record: Any,
    *,
    format_name: str,
    format_version: int,
) -> "JoinedReader":
    """Return a reader of several checkpoints, whose variables have the names of their items before their own.

    Args:
        path: the directory of all of them.
        readers: the open checkpoints by item. Closing the reader closes them.
        metadata: the metadata of the whole, as plain JSON data.
        record: its record.
        format_name: the name of its format.
        format_version: the version of its format.
    """
    places = [(item, position) for item, reader in readers.items() for position in range(len(reader.names))]
    names = [_joined(item, name) for item, reader in readers.items() for name in reader.names]
    counts = [len(reader.names) for reader in readers.values()]
    first = dict(zip(readers, accumulate([0, *counts]), strict=False))
    structure = joined_structure({item: reader.structure for item, reader in readers.items()}, first)
    same_as = {
        first[item] + position: first[item] + earlier
        for item, reader in readers.items()
        for position, earlier in reader.same_as.items()
    }
    contents = JoinedContents(names, places, structure, metadata, record, same_as)
    return JoinedReader(path, readers, contents, format_name=format_name, format_version=format_version)


class JoinedContents(NamedTuple):
    """The tree that several readers contain together.

    Attributes:
        names: the names of the variables.
        places: for each, the reader that it is in, and its position there.
        structure, metadata, record, same_as: as in `pytreesaver.formats.TreeContents`.
    """

    names: Sequence[str]
    places: Sequence[tuple[str, int]]
    structure: Any
    metadata: Any
    record: Any
    same_as: Mapping[int, int] = {}


class JoinedReader:
    """A reader of what is in several others. See `pytreesaver.formats.CheckpointReader`.

    Args:
        path: the checkpoint.
        readers: the others, by names that `contents` refers to. Closing this reader closes them.
        contents: the tree in them.
        format_name: the name of its format.
        format_version: the version of its format.
    """

    def __init__(
        self,
        path: Path,
        readers: Mapping[str, CheckpointReader],
        contents: JoinedContents,
        *,
        format_name: str,
        format_version: int,
    ) -> None:
        self.path = path
        self.on_close: Callable[[], object] | None = None
        self.metadata = contents.metadata
        self.record = contents.record
        self.models: Any = None
        self.format_name = format_name
        self.format_version = format_version
        self._readers = dict(readers)
        self._places = contents.places
        self.names: Sequence[str] = contents.names
        self.types: Sequence[LeafType] = [readers[item].types[inner] for item, inner in self._places]
        self.shapes: Sequence[tuple[int, ...]] = [readers[item].shapes[inner] for item, inner in self._places]
        self.nbytes: Sequence[int] = [readers[item].nbytes[inner] for item, inner in self._places]
        self.structure = contents.structure
        self.same_as: Mapping[int, int] = contents.same_as
        # The names in this reader of the variables of each one.
        self._names_of: dict[str, dict[str, str]] = {item: {} for item in readers}
        for (item, inner), name in zip(self._places, contents.names, strict=True):
            self._names_of[item][readers[item].names[inner]] = name

    def close(self) -> None:
        """Close all checkpoints."""
        with ExitStack() as stack:
            if self.on_close is not None:
                stack.callback(self.on_close)
            for reader in self._readers.values():
                stack.callback(reader.close)

    def check(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.check`."""
        self._check_each(lambda reader: reader.check())

    def read(self, positions: Sequence[int], *, verify: bool) -> list[np.ndarray]:
        """See `pytreesaver.formats.CheckpointReader.read`."""
        return self._of_each(positions, lambda reader, inner, chosen: reader.read(inner, verify=verify))

    def read_ahead(self, positions: Sequence[int]) -> None:
        """See `pytreesaver.formats.CheckpointReader`."""
        for item, reader in self._readers.items():
            ahead: Any = getattr(reader, "read_ahead", None)
            if ahead is not None:
                ahead([self._places[position][1] for position in positions if self._places[position][0] == item])

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
        """See `pytreesaver.formats.CheckpointReader.read_boxes`."""
        item, inner = self._places[position]
        with self._naming(item):
            self._readers[item].read_boxes(inner, boxes, outputs, verify=verify, shape=shape, assign=assign)

    def map(self, places: Sequence[tuple[int, Box]], *, verify: bool) -> list[np.ndarray | None]:
        """See `pytreesaver.formats.CheckpointReader.map`."""
        boxes = [box for _, box in places]

        def map_some(reader: CheckpointReader, inner: Sequence[int], chosen: Sequence[int]) -> list[Any]:
            return reader.map(list(zip(inner, [boxes[i] for i in chosen], strict=True)), verify=verify)

        return self._of_each([position for position, _ in places], map_some)

    def digest(self, position: int) -> Any:
        """See `pytreesaver.formats.CheckpointReader.digest`."""
        item, inner = self._places[position]
        return self._readers[item].digest(inner)

    def verify(self) -> None:
        """See `pytreesaver.formats.CheckpointReader.verify`."""
        self._check_each(lambda reader: reader.verify())

    def _check_each(self, check: Callable[[CheckpointReader], None]) -> None:
        damage: list[CorruptCheckpointError] = []
        for item, reader in self._readers.items():
            try:
                with self._naming(item):
                    check(reader)
            except CorruptCheckpointError as error:
                damage.append(error)
        if damage:
            raise joined_damage(self, damage)

    @contextmanager
    def _naming(self, item: str) -> Iterator[None]:
        """Give the variables in an error of one checkpoint their names in this one."""
        try:
            yield
        except CorruptCheckpointError as error:
            names = self._names_of[item]
            raise CorruptCheckpointError(str(error), damaged=[names[name] for name in error.damaged]) from None

    def _of_each(
        self, positions: Sequence[int], read: Callable[[CheckpointReader, list[int], list[int]], list[Any]]
    ) -> list[Any]:
        """Call `read` once for each checkpoint, and return all results in order.

        Its arguments are the checkpoint, the positions in it, and which ones of `positions` these are.
        """
        results: list[Any] = [None] * len(positions)
        damage: list[CorruptCheckpointError] = []
        for item, reader in self._readers.items():
            chosen = [i for i, position in enumerate(positions) if self._places[position][0] == item]
            inner = [self._places[positions[i]][1] for i in chosen]
            if not chosen:
                continue
            try:
                with self._naming(item):
                    found = read(reader, inner, chosen)
            except CorruptCheckpointError as error:
                add_damage(damage, error)
                continue
            for i, result in zip(chosen, found, strict=True):
                results[i] = result
        if damage:
            raise joined_damage(self, damage)
        return results


def _joined(item: str, name: str) -> str:
    return item if name == SINGLE_LEAF_NAME else f"{item}/{name}"
