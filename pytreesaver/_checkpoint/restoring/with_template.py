"""Restore: open a checkpoint, fit the template to it, read what the plan asks for, and put the tree together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from pytreesaver._checkpoint.restoring.matching import LeafPlan, StoredVariables, match_template
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.reading import _read_leaves
from pytreesaver._checkpoint.restoring.targets import ShardingRule, Template, _x64_enabled, sharding_rule, template_of
from pytreesaver._errors import UnsupportedLeafError
from pytreesaver._text import shown
from pytreesaver._tree.kinds import PYTHON_KINDS, python_value
from pytreesaver._tree.leaves import LeafError
from pytreesaver._tree.rename import Renaming
from pytreesaver._tree.restructure import names_without_leaves
from pytreesaver._tree.select import Selection, selected
from pytreesaver._tree.structure import FlatTree, flatten_tree, refuse_duplicates
from pytreesaver.formats.protocol import CheckpointReader

# With a template.


class TreePlan(NamedTuple):
    """How a tree comes about that is like another one: `plans` has the names of the leaves that are restored."""

    like: Any
    flat: FlatTree
    plans: dict[str, LeafPlan]

    def read(self, reader: CheckpointReader, options: RestoreOptions) -> dict[str, Any]:
        """The leaves that are restored. Raises what `read_leaves` raises."""
        leaves = _read_leaves(reader, list(self.plans.values()), list(self.plans), options)
        return dict(zip(self.plans, leaves, strict=True))

    def with_leaves(self, restored: Mapping[str, Any]) -> Any:
        """The tree with these leaves, and all others as they were."""
        leaves = [restored.get(name, own) for name, own in zip(self.flat.names, self.flat.leaves, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.like), leaves)


def plan_like(reader: CheckpointReader, like: Any, options: RestoreOptions) -> TreePlan:
    """Fit a template to a checkpoint. Reads nothing but Python numbers that are to become arrays.

    Raises:
        MismatchError, VariableNotFoundError, UnsupportedLeafError, DuplicateNameError: as `pytreesaver.restore` does.
    """
    flat = flatten_tree(like)
    refuse_duplicates(flat, like)
    flags = [True] * len(flat.names)
    if options.only is not None:
        flags = selected(options.only, flat.names, "the template (like)", may_be_empty=options.may_be_empty)
    placed = sharding_rule(options.sharding, flat.names, lambda: names_without_leaves(flat.structure))
    templates = _templates_of(flat, flags, placed, options)
    renaming: Renaming | None = options.rename
    for_arrays = {
        renaming.stored_name(name) if renaming else name
        for name, template in templates.items()
        if template.type.kind not in PYTHON_KINDS
    }
    # Whether a Python number fits an array depends on its value: those are read first, all at once.
    numbers = [
        i
        for i, (name, leaf_type) in enumerate(zip(reader.names, reader.types, strict=True))
        if leaf_type.kind in PYTHON_KINDS and name in for_arrays
    ]
    arrays = reader.read(numbers, verify=options.verify) if numbers else []
    values = {i: python_value(array, reader.types[i]) for i, array in zip(numbers, arrays, strict=True)}
    plan = match_template(
        templates,
        StoredVariables(reader.names, reader.types, reader.shapes),
        where=str(reader.path),
        missing=options.missing,
        unexpected=options.unexpected,
        cast=options.cast,
        reshape=options.reshape,
        renaming=renaming,
        template_names=flat.names,
        considered=_considered(options),
        hints=options.hints,
        value_of=values.__getitem__,
        x64_enabled=_x64_enabled() or options.as_numpy,
    )
    return TreePlan(like, flat, {name: each for name, each in zip(templates, plan, strict=True) if each is not None})


def _considered(options: RestoreOptions) -> Callable[[str], bool]:
    """Whether a stored variable that no leaf takes is unexpected: not if it was never asked for."""
    only: Selection | None = options.only
    renaming: Renaming | None = options.rename
    if only is None:
        return lambda stored: True
    if renaming is None:
        return only.selects
    return lambda stored: any(only.selects(name) for name in renaming.tree_names(stored))


def _templates_of(
    flat: FlatTree, flags: Sequence[bool], placed: ShardingRule, options: RestoreOptions
) -> dict[str, Template]:
    templates: dict[str, Template] = {}
    problems = []
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
        else:
            templates[name] = template.with_sharding(None)
    if problems:
        raise UnsupportedLeafError("the template (like) holds what cannot be restored:\n" + "\n".join(problems))
    return templates


def named_template(name: str, leaf: Any) -> Template:
    """What a leaf of a template asks for. Raises an UnsupportedLeafError if nothing like it can be restored."""
    try:
        return template_of(leaf)
    except LeafError as problem:
        raise UnsupportedLeafError(
            f"{shown(name)}: expected an array, a ShapeDtypeStruct or a value, found a leaf {problem}"
        ) from None
