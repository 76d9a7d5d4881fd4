"""Steps and settings as users give them, checked."""

from typing import Any

import jax
import numpy as np


def check_count(what: str, value: Any, *, least: int) -> None:
    """Raise a TypeError or ValueError unless a setting is None or an int of at least `least`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{what}: expected an int or None, found {value!r}")
    if value < least:
        raise ValueError(f"{what}: expected None or an int from {least} on, found {value!r}")


def check_hours(what: str, value: Any) -> None:
    """Raise a TypeError or ValueError unless a setting is None or a number of hours."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{what}: expected a number of hours or None, found {value!r}")
    if not value >= 0:
        raise ValueError(f"{what}: expected no negative number of hours, found {value!r}")


def check_format(value: Any) -> None:
    """Raise a ValueError unless a setting names a format that can be written."""
    if value not in (None, "native"):
        raise ValueError(f'format: expected None or "native", found {value!r}')


def as_step(step: Any) -> int:
    """A step as an int.

    Raises:
        TypeError: it is neither an int nor an integer array without axes.
        ValueError: it is negative.

    Example:
        >>> as_step(np.int64(100)), as_step(jax.numpy.array(100))
        (100, 100)
    """
    is_array = isinstance(step, np.ndarray | np.generic | jax.Array)
    is_integer = is_array and step.shape == () and np.issubdtype(step.dtype, np.integer)
    if not is_integer and (isinstance(step, bool) or not isinstance(step, int)):
        raise TypeError(f"step: expected an int or an integer array without axes, found {step!r}")
    if step < 0:
        raise ValueError(f"step: expected a number from 0 on, found {int(step)}")
    return int(step)
