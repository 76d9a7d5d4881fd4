"""Restoring the newest checkpoint that is intact, and saying which ones were not."""

import errno
import re
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
from pytreesaver._io import filesystem
from pytreesaver._io.processes.meeting import Meeting
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


def first_intact_of_all(
    meeting: Meeting, list_candidates: Callable[[], Sequence[SavedCheckpoint]], use: Callable[[SavedCheckpoint], T]
) -> tuple[SavedCheckpoint | None, T | None, list[CheckpointError]]:
    """Do what `first_intact` does, in all processes together: a checkpoint has to be undamaged for all of them.

    Args:
        meeting: the processes.
        list_candidates: called in process 0, which decides about the candidates.
        use: as in `first_intact`.
    """
    candidates = meeting.first(
        "candidates", lambda: list(list_candidates()), list[SavedCheckpoint], "list the checkpoints"
    )
    problems: list[CheckpointError] = []
    for number, saved in enumerate(candidates):
        _, result, problem = first_intact([saved], use)
        text = f"process {meeting.rank}: {problem[0]}" if problem else ""
        texts = meeting.gather(f"tried-{number}", text.encode(), "restore the checkpoint")
        verdict = meeting.first(
            f"verdict-{number}",
            lambda texts=texts: next((each.decode() for each in texts if each), ""),  # type: ignore[misc]
            str,
            "say whether all have restored the checkpoint",
        )
        if not verdict:
            meeting.forget()
            return saved, result, problems
        problems.append(problem[0] if problem else CorruptCheckpointError(verdict))
    meeting.forget()
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
        found, names = foreign_steps(directory), filesystem.list_directory(directory)
    except OSError:  # the read or the save that follows reports it
        return
    if found:
        library, steps = found
        raise CheckpointExistsError(
            f"{directory}: expected checkpoints of pytreesaver or none, found steps of {library}: "
            f"{', '.join(map(str, steps))}; {_way_out(names, library)}"
        )


def _way_out(names: Sequence[str], library: str) -> str:
    if library not in ("Orbax", "Hugging Face", "TensorFlow", "Flax"):
        return f"restore them with {library} and save them here under another name, or use another directory"
    way_out = "pytreesaver.restore reads them; use another directory, to which pytreesaver.convert can copy them"
    if library == "TensorFlow":
        prefixes = sorted({match[1] for match in map(_OF_TENSORFLOW.fullmatch, names) if match})
        options = " or ".join(f'checkpoint_name="{prefix}"' for prefix in prefixes)
        way_out += f", or pass {options} to the manager to continue their run" if options else ""
    return way_out


_OF_TENSORFLOW = re.compile(r"(.+)-[0-9]+\.index", re.DOTALL)
