"""Writing of Orbax checkpoints, through orbax-checkpoint, atomically and durably."""

import errno
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CheckpointError, CheckpointExistsError
from pytreesaver._io import filesystem
from pytreesaver._io.atomic import (
    make_locked_directory,
    new_hidden_path,
    remove_leftovers,
    remove_tree,
    sync_parents,
    write_pin,
)
from pytreesaver._io.checksums.xxh3 import checksum
from pytreesaver._io.files import write_fully
from pytreesaver._io.parallel import advance
from pytreesaver._text import SINGLE_LEAF_NAME, quoted
from pytreesaver._tree.kinds import Cells, LeafType, describe_dtype, joined_bytes, storage_dtype, stored_array
from pytreesaver.formats.description import described, encode_description
from pytreesaver.formats.orbax.arrays import ArrayStore, as_os_error, path_for_store
from pytreesaver.formats.orbax.layout import SIDECAR, recognizes
from pytreesaver.formats.orbax.sidecar import (
    MARKER,
    checksums_of_files,
    files_of_others,
)
from pytreesaver.formats.orbax.tree import array_directory, orbax_tree
from pytreesaver.formats.protocol import PINNED_NAME, TreeContents, refuse_unsupported

NAME = "orbax"
_STEP_NAME = re.compile(r"[0-9]+")
_KINDS = ("jax", "key", "numpy", "numpy_scalar", "bool", "int", "float")
_DTYPES = re.compile(
    r">?(bool|u?int(8|16|32|64)|int[24]|float(16|32|64)|bfloat16|complex(64|128)"
    r"|float8_(e3m4|e4m3fn|e4m3fnuz|e4m3b11fnuz|e5m2|e5m2fnuz|e8m0fnu)|float4_e2m1fn)"
)


def write(path: Path, contents: TreeContents, *, overwrite: bool, durable: bool, in_background: bool = False) -> None:
    """Write an Orbax checkpoint. See `pytreesaver.formats.Format.write`.

    Raises:
        UnsupportedLeafError: if the tree has leaves that Orbax cannot hold. It names all of them.
        CheckpointError: if this is not process 0 of its program. Orbax writes most values in that process only.
    """
    refuse_unsupported(contents, unsupported(contents), NAME)
    import jax

    if jax.process_index() != 0:
        raise CheckpointError(
            f"{path}: expected process 0 of the program to write for Orbax, found process {jax.process_index()}; save "
            'with processes="all", or in another format'
        )
    tree, keys = orbax_tree(contents.structure)
    if filesystem.is_link(path):
        path = filesystem.resolved(path)
    path_for_store(path)
    exists = filesystem.exists(path)
    if exists and not overwrite:
        raise CheckpointExistsError(f"{path} exists already; pass overwrite=True to replace a checkpoint")
    if exists and not _may_replace(path):
        raise CheckpointExistsError(
            f"{path}: expected an Orbax checkpoint of pytreesaver to overwrite, found something else; remove it first"
        )
    with new_hidden_path(path) as (hidden, made), ExitStack() as locks:
        make_locked_directory(hidden, locks)
        remove_leftovers(path.parent)
        new = hidden / path.name
        _write_files(new, tree, keys, contents)
        if durable or exists:
            _sync_tree(new)
        if exists:
            _keep_pin(path, new)
            filesystem.exchange(new, path)
            sync_parents(path)  # before the old checkpoint is deleted
            filesystem.sync_directory(hidden)
        else:
            _give_name(new, path)
        remove_tree(hidden)
    if durable or exists:
        sync_parents(path, made)


def _keep_pin(path: Path, new: Path) -> None:
    if filesystem.exists(path / PINNED_NAME):
        write_pin(new / PINNED_NAME)


def _give_name(new: Path, path: Path) -> None:
    try:
        filesystem.rename(new, path)
    except OSError as error:
        if filesystem.may_exist(path):
            raise CheckpointExistsError(f"{path} was created by another process during the save") from error
        raise


def _may_replace(path: Path) -> bool:
    return recognizes(path) and filesystem.exists(path / SIDECAR) and not files_of_others(path)


def unsupported(contents: TreeContents) -> Mapping[str, str]:
    """Return what Orbax cannot hold. See `pytreesaver.formats.Format.unsupported`."""
    if not contents.names:
        return {SINGLE_LEAF_NAME: "Orbax holds no empty tree"}
    if type(contents.structure) is int:
        return {SINGLE_LEAF_NAME: 'Orbax holds no tree that is a single leaf; save a dict such as {"value": leaf}'}
    _, keys = orbax_tree(contents.structure)
    first: dict[str, str] = {}
    problems = {}
    columns = zip(contents.names, contents.types, contents.shapes, keys, strict=True)
    for name, leaf_type, shape, key in columns:
        same = first.setdefault(array_directory(key), name)
        if same != name:
            problems[name] = f"Orbax would store it in the same place as {quoted(same)}; rename one of them"
        elif problem := _problem(leaf_type, shape):
            problems[name] = problem
    return problems


def _problem(leaf_type: LeafType, shape: Sequence[int]) -> str | None:
    if leaf_type.kind not in _KINDS:
        return f"StandardCheckpointer of Orbax holds no {leaf_type.kind}"
    if leaf_type.kind == "int" and leaf_type.dtype == "uint8":
        return "Orbax holds no int of more than 64 bits"
    if not _DTYPES.fullmatch(leaf_type.dtype):
        return f"Orbax holds no arrays of {describe_dtype(leaf_type)}"
    if len(shape) > 32:
        return f"Orbax holds no arrays of more than 32 axes, found {len(shape)}"
    if 0 in shape:
        return f"Orbax holds no empty arrays, found shape {list(shape)}"
    return None


def _write_files(directory: Path, tree: Any, keys: Sequence[str], contents: TreeContents) -> None:
    import jax

    from pytreesaver.formats.orbax.streaming import save_tree

    checksums = [""] * len(keys)
    columns = enumerate(zip(contents.types, contents.shapes, contents.cells, strict=True))
    leaves = [_orbax_leaf(*each, partial(_note_checksum, checksums, i)) for i, each in columns]
    filled = jax.tree.map(lambda position: leaves[position], tree)
    is_step = _STEP_NAME.fullmatch(directory.name) is not None  # as `ocp.CheckpointManager` expects it
    try:
        item = save_tree(directory, filled, dict(zip(keys, leaves, strict=True)), MARKER, is_step=is_step)
        found = ArrayStore(item, zarr3=False, is_complete=True).keys()
    except Exception as error:  # TensorStore raises ValueError and others
        refused = as_os_error(error, directory)
        if refused is None:
            raise
        raise refused from error
    written = {f"{key}/" if key else "" for key in found}
    lost = [name for name, key in zip(contents.names, keys, strict=True) if array_directory(key) not in written]
    if lost:  # Orbax takes a directory that the system could not list for an empty one
        raise OSError(errno.EIO, f"Orbax reported no error, but did not write {', '.join(lost[:5])}; save again")
    files = checksums_of_files(directory, filesystem.file_sizes(directory))
    _write_file(directory / SIDECAR, encode_description(described(contents, keys, checksums, files=files)))


def _orbax_leaf(
    leaf_type: LeafType, shape: tuple[int, ...], cells: Cells, note_checksum: Callable[[np.ndarray], None]
) -> Any:
    """Return a leaf as Orbax takes it: a number, or an array that is loaded when it is written."""
    from pytreesaver.formats.orbax.streaming import LazyJAXArray, LazyNumPyArray

    def load() -> np.ndarray:
        content = joined_bytes(cells, leaf_type, shape)
        note_checksum(content)
        advance(content.nbytes)
        return stored_array(content, leaf_type, shape)

    if leaf_type.kind in ("bool", "int", "float"):
        return load().item()
    in_context = partial(copy_context().run, load)  # Orbax writes in other threads, and the progress counts there too
    if leaf_type.kind == "key" or (leaf_type.kind == "jax" and _is_jax_dtype(storage_dtype(leaf_type))):
        leaf = LazyJAXArray(shape, storage_dtype(leaf_type), in_context)
        leaf.key_impl = leaf_type.key_impl
        return leaf
    return LazyNumPyArray(shape, storage_dtype(leaf_type), in_context)


def _is_jax_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether JAX has arrays of a dtype: those of 64 bits have to be enabled."""
    import jax

    return jax.config.jax_enable_x64 or jax.dtypes.canonicalize_dtype(dtype) == dtype  # type: ignore[no-any-return, attr-defined, unused-ignore]


def _note_checksum(checksums: list[str], position: int, content: np.ndarray) -> None:
    checksums[position] = f"{checksum(content):016x}"


def _write_file(file: Path, content: bytes) -> None:
    descriptor = filesystem.open_new(file)
    try:
        write_fully(descriptor, [content], 0)
    except BaseException:
        filesystem.release(descriptor)
        raise
    filesystem.close(descriptor)


def _sync_tree(path: Path) -> None:
    """Make a directory durable, with all that is in it. Orbax syncs only its arrays."""
    for entry in filesystem.list_directory(path):
        inside = path / entry
        if filesystem.is_directory(inside):
            _sync_tree(inside)
        else:
            descriptor = filesystem.open_existing(inside)
            try:
                filesystem.sync_file(descriptor)
            finally:
                filesystem.release(descriptor)
    filesystem.sync_directory(path)
