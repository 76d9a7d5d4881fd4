"""`restore`: the tree of a checkpoint, or part of it."""

import errno
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload
from typing import cast as cast_to

from jax.typing import DTypeLike

from pytreesaver._checkpoint.restoring.matching import Mismatched, Missing, Unexpected
from pytreesaver._checkpoint.restoring.options import RestoreArguments, RestoreOptions
from pytreesaver._checkpoint.restoring.streams import ReadableFile, is_readable_file, opened_stream
from pytreesaver._checkpoint.restoring.targets import ShardingRule
from pytreesaver._checkpoint.restoring.with_template import plan_restore
from pytreesaver._checkpoint.restoring.without_template import restore_as_stored
from pytreesaver._errors import CheckpointIOError
from pytreesaver._io.paths import PathLike, as_path, local_path
from pytreesaver._io.processes.meeting import DEFAULT_TIMEOUT, WhichProcesses, new_meeting, telling
from pytreesaver._io.stores.dispatch import is_in_store
from pytreesaver._progress import Progress
from pytreesaver._run.directory import checkpoint_at, opened_checkpoint
from pytreesaver._tree.names.rename import Rename
from pytreesaver._tree.names.select import Selection
from pytreesaver.formats.protocol import CheckpointReader

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview


def restore_reader(reader: CheckpointReader, like: Any, options: RestoreOptions, stacklevel: int) -> Any:
    """Restore an open checkpoint, with checked options. Raises what `restore` raises."""
    if like is None:
        return restore_as_stored(reader, options, stacklevel)
    plan = plan_restore(reader, like, options)
    return plan.with_leaves(plan.read(reader, options))


def restore_with(source: PathLike | ReadableFile, like: Any, options: RestoreOptions, *, stacklevel: int = 3) -> Any:
    """Restore as `pytreesaver.restore` does, with options that may be a `Saver`'s. Raises what `restore` raises."""
    options = options.checked(like)
    if is_readable_file(source):
        with opened_stream(source, options.format) as reader:
            return restore_reader(reader, like, options, stacklevel + 1)
    path = cast_to(str, source)

    def newest(target: PathLike) -> Path:
        meeting = new_meeting(f"restore of {target}", f"restore {target}", options.timeout, options.processes)
        if meeting is None:
            return checkpoint_at(target)
        with telling(meeting):
            meeting.gather("asked", b"", "call restore")  # none of them can be ahead of the others
            found = meeting.first("newest", lambda: str(checkpoint_at(target)), str, "choose the checkpoint")
        meeting.forget()
        return as_path(found)

    in_store = is_in_store(local_path(path))
    failed: tuple[Any, CheckpointIOError] | None = None
    while True:
        files: Any = None
        try:
            with opened_checkpoint(path, options.format, newest) as reader:
                files = getattr(reader, "file_sizes", None) if in_store else None
                if failed is not None and failed[0] == files:
                    raise failed[1]
                return restore_reader(reader, like, options, stacklevel + 1)
        except CheckpointIOError as error:
            # In an object store, an overwrite deletes the data that a reader of the old index needs.
            if files is None or error.errno not in (errno.ENOENT, errno.EEXIST) or (failed and error is failed[1]):
                raise
            failed = files, error


@overload
def restore(path: PathLike | ReadableFile, like: None = None, **options: Unpack[RestoreArguments]) -> Any: ...
@overload
def restore(path: PathLike | ReadableFile, like: T, **options: Unpack[RestoreArguments]) -> T: ...
def restore(
    path: PathLike | ReadableFile,
    like: Any = None,
    *,
    only: Selection | None = None,
    rename: Rename | None = None,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    mismatched: Mismatched = "error",
    cast: bool | DTypeLike = False,
    reshape: bool = False,
    sharding: ShardingRule | None = None,
    as_numpy: bool = False,
    mmap: bool = False,
    verify: bool = True,
    format: str | None = None,
    progress: Progress = False,
    processes: WhichProcesses = "all",
    timeout: float = DEFAULT_TIMEOUT,
) -> Any:
    """Restore the tree of a checkpoint, or part of it: as it was saved, or into a template.

    Without `like`, the stored structure is rebuilt: containers have their original types, JAX leaves become JAX arrays
    on the default device, NumPy leaves NumPy arrays, and Python values themselves. A class that this process has not
    imported is replaced by a namedtuple or a dict, with a `StructureWarning`.

    With `like`, the result has the containers, leaf kinds, dtypes, shapes and shardings of the template. Names, shapes
    and dtypes must match. Only conversions that lose nothing happen without being asked for: between NumPy and JAX, and
    between a Python number and a 0-d array. Leaves that are not restored are the template's own objects.

    Args:
        path: the checkpoint, or a run directory, whose newest checkpoint is restored; or a binary file object with a
            single safetensors file, from its position to its end. If it can seek, only what is needed is read.
        like: the template: a tree of arrays, `jax.ShapeDtypeStruct`, and Python values, such as the result of
            `jax.eval_shape`.
        only: the variables to restore, by their names in the result: a glob as for `pytreesaver.glob`, a compiled
            regular expression, a predicate on the name, a list of those, or a tree of bools that is a prefix of the
            result. With `like`, all other leaves stay as they are in the template. Without it they are absent, and what
            remains of a list or tuple is a dict.
        rename: from names in the result to names in the checkpoint: a dict of names, or of prefixes that end in ``/``
            (``/`` alone is the root); a list of (regular expression, replacement), of which the first that is found in
            a name applies; or a function. Without `like`, it must be a dict. Several names may take one variable.
            With `only`, a variable that no leaf takes is unexpected only if its name in the result is selected; if
            `rename` is not a dict, its name in the checkpoint counts as its name in the result.
        missing: ``"keep"`` keeps the template's leaf if the checkpoint has no such variable. A `jax.ShapeDtypeStruct`
            has no value to keep, and stays an error.
        unexpected: ``"ignore"`` ignores variables that the template does not have.
        mismatched: ``"keep"`` keeps the template's leaf if the stored shape is another one. The names of all leaves
            that were kept, by this or by `missing`, are logged as a warning.
        cast: whether to convert numbers to the template's dtypes. Without `like`, a dtype for all floating-point
            arrays, or True for what JAX makes of 64-bit dtypes while ``jax_enable_x64`` is off. Floats are rounded to
            nearest. Overflow, and integers or fractions that the dtype cannot represent, are errors.
        reshape: whether to accept arrays of another shape with the same number of elements.
        sharding: where to put JAX arrays, if not where the template has them: a `jax.sharding.Sharding` or a device for
            all leaves, a tree of those that is a prefix of the result, or a function of name and shape. None, also
            within a tree or from a function, means the template's, or JAX's default. Without `like`, the NumPy arrays
            of a checkpoint that has no JAX arrays, such as a safetensors file of another program, become JAX arrays.
        as_numpy: whether to return NumPy arrays in place of JAX arrays, and the key data of PRNG keys. No device is
            used.
        mmap: whether to map the file into memory instead of reading it: NumPy arrays, and JAX arrays on the CPU, then
            share memory with the file. Values that need conversion, or that are assembled from shards, are read all
            the same. The checkpoint may be overwritten or deleted meanwhile, but its files must not be modified in
            place.
        verify: whether to compare every byte with its checksum. Without it, and with `mmap`, nothing is read before it
            is used.
        format: the format of the checkpoint, by name. With None it is recognized by what is at `path`.
        progress: as in `pytreesaver.save`.
        processes: in a program of several processes, each reads what its devices need. If `path` is a run directory,
            process 0 chooses the checkpoint, and ``"all"`` of them have to call `restore`. With ``"this"``, this
            process chooses by itself.
        timeout: how long to wait for that choice, in seconds.

    Peak memory above the result is about 64 MiB; on an accelerator, the size of the largest leaf if that is more.

    Raises:
        CheckpointNotFoundError: if there is no complete checkpoint at `path`.
        MismatchError: if the template and the checkpoint differ. It names every difference, and is raised before any
            array is read. Also for 64-bit JAX leaves while ``jax_enable_x64`` is off, for values that cannot be cast,
            and for a `sharding` that does not fit.
        VariableNotFoundError: if `only` selects nothing, or, without `like`, `rename` names a variable that does not
            exist. The message suggests similar names.
        CorruptCheckpointError: if the checkpoint is damaged. It names every damaged variable.
        UnsupportedVersionError: if a newer version of the format is needed.
        TypeError, ValueError: if an argument is invalid, alone or together with the others.

    Example:
        >>> path = pytreesaver.save({"w": np.ones(3, np.float32), "z": (0, 0.5)}, "model")
        >>> restore(path)
        {'w': array([1., 1., 1.], dtype=float32), 'z': (0, 0.5)}
        >>> restore(path, like={"w": jax.ShapeDtypeStruct((3,), np.float32), "z": (0, 0.0)})
        {'w': Array([1., 1., 1.], dtype=float32), 'z': (0, 0.5)}
        >>> restore(path, only="z")
        {'z': (0, 0.5)}
        >>> restore(path, like={"kernel": np.zeros(3, np.float16)}, rename={"kernel": "w"}, cast=True, only="kernel")
        {'kernel': array([1., 1., 1.], dtype=float16)}
    """
    options = RestoreOptions(
        only=only,
        rename=rename,
        missing=missing,
        unexpected=unexpected,
        mismatched=mismatched,
        cast=cast,
        reshape=reshape,
        sharding=sharding,
        as_numpy=as_numpy,
        mmap=mmap,
        verify=verify,
        format=format,
        progress=progress,
        processes=processes,
        timeout=timeout,
    )
    return restore_with(path, like, options)


@overload
def from_bytes(data: Buffer, like: None = None, **options: Unpack[RestoreArguments]) -> Any: ...
@overload
def from_bytes(data: Buffer, like: T, **options: Unpack[RestoreArguments]) -> T: ...
def from_bytes(data: Buffer, like: Any = None, **options: Unpack[RestoreArguments]) -> Any:
    """Return the tree that is in the bytes of a safetensors file, such as those of `pytreesaver.to_bytes`.

    Args:
        data: the bytes.
        like: as in `pytreesaver.restore`.
        options: the other arguments of `pytreesaver.restore`.

    Raises:
        What `pytreesaver.restore` raises.

    Example:
        >>> data = pytreesaver.to_bytes({"w": np.ones(3, np.float32), "step": 7})
        >>> from_bytes(data, like={"w": np.zeros(3, np.float16), "step": 0}, cast=True)
        {'step': 7, 'w': array([1., 1., 1.], dtype=float16)}
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"data: expected bytes, found {data!r}")
    checked = RestoreOptions.of("from_bytes", options).checked(like)
    with opened_stream(data, checked.format) as reader:
        return restore_reader(reader, like, checked, 4)
