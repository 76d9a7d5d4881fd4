"""Everything in which a template and a checkpoint differ, gathered into one error. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pytreesaver._errors import MismatchError
from pytreesaver._names import listed_with_suggestions, shown, suggestions
from pytreesaver._rename import likely_renaming

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
            lines += [f"  {shown(entry)}{hint}" for entry, hint in self.unused.items()]
        if self.missing:
            lines.append(f"missing from the checkpoint ({len(self.missing)}):")
            lines += self._missing_lines()
        if self.unexpected:
            lines.append(f"in the checkpoint but not in the template ({len(self.unexpected)}):")
            lines += [f"  {shown(name)}" for name in self.unexpected]
        if self.differ:
            lines.append(f"of another shape or dtype ({len(self.differ)}):")
            lines += [
                f"  {shown(name)}: expected {d.expected}, found {d.found}{f' ({d.note})' if d.note else ''}"
                for name, d in self.differ.items()
            ]
        ways = self._ways_out()
        return [*lines, f"({'; '.join(ways)})"] if ways else lines

    def _missing_lines(self) -> list[str]:
        if all(name == stored for name, stored in self.missing.items()):
            renaming = likely_renaming(list(self.missing), self.surplus)
            if renaming is not None:
                hint = f"  all of them are there under another prefix: rename={renaming} finds them"
                return [hint, *(f"  {shown(name)}" for name in self.missing)]
            return listed_with_suggestions(list(self.missing), self.surplus or self.stored_names)
        suggest = suggestions(self.surplus or self.stored_names)
        return [
            f"  {shown(name)} (looked for as {shown(stored)}){suggest(stored)}" for name, stored in self.missing.items()
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
