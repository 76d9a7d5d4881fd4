"""save and restore: they take a tree apart or put it together, and leave the bytes to a format."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from pytreesaver._contents import contents_of, refuse_duplicates
from pytreesaver._errors import CorruptCheckpointError, MismatchError, StructureWarning, UnsupportedLeafError
from pytreesaver._leaves import PYTHON_KINDS, LeafError, LeafType, describe, logical_shape, python_value
from pytreesaver._match import Missing, StoredVariables, Unexpected, check_x64, match_template
from pytreesaver._names import shown
from pytreesaver._paths import PathLike, local_path, named_os_errors
from pytreesaver._structure import FlatTree, MalformedStructureError, flatten_tree, rebuild_tree
from pytreesaver._templates import Template, build_leaf, template_of
from pytreesaver._variables import open_reader
from pytreesaver.formats import CheckpointReader, native


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
    contents = contents_of(tree, metadata)
    with named_os_errors("save to", target):
        native.write(target, contents, overwrite=overwrite, durable=durable)
    return target


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
    if missing not in ("error", "keep"):
        raise ValueError(f'missing: expected "error" or "keep", found {missing!r}')
    if unexpected not in ("error", "ignore"):
        raise ValueError(f'unexpected: expected "error" or "ignore", found {unexpected!r}')
    if like is None and (missing, unexpected) != ("error", "error"):
        raise ValueError("missing and unexpected compare with a template: pass one as like=")
    with _opened(path) as reader:
        if like is None:
            return _restore_all(reader, as_numpy, verify)
        return _restore_like(reader, like, missing, unexpected, as_numpy, verify)


def _restore_all(reader: CheckpointReader, as_numpy: bool, verify: bool) -> Any:
    if not as_numpy:
        stored = StoredVariables(reader.names, reader.types, reader.shapes)
        check_x64(stored, where=str(reader.path), x64_enabled=_x64_enabled())
    positions = range(len(reader.names))
    targets = [Template(leaf_type, ()) for leaf_type in reader.types]
    leaves = _read_leaves(reader, positions, targets, as_numpy, verify)
    try:
        tree, problems = rebuild_tree(reader.structure, leaves)
    except MalformedStructureError as error:
        raise CorruptCheckpointError(f"{reader.path}: {error}") from error
    if problems:
        warnings.warn(
            f"{reader.path} was restored without a template, and not every container is what it was:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nImport the classes first, or pass a template as like=.",
            StructureWarning,
            stacklevel=3,
        )
    return tree


def _restore_like(
    reader: CheckpointReader, like: Any, missing: Missing, unexpected: Unexpected, as_numpy: bool, verify: bool
) -> Any:
    flat = flatten_tree(like)
    refuse_duplicates(flat, like)
    templates = _templates_of(flat)
    # Whether a Python number fits an array depends on its value: those are read first, all at once.
    numbers = [
        i
        for i, (name, leaf_type) in enumerate(zip(reader.names, reader.types, strict=True))
        if leaf_type.kind in PYTHON_KINDS and name in templates and templates[name].type.kind not in PYTHON_KINDS
    ]
    arrays = reader.read(numbers, verify=verify) if numbers else []
    values = {i: python_value(array, reader.types[i]) for i, array in zip(numbers, arrays, strict=True)}
    plan = match_template(
        templates,
        StoredVariables(reader.names, reader.types, reader.shapes),
        where=str(reader.path),
        missing=missing,
        unexpected=unexpected,
        value_of=values.__getitem__,
        x64_enabled=_x64_enabled() or as_numpy,
    )
    wanted = [(position, template) for position, template in zip(plan, templates.values(), strict=True)]
    positions = [position for position, _ in wanted if position is not None]
    targets = [template for position, template in wanted if position is not None]
    restored = iter(_read_leaves(reader, positions, targets, as_numpy, verify))
    leaves = [own if position is None else next(restored) for position, own in zip(plan, flat.leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _templates_of(flat: FlatTree) -> dict[str, Template]:
    templates: dict[str, Template] = {}
    problems = []
    for name, leaf in zip(flat.names, flat.leaves, strict=True):
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
    reader: CheckpointReader, positions: Any, targets: list[Template], as_numpy: bool, verify: bool
) -> list[Any]:
    arrays = reader.read(positions, verify=verify)
    leaves = []
    for position, array, target in zip(positions, arrays, targets, strict=True):
        stored, wanted = reader.types[position], target.type
        if as_numpy and wanted.kind in ("jax", "key"):
            wanted = LeafType("numpy", wanted.dtype)
        try:
            leaves.append(build_leaf(array, stored, wanted, target.sharding))
        except UnicodeDecodeError as error:
            name = reader.names[position]
            raise CorruptCheckpointError(
                f"{reader.path}: {shown(name)}: the stored bytes are no str: {error}", damaged=[name]
            ) from error
        except (ValueError, TypeError) as error:
            name, shape = reader.names[position], logical_shape(stored, array.shape)
            where = "" if target.sharding is None else f" with {target.sharding}"
            raise MismatchError(
                f"{shown(name)} of {reader.path}: {describe(stored, shape)} cannot be made{where}: {error}"
            ) from error
    return leaves


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
