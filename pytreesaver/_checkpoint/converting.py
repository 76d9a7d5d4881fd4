"""`convert`: checkpoints and run directories from any format to any other."""

import math
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from jax.typing import DTypeLike

from pytreesaver._checkpoint.copying import open_to_copy, refuse_inside_checkpoint, write_copy
from pytreesaver._checkpoint.saving.casting import checked_cast, with_cast_contents
from pytreesaver._checkpoint.saving.writing import check_format
from pytreesaver._errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    StructureWarning,
)
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import (
    make_locked_directory,
    new_hidden_path,
    remove_leftovers,
    sync_parents,
    write_pin,
)
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._progress import Progress, check_progress
from pytreesaver._run.directory import is_pinned
from pytreesaver._run.listing import ListedCheckpoint, list_checkpoints
from pytreesaver._run.state_file import update_checkpoint_state
from pytreesaver._text import duplicates, quoted
from pytreesaver._tree.names.rename import ByName, as_renaming
from pytreesaver._tree.names.select import Selection, as_selection
from pytreesaver._tree.restructure import prune_structure
from pytreesaver.formats import places
from pytreesaver.formats.protocol import Format, TreeContents, pin_of, refuse_unsupported
from pytreesaver.formats.registry import format_at


class _Conversion(NamedTuple):
    """The checked arguments of `convert`."""

    format: str | None
    only: Any
    rename: Any
    cast: bool | str
    lossy: bool
    overwrite: bool
    durable: bool
    shard_nbytes: int | None
    progress: Progress


def convert(
    source: PathLike,
    target: PathLike,
    *,
    format: str | None = None,
    only: Selection | None = None,
    rename: Mapping[str, str] | None = None,
    cast: bool | DTypeLike = False,
    lossy: bool = False,
    overwrite: bool = False,
    durable: bool = True,
    shard_nbytes: int | None = None,
    progress: Progress = False,
) -> Path:
    """Write a checkpoint of any format in another format. A run directory is converted with all its checkpoints.

    Names, values, structure, metadata, step, time and metrics are kept. Variables are read one after the other, while
    they are written, and everything that has a checksum is verified. A run directory appears at `target` when it is
    complete; its checkpoints are listed there, and a `CheckpointManager` can continue the run.

    Args:
        source: a checkpoint, or a run directory, of any format that `restore` reads.
        target: where to write.
        format: as in `pytreesaver.save`.
        only: the variables to convert, by their names in the result; as in `pytreesaver.restore`.
        rename: a dict of names in the result to names in the source, or of prefixes that end in ``/``.
        cast: a dtype for all floating-point arrays, or True to convert JAX arrays of 64 bits to 32 bits.
        lossy: whether to leave out what the format cannot hold, with a `StructureWarning` that lists it. Otherwise that
            is an error, before anything is written.
        overwrite: whether to replace a checkpoint at `target`. A run directory is never replaced.
        durable: as in `pytreesaver.save`.
        shard_nbytes: as in `pytreesaver.save`.
        progress: as in `pytreesaver.save`.

    Returns:
        The path of the result.

    Raises:
        UnsupportedLeafError: if the format cannot hold some variables. It names all of them.
        MismatchError: if numbers cannot be cast. It names all variables with such numbers.
        CorruptCheckpointError: if the source is damaged. Nothing is written.
        CheckpointExistsError: if something is at `target` that may not be replaced.
        What `load_checkpoint` and `save` raise.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(2, np.float32), "step": 3}, "to-convert")
        >>> convert(path, "converted.safetensors", cast="bfloat16")
        PosixPath('converted.safetensors')
        >>> pytreesaver.restore("converted.safetensors")["w"].dtype
        dtype(bfloat16)
    """
    check_progress(progress)
    renaming = None if rename is None else as_renaming(rename)
    if not (renaming is None or isinstance(renaming, ByName)):
        raise ValueError(
            "rename: expected a dict of names in the result to names in the source; a function of names becomes one: "
            "{new_name(name): name for name, _ in pytreesaver.list_variables(source)}"
        )
    conversion = _Conversion(
        format,
        None if only is None else as_selection(only),
        renaming,
        checked_cast(cast),
        bool(lossy),
        bool(overwrite),
        bool(durable),
        shard_nbytes,
        progress,
    )
    origin, destination = local_path(source), local_path(target)
    check_format(destination, format, shard_nbytes)
    listed: list[ListedCheckpoint] = []
    if format_at(origin) is None:
        with suppress(CheckpointNotFoundError):
            listed = list_checkpoints(origin)
    if listed:
        return _convert_run(origin, listed, destination, conversion)
    _convert_one(origin, destination, conversion)
    return destination


def _convert_one(source: Path, target: Path, conversion: _Conversion) -> None:
    with open_to_copy(source, target, conversion.only, conversion.rename) as (reader, contents, unreadable):
        writer = check_format(target, conversion.format, conversion.shard_nbytes)
        before = contents.types
        contents = with_cast_contents(contents, conversion.cast)
        if contents.models is not None and list(contents.types) != list(before):
            message = f"{source}: its models are not converted: they need weights of the dtypes that it has"
            warnings.warn(message, StructureWarning, stacklevel=4)
            contents = contents._replace(models=None)
        contents = _without_unsupported(contents, writer, source, conversion.lossy, unreadable)
        write_copy(
            reader,
            target,
            contents,
            overwrite=conversion.overwrite,
            durable=conversion.durable,
            format=conversion.format,
            shard_nbytes=conversion.shard_nbytes,
            progress=conversion.progress,
            what=f"converting {source}",
        )


def _convert_run(source: Path, listed: list[ListedCheckpoint], target: Path, conversion: _Conversion) -> Path:
    problems = [f"{each.path}: {each.problem}" for each in listed if each.problem is not None]
    if problems:
        raise CorruptCheckpointError("nothing was converted; damaged checkpoints:\n" + "\n".join(problems))
    refuse_inside_checkpoint(target)
    with wrap_os_errors("look at", target):
        is_taken = places.exists(target)
    if is_taken:
        raise CheckpointExistsError(f"{target}: expected nothing there for the new run directory, found something")
    names = [_name_of_step(each) for each in listed]
    again = duplicates(names)
    if again:
        clashing = ", ".join(str(each.path) for each, name in zip(listed, names, strict=True) if name in again)
        raise CheckpointExistsError(
            f"nothing was converted; several checkpoints would have the same name {again[0]}: {clashing}; convert them "
            "one by one"
        )
    conversion = conversion._replace(overwrite=False)
    with wrap_os_errors("save to", target):
        if is_in_store(target):  # which cannot rename: the state file, which is written last, completes the run
            return _convert_steps(listed, target, conversion)
        with new_hidden_path(target) as (hidden, made), ExitStack() as locks:
            make_locked_directory(hidden, locks)
            _convert_steps(listed, hidden, conversion)
            filesystem.rename(hidden, target)
        if conversion.durable:
            sync_parents(target, made)
        remove_leftovers(target.parent)
    return target


def _convert_steps(listed: list[ListedCheckpoint], directory: Path, conversion: _Conversion) -> Path:
    paths = [_convert_step(each, directory, conversion) for each in listed]
    times = [each.time for each in listed]
    update_checkpoint_state(
        directory, paths[-1], paths, all_model_checkpoint_timestamps=times if _are_known(times) else None
    )
    return directory


def _are_known(times: list[float]) -> bool:
    return all(math.isfinite(time) for time in times)


def _convert_step(listed: ListedCheckpoint, directory: Path, conversion: _Conversion) -> Path:
    path = directory / _name_of_step(listed)
    _convert_one(listed.path, path, conversion)
    if is_pinned(listed.path):
        write_pin(pin_of(path, is_directory=filesystem.is_directory(path)))
    return path


def _name_of_step(listed: ListedCheckpoint) -> str:
    name = listed.path.name
    if listed.step is not None and name in (str(listed.step), f"checkpoint_{listed.step}"):
        return f"ckpt-{listed.step}"  # of Orbax and Flax; `CheckpointManager` expects this one
    return name


def _without_unsupported(
    contents: TreeContents, writer: Format, source: Path, lossy: bool, unreadable: Mapping[str, str]
) -> TreeContents:
    problems: Mapping[str, str] = {**writer.unsupported(contents), **unreadable}
    if problems and lossy and len(problems) < len(contents.names):
        kept = [i for i, name in enumerate(contents.names) if name not in problems]
        lines = "\n".join(f"  {quoted(name)}: {problem}" for name, problem in problems.items())
        warnings.warn(f"{source}: not converted:\n{lines}", StructureWarning, stacklevel=4)
        places = {position: i for i, position in enumerate(kept)}
        contents = contents._replace(
            names=[contents.names[i] for i in kept],
            types=[contents.types[i] for i in kept],
            shapes=[contents.shapes[i] for i in kept],
            cells=[contents.cells[i] for i in kept],
            structure=prune_structure(contents.structure, places),
            same_as={
                places[position]: places[earlier]
                for position, earlier in contents.same_as.items()
                if position in places and earlier in places
            },
        )
        problems = writer.unsupported(contents)
    refuse_unsupported(contents, problems, writer.name)
    return contents
