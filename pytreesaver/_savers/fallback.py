"""Restoring the newest checkpoint that is intact, and saying which ones were not."""

import errno
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pytreesaver._errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
)
from pytreesaver._run.policies.retention import SavedCheckpoint
from pytreesaver.formats.foreign import foreign_steps

T = TypeVar("T")


def first_intact(
    candidates: Sequence[SavedCheckpoint], use: Callable[[SavedCheckpoint], T]
) -> tuple[SavedCheckpoint | None, T | None, list[CheckpointError]]:
    """Return the first undamaged checkpoint, the result of `use` for it, and the errors of those before it.

    Raises:
        The errors of `use` that do not mean damage, such as a missing permission or too many open files.
    """
    problems: list[CheckpointError] = []
    for saved in candidates:
        try:
            return saved, use(saved), problems
        except (CorruptCheckpointError, CheckpointNotFoundError) as error:
            problems.append(error)
        except CheckpointIOError as error:
            if error.errno != errno.EIO:
                raise
            problems.append(error)
    return None, None, problems


def warn_of_damaged(problems: Sequence[CheckpointError], fallback: str) -> None:
    """Warn about the checkpoints that `first_intact` skipped."""
    if problems:
        lines = "\n".join(map(str, problems))
        warnings.warn(f"{lines}\nusing instead: {fallback}", RetentionWarning, stacklevel=3)


def refuse_foreign_steps(directory: Path) -> None:
    """Raise a CheckpointExistsError if a run directory without checkpoints contains steps of another library.

    Otherwise a run that was started with that library would silently start over.
    """
    try:
        found = foreign_steps(directory)
    except OSError:  # the read or the save that follows reports it
        return
    if found:
        library, steps = found
        way_out = f"restore them with {library} and save them here under another name"
        if library in ("Orbax", "Hugging Face", "TensorFlow", "Flax"):
            way_out = "pytreesaver.restore reads them, and pytreesaver.convert copies them to another directory"
        if library == "TensorFlow":
            way_out += "; a manager of their checkpoint_name= continues their run"
        raise CheckpointExistsError(
            f"{directory}: expected checkpoints of pytreesaver or none, found steps of {library}: "
            f"{', '.join(map(str, steps))}; {way_out}, or use another directory"
        )
