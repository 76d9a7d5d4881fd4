"""save and restore: they take a tree apart or put it together, and leave the bytes to a format."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pytreesaver._background import SaveFuture, start_in_background
from pytreesaver._contents import contents_of
from pytreesaver._match import Missing, Unexpected
from pytreesaver._paths import PathLike, local_path
from pytreesaver._progress import Progress, check_progress
from pytreesaver._restoring import RestoreOptions, restore_with
from pytreesaver._select import as_selection
from pytreesaver._snapshot import snapshot
from pytreesaver._write import write_contents


def save(
    tree: Any,
    path: PathLike,
    *,
    only: Any = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    progress: Progress = False,
) -> Path:
    """Save every leaf of a tree, or the selected ones, under its variable name, as a checkpoint at `path`.

    The checkpoint appears at `path` in one step, when it is complete: a crash, a full disk or an error leaves nothing
    there, or, with `overwrite`, the old checkpoint whole. Missing parent directories are created.

    Args:
        tree: any pytree of arrays, typed PRNG keys, NumPy and Python numbers, str and bytes.
        path: where the checkpoint is to be; ``~`` is the home directory.
        only: which variables to save: a glob as for `pytreesaver.glob`, a compiled regular expression, a function of
            the name, a list of those, or a tree of bools that is a prefix of `tree`. What is left of a list or a tuple
            is then a dict with the positions as keys: the names stay.
        metadata: what else to keep with the tree: a dict of plain Python values, given back by
            `load_checkpoint(path).metadata` exactly.
        overwrite: replace the checkpoint at `path`, if there is one. Anything else there is never replaced.
        durable: return only when the checkpoint would survive a power cut. Without it the operating system writes it
            out in its own time, some seconds later. Replacing a checkpoint is always durable: otherwise a power cut
            could cost the old one too.
        progress: True shows a line on the terminal if it takes long: bytes, rate and time left. A function is called
            with (bytes done, bytes in all) instead, one call at a time, from the threads that do the work; an error
            that it raises ends the save.

    NumPy arrays must not be changed by another thread before `save` returns.

    Returns:
        The path of the checkpoint.

    Raises:
        UnsupportedLeafError: naming everything in the tree, or in `metadata`, that cannot be stored.
        DuplicateNameError: two leaves have one name, as in ``{"a/b": x, "a": {"b": y}}``.
        VariableNotFoundError: `only` selects nothing; the message has similar names.
        CheckpointExistsError: there is something at `path`, and `overwrite` is false or it is no checkpoint.
        TypeError, ValueError: `path` is no path on this machine, or `metadata` no dict.
        CheckpointIOError: the operating system could not write (disk full, permission denied, ...). If it is only the
            last step that fails, making the new name durable, the checkpoint is there.

    Example:
        >>> path = save({"w": np.ones(3), "step": 100}, "model-100", metadata={"loss": 0.5})
        >>> restore(path)
        {'w': array([1., 1., 1.]), 'step': 100}
        >>> restore(save({"encoder": {"w": np.ones(2), "b": 0.0}, "head": 1}, "weights", only="**/w"))
        {'encoder': {'w': array([1., 1.])}}
    """
    check_progress(progress)
    target = local_path(path)
    contents = contents_of(tree, metadata, only=None if only is None else as_selection(only))
    return write_contents(target, contents, overwrite=overwrite, durable=durable, progress=progress)


def save_async(
    tree: Any,
    path: PathLike,
    *,
    only: Any = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    copy: bool = False,
    progress: Progress = False,
) -> SaveFuture:
    """Start to save a tree, and return as soon as nothing that happens to the tree can change what is saved.

    The rest goes on in a thread. The caller may donate, delete or overwrite what is in the tree at once: arrays on an
    accelerator have been fetched and NumPy arrays copied; arrays on the CPU are immutable, and JAX does not reuse
    their memory while it is being saved. A program that ends normally waits for saves that are under way.

    Few threads write it, past the cache of the operating system where that is possible: this takes longer than `save`
    does, and disturbs what the program does meanwhile less.

    With `copy` arrays on the CPU are copied before it returns, into memory that is kept for the next such save. This
    takes as long as copying takes. Without it a step of a training loop that donates the arrays while they are being
    saved has to allocate memory of its own, which may take longer. The memory is given back when a save in the
    background is made without `copy`. The other arguments are those of `save`.

    Returns:
        A future of the path. `SaveFuture.result` waits, and raises what went wrong.

    Raises:
        UnsupportedLeafError, DuplicateNameError, VariableNotFoundError, TypeError, ValueError: at once, as `save`
            does, before anything is written. What goes wrong later is raised by the future.

    Example:
        >>> future = save_async({"w": np.ones(3)}, "model-async")
        >>> future.result()
        PosixPath('model-async')
    """
    check_progress(progress)
    target = local_path(path)
    contents = snapshot(contents_of(tree, metadata, only=None if only is None else as_selection(only)), copy=copy)
    write = partial(
        write_contents, target, contents, overwrite=overwrite, durable=durable, in_background=True, progress=progress
    )
    future = SaveFuture(f"the save of {target}")
    start_in_background(future, write)
    return future


def restore(
    path: PathLike,
    like: Any = None,
    *,
    only: Any = None,
    rename: Any = None,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    cast: Any = False,
    reshape: bool = False,
    sharding: Any = None,
    as_numpy: bool = False,
    mmap: bool = False,
    verify: bool = True,
    progress: Progress = False,
) -> Any:
    """Give the tree of a checkpoint, or a part of it: as it was saved, or as a template wants it.

    Without `like` the stored structure is rebuilt: containers of the same types, JAX leaves as JAX arrays on the
    default device, NumPy leaves as NumPy, Python values as themselves. A class that this process has not imported is
    replaced by a namedtuple or a dict, with a `StructureWarning`.

    With `like` the result has the template's containers, leaf kinds, dtypes, shapes and shardings. Every name, shape
    and dtype must be the same in both; only what loses nothing follows the template: NumPy or JAX, a Python number or
    a 0-d array. Leaves that are not restored are the template's own objects.

    Args:
        path: the checkpoint.
        like: a tree of arrays, `jax.ShapeDtypeStruct`, and Python values. The result of `jax.eval_shape` is one.
        only: which variables to restore, by their names in the result: a glob as for `pytreesaver.glob`, a compiled
            regular expression, a function of the name, a list of those, or a tree of bools that is a prefix of the
            result. With `like` all others stay as they are in the template; without it they are absent, and what is
            left of a list or a tuple is a dict.
        rename: from names in the result to names in the checkpoint: a dict of names, or of prefixes that end in ``/``
            (``/`` alone is the root); a list of (regular expression, replacement), of which the first that is found in
            a name counts; or a function. Only a dict can be used without `like`. Several names may have one variable.
            With `only`, a variable that no leaf takes is unexpected if the name that it would have in the result is
            selected; unless `rename` is a dict, that is taken for the name that it has in the checkpoint.
        missing: ``"keep"`` keeps the template's own leaf where the checkpoint has no such variable. A
            `jax.ShapeDtypeStruct` has no value to keep, and is an error all the same.
        unexpected: ``"ignore"`` leaves out variables that the template does not have.
        cast: convert numbers to the template's dtypes. Without `like`, a dtype is that of all floating arrays, and
            True is what JAX makes of 64 bits while ``jax_enable_x64`` is off. Floats are rounded to the nearest; an
            overflow, and an integer or a fraction that the other dtype does not have, is an error.
        reshape: take arrays of another shape with as many elements.
        sharding: where JAX arrays go, if not where the template has them: a `jax.sharding.Sharding` or a device for
            all, a tree of those that is a prefix of the result, or a function of name and shape. None is no wish.
        as_numpy: give NumPy arrays in place of JAX arrays, and the data of PRNG keys; no device is touched.
        mmap: give arrays that are the file itself, and take no memory of their own: NumPy arrays, and JAX arrays on the
            CPU. What has to be converted, or put together from shards, is read all the same. Such a checkpoint may be
            replaced or deleted, but its files must not be changed in place.
        verify: check every byte against its checksum. Without it, and with `mmap`, nothing is read before it is used.
        progress: as in `save`.

    Beside the result no more than about 64 MiB are held in memory; on an accelerator, the largest leaf if that is more.

    Raises:
        CheckpointNotFoundError: there is no complete checkpoint at `path`.
        MismatchError: naming everything in which template and checkpoint differ, before any array is read. Also for
            64-bit JAX leaves while ``jax_enable_x64`` is off; for values that cannot be cast; for a `sharding` that
            does not fit.
        VariableNotFoundError: `only` selects nothing, or, without `like`, `rename` names what is not there; the message
            has similar names.
        CorruptCheckpointError: naming every damaged variable.
        UnsupportedVersionError: a newer pytreesaver wrote it.
        TypeError, ValueError: an argument makes no sense, or not with the others.

    Example:
        >>> path = save({"w": np.ones(3, np.float32), "z": (0, 0.5)}, "model")
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
        cast=cast,
        reshape=reshape,
        sharding=sharding,
        as_numpy=as_numpy,
        mmap=mmap,
        verify=verify,
        progress=progress,
    )
    return restore_with(path, like, options)
