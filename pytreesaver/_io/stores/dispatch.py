"""Which functions of the file system work on object stores too."""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from pytreesaver._io.stores.paths import FIRST_HANDLE, StorePath

F = TypeVar("F", bound=Callable[..., Any])


def or_in_store(function: F) -> F:
    """Let a function call that of the same name in `pytreesaver._io.stores.operations` for a `StorePath` or a handle.

    The engine is imported then, and not before.
    """

    @functools.wraps(function)
    def dispatched(where: Any, *arguments: Any, **options: Any) -> Any:
        if is_in_store(where):
            operations = importlib.import_module("pytreesaver._io.stores.operations")
            return getattr(operations, function.__name__)(where, *arguments, **options)
        return function(where, *arguments, **options)

    return cast(F, dispatched)


_check: ContextVar[Callable[[], None] | None] = ContextVar("pytreesaver_before_commit", default=None)


@contextmanager
def checking_before_commit(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before a checkpoint in an object store is completed in the block. Its error prevents that."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def before_commit() -> None:
    """Call the check of `checking_before_commit`, if there is one."""
    check = _check.get()
    if check is not None:
        check()


def is_locked() -> bool:
    """Return whether this is in a block of `checking_before_commit`: no other process saves into the directory."""
    return _check.get() is not None


def is_in_store(where: Any) -> bool:
    """Return whether a path is that of an object store, or a descriptor is a handle of one."""
    return type(where) is StorePath or (type(where) is int and where >= FIRST_HANDLE)
