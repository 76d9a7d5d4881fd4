"""`init_from_checkpoint`: initialize leaves from a checkpoint, according to an assignment map."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from pytreesaver._checkpoint.restoring.matching import joined
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.targets import Template, build_leaf
from pytreesaver._checkpoint.restoring.with_template import TreePlan, named_template, plan_restore
from pytreesaver._errors import MismatchError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike
from pytreesaver._run.directory import checkpoint_at
from pytreesaver._text import prefixes, quoted, suggestions
from pytreesaver._tree.boxes import Box, box_shape
from pytreesaver._tree.kinds import describe, storage_dtype
from pytreesaver._tree.names.rename import ByName
from pytreesaver._tree.structure import FlatTree, check_unique_names, flatten_tree
from pytreesaver.formats.protocol import CheckpointReader, other_names_in
from pytreesaver.formats.registry import opened

AssignmentMap = Mapping[str, Any] | Sequence[tuple[str, Any]]
T = TypeVar("T")


def init_from_checkpoint(tree: T, path: PathLike, assignment_map: AssignmentMap) -> T:
    """Return a tree in which the leaves that a map names have the values of a checkpoint, and all others are unchanged.

    After `tf.compat.v1.train.init_from_checkpoint`. The map is from the checkpoint to the tree. It is a dict, or a list
    of pairs, in which a variable of the checkpoint may occur several times. Its forms:

    ==========================  ======================================================================================
    ``"a/b": "scope/w"``        assigns a variable to the leaf of that name
    ``"a/b": tree["scope"]``    assigns a variable to that leaf, given as the same object
    ``"a/b": ["w/0", "w/1"]``   assigns the slices of a variable along one axis to leaves, in this order; together they
                                must have the shape of the variable
    ``"a/b": "w"``              the same, with the leaves under ``w``, if ``w`` is not a leaf: ``w/2`` before ``w/10``
    ``"old/": "new/"``          assigns to every leaf under ``new/`` the variable of the same name under ``old/``
    ``"/": "new/"``             the same from the root of the checkpoint; ``"old/": "/"`` is to the root of the tree
    ==========================  ======================================================================================

    Raises on some mistakes that TensorFlow ignores: a prefix without leaves, a wrong shape under a prefix, a leaf that
    is assigned twice.

    Args:
        tree: a tree of arrays and values.
        path: a checkpoint, or a run directory, whose newest checkpoint is used.
        assignment_map: the map.

    Raises:
        MismatchError: if the map, the tree and the checkpoint do not match. It names every difference, and is raised
            before any array is read.
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
        others = other_names_in(reader)
        entries = [(others.get(old, old), new) for old, new in entries]
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
        plan: TreePlan[T] | None = None
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
        if problems or plan is None:
            raise joined(problems)
        restored = plan.read(reader, options)
        return plan.with_leaves(restored | {each.name: _slice_leaf(reader, each) for each in sliced})


def _entries(assignment_map: Any) -> list[tuple[str, Any]]:
    is_list = isinstance(assignment_map, list | tuple)
    entries = list(assignment_map.items()) if isinstance(assignment_map, Mapping) else assignment_map
    for entry in entries if isinstance(assignment_map, Mapping) or is_list else [assignment_map]:
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise TypeError(
                "assignment_map: expected a dict, or a list of pairs, from variables of the checkpoint to leaves of "
                f"the tree, found {entry!r}"
            )
    return list(entries)


class _Names:
    """The names of a tree and of a checkpoint, with constant-time lookup of names and prefixes."""

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
    """{leaf: variable} for leaves that take a complete variable, and {leaves: variable} for leaves that take slices."""

    whole: dict[str, str]
    sliced: dict[tuple[str, ...], str]


def _resolve(entries: Sequence[tuple[str, Any]], known: _Names, assigned: _Assignments) -> list[str]:
    """Fill `assigned`. Return a line of the message for each invalid entry."""
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
                problems.append(f"  {old!r}: {quoted(name)} is already assigned by {taken[name]!r}")
            taken.setdefault(name, old)
        assigned.whole.update(whole)
        if sliced:
            assigned.sliced[tuple(sliced)] = old
    return problems


class _EntryError(Exception):
    """Why an entry of the map is invalid."""


def _targets(old: str, new: Any, known: _Names) -> tuple[dict[str, str], list[str]]:
    """Return {leaf: variable} for an entry, or the leaves that take slices of its variable."""
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
        return {}, sorted(known.under[f"{new}/"], key=_natural_order)
    if isinstance(new, list | tuple):
        if not new:
            raise _EntryError("expected leaves of the tree, found an empty list")
        return {}, [_leaf_name(each, known) for each in new]
    return {_leaf_name(new, known): old}, []


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``part_10`` after ``part_9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _leaf_name(given: Any, known: _Names) -> str:
    if isinstance(given, str):
        if given not in known.present:
            hint = known.suggest(given)
            raise _EntryError(f"expected a leaf of the tree, found {given!r}{hint}")
        return given
    names = known.by_identity.get(id(given), [])
    is_array = isinstance(given, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    if not is_array or len(names) != 1:
        found = f"an array that occurs {len(names)} times in the tree" if is_array else repr(given)
        raise _EntryError(f"expected the name of a leaf, an array that is a leaf of the tree, or a list, found {found}")
    return names[0]


class _Slice(NamedTuple):
    """A leaf that takes a slice of a variable."""

    name: str
    position: int
    template: Template
    box: Box


def _plan_slices(reader: CheckpointReader, position: int, templates: Mapping[str, Template]) -> list[_Slice]:
    """Plan how to slice a variable. Raise a MismatchError if the leaves are not its slices along one axis."""
    stored, shape = reader.types[position], reader.shapes[position]
    parts = [template.shape for template in templates.values()]
    described = ", ".join(f"{quoted(n)}: {describe(t.type, t.shape)}" for n, t in templates.items())
    wrong = MismatchError(
        f"{quoted(reader.names[position])}: expected slices of {describe(stored, shape)} along one axis, "
        f"found {described}"
    )
    if stored.kind not in ("jax", "numpy") or any(
        t.type.kind not in ("jax", "numpy") or t.type.dtype != stored.dtype for t in templates.values()
    ):
        raise wrong
    axes = [axis for axis in range(len(shape)) if _is_sliced_along(axis, shape, parts)]
    if not axes:
        raise wrong
    axis, start, slices = axes[0], 0, []
    for name, template in templates.items():
        stop = start + template.shape[axis]
        box = tuple((start, stop) if i == axis else (0, n) for i, n in enumerate(shape))
        slices.append(_Slice(name, position, template, box))
        start = stop
    return slices


def _is_sliced_along(axis: int, shape: Sequence[int], parts: Sequence[Sequence[int]]) -> bool:
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
