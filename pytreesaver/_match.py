"""Fit a template to what is stored: which variable each leaf takes, or everything that does not fit. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from pytreesaver._errors import MismatchError
from pytreesaver._leaves import PYTHON_KINDS, LeafType, describe, described_dtype, logical_shape, storage_dtype
from pytreesaver._names import listed_with_suggestions, shown
from pytreesaver._templates import X64_DTYPES, Template, python_kind_of, value_fits

Missing = Literal["error", "keep"]
Unexpected = Literal["error", "ignore"]


class StoredVariables(NamedTuple):
    """What a checkpoint holds, in columns: `shapes` are those of the stored arrays."""

    names: Sequence[str]
    types: Sequence[LeafType]
    shapes: Sequence[Sequence[int]]


class _Difference(NamedTuple):
    expected: str
    found: str
    note: str = ""


def match_template(
    template: Mapping[str, Template],
    stored: StoredVariables,
    *,
    where: str,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    reshape: bool = False,
    stored_names: Mapping[str, str],
    considered: Callable[[str], bool],
    value_of: Callable[[int], Any],
    x64_enabled: bool,
) -> list[int | None]:
    """The position of the stored variable for each leaf of the template; None for a leaf that keeps its own value.

    `stored_names` gives the name in the checkpoint of every leaf of the template, and `considered` says of a stored
    variable that no leaf takes whether that is worth a word. With `reshape` the same number of elements is enough.
    `value_of` gives the value of a stored Python number by its position: an int fits an int32 leaf only if it is small
    enough. `where` says in messages what the checkpoint is.

    Raises:
        MismatchError: naming every variable that is missing, unexpected, or of another shape or dtype.
    """
    positions = {name: i for i, name in enumerate(stored.names)}
    plan: list[int | None] = [positions.get(stored_names[name]) for name in template]
    absent = [name for name, position in zip(template, plan, strict=True) if position is None]
    taken = set(stored_names.values())
    surplus = [name for name in stored.names if name not in taken and considered(name)]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    dtypes: dict[str, tuple[str, str]] = {}
    differences: dict[str, _Difference] = {}

    for (name, wanted), position in zip(template.items(), plan, strict=True):
        if position is None:
            continue
        found, found_shape = stored.types[position], logical_shape(stored.types[position], stored.shapes[position])
        misfit = _layout_problem(wanted)
        if misfit:
            whole = describe(wanted.type, wanted.shape)
            differences[name] = _Difference(f"{whole} with {wanted.sharding}", describe(found, found_shape), misfit)
            continue
        if found == wanted.type and found_shape == wanted.shape and not _needs_x64(found, x64_enabled):
            continue
        difference = _compare(wanted, found, found_shape, partial(value_of, position), x64_enabled)
        of_arrays = found.kind not in PYTHON_KINDS and wanted.type.kind not in PYTHON_KINDS
        if reshape and of_arrays and math.prod(found_shape) == math.prod(wanted.shape):
            found_shape = wanted.shape
        if found_shape != wanted.shape:
            shapes[name] = (wanted.shape, found_shape)
        if difference is not None:
            dtypes[name] = (described_dtype(wanted.type), described_dtype(found))
        if difference is not None or found_shape != wanted.shape:
            differences[name] = _Difference(
                describe(wanted.type, wanted.shape), describe(found, found_shape), difference or ""
            )

    refused_absent = absent if missing == "error" else [name for name in absent if not template[name].has_value]
    refused_surplus = surplus if unexpected == "error" else []
    if refused_absent or refused_surplus or differences:
        raise MismatchError(
            _message(where, refused_absent, refused_surplus, differences, stored.names),
            missing=refused_absent,
            unexpected=refused_surplus,
            shape=shapes,
            dtype=dtypes,
        )
    return plan


def _layout_problem(wanted: Template) -> str:
    """Why an array of the wanted shape cannot have the wanted sharding, or nothing."""
    if wanted.sharding is None:
        return ""
    try:
        wanted.sharding.shard_shape(wanted.shape)
    except ValueError as error:
        return str(error).partition("\n")[0]
    return ""


def check_x64(stored: StoredVariables, *, where: str, x64_enabled: bool) -> None:
    """Refuse to restore 64-bit JAX arrays without a template where JAX would cut them down to 32 bits.

    Raises:
        MismatchError: naming every such variable; its `dtype` gives (what JAX can hold now, what is stored).
    """
    differences = {}
    dtypes = {}
    for name, leaf_type, shape in zip(*stored, strict=True):
        if _needs_x64(leaf_type, x64_enabled):
            narrow = LeafType("jax", X64_DTYPES[leaf_type.dtype])
            differences[name] = _Difference(describe(narrow, shape), describe(leaf_type, shape), _X64_NOTE)
            dtypes[name] = (narrow.dtype, leaf_type.dtype)
    if differences:
        raise MismatchError(_message(where, [], [], differences, stored.names), dtype=dtypes)


_X64_NOTE = "JAX holds no 64-bit arrays while jax_enable_x64 is off"


def _needs_x64(leaf_type: LeafType, x64_enabled: bool) -> bool:
    return not x64_enabled and leaf_type.kind == "jax" and leaf_type.dtype in X64_DTYPES


def _compare(
    wanted: Template, found: LeafType, found_shape: tuple[int, ...], value: Callable[[], Any], x64_enabled: bool
) -> str | None:
    """None if a leaf of type `found` can become the wanted one with nothing lost, else a note on why not (or "")."""
    target = wanted.type
    if _needs_x64(target, x64_enabled):
        return _X64_NOTE
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
        return f"{_shown_number(stored_value)} is no {target.dtype} value" if same_category else ""
    return None if storage_dtype(found) == storage_dtype(target) else ""


def _shown_number(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def _message(
    where: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    differences: Mapping[str, _Difference],
    stored_names: Sequence[str],
) -> str:
    count = len(missing) + len(unexpected) + len(differences)
    lines = [f"{count} variable{'s' * (count != 1)} of {where} {'do' if count != 1 else 'does'} not fit:"]
    if missing:
        lines.append(f"missing from the checkpoint ({len(missing)}):")
        candidates = unexpected or stored_names
        lines += listed_with_suggestions(missing, candidates)
    if unexpected:
        lines.append(f"in the checkpoint but not in the template ({len(unexpected)}):")
        lines += [f"  {shown(name)}" for name in unexpected]
    if differences:
        lines.append(f"of another shape or dtype ({len(differences)}):")
        lines += [
            f"  {shown(name)}: expected {d.expected}, found {d.found}{f' ({d.note})' if d.note else ''}"
            for name, d in differences.items()
        ]
    lines += _ways_out(missing, unexpected, differences)
    return "\n".join(lines)


def _ways_out(missing: Sequence[str], unexpected: Sequence[str], differences: Mapping[str, _Difference]) -> list[str]:
    ways = []
    if missing:
        ways.append('missing="keep" keeps the template\'s own values')
    if unexpected:
        ways.append('unexpected="ignore" leaves what the template lacks')
    if any(d.note == _X64_NOTE for d in differences.values()):
        ways.append('jax.config.update("jax_enable_x64", True) allows 64 bits, as_numpy=True gives NumPy arrays')
    return [f"({'; '.join(ways)})"] if ways else []
