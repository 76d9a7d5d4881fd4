"""Encoding of retention rules as JSON data.

The rule of a saver is recorded with each checkpoint, so that other programs can show what the saver keeps and why.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pytreesaver._run.policies.retention import (
    AnyOf,
    KeepAll,
    KeepBest,
    KeepEveryHours,
    KeepEverySteps,
    KeepLast,
    KeepSteps,
    KeepYoungerThan,
    RetentionPolicy,
    SavedCheckpoint,
)
from pytreesaver._run.policies.rules import ManagerRule, SaverRule

_POLICIES: dict[str, Any] = {
    policy.__name__: policy
    for policy in (KeepAll, KeepBest, KeepEveryHours, KeepEverySteps, KeepLast, KeepSteps, KeepYoungerThan)
}

_Policies = list[tuple[str, dict[str, Any]]]  # the class name and the fields of each part


# A rule that lacks a field, or has one that this version does not know, is not supported: it could keep less or more.
class _Limits(msgspec.Struct, forbid_unknown_fields=True):
    max_to_keep: int | None
    every_n_hours: float | None
    also: _Policies = []


class _Policy(msgspec.Struct, forbid_unknown_fields=True):
    policy: _Policies


@dataclass(frozen=True)
class UnknownPolicy(RetentionPolicy):
    """A policy that only its own program can apply, since its class is unknown here. `text` describes it."""

    text: str

    def kept(self, checkpoints: Sequence[SavedCheckpoint], now: float) -> dict[int, str]:
        """Keep all, since it is unknown which ones the policy would delete. See `RetentionPolicy.kept`."""
        return dict.fromkeys(range(len(checkpoints)), f"unknown policy: {self.text}")


def encode_rule(rule: ManagerRule | SaverRule) -> Any:
    """Return a rule as JSON data.

    Example:
        >>> encode_rule(SaverRule(3)), encode_rule(ManagerRule(policy=KeepLast(2)))
        ({'saver': {'max_to_keep': 3, 'every_n_hours': 10000.0}}, {'manager': {'policy': [['KeepLast', {'count': 2}]]}})
    """
    if isinstance(rule, SaverRule):
        return {"saver": _plain(rule)}
    if rule.policy is not None:
        return {"manager": {"policy": _encode_policy(rule.policy)}}
    fields = {"max_to_keep": _plain(rule.max_to_keep), "every_n_hours": _plain(rule.every_n_hours)}
    return {"manager": fields if rule.also is None else {**fields, "also": _encode_policy(rule.also)}}


def _encode_policy(policy: RetentionPolicy) -> list[Any]:
    if isinstance(policy, AnyOf):
        return [encoded for part in policy.parts for encoded in _encode_policy(part)]
    if isinstance(policy, UnknownPolicy):
        return [["other", {"repr": policy.text}]]
    if _POLICIES.get(type(policy).__name__) is not type(policy):
        return [["other", {"repr": repr(policy)}]]
    return [[type(policy).__name__, _plain(policy)]]


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, order="deterministic", enc_hook=lambda number: number.item())


def decode_rule(encoded: Any) -> ManagerRule | SaverRule | None:
    """Return the recorded rule, or None if there is none or this version does not support it.

    Example:
        >>> rule = ManagerRule(3, also=KeepBest(1, "loss"))
        >>> decode_rule(encode_rule(rule)) == rule
        True
    """
    try:
        ((kind, fields),) = msgspec.convert(encoded, dict[Literal["saver", "manager"], dict[str, Any]]).items()
        if kind == "manager" and "policy" in fields:
            return ManagerRule(None, policy=_decode_policy(msgspec.convert(fields, _Policy).policy))
        limits = msgspec.convert(fields, _Limits)
        if kind == "manager":
            return ManagerRule(limits.max_to_keep, limits.every_n_hours, _decode_policy(limits.also))
        return SaverRule(limits.max_to_keep, limits.every_n_hours) if not limits.also else None
    except (ValueError, TypeError, AttributeError):  # `msgspec.ValidationError` is a ValueError
        return None


def _decode_policy(encoded: _Policies) -> RetentionPolicy | None:
    parts = tuple(_decode_part(name, fields) for name, fields in encoded)
    return AnyOf(parts) if len(parts) > 1 else next(iter(parts), None)


def _decode_part(name: str, fields: dict[str, Any]) -> RetentionPolicy:
    if name == "other":
        return UnknownPolicy(str(fields.get("repr")))
    if name not in _POLICIES:
        return UnknownPolicy(f"{name}, which this version does not support")
    policy = _POLICIES[name]
    if not fields.keys() <= {field.name for field in dataclasses.fields(policy)}:
        raise ValueError(f"{name} with fields that this version does not support")
    found: RetentionPolicy = msgspec.convert(fields, policy)
    return found
