"""save and restore: they take a tree apart or put it together, and leave the bytes to a format."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pytreesaver._background import SaveFuture, start_in_background
from pytreesaver._contents import contents_of, refuse_duplicates, snapshot
from pytreesaver._errors import (
    CorruptCheckpointError,
    MismatchError,
    StructureWarning,
    UnsupportedLeafError,
    VariableNotFoundError,
)
from pytreesaver._leaves import PYTHON_KINDS, LeafError, LeafType, describe, logical_shape, python_value
from pytreesaver._match import Missing, StoredVariables, Unexpected, check_x64, match_template
from pytreesaver._names import listed_with_suggestions, shown
from pytreesaver._paths import PathLike, local_path, named_os_errors
from pytreesaver._prune import prune_structure, structure_of_names
from pytreesaver._select import Selection, selected
from pytreesaver._structure import FlatTree, MalformedStructureError, flatten_tree, rebuild_tree
from pytreesaver._templates import Template, build_leaf, template_of
from pytreesaver._variables import open_reader
from pytreesaver.formats import CheckpointReader, TreeContents, native


def save(
    tree: Any,
    path: PathLike,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
) -> Path:
    """Save every leaf of a tree, under its variable name, as a checkpoint at `path`.

    The checkpoint appears at `path` in one step, when it is complete: a crash, a full disk or an error leaves nothing
    there, or, with `overwrite`, the old checkpoint whole. Missing parent directories are created.

    Args:
        tree: any pytree of arrays, typed PRNG keys, NumPy and Python numbers, str and bytes.
        path: where the checkpoint is to be; ``~`` is the home directory.
        metadata: what else to keep with the tree: a dict of plain Python values, given back by
            `load_checkpoint(path).metadata` exactly.
        overwrite: replace the checkpoint at `path`, if there is one. Anything else there is never replaced.
        durable: return only when the checkpoint would survive a power cut. Without it the operating system writes it
            out in its own time, some seconds later. Replacing a checkpoint is always durable: otherwise a power cut
            could cost the old one too.

    NumPy arrays must not be changed by another thread before `save` returns.

    Returns:
        The path of the checkpoint.

    Raises:
        UnsupportedLeafError: naming everything in the tree, or in `metadata`, that cannot be stored.
        DuplicateNameError: two leaves have one name, as in ``{"a/b": x, "a": {"b": y}}``.
        CheckpointExistsError: there is something at `path`, and `overwrite` is false or it is no checkpoint.
        TypeError, ValueError: `path` is no path on this machine, or `metadata` no dict.
        CheckpointIOError: the operating system could not write (disk full, permission denied, ...). If it is only the
            last step that fails, making the new name durable, the checkpoint is there.

    Example:
        >>> path = save({"w": np.ones(3), "step": 100}, "model-100", metadata={"loss": 0.5})
        >>> restore(path)
        {'w': array([1., 1., 1.]), 'step': 100}
    """
    target = local_path(path)
    return write_contents(target, contents_of(tree, metadata), overwrite=overwrite, durable=durable)


def write_contents(target: Path, contents: TreeContents, *, overwrite: bool, durable: bool) -> Path:
    """Write what `contents_of` made of a tree. Raises what `save` raises."""
    with named_os_errors("save to", target):
        native.write(target, contents, overwrite=overwrite, durable=durable)
    return target


def save_async(
    tree: Any,
    path: PathLike,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
) -> SaveFuture:
    """Start to save a tree, and return as soon as nothing that happens to the tree can change what is saved.

    The rest goes on in a thread. The caller may donate, delete or overwrite what is in the tree at once: arrays on an
    accelerator have been fetched and NumPy arrays copied; arrays on the CPU are immutable, and JAX does not reuse
    their memory while it is being saved. A program that ends normally waits for saves that are under way.

    The arguments are those of `save`.

    Returns:
        A future of the path. `SaveFuture.result` waits, and raises what went wrong.

    Raises:
        UnsupportedLeafError, DuplicateNameError, TypeError, ValueError: at once, as `save` does, before anything is
            written. What goes wrong later is raised by the future.

    Example:
        >>> future = save_async({"w": np.ones(3)}, "model-async")
        >>> future.result()
        PosixPath('model-async')
    """
    target = local_path(path)
    contents = snapshot(contents_of(tree, metadata))
    write = partial(write_contents, target, contents, overwrite=overwrite, durable=durable)
    future = SaveFuture(f"the save of {target}")
    start_in_background(future, write)
    return future


def restore(
    path: PathLike,
    like: Any = None,
    *,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    as_numpy: bool = False,
    verify: bool = True,
) -> Any:
    """Give the tree of a checkpoint: as it was saved, or as a template wants it.

    Without `like` the stored structure is rebuilt: containers of the same types, JAX leaves as JAX arrays on the
    default device, NumPy leaves as NumPy, Python values as themselves. A class that this process has not imported is
    replaced by a namedtuple or a dict, with a `StructureWarning`.

    With `like` the result has the template's containers, leaf kinds, dtypes, shapes and shardings. Every name, shape
    and dtype must be the same in both; only what loses nothing follows the template: NumPy or JAX, a Python number or
    a 0-d array.

    Args:
        path: the checkpoint.
        like: a tree of arrays, `jax.ShapeDtypeStruct`, and Python values. The result of `jax.eval_shape` is one.
        missing: ``"keep"`` keeps the template's own leaf where the checkpoint has no such variable. A
            `jax.ShapeDtypeStruct` has no value to keep, and is an error all the same.
        unexpected: ``"ignore"`` leaves out variables that the template does not have.
        as_numpy: give NumPy arrays in place of JAX arrays, and the data of PRNG keys; no device is touched.
        verify: check every byte against its checksum.

    Raises:
        CheckpointNotFoundError: there is no complete checkpoint at `path`.
        MismatchError: naming everything in which template and checkpoint differ, before any array is read. Also for
            64-bit JAX leaves while ``jax_enable_x64`` is off.
        CorruptCheckpointError: naming every damaged variable.
        UnsupportedVersionError: a newer pytreesaver wrote it.

    Example:
        >>> path = save({"w": np.ones(3, np.float32), "z": (0, 0.5)}, "model")
        >>> restore(path)
        {'w': array([1., 1., 1.], dtype=float32), 'z': (0, 0.5)}
        >>> restore(path, like={"w": jax.ShapeDtypeStruct((3,), np.float32), "z": (0, 0.0)})
        {'w': Array([1., 1., 1.], dtype=float32), 'z': (0, 0.5)}
    """
    options = RestoreOptions(missing=missing, unexpected=unexpected, as_numpy=as_numpy, verify=verify)
    return restore_with(path, like, options)


class RestoreOptions(NamedTuple):
    """How to restore: the arguments of `restore`, and what a `Saver` adds to them.

    `only` selects variables by their names in the tree, `stored_names` gives {name in the tree: name in the checkpoint}
    of those that have another name there, and no other variable is restored; with `may_be_empty` a selection of nothing
    is no error; `sequentially` holds one variable at a time beside the result.
    """

    missing: Missing = "error"
    unexpected: Unexpected = "error"
    as_numpy: bool = False
    verify: bool = True
    reshape: bool = False
    sequentially: bool = False
    may_be_empty: bool = False
    only: Selection | None = None
    stored_names: Mapping[str, str] | None = None


def restore_with(path: PathLike, like: Any, options: RestoreOptions, *, stacklevel: int = 3) -> Any:
    """What `restore` gives, under options that need not all be its own. Raises what `restore` raises."""
    if options.missing not in ("error", "keep"):
        raise ValueError(f'missing: expected "error" or "keep", found {options.missing!r}')
    if options.unexpected not in ("error", "ignore"):
        raise ValueError(f'unexpected: expected "error" or "ignore", found {options.unexpected!r}')
    if like is None and (options.missing, options.unexpected) != ("error", "error"):
        raise ValueError("missing and unexpected compare with a template: pass one as like=")
    with _opened(path) as reader:
        if like is None:
            return _restore_all(reader, options, stacklevel)
        return _restore_like(reader, like, options)


def _restore_all(reader: CheckpointReader, options: RestoreOptions, stacklevel: int) -> Any:
    names, structure = list(reader.names), reader.structure
    positions = list(range(len(names)))
    if options.stored_names is not None:
        by_name = {name: i for i, name in enumerate(names)}
        absent = [name for name in options.stored_names.values() if name not in by_name]
        if absent:
            lines = "\n".join(listed_with_suggestions(absent, names))
            raise VariableNotFoundError(f"{reader.path} lacks variables that var_list names:\n{lines}")
        positions = [by_name[name] for name in options.stored_names.values()]
        structure = structure_of_names(list(options.stored_names))
    elif options.only is not None:
        flags = selected(options.only, names, str(reader.path), may_be_empty=options.may_be_empty)
        positions = [i for i, flag in enumerate(flags) if flag]
        structure = prune_structure(structure, {i: position for position, i in enumerate(positions)})
    types, shapes = [reader.types[i] for i in positions], [reader.shapes[i] for i in positions]
    if not options.as_numpy:
        stored = StoredVariables([names[i] for i in positions], types, shapes)
        check_x64(stored, where=str(reader.path), x64_enabled=_x64_enabled())
    targets = [
        Template(leaf_type, logical_shape(leaf_type, shape)) for leaf_type, shape in zip(types, shapes, strict=True)
    ]
    leaves = _read_leaves(reader, positions, targets, options)
    try:
        tree, problems = rebuild_tree(structure, leaves)
    except MalformedStructureError as error:
        raise CorruptCheckpointError(f"{reader.path}: {error}") from error
    if problems:
        warnings.warn(
            f"{reader.path} was restored without a template, and not every container is what it was:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nImport the classes first, or pass a template as like=.",
            StructureWarning,
            stacklevel=stacklevel + 1,
        )
    return tree


def _restore_like(reader: CheckpointReader, like: Any, options: RestoreOptions) -> Any:
    flat = flatten_tree(like)
    refuse_duplicates(flat, like)
    wanted = _wanted_names(flat, options)
    templates = _templates_of(flat, wanted)
    considered = _considered(reader, options)
    # Whether a Python number fits an array depends on its value: those are read first, all at once.
    sources = {wanted[name]: template for name, template in templates.items()}
    numbers = [
        i
        for i, (name, leaf_type) in enumerate(zip(reader.names, reader.types, strict=True))
        if leaf_type.kind in PYTHON_KINDS and name in sources and sources[name].type.kind not in PYTHON_KINDS
    ]
    arrays = reader.read(numbers, verify=options.verify) if numbers else []
    values = {i: python_value(array, reader.types[i]) for i, array in zip(numbers, arrays, strict=True)}
    plan = match_template(
        templates,
        StoredVariables(reader.names, reader.types, reader.shapes),
        where=str(reader.path),
        missing=options.missing,
        unexpected=options.unexpected,
        reshape=options.reshape,
        stored_names=wanted,
        considered=considered,
        value_of=values.__getitem__,
        x64_enabled=_x64_enabled() or options.as_numpy,
    )
    sought = [(position, template) for position, template in zip(plan, templates.values(), strict=True)]
    positions = [position for position, _ in sought if position is not None]
    targets = [template for position, template in sought if position is not None]
    restored = iter(_read_leaves(reader, positions, targets, options))
    taken = {name for name, position in zip(templates, plan, strict=True) if position is not None}
    leaves = [next(restored) if name in taken else own for name, own in zip(flat.names, flat.leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _wanted_names(flat: FlatTree, options: RestoreOptions) -> dict[str, str]:
    """{name in the template: name in the checkpoint} of the leaves that are to be restored."""
    if options.stored_names is not None:
        present = set(flat.names)
        absent = [name for name in options.stored_names if name not in present]
        if absent:
            lines = "\n".join(listed_with_suggestions(absent, flat.names))
            raise VariableNotFoundError(f"the template (like) lacks variables that var_list names:\n{lines}")
        return {name: options.stored_names[name] for name in flat.names if name in options.stored_names}
    if options.only is None:
        return {name: name for name in flat.names}
    flags = selected(options.only, flat.names, "the template (like)", may_be_empty=options.may_be_empty)
    return {name: name for name, flag in zip(flat.names, flags, strict=True) if flag}


def _considered(reader: CheckpointReader, options: RestoreOptions) -> Callable[[str], bool]:
    """Whether a stored variable that no leaf takes is unexpected: not if it was never asked for."""
    if options.stored_names is not None:
        return set(options.stored_names.values()).__contains__
    return (lambda name: True) if options.only is None else options.only.selects


def _templates_of(flat: FlatTree, wanted: Collection[str]) -> dict[str, Template]:
    templates: dict[str, Template] = {}
    problems = []
    for name, leaf in zip(flat.names, flat.leaves, strict=True):
        if name not in wanted:
            continue
        try:
            templates[name] = template_of(leaf)
        except LeafError as problem:
            problems.append(
                f"  {shown(name)}: expected an array, a ShapeDtypeStruct or a value, found a leaf {problem}"
            )
    if problems:
        raise UnsupportedLeafError("the template (like) holds what cannot be restored:\n" + "\n".join(problems))
    return templates


def _read_leaves(
    reader: CheckpointReader, positions: Sequence[int], targets: Sequence[Template], options: RestoreOptions
) -> list[Any]:
    if not options.sequentially:
        arrays = reader.read(positions, verify=options.verify)
        return [_leaf(reader, *each, options) for each in zip(positions, arrays, targets, strict=True)]
    leaves, damaged = [], []
    for position, target in zip(positions, targets, strict=True):
        try:
            (array,) = reader.read([position], verify=options.verify)
        except CorruptCheckpointError as error:
            if not error.damaged:
                raise
            damaged += error.damaged
        else:
            if not damaged:
                leaves.append(_leaf(reader, position, array, target, options))
    if damaged:
        lines = "\n".join(f"  {shown(name)}" for name in damaged)
        raise CorruptCheckpointError(
            f"{reader.path}: {len(damaged)} of {len(reader.names)} variables damaged:\n{lines}", damaged=damaged
        )
    return leaves


def _leaf(reader: CheckpointReader, position: int, array: np.ndarray, target: Template, options: RestoreOptions) -> Any:
    name, stored, wanted = reader.names[position], reader.types[position], target.type
    shape = logical_shape(stored, array.shape)
    if options.as_numpy and wanted.kind in ("jax", "key"):
        wanted = LeafType("numpy", wanted.dtype)
    if options.reshape and shape != target.shape:
        array = array.reshape(*target.shape, *array.shape[len(shape) :])
    try:
        return build_leaf(array, stored, wanted, target.sharding)
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(
            f"{reader.path}: {shown(name)}: the stored bytes are no str: {error}", damaged=[name]
        ) from error
    except (ValueError, TypeError) as error:
        where = "" if target.sharding is None else f" with {target.sharding}"
        raise MismatchError(
            f"{shown(name)} of {reader.path}: {describe(stored, shape)} cannot be made{where}: {error}"
        ) from error


def _x64_enabled() -> bool:
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]


@contextmanager
def _opened(path: PathLike) -> Iterator[CheckpointReader]:
    reader = open_reader(path)
    try:
        with named_os_errors("read", reader.path):
            yield reader
    finally:
        reader.close()
