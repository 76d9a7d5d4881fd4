"""What a `Saver` and a `CheckpointManager` keep: TensorFlow's rules, and policies joined with them. Pure."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pytreesaver._run.policies.retention import (
    AnyOf,
    Decision,
    KeepBest,
    KeepEverySteps,
    RetentionPolicy,
    SavedCheckpoint,
    check_count,
    check_duration,
    decide,
)


@dataclass(frozen=True)
class SaverRule:
    """What a `Saver` keeps: the last `max_to_keep` (all if 0 or None), and one every `every_n_hours`."""

    max_to_keep: int | None = 5
    every_n_hours: float | None = 10000.0


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

    @property
    def best(self) -> KeepBest | None:
        """The first part of the rule that keeps the best checkpoints by a metric, or None."""
        parts = AnyOf(tuple(part for part in (self.policy, self.also) if part is not None)).parts
        return next((part for part in parts if isinstance(part, KeepBest)), None)


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
