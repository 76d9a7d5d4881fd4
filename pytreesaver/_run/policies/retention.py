"""Retention policies: which checkpoints of a run to keep, and why. Pure functions of the checkpoints and the time.

Policies are combined with ``|``. Checkpoints that none of them keeps are deleted, except for the newest checkpoint and
pinned ones, which are always kept.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint as policies see it: `time` in seconds since the epoch, `metrics` as passed to the save."""

    path: str
    step: int
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    pinned: bool = False


class Decision(NamedTuple):
    """A retention decision: the checkpoint is kept if there are `reasons`, and will be deleted otherwise."""

    checkpoint: SavedCheckpoint
    reasons: tuple[str, ...]

    @property
    def keep(self) -> bool:
        """Whether the checkpoint is kept."""
        return bool(self.reasons)

    def __str__(self) -> str:
        what = f"kept: {', '.join(self.reasons)}" if self.reasons else "will be deleted"
        return f"{self.checkpoint.path} (step {self.checkpoint.step}): {what}"


class RetentionPolicy:
    """Base class of retention policies. Policies are combined with ``|``."""

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """Return the positions of the checkpoints to keep, with the reasons. `checkpoints` are sorted, oldest first."""
        raise NotImplementedError(f"{type(self).__name__}: expected a retention policy with a method kept")

    def __or__(self, other: "RetentionPolicy") -> "AnyOf":
        return AnyOf((self, other))

    def __ror__(self, other: "RetentionPolicy") -> "AnyOf":
        return AnyOf((other, self))


def check_policy(policy: object) -> None:
    """Raise a TypeError if this is not a retention policy."""
    if not isinstance(policy, RetentionPolicy):
        raise TypeError(f"policy: expected a policy such as KeepLast(5) | KeepEverySteps(1000), found {policy!r}")


def decide(policy: RetentionPolicy, checkpoints: Iterable[SavedCheckpoint], now: float) -> list[Decision]:
    """Return the decision for each checkpoint, oldest first.

    Pinned checkpoints and the newest one are always kept. Checkpoints are ordered by time; those of the same time by
    step.

    Example:
        >>> saves = [SavedCheckpoint(f"model-{step}", step, time=60.0 * step) for step in (1, 2, 3, 4)]
        >>> for decision in decide(KeepLast(1) | KeepEverySteps(3), saves, now=300.0):
        ...     print(decision.checkpoint.path, decision.reasons)
        model-1 ('every 3 steps',)
        model-2 ()
        model-3 ('every 3 steps',)
        model-4 ('newest', 'last 1')
    """
    ordered = sorted(checkpoints, key=lambda checkpoint: (checkpoint.time, checkpoint.step, checkpoint.path))
    reasons: list[list[str]] = [["pinned"] if checkpoint.pinned else [] for checkpoint in ordered]
    if ordered:
        reasons[-1].append("newest")
    for part in policy.parts if isinstance(policy, AnyOf) else (policy,):
        for position, reason in part.kept(ordered, now).items():
            reasons[position].append(reason)
    return [Decision(checkpoint, tuple(dict.fromkeys(why))) for checkpoint, why in zip(ordered, reasons, strict=True)]


@dataclass(frozen=True)
class AnyOf(RetentionPolicy):
    """Keeps the checkpoints that any of its parts keeps. ``a | b`` creates one."""

    parts: tuple[RetentionPolicy, ...]

    def __post_init__(self) -> None:
        flat: list[RetentionPolicy] = []
        for part in self.parts:
            check_policy(part)
            flat += part.parts if isinstance(part, AnyOf) else [part]
        object.__setattr__(self, "parts", tuple(dict.fromkeys(flat)))

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        result: dict[int, str] = {}
        for part in self.parts:
            result = part.kept(checkpoints, now) | result
        return result


@dataclass(frozen=True)
class KeepAll(RetentionPolicy):
    """Keeps every checkpoint."""

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        return dict.fromkeys(range(len(checkpoints)), "all")


@dataclass(frozen=True)
class KeepLast(RetentionPolicy):
    """Keeps the last `count` checkpoints."""

    count: int

    def __post_init__(self) -> None:
        require_count("KeepLast.count", self.count)

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        return dict.fromkeys(range(len(checkpoints))[-self.count :], f"last {self.count}")


@dataclass(frozen=True)
class KeepEveryHours(RetentionPolicy):
    """Keeps the oldest checkpoint, and then the first one at least `hours` after each one kept."""

    hours: float

    def __post_init__(self) -> None:
        require_positive("KeepEveryHours.hours", self.hours)

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        result: dict[int, str] = {}
        last = -math.inf
        for position, checkpoint in enumerate(checkpoints):
            if checkpoint.time - last >= self.hours * 3600:
                result[position] = f"every {self.hours:g} hours"
                last = checkpoint.time
        return result


@dataclass(frozen=True)
class KeepEverySteps(RetentionPolicy):
    """Keeps the first checkpoint at or after each multiple of `steps`, including 0, wherever the saves fall.

    Checkpoints at exact multiples are always kept. After a run has gone back to an earlier step, the multiples from
    there on count again.

    Example:
        >>> saves = [SavedCheckpoint(f"model-{step}", step, time=60.0 * step) for step in (17, 22, 27, 32, 50)]
        >>> [saves[i].step for i in KeepEverySteps(10).kept(saves, now=3600.0)]
        [17, 22, 32, 50]
    """

    steps: int

    def __post_init__(self) -> None:
        require_count("KeepEverySteps.steps", self.steps)

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        reason = f"every {self.steps} steps"
        result: dict[int, str] = {}
        passed: set[int] = set()  # the multiples that a checkpoint has reached
        last = 0
        for position, checkpoint in enumerate(checkpoints):
            multiple, beyond = divmod(checkpoint.step, self.steps)
            if checkpoint.step < last:
                passed = {each for each in passed if each < multiple}
            last = checkpoint.step
            if beyond == 0 or (checkpoint.step > 0 and multiple not in passed):
                result[position] = reason
            passed.add(multiple)
        return result


@dataclass(frozen=True)
class KeepBest(RetentionPolicy):
    """Keeps the `count` best checkpoints by a metric. Of equal ones, the newer is better.

    Checkpoints whose metric is NaN, or that do not have it, are never ranked best.
    """

    count: int
    metric: str
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        require_count("KeepBest.count", self.count)
        if self.mode not in ("min", "max"):
            raise ValueError(f'KeepBest.mode: expected "min" or "max", found {self.mode!r}')

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        reason = f"best {self.count} by {self.metric} ({self.mode})"
        return dict.fromkeys(self.ranked(checkpoints)[: self.count], reason)

    def ranked(self, checkpoints: Sequence[SavedCheckpoint]) -> list[int]:
        """Return the positions of the checkpoints that have the metric, the best first. NaN does not count."""
        values = {i: checkpoint.metrics.get(self.metric, math.nan) for i, checkpoint in enumerate(checkpoints)}
        sign = 1 if self.mode == "min" else -1
        comparable = [i for i, value in values.items() if not math.isnan(value)]
        return sorted(comparable, key=lambda i: (sign * values[i], -i))


@dataclass(frozen=True)
class KeepSteps(RetentionPolicy):
    """Keeps the checkpoints of the given steps."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        object.__setattr__(self, "steps", checked_steps("KeepSteps.steps", steps))

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        return {i: "named step" for i, checkpoint in enumerate(checkpoints) if checkpoint.step in self.steps}


@dataclass(frozen=True)
class KeepYoungerThan(RetentionPolicy):
    """Keeps the checkpoints that were saved less than `seconds` ago."""

    seconds: float

    def __post_init__(self) -> None:
        require_positive("KeepYoungerThan.seconds", self.seconds)

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        reason = f"younger than {self.seconds:g} s"
        return {i: reason for i, checkpoint in enumerate(checkpoints) if now - checkpoint.time < self.seconds}


def checked_steps(what: str, steps: Any) -> frozenset[int]:
    """Return named steps as ints. Raise a TypeError or ValueError unless they are non-negative integers."""
    if isinstance(steps, str) or not isinstance(steps, Iterable):
        raise TypeError(f"{what}: expected several steps, as in [100, 200], found {steps!r}")
    found: set[int] = set()
    for step in steps:
        number = -1
        with suppress(TypeError):
            number = -1 if isinstance(step, bool | np.bool_) else operator.index(step)
        if number < 0:
            raise ValueError(f"{what}: expected non-negative integers, found {step!r}")
        found.add(number)
    return frozenset(found)


def require_count(what: str, value: object) -> None:
    """Raise a ValueError unless a field of a policy is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{what}: expected a positive integer, found {value!r}")


def require_positive(what: str, value: object) -> None:
    """Raise a ValueError unless a field of a policy is a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{what}: expected a positive number, found {value!r}")


def check_count(what: str, value: Any, *, least: int, optional: bool = True) -> None:
    """Raise a TypeError or ValueError unless a setting is an int of at least `least`, or None if `optional`."""
    if value is None and optional:
        return
    or_none = " or None" if optional else ""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{what}: expected an int{or_none}, found {value!r}")
    if value < least:
        raise ValueError(
            f"{what}: expected {'None or ' if optional else ''}an int of at least {least}, found {value!r}"
        )


def check_duration(what: str, value: Any, unit: str) -> None:
    """Raise a TypeError or ValueError unless a setting is None or a non-negative number of a unit of time."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{what}: expected a number of {unit} or None, found {value!r}")
    if not value >= 0:
        raise ValueError(f"{what}: expected a non-negative number of {unit}, found {value!r}")
