"""Which checkpoints to keep: pure functions of what there is and of the time. No file, no clock.

A policy is a value: it looks at the checkpoints of a run and says which of them it keeps, and why. Policies are joined
with ``|``; what none of them keeps is to be deleted. The newest checkpoint is kept whatever the policy says.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint as a policy sees it: `time` in seconds since the epoch, `metrics` as given to the save."""

    path: str
    step: int
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    pinned: bool = False


class Decision(NamedTuple):
    """What becomes of a checkpoint: it stays if there are `reasons` to keep it, and otherwise is to be deleted."""

    checkpoint: SavedCheckpoint
    reasons: tuple[str, ...]

    @property
    def keep(self) -> bool:
        """Whether it stays."""
        return bool(self.reasons)

    def __str__(self) -> str:
        what = f"kept: {', '.join(self.reasons)}" if self.reasons else "to be deleted"
        return f"{self.checkpoint.path} (step {self.checkpoint.step}): {what}"


class RetentionPolicy:
    """Base class of the policies, which are compared by their values and joined with ``|``."""

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """The positions of the checkpoints that this policy keeps, with the reason. They come oldest first."""
        raise NotImplementedError

    def __or__(self, other: "RetentionPolicy") -> "AnyOf":
        return AnyOf((self, other))


def decide(policy: RetentionPolicy, checkpoints: Iterable[SavedCheckpoint], now: float) -> list[Decision]:
    """What becomes of each checkpoint, oldest first.

    Pinned checkpoints and the newest one are always kept. The age of a checkpoint goes by its time, and where that is
    the same by its step.

    Example:
        >>> saves = [SavedCheckpoint(f"model-{step}", step, time=60.0 * step) for step in (1, 2, 3, 4)]
        >>> for decision in decide(KeepLast(1) | KeepEverySteps(2), saves, now=300.0):
        ...     print(decision.checkpoint.path, decision.reasons)
        model-1 ()
        model-2 ('every 2 steps',)
        model-3 ()
        model-4 ('newest', 'last 1', 'every 2 steps')
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
    """Keeps what any of its parts keeps; ``a | b`` makes one."""

    parts: tuple[RetentionPolicy, ...]

    def __post_init__(self) -> None:
        flat: list[RetentionPolicy] = []
        for part in self.parts:
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
        _require_count("KeepLast.count", self.count)

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        return dict.fromkeys(range(len(checkpoints))[-self.count :], f"last {self.count}")


@dataclass(frozen=True)
class KeepEveryHours(RetentionPolicy):
    """Keeps the oldest checkpoint, and then each first one that is `hours` or more after the one kept before it."""

    hours: float

    def __post_init__(self) -> None:
        _require_positive("KeepEveryHours.hours", self.hours)

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
    """Keeps the checkpoints whose step is a multiple of `steps`."""

    steps: int

    def __post_init__(self) -> None:
        _require_count("KeepEverySteps.steps", self.steps)

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        reason = f"every {self.steps} steps"
        return {i: reason for i, checkpoint in enumerate(checkpoints) if checkpoint.step % self.steps == 0}


@dataclass(frozen=True)
class KeepBest(RetentionPolicy):
    """Keeps the `count` checkpoints whose `metric` is best; NaN, or no such metric, is never best.

    Of equal ones the newer is better.
    """

    count: int
    metric: str
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        _require_count("KeepBest.count", self.count)
        if self.mode not in ("min", "max"):
            raise ValueError(f'KeepBest.mode: expected "min" or "max", found {self.mode!r}')

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        reason = f"best {self.count} by {self.metric} ({self.mode})"
        return dict.fromkeys(self.ranked(checkpoints)[: self.count], reason)

    def ranked(self, checkpoints: Sequence[SavedCheckpoint]) -> list[int]:
        """The positions of all checkpoints that have the metric, the best first."""
        values = {i: checkpoint.metrics.get(self.metric, math.nan) for i, checkpoint in enumerate(checkpoints)}
        sign = 1 if self.mode == "min" else -1
        comparable = [i for i, value in values.items() if not math.isnan(value)]
        return sorted(comparable, key=lambda i: (sign * values[i], -i))


@dataclass(frozen=True)
class KeepSteps(RetentionPolicy):
    """Keeps the checkpoints of certain steps."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        object.__setattr__(self, "steps", frozenset(steps))

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        return {i: "named step" for i, checkpoint in enumerate(checkpoints) if checkpoint.step in self.steps}


@dataclass(frozen=True)
class KeepYoungerThan(RetentionPolicy):
    """Keeps the checkpoints that were saved less than `seconds` ago."""

    seconds: float

    def __post_init__(self) -> None:
        _require_positive("KeepYoungerThan.seconds", self.seconds)

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """See `RetentionPolicy.kept`."""
        reason = f"younger than {self.seconds:g} s"
        return {i: reason for i, checkpoint in enumerate(checkpoints) if now - checkpoint.time < self.seconds}


def _require_count(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what}: expected a positive integer, found {value!r}")


def _require_positive(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{what}: expected a positive number, found {value!r}")


class Eviction(NamedTuple):
    """What one save does to the tracked checkpoints under a rule of TensorFlow.

    `tracked` are the (path, time) that the rule goes on watching, oldest first; `preserved` those that it keeps for
    ever and watches no more; `deleted` those to be deleted; `mark` is what the rule remembers until the next save.
    """

    tracked: list[tuple[str, float]]
    preserved: list[str]
    deleted: list[str]
    mark: float


def saver_interval(every_n_hours: float) -> float:
    """The seconds between preserved checkpoints; TensorFlow's `SaverDef` stores the hours as a 32-bit float.

    Example:
        >>> saver_interval(1.0)
        3600.0
    """
    (as_stored,) = struct.unpack("f", struct.pack("f", min(every_n_hours, 3e38)))
    return float(as_stored) * 3600


def saver_eviction(
    tracked: Sequence[tuple[str, float]], saved: tuple[str, float], mark: float, max_to_keep: int, every_n_hours: float
) -> Eviction:
    """The rule of `tf.train.Saver` after a save.

    A checkpoint that drops out of the last `max_to_keep` is deleted, unless it was saved strictly after `mark`: then it
    is preserved, and the mark moves on by one interval. The mark starts at the Saver's construction plus one interval.
    Unlike TensorFlow, which evicts one checkpoint a save, this evicts all that are too many, so that a lowered
    `max_to_keep` takes effect.

    Example:
        >>> saver_eviction([("m-1", 600.0)], ("m-2", 1200.0), mark=3600.0, max_to_keep=1, every_n_hours=1.0)
        Eviction(tracked=[('m-2', 1200.0)], preserved=[], deleted=['m-1'], mark=3600.0)
    """
    if not max_to_keep:
        return Eviction([], [], [], mark)
    queue = [entry for entry in tracked if entry[0] != saved[0]] + [saved]
    preserved, deleted = [], []
    while len(queue) > max_to_keep:
        path, time = queue.pop(0)
        if time > mark:
            preserved.append(path)
            mark += saver_interval(every_n_hours)
        else:
            deleted.append(path)
    return Eviction(queue, preserved, deleted, mark)


@dataclass(frozen=True)
class ManagerRule:
    """What a `CheckpointManager` keeps.

    Without a `policy` that is what TensorFlow 2's `tf.train.CheckpointManager` keeps, the last `max_to_keep` (all if
    None) and one every `every_n_hours`, and what `also` keeps.
    """

    max_to_keep: int | None = 5
    every_n_hours: float | None = None
    also: RetentionPolicy | None = None
    policy: RetentionPolicy | None = None

    @property
    def is_tensorflows(self) -> bool:
        """Whether it is TensorFlow's rule and nothing else."""
        return self.also is None and self.policy is None


class ManagerDecisions(NamedTuple):
    """What becomes of each tracked checkpoint, oldest first.

    `preserved` are the paths of those that are kept for ever and need not be tracked any more; `mark` is what the rule
    remembers until the next save.
    """

    decisions: list[Decision]
    preserved: set[str]
    mark: float


def manager_decisions(
    rule: ManagerRule, tracked: Sequence[SavedCheckpoint], others: Sequence[SavedCheckpoint], mark: float, now: float
) -> ManagerDecisions:
    """What a `CheckpointManager` keeps of its tracked checkpoints, which come in the order of their saves.

    Without a policy: a checkpoint that drops out of the last `max_to_keep` is to be deleted, unless it was saved at
    least an interval after `mark`, the time of the one preserved before it: then it is preserved. The mark starts one
    second before the manager's construction. `others` are checkpoints that are not tracked: they are kept, and may be
    among the best. The newest and the pinned ones are always kept.

    Example:
        >>> saves = [SavedCheckpoint("ckpt-1", 1, 3600.0), SavedCheckpoint("ckpt-2", 2, 4200.0)]
        >>> rule = ManagerRule(max_to_keep=1, every_n_hours=1.0)
        >>> [decision.reasons for decision in manager_decisions(rule, saves, [], mark=-1.0, now=4200.0).decisions]
        [('one every 1 hours',), ('newest', 'last 1')]
    """
    if not tracked:
        return ManagerDecisions([], set(), mark)
    reasons: dict[str, list[str]] = {checkpoint.path: [] for checkpoint in tracked}
    reasons[tracked[-1].path].append("newest")
    policy = rule.policy or rule.also
    preserved = set()
    if rule.policy is None:
        count = rule.max_to_keep
        surplus = tracked[: max(0, len(tracked) - count)] if count is not None else []
        for checkpoint in tracked[len(surplus) :]:
            reasons[checkpoint.path].append("all" if count is None else f"last {count}")
        for checkpoint in surplus:
            if rule.every_n_hours and checkpoint.time - rule.every_n_hours * 3600 >= mark:
                mark = checkpoint.time
                preserved.add(checkpoint.path)
                reasons[checkpoint.path].append(f"one every {rule.every_n_hours:g} hours")
    in_order = _in_order(tracked)
    newest = reasons.keys() & {tracked[-1].path}
    for decision in decide(policy, [*others, *in_order], now) if policy else decide(AnyOf(()), in_order, now):
        path = decision.checkpoint.path
        if path in reasons:
            reasons[path] += [why for why in decision.reasons if why != "newest" or path in newest]
    return ManagerDecisions([Decision(c, tuple(dict.fromkeys(reasons[c.path]))) for c in tracked], preserved, mark)


def _in_order(checkpoints: Sequence[SavedCheckpoint]) -> list[SavedCheckpoint]:
    """The same checkpoints with times that rise from each to the next, which those of a corrected clock may not."""
    result: list[SavedCheckpoint] = []
    last = -math.inf
    for checkpoint in checkpoints:
        last = max(checkpoint.time, math.nextafter(last, math.inf))
        result.append(replace(checkpoint, time=last))
    return result
