"""A tree made ready to be written: every leaf named, described and found fit to be stored, before a byte is written."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pytreesaver._errors import DuplicateNameError, UnsupportedLeafError
from pytreesaver._leaf_types import LeafType
from pytreesaver._leaves import LeafError, cells_of, leaf_type_of
from pytreesaver._names import duplicates, shown
from pytreesaver._prune import prune_structure, structure_of_names
from pytreesaver._records import Record, encode_record
from pytreesaver._select import Selection, selected
from pytreesaver._structure import FlatTree, flatten_tree
from pytreesaver._values import NotPlainError, encode_value
from pytreesaver.formats import TreeContents


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


def refuse_duplicates(flat: FlatTree, tree: Any) -> None:
    """Raise a `DuplicateNameError` if two leaves of `tree`, taken apart as `flat`, have one name."""
    if len(set(flat.names)) == len(flat.names):
        return
    paths: dict[str, list[str]] = {}
    for name, (key_path, _) in zip(flat.names, jax.tree_util.tree_flatten_with_path(tree)[0], strict=True):
        paths.setdefault(name, []).append(jax.tree_util.keystr(key_path))
    lines = [f"  {shown(name)}: {' and '.join(paths[name])}" for name in duplicates(flat.names)]
    raise DuplicateNameError("expected a name of its own for every leaf, found these shared:\n" + "\n".join(lines))
