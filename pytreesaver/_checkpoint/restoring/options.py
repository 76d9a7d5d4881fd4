"""The options of `restore`, checked."""

from typing import Any, NamedTuple, TypedDict

import numpy as np
from jax.typing import DTypeLike

from pytreesaver._checkpoint.restoring.matching import Mismatched, Missing, Unexpected
from pytreesaver._checkpoint.restoring.targets import ShardingRule
from pytreesaver._io.processes.meeting import DEFAULT_TIMEOUT, WhichProcesses, check_taking_part
from pytreesaver._progress import Progress, check_progress
from pytreesaver._text import did_you_mean
from pytreesaver._tree.casting import floating_dtype
from pytreesaver._tree.names.rename import ByName, Rename, as_renaming
from pytreesaver._tree.names.select import Selection, as_selection
from pytreesaver.formats.registry import format_named


class RestoreArguments(TypedDict, total=False):
    """The keyword arguments of `pytreesaver.restore`, for functions that pass them on."""

    only: Selection | None
    rename: Rename | None
    missing: Missing
    unexpected: Unexpected
    mismatched: Mismatched
    cast: bool | DTypeLike
    reshape: bool
    sharding: ShardingRule | None
    as_numpy: bool
    mmap: bool
    verify: bool
    format: str | None
    progress: Progress
    processes: WhichProcesses
    timeout: float


class RestoreOptions(NamedTuple):
    """How to restore: the keyword arguments of `pytreesaver.restore`, and what other functions add to them.

    Attributes:
        sequentially: hold one variable at a time in memory above the result.
        may_be_empty: accept a selection of no variables.
        hints: whether messages may suggest arguments of `restore`.
        is_incremental: whether a later save will probably share data files with the checkpoint.
    """

    only: Any = None
    rename: Any = None
    missing: Missing = "error"
    unexpected: Unexpected = "error"
    mismatched: Mismatched = "error"
    cast: Any = False
    reshape: bool = False
    sharding: ShardingRule | None = None
    as_numpy: bool = False
    mmap: bool = False
    verify: bool = True
    format: str | None = None
    progress: Progress = False
    processes: WhichProcesses = "all"
    timeout: float = DEFAULT_TIMEOUT
    sequentially: bool = False
    may_be_empty: bool = False
    hints: bool = True
    is_incremental: bool = False

    @classmethod
    def of(cls, caller: str, given: RestoreArguments) -> "RestoreOptions":
        """Return the options of a function that passes its keyword arguments on.

        Raises:
            TypeError: if an argument does not exist.
        """
        known = RestoreArguments.__annotations__
        for name in given:
            if name not in known:
                raise TypeError(f"{caller} has no argument {name!r}{did_you_mean(name, list(known))}")
        return cls(**given)

    def checked(self, like: Any) -> "RestoreOptions":
        """Return the options with a `Selector` as `only` and a `Renaming` as `rename`.

        Raises:
            TypeError, ValueError: if an option is invalid, alone or together with the others.
        """
        if self.missing not in ("error", "keep"):
            raise ValueError(f'missing: expected "error" or "keep", found {self.missing!r}')
        if self.unexpected not in ("error", "ignore"):
            raise ValueError(f'unexpected: expected "error" or "ignore", found {self.unexpected!r}')
        if self.mismatched not in ("error", "keep"):
            raise ValueError(f'mismatched: expected "error" or "keep", found {self.mismatched!r}')
        for flag in ("reshape", "as_numpy", "mmap", "verify"):
            if not isinstance(getattr(self, flag), bool | np.bool_):
                raise TypeError(f"{flag}: expected True or False, found {getattr(self, flag)!r}")
        check_progress(self.progress)
        check_taking_part(self.processes, self.timeout)
        format_named(self.format)  # raises if there is no such format
        if self.as_numpy and self.sharding is not None:
            raise ValueError("sharding places JAX arrays, and with as_numpy=True there are none: leave one of them out")
        only = None if self.only is None else as_selection(self.only)
        renaming = None if self.rename is None else as_renaming(self.rename)
        cast = bool(self.cast) if isinstance(self.cast, bool | np.bool_) else floating_dtype(self.cast)
        if like is None:
            if (self.missing, self.unexpected, self.mismatched, self.reshape) != ("error", "error", "error", False):
                raise ValueError(
                    "missing, unexpected, mismatched and reshape compare with a template: pass one as like="
                )
            if renaming is not None and not isinstance(renaming, ByName):
                raise ValueError(
                    "rename: a function or regular expressions say how the names of a template are called in the "
                    "checkpoint: pass a template as like=, or rename with a dict"
                )
        elif not isinstance(cast, bool):
            raise ValueError(f"cast: the template decides the dtypes: expected True or False, found {self.cast!r}")
        return self._replace(only=only, rename=renaming, cast=cast)
