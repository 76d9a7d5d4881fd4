"""`copy_checkpoint`: copies variables from file to file, without building a tree."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytreesaver._checkpoint.restoring.without_template import checked_structure, select_variables
from pytreesaver._checkpoint.saving.staged.stored_array import StoredArray
from pytreesaver._checkpoint.saving.writing import write_contents
from pytreesaver._errors import CheckpointExistsError, CorruptCheckpointError, StructureWarning
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._progress import Progress, check_progress
from pytreesaver._run.record import Record, decode_record, encode_record
from pytreesaver._tree.kinds import Cells, NotPlainError, is_stored_as_bytes
from pytreesaver._tree.names.rename import ByName, as_renaming
from pytreesaver._tree.names.select import Selection, Selector, as_selection
from pytreesaver._tree.plain import decode_value
from pytreesaver.formats.damage import refuse_unreadable, unreadable_variables, value_of_bytes
from pytreesaver.formats.protocol import CheckpointReader, TreeContents
from pytreesaver.formats.registry import is_checkpoint, open_reader


def copy_checkpoint(
    source: PathLike,
    target: PathLike,
    *,
    only: Selection | None = None,
    rename: Mapping[str, str] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    progress: Progress = False,
) -> Path:
    """Copy a checkpoint, or the selected variables of it, to another path.

    Everything that is copied is verified. The copy has the structure, metadata, step, time and metrics of the source.
    No saver tracks it.

    Args:
        source: the checkpoint.
        target: the path of the copy.
        only: the variables to copy, by their names in the copy; as in `pytreesaver.restore`.
        rename: a dict of names in the copy to names in the source, or of prefixes that end in ``/``; as in
            `pytreesaver.restore`.
        overwrite: as in `pytreesaver.save`.
        durable: as in `pytreesaver.save`.
        progress: as in `pytreesaver.save`.

    Returns:
        The path of the copy.

    Raises:
        CorruptCheckpointError: if the source is damaged. It names every damaged variable, and nothing is copied.
        VariableNotFoundError: if `only` selects nothing, or `rename` names a variable that does not exist.
        CheckpointExistsError: as `pytreesaver.save` does, and if `target` is inside a checkpoint.
        DuplicateNameError: if `rename` leaves a variable without a name, or a leaf and a container would have the same
            name.
        What `load_checkpoint` and `save` raise.

    Example:
        >>> path = pytreesaver.save({"encoder": {"w": np.ones(2)}, "head": 0.5, "step": 3}, "whole")
        >>> pytreesaver.restore(copy_checkpoint(path, "part", only="body", rename={"body/": "encoder/"}))
        {'body': {'w': array([1., 1.])}}
    """
    check_progress(progress)
    selection = None if only is None else as_selection(only)
    renaming = None if rename is None else as_renaming(rename)
    if not (renaming is None or isinstance(renaming, ByName)):
        raise ValueError("rename: expected a dict of names in the copy to names in the source")
    destination = local_path(target)
    with open_to_copy(source, destination, selection, renaming) as (reader, contents, unreadable):
        refuse_unreadable(reader.path, "copied", unreadable)
        return write_copy(
            reader,
            destination,
            contents,
            overwrite=overwrite,
            durable=durable,
            progress=progress,
            what=f"copying {reader.path}",
        )


@contextmanager
def open_to_copy(
    source: PathLike, target: Path, only: Selector | None, rename: ByName | None, *, keeps_record: bool = False
) -> Iterator[tuple[CheckpointReader, TreeContents, dict[str, str]]]:
    """Open a checkpoint for a ``with`` block, and return what to write at `target`. Arrays are read while written.

    Also return the names of the variables that cannot be read, each with the reason. With `keeps_record`, the copy
    takes the place of the checkpoint in its run.
    """
    refuse_inside_checkpoint(target)
    reader = open_reader(source)
    try:
        with wrap_os_errors("read", reader.path):
            names, positions, structure = select_variables(reader, only, rename)
            checked_structure(reader)
            _check_metadata(reader)
            contents = _contents(reader, names, positions, structure)
            if keeps_record:
                contents = contents._replace(record=reader.record)
        reasons = unreadable_variables(reader)
        found = [(name, reasons.get(reader.names[i])) for name, i in zip(names, positions, strict=True)]
        yield reader, contents, {name: reason for name, reason in found if reason is not None}
    finally:
        reader.close()


def _check_metadata(reader: CheckpointReader) -> None:
    try:
        decode_value(reader.metadata)
    except NotPlainError as error:
        raise CorruptCheckpointError(f"{reader.path}: its metadata is malformed: {error}") from error


def refuse_inside_checkpoint(target: Path) -> None:
    """Raise a CheckpointExistsError if a path is in the directory of a checkpoint."""
    if is_checkpoint(target.parent):
        raise CheckpointExistsError(
            f"{target}: expected a path outside of checkpoints, but {target.parent} is a checkpoint"
        )


def write_copy(reader: CheckpointReader, target: Path, contents: TreeContents, **options: Any) -> Path:
    """Write the contents of an open checkpoint, with the options of `write_contents`.

    Raises:
        CorruptCheckpointError: if it is damaged. It names every damaged variable.
    """
    try:
        return write_contents(target, contents, origin=reader.path, **options)
    except CorruptCheckpointError:
        reader.verify()
        raise


def _contents(reader: CheckpointReader, names: list[str], positions: list[int], structure: Any) -> TreeContents:
    types = [reader.types[i] for i in positions]
    record = None
    if reader.record is not None:
        saved = decode_record(reader.record, reader.path)
        record = encode_record(Record(saved.step, saved.time, saved.metrics))
    # A variable under two names, or whose earlier one is not copied, is stored again.
    places = {position: i for i, position in reversed(list(enumerate(positions)))}
    same_as = {
        places[position]: places[earlier]
        for position, earlier in reader.same_as.items()
        if position in places and places.get(earlier, len(places)) < places[position]
    }
    contents = TreeContents(
        names,
        types,
        [reader.shapes[i] for i in positions],
        [Cells([_cell(reader, i)]) for i in positions],
        structure,
        reader.metadata,
        record,
        same_as,
    )
    models = getattr(reader, "models", None)
    if models is not None and names != list(reader.names):
        message = f"{reader.path}: its models are not copied: they need all of its variables, under their names"
        warnings.warn(message, StructureWarning, stacklevel=5)
        models = None
    return contents._replace(models=models)


def _cell(reader: CheckpointReader, position: int) -> Any:
    stored = StoredArray(reader, position)
    if is_stored_as_bytes(reader.types[position]) and reader.names[position] not in unreadable_variables(reader):
        return value_of_bytes(reader, position, stored.read())
    return stored
