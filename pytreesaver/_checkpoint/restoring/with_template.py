"""Restoring into a template: plan which variable each leaf takes, then read what the plan needs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax

from pytreesaver._checkpoint.restoring.aliases import arrays_and_numbers, names_by_order, names_for_template
from pytreesaver._checkpoint.restoring.matching import LeafPlan, StoredVariables, match_template
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.reading import read_leaves
from pytreesaver._checkpoint.restoring.targets import (
    Placement,
    Template,
    is_abstract,
    placement_of,
    template_of,
    x64_enabled,
)
from pytreesaver._checkpoint.restoring.without_template import checked_structure
from pytreesaver._errors import MismatchError, UnsupportedLeafError
from pytreesaver._text import quoted
from pytreesaver._tree.keyless import children_in_nodes, other_names
from pytreesaver._tree.kinds import NUMBER_KINDS, PYTHON_KINDS, python_value
from pytreesaver._tree.leaves import LeafError
from pytreesaver._tree.names.rename import Renaming, with_other_names
from pytreesaver._tree.names.select import Selector, selected
from pytreesaver._tree.restructure import names_without_leaves
from pytreesaver._tree.structure import FlatTree, check_unique_names, flatten_tree
from pytreesaver.formats.protocol import CheckpointReader, other_names_in

logger = logging.getLogger("pytreesaver")
T = TypeVar("T")


class TreePlan(NamedTuple, Generic[T]):
    """How to restore into a template.

    Attributes:
        like: the template.
        flat: the template, flattened.
        plans: the leaves to restore, by their names.
    """

    like: T
    flat: FlatTree
    plans: dict[str, LeafPlan]

    def read(self, reader: CheckpointReader, options: RestoreOptions) -> dict[str, Any]:
        """Read the leaves to restore, by their names. Raises what `read_leaves` raises."""
        leaves = read_leaves(reader, list(self.plans.values()), list(self.plans), options)
        return dict(zip(self.plans, leaves, strict=True))

    def with_leaves(self, restored: Mapping[str, Any]) -> T:
        """Return the template with these leaves replaced."""
        tree: T = jax.tree.unflatten(jax.tree.structure(self.like), self.flat.all_leaves(restored))
        return tree


def plan_restore(reader: CheckpointReader, like: T, options: RestoreOptions) -> TreePlan[T]:
    """Match a template with a checkpoint. Reads only Python numbers that become arrays.

    Raises:
        MismatchError, VariableNotFoundError, UnsupportedLeafError, DuplicateNameError: as `pytreesaver.restore` does.
    """
    flat = flatten_tree(like)
    check_unique_names(flat, like)
    _refuse_shared(flat)
    flags = [True] * len(flat.names)
    if options.only is not None:
        flags = selected(options.only, flat.names, "the template (like)", may_be_empty=options.may_be_empty)
    others, given_names = other_names_in(reader), reader.names
    if getattr(reader, "is_positional", False):
        given_names = names_by_order(flat, len(reader.names))
        others = {str(i): name for i, name in enumerate(given_names)}
        saved = set(arrays_and_numbers(flat))  # the other leaves stay as they are in the template
        flags = [flag and name in saved for name, flag in zip(flat.names, flags, strict=True)]
    placed = placement_of(options.sharding, flat.names, lambda: names_without_leaves(flat.structure))
    templates = _templates_of(flat, flags, placed, options)
    renaming: Renaming | None = with_other_names(options.rename, others)
    stored_names = {name: renaming.stored_name(name) if renaming else name for name in templates}
    if getattr(reader, "is_positional", False):
        _refuse_gaps(reader, flat, templates, options)
    for_arrays = {stored_names[name] for name, each in templates.items() if each.type.kind not in PYTHON_KINDS}
    names = names_for_template(flat, stored_names, given_names, lambda: checked_structure(reader))
    # Whether a Python number fits an array depends on its value, so these numbers are read first.
    numbers = [
        i
        for i, (name, leaf_type) in enumerate(zip(names, reader.types, strict=True))
        if leaf_type.kind in NUMBER_KINDS and name in for_arrays
    ]
    arrays = reader.read(numbers, verify=options.verify) if numbers else []
    values = {i: python_value(array, reader.types[i]) for i, array in zip(numbers, arrays, strict=True)}
    match = match_template(
        templates,
        StoredVariables(names, reader.types, reader.shapes),
        where=str(reader.path),
        missing=options.missing,
        unexpected=options.unexpected,
        mismatched=options.mismatched,
        cast=options.cast,
        reshape=options.reshape,
        renaming=renaming,
        template_names=flat.names,
        misplaced=_misplaced_children(flat, stored_names, names, reader.structure, renaming),
        considered=_is_asked_for(options, renaming),
        hints=options.hints,
        value_of=values.__getitem__,
        x64_enabled=x64_enabled() or options.as_numpy,
    )
    if match.kept:
        kept = "".join(f"\n  {quoted(name)}: {why}" for name, why in match.kept.items())
        logger.warning("%s: the template keeps its own values of these variables:%s", reader.path, kept)
    plans = {name: each for name, each in zip(templates, match.plans, strict=True) if each is not None}
    return TreePlan(like, flat, plans)


def _refuse_shared(flat: FlatTree) -> None:
    """Raise an UnsupportedLeafError if a node with an identity is in several places of the template."""
    if flat.shared:
        lines = "\n".join(
            f"  {quoted(name)}: the same object as {quoted(first)}" for name, first in flat.shared.items()
        )
        raise UnsupportedLeafError(
            "the template (like) has an object of nnx in two places, which would be restored as two; restore into "
            f"nnx.state(model) and call nnx.update(model, state):\n{lines}"
        )


def _misplaced_children(
    flat: FlatTree, stored_names: Mapping[str, str], names: Sequence[str], structure: Any, renaming: Renaming | None
) -> dict[str, tuple[str, str]]:
    """Return (name in the template, name in the checkpoint) of each leaf whose containers name it differently.

    These are containers without keys, whose children are matched by position. A renaming of the leaf itself decides.
    """
    if not flat.has_keyless:
        return {}
    wanted, stored = children_in_nodes(flat.structure), children_in_nodes(structure)
    position_of = {name: i for i, name in enumerate(names)}
    misplaced = {}
    compared: dict[tuple[int, ...], list[tuple[str, str]]] = {}  # by the identities of auxiliary data
    for position, expected in wanted.items():
        name = flat.names[position]
        if name not in stored_names or (renaming is not None and renaming.is_explicit(name)):
            continue
        found = stored.get(position_of.get(stored_names[name], -1), ())
        for one, other in zip(expected, found, strict=False):
            key = (id(one.auxiliary), one.siblings, id(other.auxiliary), other.siblings)
            if key not in compared:
                compared[key] = other_names(one, other) or []
            differing = compared[key]
            if one.position < len(differing) and differing[one.position][0] != differing[one.position][1]:
                misplaced[name] = differing[one.position]
                break
    return misplaced


def _refuse_gaps(
    reader: CheckpointReader, flat: FlatTree, templates: Mapping[str, Template], options: RestoreOptions
) -> None:
    """Raise a MismatchError if a part is to be restored of a checkpoint without names, and the orders may differ."""
    count, saved = len(reader.names), len(arrays_and_numbers(flat))
    is_partial = options.only is not None or options.missing == "keep" or options.unexpected == "ignore"
    given: Renaming | None = options.rename
    by_position = given is not None and all(given.stored_name(name) in reader.names for name in templates)
    if count != saved and is_partial and not by_position:
        raise MismatchError(
            f"{reader.path}: expected {saved} arrays, as many as the template has arrays and numbers, found {count}; "
            "they have no names, so it is unknown which ones are missing: pass a template with all of them, or rename= "
            "with the positions of those that are wanted"
        )


def _is_asked_for(options: RestoreOptions, renaming: Renaming | None) -> Callable[[str], bool]:
    """Return the predicate that tells whether `only` asks for a stored variable."""
    only: Selector | None = options.only
    if only is None:
        return lambda stored: True
    if renaming is None:
        return only.selects
    return lambda stored: any(only.selects(name) for name in renaming.tree_names(stored))


def _templates_of(
    flat: FlatTree, flags: Sequence[bool], placed: Placement, options: RestoreOptions
) -> dict[str, Template]:
    templates: dict[str, Template] = {}
    problems = []
    without_devices: dict[str, Any] = {}
    for name, leaf, flag in zip(flat.names, flat.leaves, flags, strict=True):
        if not flag:
            continue
        try:
            template = named_template(name, leaf)
        except UnsupportedLeafError as problem:
            problems.append(f"  {problem}")
            continue
        if template.type.kind in ("jax", "key") and not options.as_numpy:
            sharding = placed(name, template.shape)
            templates[name] = template if sharding is None else template.with_sharding(sharding)
            if is_abstract(templates[name].sharding):
                without_devices[name] = templates[name].sharding
        else:
            templates[name] = template.with_sharding(None)
    if problems:
        raise UnsupportedLeafError("the template (like) has leaves that cannot be restored:\n" + "\n".join(problems))
    if without_devices:
        raise _no_devices_error(without_devices)
    return templates


def _no_devices_error(shardings: Mapping[str, Any]) -> MismatchError:
    active = jax.sharding.get_mesh()
    found = "no active mesh" if active.empty else f"the active mesh {dict(active.shape)}"
    lines = [
        f"  {quoted(name)}: {sharding.spec} over the axes {dict(sharding.mesh.shape)}"
        for name, sharding in shardings.items()
    ]
    return MismatchError(
        f"the template has shardings over an abstract mesh, which has no devices: expected an active mesh of the same "
        f"axes, found {found}; restore under jax.set_mesh(mesh), or pass shardings over devices as sharding=:\n"
        + "\n".join(lines)
    )


def named_template(name: str, leaf: Any) -> Template:
    """Return the template of a leaf. Raises an UnsupportedLeafError if such a leaf cannot be restored."""
    try:
        return template_of(leaf)
    except LeafError as problem:
        raise UnsupportedLeafError(
            f"{quoted(name)}: expected an array, a ShapeDtypeStruct or a value, found a leaf {problem}"
        ) from None
