"""Restoring the newest checkpoint that is intact, and saying which ones were not."""

import errno
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from pytreesaver._errors import (
    CheckpointError,
    CheckpointIOError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    RetentionWarning,
)
from pytreesaver._run.policies.retention import SavedCheckpoint

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
