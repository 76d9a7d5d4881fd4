"""Exceptions and warnings.

Every exception derives from `CheckpointError` and from the builtin exception that it specialises, so both
``except pts.CheckpointError`` and ``except FileNotFoundError`` work.
"""

from collections.abc import Mapping, Sequence


class CheckpointError(Exception):
    """Base class of the pytreesaver exceptions. Invalid arguments raise a plain TypeError or ValueError."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The path does not contain a complete checkpoint."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """The path already exists, and `overwrite` does not allow replacing it."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """The checkpoint is damaged: its files do not match its index, or the index is inconsistent.

    Attributes:
        damaged: names of the variables whose bytes cannot be trusted. It is empty if the index itself is damaged, in
            which case nothing in the checkpoint can be trusted.
    """

    damaged: list[str]

    def __init__(self, message: str = "", *, damaged: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.damaged = list(damaged)


class UnsupportedVersionError(CheckpointError, ValueError):
    """The checkpoint is intact but uses a newer format version than this release supports."""


class MismatchError(CheckpointError, ValueError):
    """The template does not match the checkpoint. The message lists every variable that differs.

    Attributes:
        missing: names in the template that the checkpoint lacks.
        unexpected: names in the checkpoint that the template lacks.
        shape: maps a name to (expected shape, found shape).
        dtype: maps a name to (expected, found), each as it appears in the message, e.g. ``"float32"`` or ``"int"``.
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
    """A name or a selection does not match the variables of a tree or a checkpoint."""

    def __str__(self) -> str:
        # KeyError.__str__ returns the repr of its argument, which would escape the newlines in the message.
        return str(self.args[0]) if self.args else ""


class DuplicateNameError(CheckpointError, ValueError):
    """Two leaves of a tree have the same variable name."""


class UnsupportedLeafError(CheckpointError, TypeError):
    """The tree contains something that cannot be stored and restored exactly."""


class CheckpointIOError(CheckpointError, OSError):
    """The operating system failed to read or write a file. `errno` and the message give the reason."""

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type["CheckpointIOError"], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)


class CheckpointPermissionError(CheckpointIOError, PermissionError):
    """The operating system denied access: insufficient permissions or a read-only file system."""


class ConcurrentWriterError(CheckpointError, RuntimeError):
    """Another running process is saving into the same run directory."""


class SaveTimeoutError(CheckpointError, TimeoutError):
    """An asynchronous save did not finish in time. The message names it. The save continues."""


class ProcessTimeoutError(CheckpointError, TimeoutError):
    """Other processes of the program did not take part in a call in time.

    Attributes:
        missing: the numbers of these processes, as `jax.process_index` gives them.
    """

    missing: list[int]

    def __init__(self, message: str = "", *, missing: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.missing = list(missing)


class MissingPackageError(CheckpointError, ImportError):
    """A package is needed that is not installed. The message says how to install it."""


class RetentionWarning(UserWarning):
    """A checkpoint or the state file of a run could not be used, or a checkpoint could not be deleted."""


class StructureWarning(UserWarning):
    """A tree restored without a template lacks some of its original container classes."""


def not_installed(where: object, package: str, purpose: str, *, extra: str) -> MissingPackageError:
    """Return the error for a package that only an extra of pytreesaver installs.

    Example:
        >>> print(not_installed("run/7", "tensorstore", "reading an Orbax checkpoint", extra="orbax"))
        run/7: reading an Orbax checkpoint needs the package tensorstore, which is not installed: pip install
        'pytreesaver[orbax]'
    """
    return MissingPackageError(
        f"{where}: {purpose} needs the package {package}, which is not installed: pip install 'pytreesaver[{extra}]'"
    )
