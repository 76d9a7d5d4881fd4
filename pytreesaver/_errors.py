"""Every error that pytreesaver raises on purpose.

All derive from `CheckpointError`, and each also from the builtin exception it specialises, so that both
``except pts.CheckpointError`` and ``except FileNotFoundError`` do what they say.
"""

from collections.abc import Mapping, Sequence


class CheckpointError(Exception):
    """Base class of every error that pytreesaver raises on purpose."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no complete checkpoint at the path."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """Something is already at the path, and `overwrite` does not allow it to be replaced."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """The files of a checkpoint contradict its index, or the index contradicts itself.

    `damaged` lists the names of the variables whose bytes cannot be trusted; it is empty when the index itself is
    damaged, and then nothing in the checkpoint can be trusted.
    """

    damaged: list[str]

    def __init__(self, message: str = "", *, damaged: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.damaged = list(damaged)


class UnsupportedVersionError(CheckpointError, ValueError):
    """The checkpoint is intact but was written in a newer version of the format than this reader knows."""


class MismatchError(CheckpointError, ValueError):
    """The template and the checkpoint do not fit. The message names every variable that differs.

    Attributes:
        missing: names that the template has and the checkpoint lacks.
        unexpected: names that the checkpoint has and the template lacks.
        shape: name to (expected shape, found shape).
        dtype: name to (expected, found), each as it stands in the message, such as ``"float32"`` or ``"int"``.
        unused: entries of `rename` that match no variable.
    """

    missing: list[str]
    unexpected: list[str]
    shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtype: dict[str, tuple[str, str]]
    unused: list[str]

    def __init__(
        self,
        message: str = "",
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
        dtype: Mapping[str, tuple[str, str]] | None = None,
        unused: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = list(missing)
        self.unexpected = list(unexpected)
        self.shape = dict(shape or {})
        self.dtype = dict(dtype or {})
        self.unused = list(unused)


class VariableNotFoundError(CheckpointError, KeyError):
    """The checkpoint has no variable of that name."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would escape the line breaks of the message.
        return str(self.args[0]) if self.args else ""


class DuplicateNameError(CheckpointError, ValueError):
    """Two leaves of one tree have the same variable name."""


class UnsupportedLeafError(CheckpointError, TypeError):
    """A tree holds something that cannot be stored and given back exactly."""


class CheckpointIOError(CheckpointError, OSError):
    """The operating system refused to read or write a file: `errno` and the message say why."""

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type["CheckpointIOError"], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)


class CheckpointPermissionError(CheckpointIOError, PermissionError):
    """The operating system refused because of permissions, or because the file system is read-only."""


class ConcurrentWriterError(CheckpointError, RuntimeError):
    """Another live process is saving into the same run directory."""


class SaveTimeoutError(CheckpointError, TimeoutError):
    """A save in the background has not finished in time; the message says which. It goes on all the same."""


class RetentionWarning(UserWarning):
    """A checkpoint could not be used or could not be deleted, and the run goes on without that."""


class StructureWarning(UserWarning):
    """A tree restored without a template could not be given its original container classes."""
