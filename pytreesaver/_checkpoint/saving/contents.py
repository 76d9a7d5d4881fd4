"""From a tree to what a format writes: names, types, values and metadata, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from pytreesaver._checkpoint.saving.casting import cast_type, with_cast_cells
from pytreesaver._checkpoint.saving.remembered import described, flattened
from pytreesaver._checkpoint.saving.sharing import shared_contents
from pytreesaver._errors import UnsupportedLeafError
from pytreesaver._io.memory import collection_paused
from pytreesaver._io.processes.meeting import Meeting
from pytreesaver._run.record import Record, encode_record
from pytreesaver._text import quoted
from pytreesaver._tree.kinds import LeafType, NotPlainError, OneCellEach
from pytreesaver._tree.leaves import cells_of
from pytreesaver._tree.names.select import Selector, selected
from pytreesaver._tree.plain import MAX_DEPTH, encode_value
from pytreesaver._tree.restructure import prune_structure, structure_of_names
from pytreesaver._tree.structure import FlatTree, check_unique_names
from pytreesaver.formats.protocol import TreeContents


@collection_paused()
def contents_of(
    tree: Any,
    metadata: Mapping[str, Any] | None,
    *,
    only: Selector | None = None,
    may_be_empty: bool = False,
    record: Record | None = None,
    meeting: Meeting | None = None,
    remembers: bool = True,
    cast: bool | str = False,
) -> TreeContents:
    """Return what a format needs to write a tree, or the selected part of it: with a meeting, this process's share.

    Raises:
        UnsupportedLeafError: if the tree, or `metadata`, holds values that cannot be stored.
        DuplicateNameError: if two leaves have the same name.
        VariableNotFoundError: if nothing is selected, unless `may_be_empty`.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a dict, found {metadata!r}")
    flat = flattened(tree)
    check_unique_names(flat, tree)
    if only is not None:
        flat = _selected_part(flat, selected(only, flat.names, "the tree", may_be_empty=may_be_empty))
    problems = dict(flat.problems)
    columns, references = described(flat.leaves, is_shared=meeting is not None)
    leaf_types, shapes = columns.types, columns.shapes
    for i, problem in columns.problems.items():
        problems[flat.names[i]] = f"expected an array, a number, str or bytes, found a leaf {problem}"
    problems |= dict.fromkeys(
        filter(_has_surrogate, flat.names) if _has_surrogate("".join(flat.names)) else (),
        "expected a name that can be written as UTF-8, found one with a lone surrogate",
    )
    encoded_metadata: Any = None
    try:
        encoded_metadata = {} if metadata is None else encode_value(_without_scalars(dict(metadata)), classes=False)
    except NotPlainError as problem:
        problems["metadata"] = str(problem)
    if problems:
        raise UnsupportedLeafError(
            f"{len(problems)} thing{'s' * (len(problems) != 1)} cannot be saved:\n"
            + "\n".join(f"  {quoted(name)}: {problem}" for name, problem in problems.items())
        )
    encoded_record = None if record is None else encode_record(record)
    same_as = _same_arrays(flat.leaves, leaf_types)
    types = leaf_types if cast is False else [cast_type(leaf_type, cast) for leaf_type in leaf_types]
    contents = TreeContents(flat.names, types, shapes, [], flat.structure, encoded_metadata, encoded_record, same_as)
    if remembers:
        contents = contents._replace(leaves=references)
    if meeting is not None:
        contents = shared_contents(contents, flat.leaves, meeting.rank, meeting.count)
    else:
        cells: Any = columns.cells
        if not isinstance(cells, OneCellEach):
            leaves = zip(flat.leaves, leaf_types, cells, strict=True)
            cells = [each or cells_of(leaf, kind) for leaf, kind, each in leaves]
        contents = contents._replace(cells=cells)
    return contents if types is leaf_types else with_cast_cells(contents, leaf_types)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _same_arrays(leaves: Sequence[Any], leaf_types: Sequence[LeafType]) -> dict[int, int]:
    """Return {position: earlier position} of the leaves that are the same object as an earlier one."""
    if len(set(map(id, leaves))) == len(leaves):
        return {}
    first: dict[int, int] = {}
    same_as = {}
    for i, (leaf, leaf_type) in enumerate(zip(leaves, leaf_types, strict=True)):
        if leaf_type.kind in _SHARED_KINDS and (earlier := first.setdefault(id(leaf), i)) != i:
            same_as[i] = earlier
    return same_as


def _without_scalars(value: Any, level: int = 0) -> Any:
    """Return metadata with NumPy scalars and 0-d arrays, of NumPy or JAX, replaced by Python numbers."""
    if level > MAX_DEPTH:
        return value  # encoding it is an error
    if type(value) is dict:
        return {key: _without_scalars(each, level + 1) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_without_scalars(each, level + 1) for each in value])
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)
    if is_array and value.shape == () and hasattr(value, "item"):
        is_number = value.dtype == np.bool_ or jnp.issubdtype(value.dtype, np.number)
        return value.item() if is_number else value
    return value


_SHARED_KINDS = ("jax", "key", "numpy")
"""The kinds of leaves whose identity matters: the others are immutable, and Python shares some of them by itself."""


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
    """Return the same variables under other names, {name: name in the checkpoint}, as nested dicts."""
    names = [stored_names[name] for name in contents.names]
    return contents._replace(names=names, structure=structure_of_names(names))
