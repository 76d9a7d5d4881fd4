"""Fit a template to what is stored: which variable each leaf takes, or everything that does not fit. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec

from pytreesaver._checkpoint.restoring.targets import X64_DTYPES, Template, python_kind_of, value_fits
from pytreesaver._errors import MismatchError
from pytreesaver._text import lines_with_suggestions, quoted, suggestions
from pytreesaver._tree.casting import display_number
from pytreesaver._tree.kinds import (
    PYTHON_KINDS,
    LeafType,
    describe,
    describe_dtype,
    is_castable,
    logical_shape,
    storage_dtype,
)
from pytreesaver._tree.rename import Renaming, likely_renaming

X64_NOTE = "JAX holds no 64-bit arrays while jax_enable_x64 is off"


class Difference(NamedTuple):
    """What was expected of a variable and what was found, as it stands in the message."""

    expected: str
    found: str
    note: str = ""


@dataclass
class Problems:
    """What does not fit, in the order in which it is found.

    Attributes:
        where: what the checkpoint is called in the message.
        stored_names: the names of all of its variables.
        missing: {name in the template: name in the checkpoint} of the variables that are not there.
        unexpected: names of variables that no leaf takes and that must not be there.
        surplus: names of all variables that no leaf takes.
        shape, dtype: as in `MismatchError`.
        differ: what the message says of each variable of another shape or dtype.
        unused: entries of the renaming that say nothing of the template, each with a hint at what could be meant.
        label: what the renaming is called.
        nothing_to_keep: whether the missing ones are those whose template has no value that could be kept.
        hints: whether arguments of `restore` may be named at all.
        cast_helps, reshape_helps, narrowing_helps: whether an argument of `restore` would mend some of it.
    """

    where: str
    stored_names: Sequence[str]
    missing: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    dtype: dict[str, tuple[str, str]] = field(default_factory=dict)
    differ: dict[str, Difference] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    label: str = "rename"
    cast_helps: bool = False
    reshape_helps: bool = False
    narrowing_helps: bool = False
    nothing_to_keep: bool = False
    hints: bool = True

    def raise_if_any(self) -> None:
        """Raise a `MismatchError` if there is anything."""
        if self.missing or self.unexpected or self.differ or self.unused:
            raise MismatchError(
                "\n".join(self._lines()),
                missing=list(self.missing),
                unexpected=self.unexpected,
                shape=self.shape,
                dtype=self.dtype,
                unused=list(self.unused),
            )

    def _lines(self) -> list[str]:
        count = len(self.missing) + len(self.unexpected) + len(self.differ)
        lines = []
        if count:
            lines.append(
                f"{count} variable{'s' * (count != 1)} of {self.where} {'do' if count != 1 else 'does'} not fit:"
            )
        if self.unused:
            lines.append(f"entries of {self.label} that match no variable of the template ({len(self.unused)}):")
            lines += [f"  {quoted(entry)}{hint}" for entry, hint in self.unused.items()]
        if self.missing:
            lines.append(f"missing from the checkpoint ({len(self.missing)}):")
            lines += self._missing_lines()
        if self.unexpected:
            lines.append(f"in the checkpoint but not in the template ({len(self.unexpected)}):")
            lines += [f"  {quoted(name)}" for name in self.unexpected]
        if self.differ:
            lines.append(f"of another shape or dtype ({len(self.differ)}):")
            lines += [
                f"  {quoted(name)}: expected {d.expected}, found {d.found}{f' ({d.note})' if d.note else ''}"
                for name, d in self.differ.items()
            ]
        ways = self._ways_out()
        return [*lines, f"({'; '.join(ways)})"] if ways else lines

    def _missing_lines(self) -> list[str]:
        if all(name == stored for name, stored in self.missing.items()):
            renaming = likely_renaming(list(self.missing), self.surplus)
            if renaming is not None:
                hint = f"  all of them are there under another prefix: rename={renaming} finds them"
                return [hint, *(f"  {quoted(name)}" for name in self.missing)]
            return lines_with_suggestions(list(self.missing), self.surplus or self.stored_names)
        suggest = suggestions(self.surplus or self.stored_names)
        return [
            f"  {quoted(name)} (looked for as {quoted(stored)}){suggest(stored)}"
            for name, stored in self.missing.items()
        ]

    def _ways_out(self) -> list[str]:
        ways: list[str] = []
        if not self.hints:
            return ways
        if self.missing and self.nothing_to_keep:
            ways.append("a ShapeDtypeStruct has no value that could be kept")
        elif self.missing:
            ways.append('missing="keep" keeps the template\'s own values')
        if self.unexpected:
            ways.append('unexpected="ignore" leaves what the template lacks')
        if self.cast_helps:
            ways.append("cast=True converts to the template's dtypes")
        if self.reshape_helps:
            ways.append("reshape=True takes any shape of as many elements")
        if any(difference.note == X64_NOTE for difference in self.differ.values()):
            ways.append('jax.config.update("jax_enable_x64", True) allows 64 bits, as_numpy=True gives NumPy arrays')
        if self.narrowing_helps:
            ways.append("cast=True gives 32 bits")
        return ways


def joined(errors: Sequence[MismatchError]) -> MismatchError:
    """One error that says what all of them say."""
    return MismatchError(
        "\n".join(map(str, errors)),
        missing=[name for error in errors for name in error.missing],
        unexpected=[name for error in errors for name in error.unexpected],
        shape={name: shapes for error in errors for name, shapes in error.shape.items()},
        dtype={name: dtypes for error in errors for name, dtypes in error.dtype.items()},
        unused=[entry for error in errors for entry in error.unused],
    )


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
            problems.dtype[name] = (describe_dtype(wanted.type), describe_dtype(found))
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
        return f"{display_number(stored_value)} is not representable as {target.dtype}" if same_category else ""
    return None if storage_dtype(found) == storage_dtype(target) else ""
