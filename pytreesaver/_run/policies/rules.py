"""The retention rules of `Saver` and `CheckpointManager`: TensorFlow's, combined with policies. Pure functions."""

import math
import re
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pytreesaver._errors import RetentionWarning
from pytreesaver._run.policies.retention import (
    AnyOf,
    Decision,
    KeepBest,
    KeepEverySteps,
    RetentionPolicy,
    SavedCheckpoint,
    check_count,
    check_duration,
    check_policy,
    decide,
)


@dataclass(frozen=True)
class SaverRule:
    """The rule of a `Saver`: keep the last `max_to_keep` (all if 0 or None), and one per `every_n_hours`."""

    max_to_keep: int | None = 5
    every_n_hours: float | None = 10000.0


class Eviction(NamedTuple):
    """The effect of one save on the tracked checkpoints of a `Saver`.

    `tracked` are the (path, time) that remain tracked, oldest first. `preserved` are kept permanently and no longer
    tracked. `deleted` will be deleted. `mark` is the state of the rule for the next save.
    """

    tracked: list[tuple[str, float]]
    preserved: list[str]
    deleted: list[str]
    mark: float


def saver_interval(every_n_hours: float) -> float:
    """Return the seconds between preserved checkpoints. As in TensorFlow's `SaverDef`, hours have 32-bit precision.

    Example:
        >>> saver_interval(1.0)
        3600.0
    """
    (as_stored,) = struct.unpack("f", struct.pack("f", min(every_n_hours, 3e38)))
    return float(as_stored) * 3600


def saver_eviction(
    tracked: Sequence[tuple[str, float]], saved: tuple[str, float], mark: float, max_to_keep: int, every_n_hours: float
) -> Eviction:
    """Apply the rule of `tf.train.Saver` after a save.

    A checkpoint that is no longer one of the last `max_to_keep` is deleted, unless it was saved strictly after `mark`:
    then it is preserved, and `mark` advances by one interval. Initially, `mark` is the time of the Saver's construction
    plus one interval. Unlike TensorFlow, which evicts one checkpoint per save, this evicts all surplus checkpoints, so
    that a lowered `max_to_keep` takes effect.

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
    """The rule of a `CheckpointManager`: the `policy`, or else TensorFlow's rule combined with the policy `also`.

    The rule of TensorFlow 2's `tf.train.CheckpointManager` is to keep the last `max_to_keep` checkpoints (all if None),
    and one per `every_n_hours`.
    """

    max_to_keep: int | None = 5
    every_n_hours: float | None = None
    also: RetentionPolicy | None = None
    policy: RetentionPolicy | None = None

    @property
    def is_tensorflow_rule(self) -> bool:
        """Whether this is TensorFlow's rule alone, without policies."""
        return self.also is None and self.policy is None

    @property
    def best(self) -> KeepBest | None:
        """The first `KeepBest` among the policies, or None."""
        parts = AnyOf(tuple(part for part in (self.policy, self.also) if part is not None)).parts
        return next((part for part in parts if isinstance(part, KeepBest)), None)


class ManagerDecisions(NamedTuple):
    """The decision for each tracked checkpoint, oldest first.

    `preserved` are the paths of those that are kept permanently and no longer need to be tracked. `mark` is the state
    of the rule for the next save.
    """

    decisions: list[Decision]
    preserved: set[str]
    mark: float


def manager_decisions(
    rule: ManagerRule, tracked: Sequence[SavedCheckpoint], others: Sequence[SavedCheckpoint], mark: float, now: float
) -> ManagerDecisions:
    """Return the decisions of a `CheckpointManager` for its tracked checkpoints, given in the order of their saves.

    Without a policy, a checkpoint that is no longer one of the last `max_to_keep` is deleted, unless it was saved at
    least one interval after `mark`, the time of the last preserved checkpoint: then it is preserved. Initially, `mark`
    is one second before the manager's construction. `others` are untracked checkpoints, which are kept, but compete for
    the best. The newest checkpoint and pinned ones are always kept.

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
    increasing = _with_increasing_times(tracked)
    newest = reasons.keys() & {tracked[-1].path}
    for decision in decide(policy, [*others, *increasing], now) if policy else decide(AnyOf(()), increasing, now):
        path = decision.checkpoint.path
        if path in reasons:
            reasons[path] += [why for why in decision.reasons if why != "newest" or path in newest]
    return ManagerDecisions([Decision(c, tuple(dict.fromkeys(reasons[c.path]))) for c in tracked], preserved, mark)


def _with_increasing_times(checkpoints: Sequence[SavedCheckpoint]) -> list[SavedCheckpoint]:
    """Return the checkpoints with strictly increasing times, even if the clock was set back between the saves."""
    result: list[SavedCheckpoint] = []
    last = -math.inf
    for checkpoint in checkpoints:
        last = max(checkpoint.time, math.nextafter(last, math.inf))
        result.append(replace(checkpoint, time=last))
    return result


_LARGER_IS_BETTER = re.compile(
    r"(?:^|[^a-z])"
    r"(?:acc|accuracy|auc|auroc|bleu|f1|iou|precision|psnr|recall|rewards?|returns?|rouge|ssim|score)"
    r"(?:$|[^a-z])",
    re.IGNORECASE,
)


def _warn_of_mode(keep_best: tuple[Any, ...]) -> None:
    if len(keep_best) == 2 and isinstance(keep_best[1], str) and _LARGER_IS_BETTER.search(keep_best[1]):
        count, metric = keep_best
        warnings.warn(
            f'keep_best: keeps the checkpoints with the lowest {metric}; pass ({count}, "{metric}", "max") for the '
            f'highest, or ({count}, "{metric}", "min") if that is meant',
            RetentionWarning,
            stacklevel=4,
        )


def manager_rule(
    max_to_keep: int | None,
    every_n_hours: float | None,
    every_n_steps: int | None,
    keep_best: KeepBest | tuple[Any, ...] | None,
    policy: RetentionPolicy | None,
) -> ManagerRule:
    """Return the rule of a `CheckpointManager` with these arguments.

    Raises:
        TypeError, ValueError: if an argument is invalid, or `policy` is combined with an argument that it replaces.
    """
    check_count("max_to_keep", max_to_keep, least=1)
    check_duration("keep_checkpoint_every_n_hours", every_n_hours, "hours")
    if isinstance(keep_best, tuple):
        _warn_of_mode(keep_best)
        keep_best = KeepBest(*keep_best)
    if keep_best is not None and not isinstance(keep_best, KeepBest):
        raise TypeError(f'keep_best: expected a KeepBest or (count, metric, "min" or "max"), found {keep_best!r}')
    also = [part for part in (None if every_n_steps is None else KeepEverySteps(every_n_steps), keep_best) if part]
    if policy is None:
        return ManagerRule(max_to_keep, every_n_hours, AnyOf(tuple(also)) if also else None)
    check_policy(policy)
    if also or every_n_hours is not None or max_to_keep != ManagerRule().max_to_keep:
        raise ValueError(
            "policy: cannot be combined with max_to_keep and keep_... arguments; add KeepLast, KeepEveryHours, "
            "KeepEverySteps or KeepBest to the policy with | instead"
        )
    return ManagerRule(policy=policy)
