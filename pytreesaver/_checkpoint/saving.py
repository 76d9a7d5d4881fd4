"""save and restore: they take a tree apart or put it together, and leave the bytes to a format."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pytreesaver._checkpoint.background import SaveFuture, start_in_background
from pytreesaver._checkpoint.snapshot import snapshot
from pytreesaver._errors import UnsupportedLeafError
from pytreesaver._io.paths import PathLike, local_path, named_os_errors
from pytreesaver._progress import Progress, check_progress, reporting
from pytreesaver._text import shown
from pytreesaver._tree.kinds import LeafType, NotPlainError
from pytreesaver._tree.leaves import LeafError, cells_of, leaf_type_of
from pytreesaver._tree.plain import encode_value
from pytreesaver._tree.restructure import prune_structure, structure_of_names
from pytreesaver._tree.select import Selection, as_selection, selected
from pytreesaver._tree.structure import FlatTree, flatten_tree, refuse_duplicates
from pytreesaver.formats.protocol import TreeContents
from pytreesaver._run.record import Record, encode_record
from pytreesaver.formats.registry import format_named


def contents_of(
    tree: Any,
    metadata: Mapping[str, Any] | None,
    *,
    only: Selection | None = None,
    may_be_empty: bool = False,
    record: Record | None = None,
) -> TreeContents:
    """Everything that a format needs in order to write a tree, or the selected part of it.

    Raises:
        UnsupportedLeafError: naming everything in the tree, or in `metadata`, that cannot be stored.
        DuplicateNameError: naming every name that two leaves share.
        VariableNotFoundError: nothing is selected, and not `may_be_empty`.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a dict, found {metadata!r}")
    flat = flatten_tree(tree)
    refuse_duplicates(flat, tree)
    if only is not None:
        flat = _selected_part(flat, selected(only, flat.names, "the tree", may_be_empty=may_be_empty))
    problems = dict(flat.problems)
    leaf_types: list[LeafType] = []
    shapes: list[tuple[int, ...]] = []
    for name, leaf in zip(flat.names, flat.leaves, strict=True):
        try:
            leaf_type, shape = leaf_type_of(leaf)
            name.encode()
        except LeafError as problem:
            problems[name] = f"expected an array, a number, str or bytes, found a leaf {problem}"
        except UnicodeEncodeError:
            problems[name] = "expected a name that can be written as UTF-8, found one with a lone surrogate"
        else:
            leaf_types.append(leaf_type)
            shapes.append(shape)
    try:
        encoded_metadata = {} if metadata is None else encode_value(dict(metadata), classes=False)
    except NotPlainError as problem:
        problems["metadata"] = str(problem)
    if problems:
        raise UnsupportedLeafError(
            f"{len(problems)} thing{'s' * (len(problems) != 1)} cannot be saved:\n"
            + "\n".join(f"  {shown(name)}: {problem}" for name, problem in problems.items())
        )
    cells = [cells_of(leaf, leaf_type) for leaf, leaf_type in zip(flat.leaves, leaf_types, strict=True)]
    encoded_record = None if record is None else encode_record(record)
    return TreeContents(flat.names, leaf_types, shapes, cells, flat.structure, encoded_metadata, encoded_record)


def _selected_part(flat: FlatTree, flags: Sequence[bool]) -> FlatTree:
    staying = [i for i, flag in enumerate(flags) if flag]
    names = [flat.names[i] for i in staying]
    return FlatTree(
        names,
        [flat.leaves[i] for i in staying],
        prune_structure(flat.structure, {i: position for position, i in enumerate(staying)}),
        {
            where: problem
            for where, problem in flat.problems.items()
            if any(name == where or name.startswith(f"{where}/") for name in names)
        },
    )


def renamed(contents: TreeContents, stored_names: Mapping[str, str]) -> TreeContents:
    """The same variables under other names, {name: name in the checkpoint}: as nested dicts of the new names."""
    names = [stored_names[name] for name in contents.names]
    return contents._replace(names=names, structure=structure_of_names(names))


def write_contents(
    target: Path,
    contents: TreeContents,
    *,
    overwrite: bool,
    durable: bool,
    in_background: bool = False,
    format: str | None = None,
    progress: Progress = False,
    what: str | None = None,
) -> Path:
    """Write what `contents_of` made of a tree. Raises what `save` raises. `what` begins the line of the progress."""
    nbytes = 0 if progress is False else contents.nbytes
    with named_os_errors("save to", target), reporting(progress, what or f"saving {target}", nbytes):
        writer = format_named(format)
        writer.write(target, contents, overwrite=overwrite, durable=durable, in_background=in_background)
    return target


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
        >>> pytreesaver.restore(path)
        {'w': array([1., 1., 1.]), 'step': 100}
        >>> pytreesaver.restore(save({"encoder": {"w": np.ones(2), "b": 0.0}, "head": 1}, "weights", only="**/w"))
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
