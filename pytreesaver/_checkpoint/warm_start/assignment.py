"""init_from_checkpoint: an assignment map from the variables of a checkpoint to the leaves of a tree."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from pytreesaver._checkpoint.restoring.matching import joined
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.targets import Template, build_leaf
from pytreesaver._checkpoint.restoring.with_template import named_template, plan_restore
from pytreesaver._errors import MismatchError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike
from pytreesaver._run.directory import checkpoint_at
from pytreesaver._text import prefixes, quoted, suggestions
from pytreesaver._tree.boxes import Box, box_shape
from pytreesaver._tree.kinds import describe, storage_dtype
from pytreesaver._tree.rename import ByName
from pytreesaver._tree.structure import FlatTree, check_unique_names, flatten_tree
from pytreesaver.formats.protocol import CheckpointReader
from pytreesaver.formats.registry import opened

AssignmentMap = Mapping[str, Any] | Sequence[tuple[str, Any]]
T = TypeVar("T")


def init_from_checkpoint(tree: T, path: PathLike, assignment_map: AssignmentMap) -> T:
    """Give a tree in which the leaves that a map names have the values of a checkpoint, and all others are the same.

    After `tf.compat.v1.train.init_from_checkpoint`. The map leads from the checkpoint to the tree; it is a dict, or a
    list of pairs, in which one variable of the checkpoint can stand several times. Its forms:

    ==========================  ======================================================================================
    ``"a/b": "scope/w"``        a variable, to the leaf of that name
    ``"a/b": tree["scope"]``    a variable, to that leaf itself (the same object)
    ``"a/b": ["w/0", "w/1"]``   a variable, to leaves that together are as large: each takes its slice, one after the
                                other along the one axis on which they are shorter
    ``"a/b": "w"``              the same, where there is no leaf ``w`` but leaves under it: ``w/2`` before ``w/10``
    ``"old/": "new/"``          to every leaf under ``new/`` the variable that has the rest of its name under ``old/``
    ``"/": "new/"``             the same from the root of the checkpoint; ``"old/": "/"`` is to the root of the tree
    ==========================  ======================================================================================

    Where TensorFlow is silent on a typo, this raises: a prefix under which there is no leaf, a wrong shape under a
    prefix, a leaf that is assigned twice.

    Args:
        tree: a tree of arrays and values.
        path: a checkpoint, or a run directory, of which the newest one is meant.
        assignment_map: the map.

    Raises:
        MismatchError: naming everything that does not fit, before any array is read.
        What `pytreesaver.restore` raises.

    Example:
        >>> path = pytreesaver.save({"encoder": {"w": np.ones(2), "b": 3.0}, "head": np.zeros(4)}, "pretrained")
        >>> tree = {"left": np.ones(1), "model": {"b": 0.0, "w": np.zeros(2)}, "right": np.ones(3), "step": 7}
        >>> init_from_checkpoint(tree, path, {"encoder/": "model/", "head": ["left", "right"]})
        {'left': array([0.]), 'model': {'b': 3.0, 'w': array([1., 1.])}, 'right': array([0., 0., 0.]), 'step': 7}
    """
    flat = flatten_tree(tree)
    check_unique_names(flat, tree)
    entries = _entries(assignment_map)
    with opened(checkpoint_at(path)) as reader:
        positions = {name: i for i, name in enumerate(reader.names)}
        assigned = _Assignments({}, {})
        problems: list[MismatchError] = []
        lines = _resolve(entries, _Names(flat, list(reader.names)), assigned)
        if lines:
            problems.append(MismatchError(f"the assignment map does not fit {reader.path}:\n" + "\n".join(lines)))
        options = RestoreOptions(
            only=assigned.whole.__contains__,
            rename=assigned.whole.__getitem__,
            unexpected="ignore",
            may_be_empty=True,
            hints=False,
        ).checked(tree)
        try:
            plan = plan_restore(reader, tree, options)
        except MismatchError as error:
            problems.append(error)
        leaves = dict(zip(flat.names, flat.leaves, strict=True))
        sliced: list[_Slice] = []
        for names, stored_name in assigned.sliced.items():
            templates = {name: named_template(name, leaves[name]) for name in names}
            try:
                sliced += _plan_slices(reader, positions[stored_name], templates)
            except MismatchError as error:
                problems.append(error)
        if problems:
            raise joined(problems)
        restored = plan.read(reader, options)
        return plan.with_leaves(restored | {each.name: _slice_leaf(reader, each) for each in sliced})


def _entries(assignment_map: Any) -> list[tuple[str, Any]]:
    is_list = isinstance(assignment_map, list | tuple)
    entries = list(assignment_map.items()) if isinstance(assignment_map, Mapping) else assignment_map
    for entry in entries if isinstance(assignment_map, Mapping) or is_list else [assignment_map]:
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise TypeError(
                "assignment_map: expected a dict, or a list of pairs, of variables in the checkpoint and leaves of the "
                f"tree, found {entry!r}"
            )
    return list(entries)


class _Names:
    """The names of a tree and of a checkpoint, and what lies under each, looked up in no time."""

    def __init__(self, flat: FlatTree, stored: Sequence[str]) -> None:
        self.names = flat.names
        self.present = set(flat.names)
        self.stored = set(stored)
        self.under: dict[str, list[str]] = {"/": flat.names}
        for name in flat.names:
            for prefix in prefixes(name):
                if prefix != name:
                    self.under.setdefault(f"{prefix}/", []).append(name)
        self.stored_prefixes = {f"{prefix}/" for name in stored for prefix in prefixes(name) if prefix != name}
        self.by_identity: dict[int, list[str]] = {}
        for name, leaf in zip(flat.names, flat.leaves, strict=True):
            self.by_identity.setdefault(id(leaf), []).append(name)
        self.suggest_stored = suggestions(stored)
        self.suggest = suggestions([*sorted(set(self.under) - {"/"}), *flat.names])


class _Assignments(NamedTuple):
    """{leaf: variable} of the leaves that take a whole variable, and {leaves: variable} of those that share one."""

    whole: dict[str, str]
    sliced: dict[tuple[str, ...], str]


def _resolve(entries: Sequence[tuple[str, Any]], known: _Names, assigned: _Assignments) -> list[str]:
    """Fill in what is assigned to what. Gives a line for each entry that makes no sense."""
    problems: list[str] = []
    taken: dict[str, str] = {}
    for old, new in entries:
        try:
            whole, sliced = _targets(old, new, known)
        except _EntryError as error:
            problems.append(f"  {old!r}: {error}")
            continue
        for name in [*whole, *sliced]:
            if name in taken:
                problems.append(f"  {old!r}: {quoted(name)} is assigned by {taken[name]!r} already")
            taken.setdefault(name, old)
        assigned.whole.update(whole)
        if sliced:
            assigned.sliced[tuple(sliced)] = old
    return problems


class _EntryError(Exception):
    """Why an entry of the map makes no sense, as the end of a sentence."""


def _targets(old: str, new: Any, known: _Names) -> tuple[dict[str, str], list[str]]:
    """{leaf: variable} of an entry, or the leaves that are slices of one variable."""
    if isinstance(new, str) and (old.endswith("/") or new.endswith("/")):
        if not (old.endswith("/") and new.endswith("/")):
            raise _EntryError(
                f"Assignment map with scope only name {old if old.endswith('/') else new} should map to scope only "
                f"{new if old.endswith('/') else old}. Should be 'scope/': 'other_scope/'."
            )
        under = known.under.get(new, [])
        if not under:
            raise _EntryError(f"expected leaves of the tree under {new!r}, found none{known.suggest(new)}")
        renaming = ByName({new: old})
        return {name: renaming.stored_name(name) for name in under}, []
    if old not in known.stored:
        hint = "; a prefix ends in '/'" if f"{old}/" in known.stored_prefixes else known.suggest_stored(old)
        raise _EntryError(f"expected a variable of the checkpoint, found none{hint}")
    if isinstance(new, str) and new not in known.present and f"{new}/" in known.under:
        return {}, sorted(known.under[f"{new}/"], key=_as_counted)
    if isinstance(new, list | tuple):
        if not new:
            raise _EntryError("expected leaves of the tree, found an empty list")
        return {}, [_leaf_name(each, known) for each in new]
    return {_leaf_name(new, known): old}, []


def _as_counted(name: str) -> list[tuple[int, str]]:
    """A key to sort names by in which ``part_10`` comes after ``part_9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _leaf_name(given: Any, known: _Names) -> str:
    if isinstance(given, str):
        if given not in known.present:
            hint = known.suggest(given)
            raise _EntryError(f"expected a leaf of the tree, found none that is called {given!r}{hint}")
        return given
    names = known.by_identity.get(id(given), [])
    is_array = isinstance(given, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    if not is_array or len(names) != 1:
        found = f"{len(names)} places in the tree with this {type(given).__name__}" if is_array else repr(given)
        raise _EntryError(f"expected the name of a leaf, a leaf of the tree that is an array, or a list, found {found}")
    return names[0]


class _Slice(NamedTuple):
    """A leaf that is a part of a variable."""

    name: str
    position: int
    template: Template
    box: Box


def _plan_slices(reader: CheckpointReader, position: int, templates: Mapping[str, Template]) -> list[_Slice]:
    """Raises a MismatchError if the leaves are not what a variable can be cut into."""
    stored, shape = reader.types[position], reader.shapes[position]
    parts = [template.shape for template in templates.values()]
    described = ", ".join(f"{quoted(n)}: {describe(t.type, t.shape)}" for n, t in templates.items())
    wrong = MismatchError(
        f"{quoted(reader.names[position])}: expected leaves that together are {describe(stored, shape)}, cut along one "
        f"axis, found {described}"
    )
    if stored.kind not in ("jax", "numpy") or any(
        t.type.kind not in ("jax", "numpy") or t.type.dtype != stored.dtype for t in templates.values()
    ):
        raise wrong
    axes = [axis for axis in range(len(shape)) if _is_cut_along(axis, shape, parts)]
    if not axes:
        raise wrong
    axis, start, slices = axes[0], 0, []
    for name, template in templates.items():
        stop = start + template.shape[axis]
        box = tuple((start, stop) if i == axis else (0, n) for i, n in enumerate(shape))
        slices.append(_Slice(name, position, template, box))
        start = stop
    return slices


def _is_cut_along(axis: int, shape: Sequence[int], parts: Sequence[Sequence[int]]) -> bool:
    return (
        all(
            len(part) == len(shape)
            and all(i == axis or a == b for i, (a, b) in enumerate(zip(part, shape, strict=True)))
            for part in parts
        )
        and sum(part[axis] for part in parts) == shape[axis]
    )


def _slice_leaf(reader: CheckpointReader, each: _Slice) -> Any:
    dtype, shape = storage_dtype(each.template.type), box_shape(each.box)
    array = filesystem.new_memory(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    reader.read_boxes(each.position, [each.box], [array], verify=True)
    return build_leaf(array, each.template.type, each.template.type, each.template.sharding)
