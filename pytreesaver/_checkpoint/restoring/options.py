"""The options of `restore`, checked."""

from typing import Any, NamedTuple, TypedDict

import numpy as np

from pytreesaver._checkpoint.restoring.matching import Missing, Unexpected
from pytreesaver._progress import Progress, check_progress
from pytreesaver._text import did_you_mean
from pytreesaver._tree.casting import floating_dtype
from pytreesaver._tree.rename import ByName, as_renaming
from pytreesaver._tree.select import as_selection


class RestoreArguments(TypedDict, total=False):
    """The arguments of `pytreesaver.restore`, for functions that pass them on."""

    only: Any
    rename: Any
    missing: Missing
    unexpected: Unexpected
    cast: Any
    reshape: bool
    sharding: Any
    as_numpy: bool
    mmap: bool
    verify: bool
    progress: Progress


class RestoreOptions(NamedTuple):
    """How to restore: the arguments of `pytreesaver.restore`, and what a `Saver` adds to them.

    With `may_be_empty` a selection of nothing is no error; `sequentially` holds one variable at a time beside the
    result; without `hints` messages name no arguments of `restore`.
    """

    only: Any = None
    rename: Any = None
    missing: Missing = "error"
    unexpected: Unexpected = "error"
    cast: Any = False
    reshape: bool = False
    sharding: Any = None
    as_numpy: bool = False
    mmap: bool = False
    verify: bool = True
    progress: Progress = False
    sequentially: bool = False
    may_be_empty: bool = False
    hints: bool = True

    @classmethod
    def of(cls, caller: str, given: RestoreArguments) -> "RestoreOptions":
        """The options of a function that passes them on.

        Raises:
            TypeError: there is no option of such a name.
        """
        known = RestoreArguments.__annotations__
        for name in given:
            if name not in known:
                raise TypeError(f"{caller} has no argument {name!r}{did_you_mean(name, list(known))}")
        return cls(**given)

    def checked(self, like: Any) -> "RestoreOptions":
        """The options with a `Selection` and a `Renaming` in them.

        Raises:
            TypeError, ValueError: an option makes no sense, or not with the others.
        """
        if self.missing not in ("error", "keep"):
            raise ValueError(f'missing: expected "error" or "keep", found {self.missing!r}')
        if self.unexpected not in ("error", "ignore"):
            raise ValueError(f'unexpected: expected "error" or "ignore", found {self.unexpected!r}')
        for flag in ("reshape", "as_numpy", "mmap", "verify"):
            if not isinstance(getattr(self, flag), bool | np.bool_):
                raise TypeError(f"{flag}: expected True or False, found {getattr(self, flag)!r}")
        check_progress(self.progress)
        if self.as_numpy and self.sharding is not None:
            raise ValueError("sharding places JAX arrays, and with as_numpy=True there are none: leave one of them out")
        only = None if self.only is None else as_selection(self.only)
        renaming = None if self.rename is None else as_renaming(self.rename)
        cast = bool(self.cast) if isinstance(self.cast, bool | np.bool_) else floating_dtype(self.cast)
        if like is None:
            if (self.missing, self.unexpected, self.reshape) != ("error", "error", False):
                raise ValueError("missing, unexpected and reshape compare with a template: pass one as like=")
            if renaming is not None and not isinstance(renaming, ByName):
                raise ValueError(
                    "rename: a function or regular expressions say how the names of a template are called in the "
                    "checkpoint: pass a template as like=, or rename with a dict"
                )
        elif not isinstance(cast, bool):
            raise ValueError(f"cast: the template decides the dtypes: expected True or False, found {self.cast!r}")
        return self._replace(only=only, rename=renaming, cast=cast)
