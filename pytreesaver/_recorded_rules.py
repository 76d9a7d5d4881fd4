"""The rule of a saver as JSON data and back: it is recorded with each checkpoint, so that whoever looks at a run
directory can say what its saver keeps and why. Pure."""

import dataclasses
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytreesaver._retention import (
    AnyOf,
    KeepAll,
    KeepBest,
    KeepEveryHours,
    KeepEverySteps,
    KeepLast,
    KeepSteps,
    KeepYoungerThan,
    ManagerRule,
    RetentionPolicy,
    SavedCheckpoint,
)

_POLICIES = {
    policy.__name__: policy
    for policy in (KeepAll, KeepBest, KeepEveryHours, KeepEverySteps, KeepLast, KeepSteps, KeepYoungerThan)
}


@dataclass(frozen=True)
class SaverRule:
    """What a `Saver` keeps: the last `max_to_keep` (all if 0 or None), and one every `every_n_hours`."""

    max_to_keep: int | None = 5
    every_n_hours: float | None = 10000.0


@dataclass(frozen=True)
class UnknownPolicy(RetentionPolicy):
    """A policy of a class of the user's, which only the program that defines it can ask. `text` is its ``repr``."""

    text: str

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """All: of none can be said that it will go. See `RetentionPolicy.kept`."""
        return dict.fromkeys(range(len(checkpoints)), f"perhaps: {self.text} decides")


def encode_rule(rule: ManagerRule | SaverRule) -> Any:
    """A rule as JSON data.

    Example:
        >>> encode_rule(SaverRule(3)), encode_rule(ManagerRule(policy=KeepLast(2)))
        ({'saver': {'max_to_keep': 3, 'every_n_hours': 10000.0}}, {'manager': {'policy': [['KeepLast', {'count': 2}]]}})
    """
    if isinstance(rule, SaverRule):
        return {"saver": {name: _plain(value) for name, value in dataclasses.asdict(rule).items()}}
    if rule.policy is not None:
        return {"manager": {"policy": _encode_policy(rule.policy)}}
    fields: dict[str, Any] = {
        "max_to_keep": _plain(rule.max_to_keep),
        "every_n_hours": _plain(rule.every_n_hours),
    }
    return {"manager": fields if rule.also is None else {**fields, "also": _encode_policy(rule.also)}}


def _encode_policy(policy: RetentionPolicy) -> list[Any]:
    if isinstance(policy, AnyOf):
        return [encoded for part in policy.parts for encoded in _encode_policy(part)]
    if isinstance(policy, UnknownPolicy):
        return [["other", {"repr": policy.text}]]
    if _POLICIES.get(type(policy).__name__) is not type(policy):
        return [["other", {"repr": repr(policy)}]]
    return [[type(policy).__name__, {name: _plain(value) for name, value in vars(policy).items()}]]


def _plain(value: Any) -> Any:
    """A setting as a value of Python's own: users give NumPy's too."""
    if isinstance(value, frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def decode_rule(encoded: Any) -> ManagerRule | SaverRule | None:
    """The rule that was recorded; None if there is none, or none that this version knows.

    Example:
        >>> rule = ManagerRule(3, also=KeepBest(1, "loss"))
        >>> decode_rule(encode_rule(rule)) == rule
        True
    """
    try:
        ((kind, fields),) = encoded.items()
        if kind == "saver":
            return SaverRule(fields["max_to_keep"], fields["every_n_hours"])
        if "policy" in fields:
            return ManagerRule(None, policy=_decode_policy(fields["policy"]))
        also = _decode_policy(fields["also"]) if "also" in fields else None
        return ManagerRule(fields["max_to_keep"], fields["every_n_hours"], also)
    except (AttributeError, TypeError, ValueError, KeyError):
        return None


def _decode_policy(encoded: Any) -> RetentionPolicy:
    parts = tuple(_decode_part(name, fields) for name, fields in encoded)
    return parts[0] if len(parts) == 1 else AnyOf(parts)


def _decode_part(name: str, fields: dict[str, Any]) -> RetentionPolicy:
    if name == "other":
        return UnknownPolicy(str(fields["repr"]))
    if name not in _POLICIES:
        return UnknownPolicy(f"{name}, which this version does not know,")
    return _POLICIES[name](**fields)
