"""`warm_start`: initialize leaves from a checkpoint, also those whose vocabulary has changed."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pytreesaver._checkpoint.restoring.matching import joined
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.targets import Template, build_leaf
from pytreesaver._checkpoint.restoring.with_template import TreePlan, named_template, plan_restore
from pytreesaver._checkpoint.warm_start.vocabulary import VocabInfo, old_positions
from pytreesaver._errors import MismatchError, VariableNotFoundError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike
from pytreesaver._run.directory import checkpoint_at
from pytreesaver._text import did_you_mean, quoted, suggestions
from pytreesaver._tree.boxes import box_shape, split_box, whole_box
from pytreesaver._tree.kinds import describe, storage_dtype
from pytreesaver._tree.names.select import Selector, selected
from pytreesaver._tree.structure import check_unique_names, flatten_tree
from pytreesaver.formats.protocol import CheckpointReader, other_names_in
from pytreesaver.formats.registry import opened

T = TypeVar("T")


def warm_start(
    tree: T,
    path: PathLike,
    vars_to_warm_start: str | Sequence[str | re.Pattern[str]] | Selector | None = ".*",
    var_name_to_prev_var_name: Mapping[str, str] | None = None,
    var_name_to_vocab_info: Mapping[str, VocabInfo] | None = None,
) -> T:
    """Return a tree in which some leaves have the values of an old checkpoint, and all others are the same objects.

    After `tf.compat.v1.train.warm_start`. Raises on some mistakes that TensorFlow ignores: a regular expression that
    matches nothing, a name that does not exist.

    Args:
        tree: the new tree, with its initial values.
        path: a checkpoint, or a run directory, whose newest checkpoint is used.
        vars_to_warm_start: the leaves to warm-start: a regular expression that matches the beginning of names, a list
            of those, or a `Selector`. None means only the leaves with a `VocabInfo`, and an empty list means none.
        var_name_to_prev_var_name: {name: name in the checkpoint} for leaves with another name there. Several leaves may
            take one variable.
        var_name_to_vocab_info: {name: `VocabInfo`} for leaves whose rows or columns are the tokens of a vocabulary that
            has changed. Their length along that axis must be `new_vocab_size` + `num_oov_buckets`.

    Raises:
        MismatchError: if variables are missing or have another shape or dtype, vocabularies do not match, or names in
            the dicts are not used. It names every difference, or all unused names, before any array is read.
        VariableNotFoundError: if a regular expression matches nothing.
        ValueError: if an argument is invalid.
        What `pytreesaver.restore` raises.

    Example:
        >>> path = pytreesaver.save({"embed": np.array([[1.0], [2.0], [3.0]]), "head": np.ones(2)}, "old")
        >>> tree = {"embed": np.zeros((4, 1)), "body": np.zeros(2)}
        >>> info = VocabInfo(["c", "d", "a"], 3, 1, ["a", "b", "c"])
        >>> warm_start(tree, path, "embed", var_name_to_vocab_info={"embed": info})["embed"].ravel()
        array([3., 0., 1., 0.])
        >>> warm_start(tree, path, "body", var_name_to_prev_var_name={"body": "head"})["body"]
        array([1., 1.])
    """
    previous, vocabularies = dict(var_name_to_prev_var_name or {}), dict(var_name_to_vocab_info or {})
    flat = flatten_tree(tree)
    check_unique_names(flat, tree)
    chosen = _chosen_names(vars_to_warm_start, flat.names, vocabularies)
    _refuse_unused(flat.names, chosen if vars_to_warm_start is not None else set(flat.names), previous, vocabularies)
    plain = set() if vars_to_warm_start is None else chosen - set(vocabularies)
    options = RestoreOptions(
        only=plain.__contains__,
        rename=lambda name: previous.get(name, name),
        unexpected="ignore",
        may_be_empty=True,
        hints=False,
    ).checked(tree)
    leaves = dict(zip(flat.names, flat.leaves, strict=True))
    problems: list[MismatchError] = []
    rows: dict[str, tuple[np.ndarray, int]] = {}
    for name, info in vocabularies.items():
        try:
            rows[name] = _rows(name, info)
        except MismatchError as error:
            problems.append(error)
    with opened(checkpoint_at(path)) as reader:
        plans: list[_VocabularyPlan] = []
        at, others = {name: i for i, name in enumerate(reader.names)}, other_names_in(reader)
        plan: TreePlan[T] | None = None
        try:
            plan = plan_restore(reader, tree, options)
        except MismatchError as error:
            problems.append(error)
        for name, (positions, count) in rows.items():
            template, stored_name = named_template(name, leaves[name]), previous.get(name, name)
            stored_name = others.get(stored_name, stored_name)
            plan_of_name = _VocabularyPlan(name, at.get(stored_name, -1), template, positions, vocabularies[name])
            try:
                _check_vocabulary(reader, plan_of_name, stored_name, count)
            except MismatchError as error:
                problems.append(error)
            plans.append(plan_of_name)
        if problems or plan is None:
            raise joined(problems)
        restored = plan.read(reader, options)
        return plan.with_leaves(restored | {each.name: _remapped_leaf(reader, each) for each in plans})


def _chosen_names(given: Any, names: list[str], vocabularies: Mapping[str, VocabInfo]) -> set[str]:
    if given is None:
        return set(vocabularies)
    if isinstance(given, str | re.Pattern):
        given = [given]
    if isinstance(given, Selector):
        return {n for n, flag in zip(names, selected(given, names, "the tree"), strict=True) if flag}
    if not isinstance(given, list | tuple):
        raise ValueError(f"vars_to_warm_start must be a `list` or `str`.  Given type is {type(given)}")
    wrong = [each for each in given if not isinstance(each, str | re.Pattern)]
    if wrong:
        raise ValueError(f"If `vars_to_warm_start` is a list, it must be all `str`.  Found {wrong[0]!r} in it")
    try:
        patterns = [re.compile(each) for each in given]
    except re.error as error:
        raise ValueError(f"vars_to_warm_start: {error.pattern!r} is not a valid regular expression: {error}") from error
    unmatched = [pattern.pattern for pattern in patterns if not any(map(pattern.match, names))]
    if unmatched:
        suggest = suggestions(names)
        lines = [f"  {pattern!r} matches no variable{suggest(pattern)}" for pattern in unmatched]
        raise VariableNotFoundError(
            "vars_to_warm_start: some regular expressions match no variable of the tree:\n" + "\n".join(lines)
        )
    return {name for name in names if any(pattern.match(name) for pattern in patterns)}


def _refuse_unused(
    names: list[str], usable: set[str], previous: Mapping[str, str], vocabularies: Mapping[str, VocabInfo]
) -> None:
    lines, unused = [], []
    present, suggest = set(names), suggestions(names)
    for argument, given, known in (
        ("var_name_to_prev_var_name", previous, usable | set(vocabularies)),
        ("var_name_to_vocab_info", vocabularies, usable),
    ):
        for name in given:
            if name in known and name in present:
                continue
            hint = suggest(name) if name not in present else "; vars_to_warm_start does not select it"
            lines.append(f"  {argument}: {quoted(name)}{hint}")
            unused.append(name)
    if unused:
        raise MismatchError("some names are not those of variables to warm-start:\n" + "\n".join(lines), unused=unused)


class _VocabularyPlan(NamedTuple):
    """A variable whose rows or columns will be reordered."""

    name: str
    position: int
    template: Template
    positions: np.ndarray
    info: VocabInfo


def _rows(name: str, info: VocabInfo) -> tuple[np.ndarray, int]:
    """Return `old_positions` of the vocabularies. Raise a MismatchError if they do not match."""
    if not isinstance(info, VocabInfo):
        raise TypeError(f"var_name_to_vocab_info: {quoted(name)}: expected a VocabInfo, found {info!r}")
    try:
        return old_positions(info)
    except ValueError as error:
        raise MismatchError(f"{quoted(name)}: {error}") from error


def _check_vocabulary(reader: CheckpointReader, plan: _VocabularyPlan, stored_name: str, old_token_count: int) -> None:
    """Raise a MismatchError if the variable does not match its template and vocabularies."""
    name, template, info = plan.name, plan.template, plan.info
    if plan.position < 0:
        where = "" if stored_name == name else f" (looked for as {quoted(stored_name)})"
        hint = did_you_mean(stored_name, reader.names)
        raise MismatchError(f"missing from {reader.path}:\n  {quoted(name)}{where}{hint}", missing=[name])
    stored, stored_shape = reader.types[plan.position], reader.shapes[plan.position]
    found = describe(stored, stored_shape)
    if template.type.kind not in ("jax", "numpy") or stored.kind not in ("jax", "numpy"):
        expected = "an array" if template.type.kind in ("jax", "numpy") else describe(template.type, template.shape)
        raise MismatchError(f"{quoted(name)}: expected {expected} with a vocabulary, found {found}")
    if template.type.dtype != stored.dtype:
        raise MismatchError(
            f"{quoted(name)}: expected {describe(template.type, template.shape)}, found {found}",
            dtype={name: (template.type.dtype, stored.dtype)},
        )
    axis = info.axis
    if len(stored_shape) <= axis:
        raise MismatchError(f"{quoted(name)}: expected an array with more than {axis} axes, found {found}")
    same = len(template.shape) == len(stored_shape) and all(
        i == axis or a == b for i, (a, b) in enumerate(zip(template.shape, stored_shape, strict=True))
    )
    if not same or template.shape[axis] != info.length:
        expected_shape = tuple(info.length if i == axis else n for i, n in enumerate(stored_shape))
        raise MismatchError(
            f"{quoted(name)}: expected {describe(stored, expected_shape)} of {info.new_vocab_size} tokens and "
            f"{info.num_oov_buckets} buckets along axis {axis}, found {describe(template.type, template.shape)}",
            shape={name: (expected_shape, template.shape)},
        )
    if old_token_count > stored_shape[axis]:
        raise MismatchError(
            f"{quoted(name)}: expected at most {stored_shape[axis]} tokens in old_vocab, the length of axis {axis} of "
            f"{found}, found {old_token_count}"
        )


def _remapped_leaf(reader: CheckpointReader, plan: _VocabularyPlan) -> Any:
    target, shape, axis = plan.template.type, plan.template.shape, plan.info.axis
    dtype = storage_dtype(target)
    result = filesystem.new_memory(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    if (plan.positions < 0).any():
        result[...] = _initial_values(plan.name, plan.info, shape, dtype)
    stored_shape = reader.shapes[plan.position]
    kept = np.flatnonzero(plan.positions >= 0)
    for box in split_box(whole_box(stored_shape), _PART_NBYTES // dtype.itemsize):
        low, high = box[axis]
        here = kept[(plan.positions[kept] >= low) & (plan.positions[kept] < high)]
        if not here.size:
            continue
        part = np.empty(box_shape(box), dtype)
        reader.read_boxes(plan.position, [box], [part], verify=True)
        into = tuple(here if i == axis else slice(*bounds) for i, bounds in enumerate(box))
        result[into] = part.take(plan.positions[here] - low, axis=axis)
    return build_leaf(result, target, target, plan.template.sharding)


_PART_NBYTES = 8 << 20


def _initial_values(name: str, info: VocabInfo, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    if info.backup_initializer is None:
        return 0
    values = np.asarray(info.backup_initializer(shape, dtype))
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(
            f"{quoted(name)}: expected a backup_initializer that returns {dtype.name}{list(shape)}, "
            f"found {values.dtype.name}{list(values.shape)}"
        )
    return values
