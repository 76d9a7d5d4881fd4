"""Writing the contents of a checkpoint in a format, all of them or what is not in an earlier checkpoint."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from pytreesaver._checkpoint.saving.casting import cast_error
from pytreesaver._checkpoint.saving.staged.by_one_process import write_by_one_process
from pytreesaver._checkpoint.saving.staged.uploading import write_and_upload
from pytreesaver._errors import CheckpointExistsError, CheckpointNotFoundError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._io.processes.meeting import Meeting
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._progress import Progress, reporting
from pytreesaver._run.directory import checkpoint_at
from pytreesaver._run.policies.retention import check_count
from pytreesaver._tree.casting import LossyCastError
from pytreesaver.formats import places
from pytreesaver.formats.protocol import Format, TreeContents, refuse_unsupported
from pytreesaver.formats.registry import format_at, format_to_write


def write_contents(
    target: Path,
    contents: TreeContents,
    *,
    overwrite: bool,
    durable: bool,
    in_background: bool = False,
    format: str | None = None,
    shard_nbytes: int | None = None,
    sharded: bool = False,
    progress: Progress = False,
    what: str | None = None,
    meeting: Meeting | None = None,
    base: Any = None,
    is_incremental: bool = False,
    origin: object = None,
) -> Path:
    """Write the contents of a checkpoint in a format. Raises what `save` raises.

    Args:
        target: the path.
        contents: what to write, from `contents_of`.
        overwrite: as in `save`.
        durable: as in `save`.
        in_background: as in `Format.write`.
        format: as in `save`.
        shard_nbytes: as in `save`.
        sharded: write a data file for each device, if the format can.
        progress: as in `save`.
        what: the text of the progress line.
        meeting: the other processes that save the same tree; None if there are none.
        base: an earlier checkpoint, from `unchanged_since`.
        is_incremental: whether a later save will probably have this checkpoint as its `base`.
        origin: where the contents are from, for messages; None for a tree.
    """
    nbytes = 0 if progress is False else contents.nbytes
    with wrap_os_errors("save to", target), reporting(progress, what or f"saving {target}", nbytes):
        writer: Any = check_format(target, format, shard_nbytes)
        _refuse_prefix(target, writer)
        refuse_unsupported(contents, writer.unsupported(contents), writer.name)
        options: dict[str, Any] = {} if shard_nbytes is None else {"shard_nbytes": int(shard_nbytes)}
        if sharded and "sharded" in inspect.signature(writer.write).parameters:
            options["sharded"] = True
        options["in_background"] = in_background
        if is_incremental:
            options |= {"base": base, "remembers": True}

        def write(whole: TreeContents) -> None:
            if is_in_store(target) and not getattr(writer, "writes_to_stores", False):
                to_disk = partial(writer.write, contents=whole, overwrite=False, durable=False, **options)
                write_and_upload(target, writer, to_disk, overwrite=overwrite)
            else:
                writer.write(target, whole, overwrite=overwrite, durable=durable, **options)

        try:
            if meeting is None:
                write(contents)
            elif "meeting" in inspect.signature(writer.write).parameters:
                options["meeting"] = meeting
                write(contents)
            else:
                write_by_one_process(
                    target,
                    contents,
                    write,
                    overwrite=overwrite,
                    durable=durable,
                    in_background=in_background,
                    meeting=meeting,
                )
        except LossyCastError:
            raise cast_error(contents, str(origin or f"the tree to save to {target}")) from None
    return target


def _refuse_prefix(target: Path, writer: Format) -> None:
    """Raise a CheckpointExistsError if a path is the prefix of a checkpoint of another format, and would hide it."""
    if places.may_be_prefix(target) and filesystem.exists(places.index_file(target)):
        found = format_at(target)
        if found is not None and found.name != writer.name:
            raise CheckpointExistsError(
                f"{target}: expected nothing there, found a checkpoint of the format {found.name} with this prefix; "
                "save elsewhere, or remove it if it is not needed"
            )


def unchanged_since(
    contents: TreeContents,
    base: Path,
    target: Path,
    format: str | None,
    *,
    shard_nbytes: int | None = None,
    sharded: bool = False,
    is_known: bool = False,
) -> tuple[TreeContents, Any]:
    """Return what to write if what an earlier checkpoint has is not written again, and the `base` of `write_contents`.

    Args:
        contents: the tree.
        base: the earlier checkpoint.
        target: the path of the new one.
        format: as in `save`.
        shard_nbytes: as in `write_contents`.
        sharded: as in `write_contents`.
        is_known: whether only a checkpoint counts that this process has saved or restored.

    Raises:
        CheckpointNotFoundError, CorruptCheckpointError: if `base` is not a checkpoint of the format.
    """
    writer: Any = format_to_write(target, format)
    try:
        with wrap_os_errors("read", base):
            found: tuple[TreeContents, Any] = writer.unchanged_since(
                contents, base.absolute(), target, shard_nbytes=shard_nbytes, sharded=sharded, is_known=is_known
            )
    except CheckpointNotFoundError:
        other = format_at(base)
        if other is None or other.name == writer.name:
            raise
        raise CheckpointNotFoundError(
            f'base: expected a checkpoint of the format "{writer.name}" at {base}, found one of "{other.name}"'
        ) from None
    return found


def earlier_checkpoint(base: PathLike | None) -> Path | None:
    """Return the path of the argument `base`: a checkpoint, or the newest one of a run directory.

    Raises:
        TypeError, ValueError: if it is not a path.
    """
    if base is None:
        return None
    try:
        local_path(base)
    except (TypeError, ValueError) as error:
        raise type(error)(f"base: {str(error).removeprefix('path: ')}") from None
    return checkpoint_at(base)


def check_format(
    target: Path,
    format: str | None,
    shard_nbytes: int | None,
    *,
    incremental_argument: str | None = None,
) -> Format:
    """Return the format in which `save` writes to a path.

    Args:
        target: the path.
        format: as in `save`.
        shard_nbytes: as in `save`.
        incremental_argument: the name of the argument that asks for an incremental save; None for another save.

    Raises:
        TypeError, ValueError: if there is no such format, or it takes no `shard_nbytes`, or cannot be written
            incrementally.
    """
    writer = format_to_write(target, format)
    if incremental_argument is not None and not hasattr(writer, "unchanged_since"):
        raise ValueError(
            f'{incremental_argument}: expected format="native", whose data files checkpoints can share, found '
            f'"{writer.name}"'
        )
    if shard_nbytes is not None:
        check_count("shard_nbytes", shard_nbytes, least=1)
        if "shard_nbytes" not in inspect.signature(writer.write).parameters:
            raise ValueError(
                f'shard_nbytes: expected format="native", "safetensors" or "tensorflow", found {writer.name!r}'
            )
        if writer.name == "safetensors" and target.name.endswith(".safetensors"):
            raise ValueError(
                f"shard_nbytes: expected the path of a directory, since it will hold several files, found {target}"
            )
    return writer
