"""One error for damage in several places of a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytreesaver._errors import CorruptCheckpointError, UnsupportedLeafError
from pytreesaver._text import quoted
from pytreesaver._tree.kinds import python_value
from pytreesaver.formats.protocol import CheckpointReader


def add_damage(damage: list[CorruptCheckpointError], error: CorruptCheckpointError) -> None:
    """Append an error to `damage`. Raise it if it names no variable: then nothing in the checkpoint can be trusted."""
    if not error.damaged:
        raise error
    damage.append(error)


def unreadable_variables(reader: CheckpointReader) -> Mapping[str, str]:
    """Return the variables that cannot be read, each with the reason. Most readers have none."""
    reasons: Mapping[str, str] = getattr(reader, "unreadable", {})
    return reasons


def refuse_unreadable(path: Path, what: str, unreadable: Mapping[str, str]) -> None:
    """Raise an UnsupportedLeafError that lists variables that cannot be read, with the reasons, if there are any."""
    if unreadable:
        lines = "\n".join(f"  {quoted(name)}: {reason}" for name, reason in unreadable.items())
        raise UnsupportedLeafError(f"{path}: cannot be {what}; leave them out with only=:\n{lines}")


def joined_damage(reader: CheckpointReader, damage: Sequence[CorruptCheckpointError]) -> CorruptCheckpointError:
    """Return one error that names every damaged variable, in the order of the checkpoint."""
    if len(damage) == 1 and f" of {len(reader.names)} variables damaged" in str(damage[0]):
        return damage[0]
    damaged = {name for error in damage for name in error.damaged}
    names = [name for name in reader.names if name in damaged]
    count = f"{len(names)} of {len(reader.names)} variables damaged:"
    # Each message states its reasons, then such a line, then the names.
    reasons = []
    for error in damage:
        before, found, _ = str(error).rpartition(f"{reader.path}: {len(error.damaged)} of ")
        reasons.append(before if found else f"{error}\n")
    lines = [line for line in dict.fromkeys("".join(reasons).splitlines()) if line]
    return CorruptCheckpointError(
        "\n".join([*lines, f"{reader.path}: {count}", *(f"  {quoted(name)}" for name in names)]), damaged=names
    )


def value_of_bytes(reader: CheckpointReader, position: int, stored: np.ndarray) -> Any:
    """Return the Python value of a variable. Raises CorruptCheckpointError if it is a str of invalid bytes."""
    try:
        return python_value(stored, reader.types[position])
    except UnicodeDecodeError as error:
        name = reader.names[position]
        raise CorruptCheckpointError(
            f"{reader.path}: {quoted(name)}: the stored bytes are not a valid str: {error}", damaged=[name]
        ) from error
