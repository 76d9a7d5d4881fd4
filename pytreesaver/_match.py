"""Fit a template to what is stored: which variable each leaf takes, or everything that does not fit. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec

from pytreesaver._convert import is_castable, shown_number
from pytreesaver._leaf_types import PYTHON_KINDS, LeafType, describe, described_dtype, logical_shape, storage_dtype
from pytreesaver._mismatch import X64_NOTE, Difference, Problems
from pytreesaver._rename import Renaming
from pytreesaver._templates import X64_DTYPES, Template, python_kind_of, value_fits

Missing = Literal["error", "keep"]
Unexpected = Literal["error", "ignore"]


class StoredVariables(NamedTuple):
    """What a checkpoint holds, in columns: `shapes` are those of the stored arrays."""

    names: Sequence[str]
    types: Sequence[LeafType]
    shapes: Sequence[Sequence[int]]

    def logical_shape(self, position: int) -> tuple[int, ...]:
        """The shape of the leaf that a variable was saved from."""
        return logical_shape(self.types[position], self.shapes[position])


class LeafPlan(msgspec.Struct, frozen=True, gc=False):
    """Which variable a leaf takes, and what it is to become: in type and shape that may differ from what is stored."""

    position: int
    target: Template


def match_template(
    template: Mapping[str, Template],
    stored: StoredVariables,
    *,
    where: str,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    cast: bool = False,
    reshape: bool = False,
    renaming: Renaming | None = None,
    template_names: Sequence[str],
    considered: Callable[[str], bool],
    hints: bool = True,
    value_of: Callable[[int], Any],
    x64_enabled: bool,
) -> list[LeafPlan | None]:
    """A plan for each leaf of the template; None for a leaf that keeps its own value.

    Args:
        template: the leaves that are to be restored, by their names.
        stored: what the checkpoint holds.
        where: what messages call the checkpoint.
        missing: as for `pytreesaver.restore`.
        unexpected: as for `pytreesaver.restore`.
        cast: take any number for any other.
        reshape: take any array of as many elements.
        renaming: gives the names in the checkpoint.
        template_names: the names of all leaves, restored or not: an entry of the renaming has to be for one of them.
        considered: whether a stored variable that no leaf takes is worth a word.
        hints: whether the message may name arguments of `pytreesaver.restore`.
        value_of: gives the value of a stored Python number by its position: an int fits an int32 leaf only if it is
            small enough.
        x64_enabled: whether JAX can hold 64 bits.

    Raises:
        MismatchError: naming every variable that is missing, unexpected, or of another shape or dtype, and every
            entry of the renaming that is for none.
    """
    positions = {name: i for i, name in enumerate(stored.names)}
    stored_names = {name: renaming.stored_name(name) if renaming else name for name in template}
    plan: list[LeafPlan | None] = []
    absent: dict[str, str] = {}
    problems = Problems(where, stored.names, hints=hints)
    if renaming is not None:
        problems.label = renaming.label
        problems.unused = renaming.unused(template_names)

    for name, wanted in template.items():
        position = positions.get(stored_names[name])
        if position is None:
            absent[name] = stored_names[name]
            plan.append(None)
            continue
        plan.append(LeafPlan(position, wanted))
        found, found_shape = stored.types[position], stored.logical_shape(position)
        misfit = _layout_problem(wanted)
        if misfit:
            whole = describe(wanted.type, wanted.shape)
            problems.differ[name] = Difference(f"{whole} with {wanted.sharding}", describe(found, found_shape), misfit)
            continue
        if found == wanted.type and found_shape == wanted.shape and not _needs_x64(found, x64_enabled):
            continue
        note = _compare(wanted, found, found_shape, partial(value_of, position), x64_enabled)
        same_shape = found_shape == wanted.shape
        castable = note not in (None, X64_NOTE) and is_castable(found, wanted.type)
        reshapable = not same_shape and _is_reshapable(found, found_shape, wanted)
        if (note is None or castable) and (same_shape or reshapable):
            problems.cast_helps |= castable and not cast
            problems.reshape_helps |= reshapable and not reshape
        if castable and cast:
            note = None
        if reshapable and reshape:
            same_shape = True
        if not same_shape:
            problems.shape[name] = (wanted.shape, found_shape)
        if note is not None:
            problems.dtype[name] = (described_dtype(wanted.type), described_dtype(found))
        if note is not None or not same_shape:
            expected = describe(wanted.type, wanted.shape)
            problems.differ[name] = Difference(expected, describe(found, found_shape), note or "")

    taken = set(stored_names.values())
    problems.surplus = [name for name in stored.names if name not in taken]
    problems.unexpected = [name for name in problems.surplus if considered(name)] if unexpected == "error" else []
    problems.nothing_to_keep = missing == "keep"
    problems.missing = {
        name: stored_name for name, stored_name in absent.items() if missing == "error" or not template[name].has_value
    }
    problems.raise_if_any()
    return plan


def _is_reshapable(found: LeafType, found_shape: tuple[int, ...], wanted: Template) -> bool:
    of_arrays = found.kind not in PYTHON_KINDS and wanted.type.kind not in PYTHON_KINDS
    return of_arrays and math.prod(found_shape) == math.prod(wanted.shape)


def _layout_problem(wanted: Template) -> str:
    """Why an array of the wanted shape cannot have the wanted sharding, or nothing."""
    if wanted.sharding is None:
        return ""
    try:
        wanted.sharding.shard_shape(wanted.shape)
    except ValueError as error:
        return str(error).partition("\n")[0]
    except IndexError:  # what JAX makes of a scalar
        return "the sharding is for arrays of more axes"
    return ""


def check_targets(targets: Mapping[str, Template], stored: StoredVariables, *, where: str, x64_enabled: bool) -> None:
    """Refuse to restore without a template what JAX would cut down to 32 bits, or what a sharding does not fit.

    `targets` are what the `stored` variables are to become, in the same order.

    Raises:
        MismatchError: naming every such variable; its `dtype` gives (what JAX can hold now, what is stored).
    """
    problems = Problems(where, stored.names)
    for position, (name, target) in enumerate(targets.items()):
        misfit = _layout_problem(target)
        if _needs_x64(target.type, x64_enabled):
            narrow = LeafType("jax", X64_DTYPES[target.type.dtype])
            wide = describe(target.type, target.shape)
            problems.differ[name] = Difference(describe(narrow, target.shape), wide, X64_NOTE)
            problems.dtype[name] = (narrow.dtype, target.type.dtype)
            problems.narrowing_helps |= target.type == stored.types[position]
        elif misfit:
            expected = f"{describe(target.type, target.shape)} with {target.sharding}"
            found = describe(stored.types[position], stored.logical_shape(position))
            problems.differ[name] = Difference(expected, found, misfit)
    problems.raise_if_any()


def _needs_x64(leaf_type: LeafType, x64_enabled: bool) -> bool:
    return not x64_enabled and leaf_type.kind == "jax" and leaf_type.dtype in X64_DTYPES


def _compare(
    wanted: Template, found: LeafType, found_shape: tuple[int, ...], value: Callable[[], Any], x64_enabled: bool
) -> str | None:
    """None if a leaf of type `found` can become the wanted one with nothing lost, else a note on why not (or "")."""
    target = wanted.type
    if _needs_x64(target, x64_enabled):
        return X64_NOTE
    if target.kind == "key" or found.kind == "key":
        return None if target.kind == found.kind and target.key_impl == found.key_impl else ""
    if found.kind in PYTHON_KINDS and target.kind in PYTHON_KINDS:
        return None if found.kind == target.kind else ""
    if found.kind in ("str", "bytes") or target.kind in ("str", "bytes"):
        return ""
    if target.kind in PYTHON_KINDS:
        return None if found_shape == () and python_kind_of(storage_dtype(found)) == target.kind else ""
    if found.kind in PYTHON_KINDS:
        stored_value = value()
        if value_fits(stored_value, target):
            return None
        same_category = python_kind_of(storage_dtype(target)) == found.kind
        return f"{shown_number(stored_value)} is no {target.dtype} value" if same_category else ""
    return None if storage_dtype(found) == storage_dtype(target) else ""
