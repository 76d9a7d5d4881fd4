"""Restore: open a checkpoint, fit the template to it, read what the plan asks for, and put the tree together."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np

from pytreesaver._choosing import chosen_variables
from pytreesaver._contents import refuse_duplicates
from pytreesaver._convert import floating_dtype, is_floating
from pytreesaver._errors import (
    CorruptCheckpointError,
    StructureWarning,
    UnsupportedLeafError,
)
from pytreesaver._leaf_types import PYTHON_KINDS, LeafType, logical_shape, python_value
from pytreesaver._leaves import LeafError
from pytreesaver._match import LeafPlan, Missing, StoredVariables, Unexpected, check_targets, match_template
from pytreesaver._names import did_you_mean, shown
from pytreesaver._paths import PathLike, named_os_errors
from pytreesaver._progress import Progress, check_progress, reporting
from pytreesaver._prune import names_without_leaves
from pytreesaver._reading_leaves import ReadOptions, read_leaves
from pytreesaver._rebuild import MalformedStructureError, rebuild_tree
from pytreesaver._rename import ByName, Renaming, as_renaming
from pytreesaver._select import Selection, as_selection, selected
from pytreesaver._shardings import ShardingRule, sharding_rule
from pytreesaver._structure import FlatTree, flatten_tree
from pytreesaver._templates import X64_DTYPES, Template, template_of
from pytreesaver._variables import open_reader
from pytreesaver.formats import CheckpointReader


class RestoreArguments(TypedDict, total=False):
    """The arguments of `pytreesaver.restore`, for functions that pass them on."""

    only: Any
    rename: Any
    missing: Missing
    unexpected: Unexpected
    cast: Any
    reshape: bool
    sharding: Any
    as_numpy: bool
    mmap: bool
    verify: bool
    progress: Progress


class RestoreOptions(NamedTuple):
    """How to restore: the arguments of `pytreesaver.restore`, and what a `Saver` adds to them.

    With `may_be_empty` a selection of nothing is no error; `sequentially` holds one variable at a time beside the
    result; without `hints` messages name no arguments of `restore`.
    """

    only: Any = None
    rename: Any = None
    missing: Missing = "error"
    unexpected: Unexpected = "error"
    cast: Any = False
    reshape: bool = False
    sharding: Any = None
    as_numpy: bool = False
    mmap: bool = False
    verify: bool = True
    progress: Progress = False
    sequentially: bool = False
    may_be_empty: bool = False
    hints: bool = True

    @classmethod
    def of(cls, caller: str, given: RestoreArguments) -> "RestoreOptions":
        """The options of a function that passes them on.

        Raises:
            TypeError: there is no option of such a name.
        """
        known = RestoreArguments.__annotations__
        for name in given:
            if name not in known:
                raise TypeError(f"{caller} has no argument {name!r}{did_you_mean(name, list(known))}")
        return cls(**given)

    def checked(self, like: Any) -> "RestoreOptions":
        """The options with a `Selection` and a `Renaming` in them.

        Raises:
            TypeError, ValueError: an option makes no sense, or not with the others.
        """
        if self.missing not in ("error", "keep"):
            raise ValueError(f'missing: expected "error" or "keep", found {self.missing!r}')
        if self.unexpected not in ("error", "ignore"):
            raise ValueError(f'unexpected: expected "error" or "ignore", found {self.unexpected!r}')
        for flag in ("reshape", "as_numpy", "mmap", "verify"):
            if not isinstance(getattr(self, flag), bool | np.bool_):
                raise TypeError(f"{flag}: expected True or False, found {getattr(self, flag)!r}")
        check_progress(self.progress)
        if self.as_numpy and self.sharding is not None:
            raise ValueError("sharding places JAX arrays, and with as_numpy=True there are none: leave one of them out")
        only = None if self.only is None else as_selection(self.only)
        renaming = None if self.rename is None else as_renaming(self.rename)
        cast = bool(self.cast) if isinstance(self.cast, bool | np.bool_) else floating_dtype(self.cast)
        if like is None:
            if (self.missing, self.unexpected, self.reshape) != ("error", "error", False):
                raise ValueError("missing, unexpected and reshape compare with a template: pass one as like=")
            if renaming is not None and not isinstance(renaming, ByName):
                raise ValueError(
                    "rename: a function or regular expressions say how the names of a template are called in the "
                    "checkpoint: pass a template as like=, or rename with a dict"
                )
        elif not isinstance(cast, bool):
            raise ValueError(f"cast: the template decides the dtypes: expected True or False, found {self.cast!r}")
        return self._replace(only=only, rename=renaming, cast=cast)


def restore_with(path: PathLike, like: Any, options: RestoreOptions, *, stacklevel: int = 3) -> Any:
    """What `pytreesaver.restore` gives, under options that need not all be its own. Raises what it raises."""
    options = options.checked(like)
    with opened(path) as reader:
        if like is None:
            return _restore_all(reader, options, stacklevel)
        plan = plan_like(reader, like, options)
        return plan.with_leaves(plan.read(reader, options))


@contextmanager
def opened(path: PathLike) -> Iterator[CheckpointReader]:
    """The reader of the checkpoint at `path`, closed in the end."""
    reader = open_reader(path)
    try:
        with named_os_errors("read", reader.path):
            yield reader
    finally:
        reader.close()


# Without a template.


def _restore_all(reader: CheckpointReader, options: RestoreOptions, stacklevel: int) -> Any:
    names, positions, structure = chosen_variables(reader, options.only, options.rename, options.may_be_empty)
    types, shapes = [reader.types[i] for i in positions], [reader.shapes[i] for i in positions]
    stored = StoredVariables([reader.names[i] for i in positions], types, shapes)
    placed = sharding_rule(options.sharding, names, lambda: names_without_leaves(structure))
    targets: dict[str, Template] = {}
    for name, leaf_type, shape in zip(names, types, shapes, strict=True):
        logical = logical_shape(leaf_type, shape)
        sharding = placed(name, logical) if leaf_type.kind in ("jax", "key") else None
        targets[name] = Template(_target_type(leaf_type, options), logical, sharding)
    where, x64_enabled = str(reader.path), _x64_enabled() or options.as_numpy
    check_targets(targets, stored, where=where, x64_enabled=x64_enabled)
    plans = [LeafPlan(position, target) for position, target in zip(positions, targets.values(), strict=True)]
    leaves = _read_leaves(reader, plans, names, options)
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


def _target_type(stored: LeafType, options: RestoreOptions) -> LeafType:
    """What a variable becomes where there is no template."""
    if stored.kind not in ("jax", "numpy", "numpy_scalar"):
        return stored
    if options.cast is True:
        if stored.kind == "jax" and not (_x64_enabled() or options.as_numpy):
            return LeafType("jax", X64_DTYPES.get(stored.dtype, stored.dtype), stored.weak_type)
    elif options.cast and is_floating(stored.dtype):
        return LeafType(stored.kind, options.cast)
    return stored


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


def _read_leaves(
    reader: CheckpointReader, plans: Sequence[LeafPlan], names: Sequence[str], options: RestoreOptions
) -> list[Any]:
    how = ReadOptions(options.as_numpy, options.mmap, options.verify, options.sequentially)
    if options.progress is False:
        return read_leaves(reader, plans, names, how)
    total = sum(reader.nbytes[position] for position in {plan.position for plan in plans})
    with reporting(options.progress, f"restoring {reader.path}", total):
        return read_leaves(reader, plans, names, how)


def _x64_enabled() -> bool:
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
