"""`save` and `save_async`: from a tree to a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload
from typing import cast as cast_to

from jax.typing import DTypeLike

from pytreesaver._checkpoint.saving.background import SaveFuture, start_in_background
from pytreesaver._checkpoint.saving.casting import cast_error, checked_cast
from pytreesaver._checkpoint.saving.contents import contents_of
from pytreesaver._checkpoint.saving.snapshot import snapshot
from pytreesaver._checkpoint.saving.streams import WritableFile, is_writable_file, save_to_file_object
from pytreesaver._checkpoint.saving.writing import check_format, earlier_checkpoint, unchanged_since, write_contents
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._io.processes.meeting import (
    DEFAULT_TIMEOUT,
    Meeting,
    WhichProcesses,
    check_taking_part,
    new_meeting,
    telling,
)
from pytreesaver._progress import Progress, check_progress
from pytreesaver._tree.casting import LossyCastError
from pytreesaver._tree.names.select import Selection, as_selection
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.registry import STREAM_FORMAT


class StreamArguments(TypedDict, total=False):
    """The keyword arguments of `save` for a file object."""

    only: Selection | None
    metadata: Mapping[str, Any] | None
    cast: bool | DTypeLike
    progress: Progress


class SaveArguments(StreamArguments, total=False):
    """The keyword arguments of `save`."""

    overwrite: bool
    durable: bool
    format: str | None
    shard_nbytes: int | None
    base: PathLike | None
    processes: WhichProcesses
    timeout: float


@overload
def save(tree: Any, path: PathLike, **options: Unpack[SaveArguments]) -> Path: ...
@overload
def save(tree: Any, path: WritableFile, **options: Unpack[StreamArguments]) -> None: ...
def save(
    tree: Any,
    path: PathLike | WritableFile,
    *,
    only: Selection | None = None,
    metadata: Mapping[str, Any] | None = None,
    cast: bool | DTypeLike = False,
    overwrite: bool = False,
    durable: bool = True,
    format: str | None = None,
    shard_nbytes: int | None = None,
    base: PathLike | None = None,
    progress: Progress = False,
    processes: WhichProcesses = "all",
    timeout: float = DEFAULT_TIMEOUT,
) -> Path | None:
    """Save the leaves of a tree, or the selected ones, as a checkpoint at `path`.

    The checkpoint appears at `path` atomically, when it is complete. A crash, a full disk or an error leaves nothing
    there, or, with `overwrite`, the old checkpoint intact. Missing parent directories are created.

    Args:
        tree: any pytree of arrays, typed PRNG keys, NumPy and Python numbers, str and bytes.
        path: where to save the checkpoint; ``~`` is the home directory. Or a binary file object, to which a single
            safetensors file is written, in order. `overwrite`, `durable`, `format`, `shard_nbytes`, `base` and
            `processes` have no meaning then.
        only: the variables to save: a glob as for `pytreesaver.glob`, a compiled regular expression, a predicate on the
            name, a list of those, or a tree of bools that is a prefix of `tree`. What remains of a list or tuple is
            saved as a dict with the positions as keys, so that names do not change.
        metadata: a dict of plain Python values to store with the tree. `load_checkpoint(path).metadata` returns it
            exactly.
        cast: a dtype to which to cast all floating-point arrays, such as ``"bfloat16"`` for a copy to serve from, or
            True for 32 bits in place of 64 in JAX arrays. Floats are rounded to the nearest; overflow is an error.
        overwrite: whether to replace an existing checkpoint at `path`. Anything else at `path` is never replaced.
        durable: whether to return only when the checkpoint would survive a power failure. Otherwise the operating
            system writes it to disk some seconds later. Overwriting is always durable, because a power failure could
            cost the old checkpoint too.
        format: the name of the format: ``"native"``, ``"safetensors"``, ``"npz"``, ``"msgpack"``, ``"tensorflow"``,
            ``"orbax"``, or one that `pytreesaver.register_format` has added. With None, the ending of `path` decides:
            ``.safetensors`` means a single safetensors file, ``.npz`` an archive of NumPy, ``.msgpack`` a file of Flax,
            and everything else the native format, a directory. With ``"tensorflow"``, `path` is the prefix of files.
        shard_nbytes: write data files whose arrays have at most this size in bytes; a larger one has a file of its own.
            With ``format="safetensors"``, this writes a directory of safetensors files and their index, as Hugging Face
            does. The formats native and tensorflow can do it too.
        base: an earlier checkpoint in the native format, or a run directory with the newest one. What is unchanged
            since is not written again, nor fetched from an accelerator: the data files that hold it get a second name
            in the new checkpoint, which is complete without the earlier one. A variable is unchanged if it has the same
            name and type, and its `jax.Array` is the same object; other arrays are compared by their bytes. A file of
            which less than half is still in use is not shared. If the file system has no hard links, everything is
            written. An array that JAX made of memory of NumPy or another library without a copy must not be modified
            there.
        progress: True shows a line on the terminal if the save takes long: bytes, rate and time left. A function is
            called with (bytes done, total bytes) instead, one call at a time, from the threads that do the work. An
            error that it raises ends the save.
        processes: in a program of several processes, ``"all"`` of them call `save` with the same arguments, on a file
            system that they share, and write one checkpoint, every byte once. Of NumPy arrays and Python values, those
            of process 0 are saved. With ``"this"``, this process saves its own tree, without the others.
        timeout: how long to wait for another process, in seconds.

    No other thread may modify NumPy arrays in the tree before `save` returns.

    Returns:
        The path of the checkpoint; None for a file object.

    Raises:
        UnsupportedLeafError: if the tree, or `metadata`, holds values that cannot be stored. It names all of them.
        DuplicateNameError: if two leaves have the same name, as in ``{"a/b": x, "a": {"b": y}}``.
        VariableNotFoundError: if `only` selects nothing. The message suggests similar names.
        MismatchError: if numbers cannot be cast. It names all variables with such numbers.
        CheckpointNotFoundError: if `base` is not a checkpoint.
        CheckpointExistsError: if something exists at `path`, and `overwrite` is False or it is not a checkpoint.
        TypeError, ValueError: if an argument is invalid.
        ProcessTimeoutError: if other processes do not take part in time. It names them.
        What another process raised, if the save failed there.
        CheckpointIOError: if the operating system cannot write, for example because the disk is full or permission is
            denied. If only the final directory sync fails, the checkpoint exists but may not survive a power failure.

    Example:
        >>> path = save({"w": np.ones(3), "step": 100}, "model-100", metadata={"loss": 0.5})
        >>> pytreesaver.restore(path)
        {'w': array([1., 1., 1.]), 'step': 100}
        >>> path = save({"encoder": {"w": np.ones(2), "b": 0.0}, "head": 1}, "weights", only="**/w")
        >>> pytreesaver.restore(path)
        {'encoder': {'w': array([1., 1.])}}
    """
    if is_writable_file(path):
        given = (overwrite, durable, shard_nbytes, base)
        if given != (False, True, None, None) or format not in (None, STREAM_FORMAT):
            raise ValueError(
                "overwrite, durable, format, shard_nbytes and base are for paths: leave them out for a file object"
            )
        check_taking_part(processes, timeout)
        stream = cast_to(WritableFile, path)
        save_to_file_object(tree, stream, only=only, metadata=metadata, cast=cast, progress=progress)
        return None
    target = local_path(cast_to(str, path))
    options = (overwrite, durable, format, shard_nbytes, str(base), str(cast))
    meeting = new_meeting(f"save to {target}", str(target), timeout, processes, options)
    with telling(meeting):
        check_progress(progress)
        contents, known = _contents_to_write(tree, target, only, metadata, cast, format, shard_nbytes, base, meeting)
        write_contents(
            target,
            contents,
            overwrite=overwrite,
            durable=durable,
            format=format,
            shard_nbytes=shard_nbytes,
            progress=progress,
            meeting=meeting,
            base=known,
            is_incremental=base is not None,
        )
    if meeting is not None:
        meeting.forget()
    return target


def save_async(
    tree: Any,
    path: PathLike,
    *,
    only: Selection | None = None,
    metadata: Mapping[str, Any] | None = None,
    cast: bool | DTypeLike = False,
    overwrite: bool = False,
    durable: bool = True,
    format: str | None = None,
    shard_nbytes: int | None = None,
    base: PathLike | None = None,
    copy: bool = False,
    progress: Progress = False,
    processes: WhichProcesses = "all",
    timeout: float = DEFAULT_TIMEOUT,
) -> SaveFuture:
    """Start an asynchronous save, and return once the tree is safe to modify or donate.

    Before it returns, arrays on an accelerator are fetched and NumPy arrays are copied. Arrays on the CPU are immutable
    and need no copy: JAX does not reuse their memory while they are being saved. A program that exits normally waits
    for pending saves.

    An asynchronous save uses few threads and, where possible, bypasses the page cache. It takes longer than `save`, and
    disturbs the rest of the program less.

    Args:
        tree: as in `save`.
        path: as in `save`.
        only: as in `save`.
        metadata: as in `save`.
        cast: as in `save`.
        overwrite: as in `save`.
        durable: as in `save`.
        format: as in `save`.
        shard_nbytes: as in `save`.
        base: as in `save`.
        copy: whether to copy arrays on the CPU before returning, into memory that is kept for the next such save.
            Without it, a training step that donates the arrays during the save has to allocate new memory, which may
            take longer. The memory is released by the next asynchronous save without `copy`.
        progress: as in `save`.
        processes: as in `save`. The processes meet in the background, without a collective operation of devices.
        timeout: as in `save`.

    Returns:
        A future of the path. `SaveFuture.result` waits, and raises the error of a failed save.

    Raises:
        UnsupportedLeafError, DuplicateNameError, VariableNotFoundError, MismatchError, CheckpointNotFoundError,
            TypeError, ValueError: as `save` does, before anything is written. The future raises later errors.

    Example:
        >>> future = save_async({"w": np.ones(3)}, "model-async")
        >>> future.result()
        PosixPath('model-async')
    """
    target = local_path(path)
    options = (overwrite, durable, format, shard_nbytes, str(base), str(cast))
    meeting = new_meeting(f"save to {target}", str(target), timeout, processes, options)
    with telling(meeting):
        check_progress(progress)
        with wrap_os_errors("save to", target):
            location = target.absolute()  # the program may change its working directory during the save
        contents, known = _contents_to_write(tree, target, only, metadata, cast, format, shard_nbytes, base, meeting)
        try:
            contents = snapshot(contents, copy=copy)
        except LossyCastError:
            raise cast_error(contents, f"the tree to save to {target}") from None

    def write() -> Path:
        with telling(meeting):
            write_contents(
                location,
                contents,
                overwrite=overwrite,
                durable=durable,
                in_background=True,
                format=format,
                shard_nbytes=shard_nbytes,
                progress=progress,
                what=f"saving {target}",
                meeting=meeting,
                base=known,
                is_incremental=base is not None,
            )
        if meeting is not None:
            meeting.forget()
        return target

    future = SaveFuture(f"the save of {target}")
    start_in_background(future, write)
    return future


def _contents_to_write(
    tree: Any,
    target: Path,
    only: Selection | None,
    metadata: Mapping[str, Any] | None,
    cast: bool | DTypeLike,
    format: str | None,
    shard_nbytes: int | None,
    base: PathLike | None,
    meeting: Meeting | None,
) -> tuple[TreeContents, Any]:
    """Check these arguments of `save`. Return what to write, and the `base` of `write_contents`."""
    asked_by = None if base is None else "base"
    check_format(target, format, shard_nbytes, incremental_argument=asked_by)
    earlier = earlier_checkpoint(base)
    selection, checked = None if only is None else as_selection(only), checked_cast(cast)
    contents = contents_of(tree, metadata, only=selection, meeting=meeting, cast=checked)
    if earlier is None:
        return contents, None
    return unchanged_since(contents, earlier, target, format, shard_nbytes=shard_nbytes)
