"""`restore`: the tree of a checkpoint, or part of it."""

from typing import Any

from pytreesaver._checkpoint.restoring.matching import Missing, Unexpected
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.with_template import plan_like
from pytreesaver._checkpoint.restoring.without_template import _restore_all
from pytreesaver._io.paths import PathLike
from pytreesaver._progress import Progress
from pytreesaver.formats.registry import opened


def restore_with(path: PathLike, like: Any, options: RestoreOptions, *, stacklevel: int = 3) -> Any:
    """What `pytreesaver.restore` gives, under options that need not all be its own. Raises what it raises."""
    options = options.checked(like)
    with opened(path) as reader:
        if like is None:
            return _restore_all(reader, options, stacklevel)
        plan = plan_like(reader, like, options)
        return plan.with_leaves(plan.read(reader, options))


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
        cast=cast,
        reshape=reshape,
        sharding=sharding,
        as_numpy=as_numpy,
        mmap=mmap,
        verify=verify,
        progress=progress,
    )
    return restore_with(path, like, options)
