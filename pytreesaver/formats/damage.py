"""Damage that was found in several places of a checkpoint, as one error."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pytreesaver._errors import CorruptCheckpointError
from pytreesaver._text import quoted
from pytreesaver._tree.kinds import python_value
from pytreesaver.formats.protocol import CheckpointReader


def add_damage(damage: list[CorruptCheckpointError], error: CorruptCheckpointError) -> None:
    """Keep an error until the rest has been looked at. If it names no variable, nothing can be trusted: raise it."""
    if not error.damaged:
        raise error
    damage.append(error)


def joined_damage(reader: CheckpointReader, damage: Sequence[CorruptCheckpointError]) -> CorruptCheckpointError:
    """One error that names every damaged variable, in the order of the checkpoint."""
    if len(damage) == 1:
        return damage[0]
    damaged = {name for error in damage for name in error.damaged}
    names = [name for name in reader.names if name in damaged]
    count = f"{len(names)} of {len(reader.names)} variables damaged:"
    # Each message names its variables after a line of this kind; what comes before says why.
    reasons = [str(error).rpartition(f"{reader.path}: {len(error.damaged)} of ")[0] for error in damage]
    lines = [line for line in dict.fromkeys("".join(reasons).splitlines()) if line]
    return CorruptCheckpointError(
        "\n".join([*lines, f"{reader.path}: {count}", *(f"  {quoted(name)}" for name in names)]), damaged=names
    )


def value_of_bytes(reader: CheckpointReader, position: int, stored: np.ndarray) -> Any:
    """The Python value of a variable; raises a CorruptCheckpointError if it is a str and its bytes are none."""
    try:
        return python_value(stored, reader.types[position])
    except UnicodeDecodeError as error:
        name = reader.names[position]
        raise CorruptCheckpointError(
            f"{reader.path}: {quoted(name)}: the stored bytes are not a valid str: {error}", damaged=[name]
        ) from error
