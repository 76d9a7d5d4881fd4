"""Steps and settings as users give them, checked."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pytreesaver._retention import AnyOf, KeepBest, KeepEverySteps, ManagerRule, RetentionPolicy


def check_count(what: str, value: Any, *, least: int, optional: bool = True) -> None:
    """Raise a TypeError or ValueError unless a setting is an int of at least `least`, or None if it is `optional`."""
    if value is None and optional:
        return
    or_none = " or None" if optional else ""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{what}: expected an int{or_none}, found {value!r}")
    if value < least:
        raise ValueError(f"{what}: expected {'None or ' if optional else ''}an int from {least} on, found {value!r}")


def check_duration(what: str, value: Any, unit: str) -> None:
    """Raise a TypeError or ValueError unless a setting is None or a number of a unit of time, which is not negative."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{what}: expected a number of {unit} or None, found {value!r}")
    if not value >= 0:
        raise ValueError(f"{what}: expected no negative number of {unit}, found {value!r}")


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


def manager_rule(
    max_to_keep: int | None,
    every_n_hours: float | None,
    every_n_steps: int | None,
    keep_best: KeepBest | tuple[Any, ...] | None,
    policy: RetentionPolicy | None,
) -> ManagerRule:
    """What a `CheckpointManager` with these arguments keeps.

    Raises:
        TypeError, ValueError: an argument makes no sense, or there is a policy and an argument that it replaces.
    """
    check_count("max_to_keep", max_to_keep, least=1)
    check_duration("keep_checkpoint_every_n_hours", every_n_hours, "hours")
    if isinstance(keep_best, tuple):
        keep_best = KeepBest(*keep_best)
    if keep_best is not None and not isinstance(keep_best, KeepBest):
        raise TypeError(f'keep_best: expected a KeepBest or (count, metric, "min" or "max"), found {keep_best!r}')
    also = [part for part in (None if every_n_steps is None else KeepEverySteps(every_n_steps), keep_best) if part]
    if policy is None:
        return ManagerRule(max_to_keep, every_n_hours, AnyOf(tuple(also)) if also else None)
    if not isinstance(policy, RetentionPolicy):
        raise TypeError(f"policy: expected a policy such as KeepLast(5) | KeepEverySteps(1000), found {policy!r}")
    if also or every_n_hours is not None or max_to_keep != ManagerRule().max_to_keep:
        raise ValueError(
            "policy: expected it in place of max_to_keep and keep_..., found both; join KeepLast, KeepEveryHours, "
            "KeepEverySteps and KeepBest with | in the policy"
        )
    return ManagerRule(policy=policy)


def checked_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as floats by name.

    Raises:
        TypeError: one is no number.

    Example:
        >>> checked_metrics({"loss": np.float32(0.5), "epoch": 2})
        {'loss': 0.5, 'epoch': 2.0}
    """
    given: object = metrics  # whatever its annotation says
    if metrics is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"metrics: expected a dict of numbers by name, found {metrics!r}")
    checked = {}
    for name, value in metrics.items():
        is_array = isinstance(value, np.ndarray | np.generic | jax.Array) and value.shape == ()
        is_number = is_array or (isinstance(value, int | float) and not isinstance(value, bool))
        if not is_number or type(name) is not str:
            raise TypeError(f"metrics: expected a number by its name, found {name!r}: {value!r}")
        try:
            checked[name] = float(value)
        except OverflowError:
            raise ValueError(f"metrics: expected a number that a float can hold, found {name!r}: an int") from None
    return checked
