"""Restoring a tree as it was saved, or selected and renamed parts of it, without a template."""

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from pytreesaver._checkpoint.restoring.matching import LeafPlan, StoredVariables, check_targets
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.reading import read_leaves
from pytreesaver._checkpoint.restoring.targets import Template, placement_of, x64_enabled
from pytreesaver._errors import (
    CorruptCheckpointError,
    DuplicateNameError,
    StructureWarning,
    VariableNotFoundError,
)
from pytreesaver._text import lines_with_suggestions, quoted
from pytreesaver._tree.casting import X64_DTYPES
from pytreesaver._tree.kinds import LeafType, dtype_from_name, is_floating, logical_shape
from pytreesaver._tree.names.rename import ByName, with_other_names
from pytreesaver._tree.names.select import Selector, selected
from pytreesaver._tree.rebuild import MalformedStructureError, rebuild_tree
from pytreesaver._tree.restructure import NameConflictError, move_structure, names_without_leaves, prune_structure
from pytreesaver.formats.protocol import CheckpointReader, other_names_in


def restore_as_stored(reader: CheckpointReader, options: RestoreOptions, stacklevel: int) -> Any:
    """Return the tree as it was saved. Raises what `pytreesaver.restore` raises.

    Args:
        reader: the open checkpoint.
        options: how to restore.
        stacklevel: that of a `StructureWarning` in the caller.
    """
    names, positions, structure = select_variables(reader, options.only, options.rename, options.may_be_empty)
    types, shapes = [reader.types[i] for i in positions], [reader.shapes[i] for i in positions]
    has_jax_arrays = any(leaf_type.kind in ("jax", "key") for leaf_type in reader.types)
    stored = StoredVariables([reader.names[i] for i in positions], types, shapes)
    placed = placement_of(options.sharding, names, lambda: names_without_leaves(structure))
    targets: dict[str, Template] = {}
    for name, leaf_type, shape in zip(names, types, shapes, strict=True):
        logical = logical_shape(leaf_type, shape)
        as_placed = leaf_type if has_jax_arrays else _as_jax_type(leaf_type)
        sharding = placed(name, logical) if as_placed.kind in ("jax", "key") else None
        target_type = _target_type(leaf_type if sharding is None else as_placed, options)
        targets[name] = Template(target_type, logical, sharding)
    check_targets(targets, stored, where=str(reader.path), x64_enabled=x64_enabled() or options.as_numpy)
    plans = [LeafPlan(position, target) for position, target in zip(positions, targets.values(), strict=True)]
    leaves = _read_once(reader, plans, names, options)
    try:
        tree, problems = rebuild_tree(structure, leaves)
    except MalformedStructureError as error:
        raise CorruptCheckpointError(f"{reader.path}: {error}") from error
    if problems:
        warnings.warn(
            f"{reader.path} was restored without a template, and some parts have other types than before:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nImport the modules of classes and functions first, or pass a template as like=.",
            StructureWarning,
            stacklevel=stacklevel + 1,
        )
    return tree


def _read_once(
    reader: CheckpointReader, plans: Sequence[LeafPlan], names: Sequence[str], options: RestoreOptions
) -> list[Any]:
    """Read the leaves. Those that were one array object when the tree was saved are one object again."""
    if not reader.same_as:
        return read_leaves(reader, plans, names, options)
    first: dict[tuple[Any, ...], int] = {}
    uses: Counter[int] = Counter()
    sources: list[int] = []
    for i, plan in enumerate(plans):
        origin = reader.same_as.get(plan.position, plan.position)
        # A variable that `rename` gives several names becomes several objects.
        sources.append(first.setdefault((origin, uses[plan.position], plan.target.type, plan.target.sharding), i))
        uses[plan.position] += 1
    needed = sorted(set(sources))
    read = read_leaves(reader, [plans[i] for i in needed], [names[i] for i in needed], options)
    leaf_of = dict(zip(needed, read, strict=True))
    return [leaf_of[source] for source in sources]


@lru_cache(maxsize=1024)
def _as_jax_type(stored: LeafType) -> LeafType:
    """Return the type of a NumPy array as a JAX array, if JAX has its dtype."""
    if stored.kind != "numpy":
        return stored
    dtype = dtype_from_name(stored.dtype)
    is_numeric = dtype == np.bool_ or jnp.issubdtype(dtype, np.number)
    return LeafType("jax", dtype.name) if is_numeric and dtype.name not in ("float128", "complex256") else stored


def _target_type(stored: LeafType, options: RestoreOptions) -> LeafType:
    """Return the type of the leaf that a variable becomes."""
    if stored.kind not in ("jax", "numpy", "numpy_scalar"):
        return stored
    if options.cast is True:
        if stored.kind == "jax" and not (x64_enabled() or options.as_numpy):
            return LeafType("jax", X64_DTYPES.get(stored.dtype, stored.dtype), stored.weak_type)
    elif options.cast and is_floating(stored.dtype):
        return LeafType(stored.kind, options.cast)
    return stored


def select_variables(
    reader: CheckpointReader, only: Selector | None, rename: ByName | None, may_be_empty: bool = False
) -> tuple[list[str], list[int], Any]:
    """Return the names of the leaves to restore, the positions of their variables, and the structure of their tree.

    Raises:
        VariableNotFoundError: if `only` selects nothing, or `rename` names a variable that does not exist.
        DuplicateNameError: if a leaf and a container would have the same name, or a variable would have none.
    """
    names, positions, structure = list(reader.names), list(range(len(reader.names))), reader.structure
    rename = with_other_names(rename, other_names_in(reader), only_entries=True)
    if rename is not None:
        names, positions = _renamed_variables(reader, rename, only)
    if only is not None:
        flags = selected(only, names, str(reader.path), may_be_empty=may_be_empty)
        names = [name for name, flag in zip(names, flags, strict=True) if flag]
        positions = [position for position, flag in zip(positions, flags, strict=True) if flag]
    if rename is not None:
        moved: dict[int, list[tuple[str, int]]] = {}
        for i, (name, position) in enumerate(zip(names, positions, strict=True)):
            moved.setdefault(position, []).append((name, i))
        try:
            structure = move_structure(checked_structure(reader), reader.names, moved, keep_empty=only is None)
        except NameConflictError as error:
            raise DuplicateNameError(
                f"{rename.label}: {quoted(str(error))} would be a leaf of {reader.path}, and there are leaves "
                "under that name; rename those too, or leave them out with only="
            ) from None
    elif only is not None:
        structure = prune_structure(checked_structure(reader), {position: i for i, position in enumerate(positions)})
    return names, positions, structure


def checked_structure(reader: CheckpointReader) -> Any:
    """Return the stored structure of a checkpoint.

    Raises:
        CorruptCheckpointError: if it is malformed.
    """
    try:
        rebuild_tree(reader.structure, reader.names, lambda reference: None)
    except MalformedStructureError as error:
        raise CorruptCheckpointError(f"{reader.path}: {error}") from error
    return reader.structure


def _renamed_variables(
    reader: CheckpointReader, renaming: ByName, only: Selector | None
) -> tuple[list[str], list[int]]:
    pairs = [(name, i) for i, stored in enumerate(reader.names) for name in renaming.names_without_template(stored)]
    unused = renaming.unused([name for name, _ in pairs])
    if unused:
        lines = lines_with_suggestions([renaming.stored_name(entry) for entry in unused], reader.names)
        raise VariableNotFoundError(
            f"{renaming.label}: {reader.path} has no such variables; {renaming.label} maps names in the result to "
            "names in the checkpoint, and a prefix ends in '/':\n" + "\n".join(lines)
        )
    kept = {position for _, position in pairs}
    lost = [name for i, name in enumerate(reader.names) if i not in kept]
    if lost and only is None:
        raise DuplicateNameError(
            f"{renaming.label}: these variables of {reader.path} would have no name left, since others take their "
            "names; rename them too, or select what is wanted with only=:\n"
            + "\n".join(f"  {quoted(name)}" for name in lost)
        )
    return [name for name, _ in pairs], [position for _, position in pairs]
