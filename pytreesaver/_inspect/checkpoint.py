"""Open checkpoints: reading single variables or parts of them, and verification."""

import types
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from pytreesaver._checkpoint.models.stored import described, stored_models
from pytreesaver._errors import CorruptCheckpointError, VariableNotFoundError
from pytreesaver._inspect.measuring import measure
from pytreesaver._inspect.statistics import Statistics
from pytreesaver._inspect.type_tree import TypeNode, type_tree
from pytreesaver._inspect.variable import Variable
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._progress import Progress, check_progress, reporting
from pytreesaver._run.directory import is_complete, newest_listed, open_checkpoint, opened_checkpoint
from pytreesaver._run.record import decode_record
from pytreesaver._text import did_you_mean
from pytreesaver._tree.kinds import NotPlainError, is_stored_as_bytes
from pytreesaver._tree.names.select import Selection, as_selection, selected_names
from pytreesaver._tree.plain import decode_value
from pytreesaver.formats.protocol import CheckpointReader, other_names_in
from pytreesaver.formats.registry import is_checkpoint


class Checkpoint(Mapping[str, Variable]):
    """An open checkpoint: a read-only mapping from variable names to `Variable`, in the order of the tree's leaves.

    Attributes:
        path: its path.
        format: the name of its storage format.
        version: the version of that format.
        metadata: the metadata passed to the save.
        step: the step for which it was saved; None if `pytreesaver.save` saved it, or if it has no step.
        time: when it was saved, in seconds since the epoch; None if `pytreesaver.save` saved it.
        metrics: the metrics passed to `CheckpointManager.save`.

    Use it in a ``with`` statement, or call `close` when done.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        self._positions = {name: i for i, name in enumerate(reader.names)}
        self._other_names = other_names_in(reader)
        self.path = reader.path
        self.format = reader.format_name
        self.version = reader.format_version
        try:
            self.metadata: dict[str, Any] = decode_value(reader.metadata)
        except NotPlainError as error:
            raise CorruptCheckpointError(f"{reader.path}: metadata: {error}") from error
        record = decode_record(reader.record, reader.path)
        self.step = record.step
        self.time = record.time
        self.metrics = dict(record.metrics)

    def __getitem__(self, name: str) -> Variable:
        position = self._positions.get(self._other_names.get(name, name))
        if position is None:
            raise VariableNotFoundError(
                f"{self.path} has no variable {name!r}{did_you_mean(str(name), list(self._positions))}"
            )
        return Variable(self._reader, position)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._other_names.get(name, name) in self._positions

    def get(self, name: str, default: Any = None) -> Any:
        """Return the variable `name`, or `default` if it does not exist."""
        return self[name] if name in self else default  # noqa: SIM401

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def nbytes(self) -> int:
        """The total size of all variables, in bytes."""
        return sum(self._reader.nbytes)

    @property
    def shared_nbytes(self) -> int:
        """How many bytes of its data files an incremental save did not write, but took from an earlier checkpoint."""
        shared: int = getattr(self._reader, "shared_nbytes", 0)
        return shared

    @property
    def models(self) -> dict[str, str]:
        """The functions that `pytreesaver.export_model` has stored: {name: signature, and platforms}."""
        return described(stored_models(getattr(self._reader, "models", None), self.path))

    def type_tree(self) -> TypeNode:
        """Return the structure of the saved tree, with the types of its containers and leaves, for display.

        Raises:
            CorruptCheckpointError: if the stored structure is malformed.

        Example:
            >>> print(load_checkpoint(pytreesaver.save({"opt": (None, 1), "w": np.zeros(2)}, "typed")).type_tree())
            dict
            ├─ opt: tuple
            │  ├─ 0: None
            │  └─ 1: int
            └─ w: float64[2]
        """
        variables = list(self.values())
        try:
            return type_tree(self._reader.structure, lambda leaf: variables[leaf].type)
        except (NotPlainError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise CorruptCheckpointError(f"{self.path}: the stored structure is malformed: {error!r}") from error

    def check(self) -> None:
        """Check that every data file exists and has the right size and header, without reading any array.

        Raises:
            CorruptCheckpointError: if a file is missing or damaged; names every such file and the affected variables.
        """
        with wrap_os_errors("read", self.path):
            self._reader.check()

    def verify(self, *, progress: Progress = False) -> None:
        """Read every byte and verify all checksums. `progress` is as in `pytreesaver.save`.

        Raises:
            CorruptCheckpointError: if the checkpoint is damaged; names every damaged variable.
        """
        check_progress(progress)
        with wrap_os_errors("read", self.path), reporting(progress, f"verifying {self.path}", self.nbytes):
            self._reader.verify()

    def statistics(self, only: Selection | None = None, *, progress: Progress = False) -> dict[str, Statistics]:
        """Return statistics of each variable, such as extremes, mean and NaN count, computed in bounded memory.

        Args:
            only: the variables to read, as in `pytreesaver.restore`.
            progress: as in `pytreesaver.save`.

        Raises:
            VariableNotFoundError: if `only` selects nothing.
            CorruptCheckpointError: if variables are damaged; names every damaged variable.

        Example:
            >>> path = pytreesaver.save({"w": np.ones(3), "b": np.array([1.0, np.inf])}, "measured")
            >>> {name: each.inf for name, each in load_checkpoint(path).statistics().items()}
            {'b': 1, 'w': 0}
        """
        check_progress(progress)
        names = list(self._positions)
        if only is not None:
            names = selected_names(as_selection(only), names, str(self.path))
        positions = [self._positions[name] for name in names]
        nbytes = sum(self._reader.nbytes[i] for i in positions)
        with wrap_os_errors("read", self.path), reporting(progress, f"computing statistics of {self.path}", nbytes):
            return dict(zip(names, measure(self._reader, positions), strict=True))

    def close(self) -> None:
        """Close the files. Arrays that have been read stay valid."""
        self._reader.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle or copy an open Checkpoint; pass its path and reopen it instead")

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path}: {len(self)} variables>"

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: a foldable tree of the variables, rendered by Treescope if it is installed."""
        from pytreesaver._inspect.notebook import checkpoint_html

        variables = list(self.values())
        facts = {
            "step": "" if self.step is None else str(self.step),
            "variables": f"{len(self):,}",
            "params": f"{sum(each.size for each in variables):,}",
            "bytes": f"{self.nbytes:,}",
            "format": f"{self.format}, version {self.version}",
        }
        facts |= {f"metrics/{name}": str(value) for name, value in self.metrics.items()}
        facts |= {f"metadata/{name}": repr(value) for name, value in self.metadata.items()}
        return checkpoint_html(
            str(self.path),
            {name: value for name, value in facts.items() if value},
            variables,
        )


def load_checkpoint(path: PathLike, *, format: str | None = None) -> Checkpoint:
    """Open a checkpoint for inspection. Arrays are read only on request.

    If `path` is a run directory, its newest checkpoint is opened, which is logged. `format` is as in
    `pytreesaver.restore`.

    Raises:
        CheckpointNotFoundError: if there is no complete checkpoint at `path`.
        CorruptCheckpointError: if its index is damaged.
        UnsupportedVersionError: if a newer pytreesaver wrote it.

    Example:
        >>> path = pytreesaver.save({"dense": {"kernel": np.zeros((784, 10), np.float32)}}, "classifier")
        >>> with load_checkpoint(path) as checkpoint:
        ...     checkpoint["dense/kernel"].shape, checkpoint["dense/kernel"].read().sum()
        ((784, 10), np.float32(0.0))
    """
    reader = open_checkpoint(path, format)
    try:
        with wrap_os_errors("read", reader.path):
            return Checkpoint(reader)
    except BaseException:
        reader.close()
        raise


def list_variables(path: PathLike) -> list[tuple[str, tuple[int, ...]]]:
    """Return the name and shape of every variable, sorted by name, like `tf.train.list_variables`.

    Raises:
        The errors of `load_checkpoint`.

    Example:
        >>> list_variables(pytreesaver.save({"w": np.zeros((2, 3)), "b": np.zeros(3)}, "layer"))
        [('b', (3,)), ('w', (2, 3))]
    """
    with opened_checkpoint(path) as reader:
        columns = zip(reader.names, reader.types, reader.shapes, strict=True)
        return sorted((name, () if is_stored_as_bytes(leaf_type) else shape) for name, leaf_type, shape in columns)


def load_variable(path: PathLike, name: str) -> np.ndarray:
    """Read one variable as a NumPy array, like `tf.train.load_variable`.

    A str, a bytes object, or an int of more than 64 bits is returned as a 0-d array of dtype object.

    Raises:
        VariableNotFoundError: if the variable does not exist; the message suggests similar names.
        CorruptCheckpointError: if its bytes are damaged.
        The errors of `load_checkpoint`.

    Example:
        >>> load_variable(pytreesaver.save({"w": np.arange(3)}, "vector"), "w")
        array([0, 1, 2])
    """
    with load_checkpoint(path) as checkpoint:
        return checkpoint[name].read()


def verify(path: PathLike, *, progress: Progress = False) -> None:
    """Read every byte of a checkpoint and verify all checksums, in bounded memory.

    Args:
        path: the checkpoint. Of a run directory, the newest one is verified, even if it is damaged.
        progress: as in `pytreesaver.save`.

    Raises:
        CorruptCheckpointError: if it is damaged; the message and the attribute `damaged` name every damaged variable.
        The errors of `load_checkpoint`.

    Example:
        >>> verify(pytreesaver.save({"w": np.arange(3)}, "verified"))
    """
    target = local_path(path)
    if not is_checkpoint(target):
        newest = newest_listed(target)
        if newest is not None and is_checkpoint(newest) and not is_complete(newest):
            target = newest
    with load_checkpoint(target) as checkpoint:
        checkpoint.verify(progress=progress)
