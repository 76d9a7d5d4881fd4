"""Save policies: when a training loop saves. Pure functions of the step, the time and the last save.

Policies are combined with ``|``: a save is due when any of them says so.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pytreesaver._run.policies.retention import checked_steps, require_count, require_positive


class SavePoint(NamedTuple):
    """A step of a training loop, as save policies see it.

    Attributes:
        step: the current step.
        time: the current time, in seconds since the epoch.
        last_step: the step of the last save, or None if there is none. It is before `step`.
        last_time: the time of the last save, in seconds since the epoch, or None.
        previous_step: the step before, at which this process asked whether a save is due, or None.
    """

    step: int
    time: float
    last_step: int | None = None
    last_time: float | None = None
    previous_step: int | None = None


class SavePolicy:
    """Base class of save policies. Policies are combined with ``|``."""

    def is_due(self, point: SavePoint) -> bool:
        """Return whether to save at this point."""
        raise NotImplementedError(f"{type(self).__name__}: expected a save policy with a method is_due")

    def __or__(self, other: "SavePolicy") -> "SaveWhenAny":
        return SaveWhenAny((self, other))

    def __ror__(self, other: "SavePolicy") -> "SaveWhenAny":
        return SaveWhenAny((other, self))


def check_save_policy(policy: object) -> None:
    """Raise a TypeError if this is not a save policy."""
    if not isinstance(policy, SavePolicy):
        hint = "; pass SaveWhen(function)" if callable(policy) else ""
        raise TypeError(
            f"save_policy: expected a policy such as SaveEverySteps(100) | SaveSteps([10]), found {policy!r}{hint}"
        )


@dataclass(frozen=True)
class SaveWhenAny(SavePolicy):
    """Saves when any of its parts does. ``a | b`` creates one."""

    parts: tuple[SavePolicy, ...]

    def __post_init__(self) -> None:
        flat: list[SavePolicy] = []
        for part in self.parts:
            check_save_policy(part)
            flat += part.parts if isinstance(part, SaveWhenAny) else [part]
        object.__setattr__(self, "parts", tuple(dict.fromkeys(flat)))

    def is_due(self, point: SavePoint) -> bool:
        """See `SavePolicy.is_due`."""
        answers = [part.is_due(point) for part in self.parts]  # each is asked, since a function may count its calls
        return any(answers)


@dataclass(frozen=True)
class SaveInterval(SavePolicy):
    """Saves the first step, and then when at least `steps` and `seconds` have passed since the last save."""

    steps: int = 1
    seconds: float | None = None

    def is_due(self, point: SavePoint) -> bool:
        """See `SavePolicy.is_due`."""
        if point.last_step is None:
            return True
        return point.step >= point.last_step + self.steps and _has_passed(self.seconds, point)


@dataclass(frozen=True)
class SaveEverySteps(SavePolicy):
    """Saves at each multiple of `steps`, or at the first step after it that the loop reaches.

    Example:
        >>> [step for step in range(1, 36) if SaveEverySteps(10).is_due(SavePoint(step, 0.0, last_step=step - 1))]
        [10, 20, 30]
    """

    steps: int

    def __post_init__(self) -> None:
        require_count("SaveEverySteps.steps", self.steps)

    def is_due(self, point: SavePoint) -> bool:
        """See `SavePolicy.is_due`."""
        before = point.previous_step if point.last_step is None else point.last_step
        if before is None or before > point.step:
            return point.step % self.steps == 0
        return point.step // self.steps > before // self.steps


@dataclass(frozen=True)
class SaveEverySeconds(SavePolicy):
    """Saves the first step, and then when `seconds` have passed since the last save."""

    seconds: float

    def __post_init__(self) -> None:
        require_positive("SaveEverySeconds.seconds", self.seconds)

    def is_due(self, point: SavePoint) -> bool:
        """See `SavePolicy.is_due`."""
        return _has_passed(self.seconds, point)


@dataclass(frozen=True)
class SaveSteps(SavePolicy):
    """Saves at the given steps."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        object.__setattr__(self, "steps", checked_steps("SaveSteps.steps", steps))

    def is_due(self, point: SavePoint) -> bool:
        """See `SavePolicy.is_due`."""
        return point.step in self.steps


@dataclass(frozen=True)
class SaveWhen(SavePolicy):
    """Saves when a function of the step returns True.

    Example:
        >>> policy = SaveWhen(lambda step: step & (step - 1) == 0) | SaveSteps([10])
        >>> [step for step in range(1, 20) if policy.is_due(SavePoint(step, 0.0))]
        [1, 2, 4, 8, 10, 16]
    """

    function: Callable[[int], bool]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"SaveWhen.function: expected a function of the step, found {self.function!r}")

    def is_due(self, point: SavePoint) -> bool:
        """See `SavePolicy.is_due`."""
        return bool(self.function(point.step))


def _has_passed(seconds: float | None, point: SavePoint) -> bool:
    if seconds is None or point.last_time is None:
        return True
    elapsed = point.time - point.last_time
    # If the clock was set back, the elapsed time is unknown.
    return elapsed >= seconds or elapsed < 0
