"""Matching of a template with the stored variables: which variable each leaf takes, or all differences. No I/O."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec

from pytreesaver._checkpoint.restoring.targets import Template, python_kind_of, value_fits
from pytreesaver._errors import MismatchError
from pytreesaver._text import lines_with_suggestions, quoted, suggestions
from pytreesaver._tree.casting import X64_DTYPES, display_number
from pytreesaver._tree.kinds import (
    PYTHON_KINDS,
    LeafType,
    describe,
    describe_dtype,
    is_castable,
    logical_shape,
    storage_dtype,
)
from pytreesaver._tree.names.rename import Renaming, likely_renaming

X64_NOTE = "JAX has no 64-bit arrays while jax_enable_x64 is off"


class Difference(NamedTuple):
    """How a variable differs from the template, in the words of the message."""

    expected: str
    found: str
    note: str = ""


@dataclass
class Problems:
    """All differences between a template and a checkpoint, in the order in which they are found.

    Attributes:
        where: the name of the checkpoint in the message.
        stored_names: the names of all its variables.
        missing: {name in the template: name in the checkpoint} of the missing variables.
        unexpected: the names of variables that no leaf takes, if they are errors.
        surplus: the names of all variables that no leaf takes.
        shape, dtype: as in `MismatchError`.
        differ: the difference of each variable with another shape or dtype, by its name.
        misplaced: (expected, found) names of leaves in containers without keys, whose children have no other names.
        unused: the entries of the renaming that match no variable of the template, each with a hint for the message.
        label: the name of the argument that holds the renaming.
        nothing_to_keep: whether leaves are missing because their template has no value to keep.
        hints: whether the message may suggest arguments of `restore`.
        fits: returns whether a variable of the template has the shape of a variable of the checkpoint, by their names.
        is_empty: whether the template has no leaves.
        cast_helps, reshape_helps, keeping_helps, narrowing_helps: whether an argument of `restore` would resolve some
            differences.
    """

    where: str
    stored_names: Sequence[str]
    missing: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    dtype: dict[str, tuple[str, str]] = field(default_factory=dict)
    differ: dict[str, Difference] = field(default_factory=dict)
    misplaced: dict[str, tuple[str, str]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    label: str = "rename"
    cast_helps: bool = False
    reshape_helps: bool = False
    keeping_helps: bool = False
    narrowing_helps: bool = False
    nothing_to_keep: bool = False
    hints: bool = True
    fits: Callable[[str, str], bool] = lambda name, other: True
    is_empty: bool = False

    def raise_if_any(self) -> None:
        """Raise a `MismatchError` if there are any differences."""
        if self.missing or self.unexpected or self.differ or self.misplaced or self.unused:
            raise MismatchError(
                "\n".join(self._lines()),
                missing=list(self.missing),
                unexpected=self.unexpected,
                shape=self.shape,
                dtype=self.dtype,
                unused=list(self.unused),
            )

    def _lines(self) -> list[str]:
        count = len(self.missing) + len(self.unexpected) + len(self.differ) + len(self.misplaced)
        lines = []
        if count:
            lines.append(
                f"{count} variable{'s' * (count != 1)} of {self.where} {'do' if count != 1 else 'does'} not match:"
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
            lines.append(f"with a different shape or dtype ({len(self.differ)}):")
            lines += [
                f"  {quoted(name)}: expected {d.expected}, found {d.found}{f' ({d.note})' if d.note else ''}"
                for name, d in self.differ.items()
            ]
        if self.misplaced:
            lines.append(
                f"in another place of a container without keys, by its auxiliary data ({len(self.misplaced)}):"
            )
            lines += [
                f"  {quoted(name)}: expected {expected}, found {found}"
                for name, (expected, found) in self.misplaced.items()
            ]
        ways = self._ways_out()
        return [*lines, f"({'; '.join(ways)})"] if ways else lines

    def _missing_lines(self) -> list[str]:
        if all(name == stored for name, stored in self.missing.items()):
            renaming = likely_renaming(list(self.missing), self.surplus, self.fits)
            if renaming is not None:
                ((new, old),) = renaming.items()
                hint = (
                    f"  all of them exist under another prefix: rename={renaming} finds them"
                    if self.hints
                    else f"  all of them exist under another prefix: {old!r} in place of {new!r}"
                )
                return [hint, *(f"  {quoted(name)}" for name in self.missing)]
            return lines_with_suggestions(list(self.missing), self.surplus or self.stored_names, self.fits)
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
            ways.append("a ShapeDtypeStruct has no value to keep")
        elif self.missing:
            ways.append('missing="keep" keeps the template\'s own values')
        if self.unexpected and self.is_empty:
            ways.append(
                "the template has no leaves; equinox.filter(tree, equinox.is_array) removes those of an abstract "
                "model, which is a template as it is"
            )
        if self.unexpected:
            ways.append('unexpected="ignore" ignores extra variables')
        if self.cast_helps:
            ways.append("cast=True converts to the template's dtypes")
        if self.reshape_helps:
            ways.append("reshape=True accepts any shape with the same number of elements")
        if self.keeping_helps:
            ways.append('mismatched="keep" keeps the template\'s own values of another shape')
        if any(difference.note == X64_NOTE for difference in self.differ.values()):
            ways.append('jax.config.update("jax_enable_x64", True) enables 64 bits, as_numpy=True returns NumPy arrays')
        if self.misplaced:
            ways.append("rename= with whole names says which variable each leaf takes")
        if self.narrowing_helps:
            ways.append("cast=True converts to 32 bits")
        return ways


def joined(errors: Sequence[MismatchError]) -> MismatchError:
    """Return one error that contains all of these."""
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
Mismatched = Literal["error", "keep"]


class StoredVariables(NamedTuple):
    """The variables of a checkpoint, in columns: `shapes` are those of the stored arrays."""

    names: Sequence[str]
    types: Sequence[LeafType]
    shapes: Sequence[Sequence[int]]

    def logical_shape(self, position: int) -> tuple[int, ...]:
        """Return the shape of the leaf from which a variable was saved."""
        return logical_shape(self.types[position], self.shapes[position])


class LeafPlan(msgspec.Struct, frozen=True, gc=False):
    """The position of the variable that a leaf takes, and the wanted leaf, whose type and shape may differ from it."""

    position: int
    target: Template


class Match(NamedTuple):
    """How a template matches a checkpoint.

    Attributes:
        plans: a plan for each leaf of the template, or None for a leaf that keeps its own value.
        kept: why each such leaf keeps its value, by its name.
    """

    plans: list[LeafPlan | None]
    kept: dict[str, str]


def match_template(
    template: Mapping[str, Template],
    stored: StoredVariables,
    *,
    where: str,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    mismatched: Mismatched = "error",
    cast: bool = False,
    reshape: bool = False,
    renaming: Renaming | None = None,
    template_names: Sequence[str],
    misplaced: Mapping[str, tuple[str, str]],
    considered: Callable[[str], bool],
    hints: bool = True,
    value_of: Callable[[int], Any],
    x64_enabled: bool,
) -> Match:
    """Return which variable each leaf of the template takes, and which leaves keep their own values.

    Args:
        template: the leaves to restore, by their names.
        stored: the variables of the checkpoint.
        where: the name of the checkpoint in messages.
        missing: as in `pytreesaver.restore`.
        unexpected: as in `pytreesaver.restore`.
        mismatched: as in `pytreesaver.restore`.
        cast: whether to accept numbers of any other dtype.
        reshape: whether to accept arrays of another shape with the same number of elements.
        renaming: maps the names of leaves to names in the checkpoint.
        template_names: the names of all leaves, restored or not: each entry of the renaming must match one of them.
        misplaced: (expected, found) names of the leaves that would take the place of another one.
        considered: whether a stored variable that no leaf takes counts as unexpected, by its name.
        hints: whether the message may suggest arguments of `pytreesaver.restore`.
        value_of: returns the value of a stored Python number by its position: an int fits into an int32 leaf only if it
            is small enough.
        x64_enabled: whether JAX arrays can have 64-bit dtypes.

    Raises:
        MismatchError: if the template and the checkpoint differ. It names every variable that is missing, unexpected,
            or has another shape or dtype, and every entry of the renaming that matches no leaf.
    """
    positions = {name: i for i, name in enumerate(stored.names)}
    stored_names = {name: renaming.stored_name(name) if renaming else name for name in template}
    plan: list[LeafPlan | None] = []
    kept: dict[str, str] = {}
    absent: dict[str, str] = {}
    problems = Problems(where, stored.names, hints=hints, is_empty=not template_names)
    problems.fits = lambda name, other: template[name].shape == stored.logical_shape(positions[other])
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
        if name in misplaced:
            problems.misplaced[name] = misplaced[name]
            continue
        found, found_shape = stored.types[position], stored.logical_shape(position)
        misfit = _sharding_problem(wanted)
        if misfit:
            expected = f"{describe(wanted.type, wanted.shape)} with {wanted.sharding}"
            problems.differ[name] = Difference(expected, describe(found, found_shape), misfit)
            continue
        if found == wanted.type and found_shape == wanted.shape and not _needs_x64(found, x64_enabled):
            continue
        note = _compare(wanted, found, found_shape, partial(value_of, position), x64_enabled)
        same_shape = found_shape == wanted.shape
        castable = note not in (None, X64_NOTE) and is_castable(found, wanted.type)
        reshapable = not same_shape and _is_reshapable(found, found_shape, wanted)
        if (note is None or castable) and (same_shape or reshapable or mismatched == "keep"):
            problems.cast_helps |= castable and not cast
            problems.reshape_helps |= reshapable and not reshape
        if castable and cast:
            note = None
        if reshapable and reshape:
            same_shape = True
        if not same_shape and mismatched == "keep" and wanted.has_value:
            plan[-1] = None
            kept[name] = f"expected {describe(wanted.type, wanted.shape)}, found {describe(found, found_shape)}"
            continue
        if not same_shape:
            problems.shape[name] = (wanted.shape, found_shape)
            problems.keeping_helps |= wanted.has_value
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
    return Match(plan, kept | dict.fromkeys(absent, "missing from the checkpoint"))


def _is_reshapable(found: LeafType, found_shape: tuple[int, ...], wanted: Template) -> bool:
    of_arrays = found.kind not in PYTHON_KINDS and wanted.type.kind not in PYTHON_KINDS
    return of_arrays and math.prod(found_shape) == math.prod(wanted.shape)


def _sharding_problem(wanted: Template) -> str:
    """Return why an array of the wanted shape cannot have the wanted sharding, or an empty string."""
    if wanted.sharding is None:
        return ""
    try:
        wanted.sharding.shard_shape(wanted.shape)
    except ValueError as error:
        return str(error).partition("\n")[0]
    except IndexError:  # JAX raises it for a scalar
        return "the sharding is for arrays with more axes"
    return ""


def check_targets(targets: Mapping[str, Template], stored: StoredVariables, *, where: str, x64_enabled: bool) -> None:
    """Check the leaves to restore without a template: `targets` are those of the `stored` variables, in the same order.

    Raises:
        MismatchError: if JAX would truncate variables to 32 bits, or a sharding does not fit their shape. It names all
            of these; its `dtype` holds (the dtype that JAX would use, the dtype of the target).
    """
    problems = Problems(where, stored.names)
    for position, (name, target) in enumerate(targets.items()):
        misfit = _sharding_problem(target)
        if _needs_x64(target.type, x64_enabled):
            narrow = LeafType("jax", X64_DTYPES[target.type.dtype])
            wide = describe(target.type, target.shape)
            problems.differ[name] = Difference(describe(narrow, target.shape), wide, X64_NOTE)
            problems.dtype[name] = (narrow.dtype, target.type.dtype)
            problems.narrowing_helps |= target.type.dtype == stored.types[position].dtype
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
    """Return None if a leaf of type `found` can become the wanted one without loss, else a note on why not (or "")."""
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
