"""`save` and `save_async`: from a tree to a checkpoint."""

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pytreesaver._checkpoint.saving.background import SaveFuture, start_in_background
from pytreesaver._checkpoint.saving.contents import contents_of
from pytreesaver._checkpoint.saving.snapshot import snapshot
from pytreesaver._checkpoint.saving.uploading import write_and_upload
from pytreesaver._errors import CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._io.processes.meeting import DEFAULT_TIMEOUT, Meeting, WhichProcesses, new_meeting, telling
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._progress import Progress, check_progress, reporting
from pytreesaver._run.policies.retention import check_count
from pytreesaver._tree.names.select import Selection, as_selection
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
    """
    nbytes = 0 if progress is False else contents.nbytes
    with wrap_os_errors("save to", target), reporting(progress, what or f"saving {target}", nbytes):
        writer: Any = check_format(target, format, shard_nbytes, meeting)
        _refuse_prefix(target, writer)
        refuse_unsupported(contents, writer.unsupported(contents), writer.name)
        options: dict[str, Any] = {} if shard_nbytes is None else {"shard_nbytes": int(shard_nbytes)}
        if sharded and "sharded" in inspect.signature(writer.write).parameters:
            options["sharded"] = True
        if meeting is not None:
            options["meeting"] = meeting
        options["in_background"] = in_background
        if is_incremental:
            options |= {"base": base, "remembers": True}
        if is_in_store(target) and not getattr(writer, "writes_to_stores", False):
            write = partial(writer.write, contents=contents, overwrite=False, durable=False, **options)
            write_and_upload(target, writer, write, overwrite=overwrite)
        else:
            writer.write(target, contents, overwrite=overwrite, durable=durable, **options)
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
    with wrap_os_errors("read", base):
        found: tuple[TreeContents, Any] = writer.unchanged_since(
            contents, base.absolute(), target, shard_nbytes=shard_nbytes, sharded=sharded, is_known=is_known
        )
    return found


def check_format(
    target: Path,
    format: str | None,
    shard_nbytes: int | None,
    meeting: Meeting | None = None,
    *,
    is_incremental: str | None = None,
) -> Format:
    """Return the format in which `save` writes to a path.

    Raises:
        TypeError, ValueError: if there is no such format, or it takes no `shard_nbytes`, or cannot be written by
            several processes, or into an object store, or, with the argument `is_incremental`, incrementally.
    """
    writer = format_to_write(target, format)
    if is_incremental is not None and not hasattr(writer, "unchanged_since"):
        raise ValueError(
            f'{is_incremental}: expected format="native", whose data files checkpoints can share, found "{writer.name}"'
        )
    if meeting is not None and "meeting" not in inspect.signature(writer.write).parameters:
        raise ValueError(
            f'format: expected "native", which several processes can write, found "{writer.name}"; save with that, and '
            "convert the checkpoint in one process"
        )
    if is_in_store(target) and not getattr(writer, "supports_stores", True):
        raise ValueError(f'format: expected another one than "{writer.name}" for an object store; save to a disk')
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


def save(
    tree: Any,
    path: PathLike,
    *,
    only: Selection | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    format: str | None = None,
    shard_nbytes: int | None = None,
    base: PathLike | None = None,
    progress: Progress = False,
    processes: WhichProcesses = "all",
    timeout: float = DEFAULT_TIMEOUT,
) -> Path:
    """Save the leaves of a tree, or the selected ones, as a checkpoint at `path`.

    The checkpoint appears at `path` atomically, when it is complete. A crash, a full disk or an error leaves nothing
    there, or, with `overwrite`, the old checkpoint intact. Missing parent directories are created.

    Args:
        tree: any pytree of arrays, typed PRNG keys, NumPy and Python numbers, str and bytes.
        path: where to save the checkpoint; ``~`` is the home directory.
        only: the variables to save: a glob as for `pytreesaver.glob`, a compiled regular expression, a predicate on the
            name, a list of those, or a tree of bools that is a prefix of `tree`. What remains of a list or tuple is
            saved as a dict with the positions as keys, so that names do not change.
        metadata: a dict of plain Python values to store with the tree. `load_checkpoint(path).metadata` returns it
            exactly.
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
        base: an earlier checkpoint in the native format. What is unchanged since is not written again, nor fetched from
            an accelerator: the data files that hold it get a second name in the new checkpoint, which is complete
            without the earlier one. A `jax.Array` is unchanged if it is the same object; other arrays are compared by
            their bytes. A file of which less than half is still in use is not shared. If the file system has no hard
            links, everything is written.
        progress: True shows a line on the terminal if the save takes long: bytes, rate and time left. A function is
            called with (bytes done, total bytes) instead, one call at a time, from the threads that do the work. An
            error that it raises ends the save.
        processes: in a program of several processes, ``"all"`` of them call `save` with the same arguments, on a file
            system that they share, and write one checkpoint, every byte once. Of NumPy arrays and Python values, those
            of process 0 are saved. With ``"this"``, this process saves its own tree, without the others.
        timeout: how long to wait for another process, in seconds.

    No other thread may modify NumPy arrays in the tree before `save` returns.

    Returns:
        The path of the checkpoint.

    Raises:
        UnsupportedLeafError: if the tree, or `metadata`, holds values that cannot be stored. It names all of them.
        DuplicateNameError: if two leaves have the same name, as in ``{"a/b": x, "a": {"b": y}}``.
        VariableNotFoundError: if `only` selects nothing. The message suggests similar names.
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
    target = local_path(path)
    earlier = None if base is None else local_path(base)
    options = (overwrite, durable, format, shard_nbytes, None if earlier is None else str(earlier))
    meeting = new_meeting(f"save to {target}", str(target), timeout, processes, options)
    with telling(meeting):
        check_progress(progress)
        check_format(target, format, shard_nbytes, meeting, is_incremental=None if base is None else "base")
        contents = contents_of(tree, metadata, only=None if only is None else as_selection(only), meeting=meeting)
        known = None
        if earlier is not None:
            contents, known = unchanged_since(contents, earlier, target, format, shard_nbytes=shard_nbytes)
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
            is_incremental=earlier is not None,
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
        UnsupportedLeafError, DuplicateNameError, VariableNotFoundError, CheckpointNotFoundError, TypeError, ValueError:
            as `save` does, before anything is written. The future raises later errors.

    Example:
        >>> future = save_async({"w": np.ones(3)}, "model-async")
        >>> future.result()
        PosixPath('model-async')
    """
    target = local_path(path)
    earlier = None if base is None else local_path(base)
    options = (overwrite, durable, format, shard_nbytes, None if earlier is None else str(earlier))
    meeting = new_meeting(f"save to {target}", str(target), timeout, processes, options)
    with telling(meeting):
        check_progress(progress)
        check_format(target, format, shard_nbytes, meeting, is_incremental=None if base is None else "base")
        with wrap_os_errors("save to", target):
            location = target.absolute()  # the program may change its working directory during the save
        contents = contents_of(tree, metadata, only=None if only is None else as_selection(only), meeting=meeting)
        known = None
        if earlier is not None:
            contents, known = unchanged_since(contents, earlier, location, format, shard_nbytes=shard_nbytes)
        contents = snapshot(contents, copy=copy)

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
                is_incremental=earlier is not None,
            )
        if meeting is not None:
            meeting.forget()
        return target

    future = SaveFuture(f"the save of {target}")
    start_in_background(future, write)
    return future
