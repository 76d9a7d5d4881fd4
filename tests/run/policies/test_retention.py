"""Properties of retention policies."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreesaver._run.policies.retention import (
    AnyOf,
    KeepAll,
    KeepBest,
    KeepEveryHours,
    KeepEverySteps,
    KeepLast,
    KeepSteps,
    KeepYoungerThan,
    SavedCheckpoint,
    decide,
)
from pytreesaver._run.policies.rules import ManagerRule, manager_decisions, saver_eviction

METRICS = st.dictionaries(st.sampled_from(["loss", "accuracy"]), st.floats(), max_size=2)


@st.composite
def runs(draw):
    """The checkpoints of a run in any order, some of them with equal times."""
    steps = draw(st.lists(st.integers(0, 50), unique=True, max_size=12))
    times = sorted(draw(st.lists(st.floats(0, 1e5), min_size=len(steps), max_size=len(steps))))
    checkpoints = [
        SavedCheckpoint(f"model-{step}", step, time, draw(METRICS), draw(st.integers(0, 9)) == 0)
        for step, time in zip(sorted(steps), times, strict=True)
    ]
    return draw(st.permutations(checkpoints))


COUNTS = st.integers(1, 6)
SINGLE_POLICIES = st.one_of(
    st.builds(KeepLast, COUNTS),
    st.builds(KeepEveryHours, st.floats(0.01, 20)),
    st.builds(KeepEverySteps, COUNTS),
    st.builds(KeepBest, COUNTS, st.sampled_from(["loss", "accuracy"]), st.sampled_from(["min", "max"])),
    st.builds(KeepSteps, st.frozensets(st.integers(0, 50), max_size=4)),
    st.builds(KeepYoungerThan, st.floats(1, 1e5)),
    st.just(KeepAll()),
)
POLICIES = SINGLE_POLICIES | st.builds(lambda a, b: a | b, SINGLE_POLICIES, SINGLE_POLICIES)
NOW = st.floats(1e5, 2e5)


def kept(policy, checkpoints, now):
    return {decision.checkpoint.path for decision in decide(policy, checkpoints, now) if decision.keep}


@given(POLICIES, runs(), NOW)
def test_each_checkpoint_has_one_decision_in_any_order(policy, run, now):
    decisions = decide(policy, run, now)
    assert sorted(decision.checkpoint.path for decision in decisions) == sorted(c.path for c in run)
    assert decide(policy, list(reversed(run)), now) == decisions


@given(POLICIES, runs(), NOW)
def test_the_newest_and_pinned_checkpoints_are_kept(policy, run, now):
    survivors = kept(policy, run, now)
    assert {c.path for c in run if c.pinned} <= survivors
    if run:
        assert max(run, key=lambda c: (c.time, c.step)).path in survivors


@given(POLICIES, runs(), NOW)
def test_policies_are_idempotent(policy, run, now):
    survivors = kept(policy, run, now)
    assert kept(policy, [c for c in run if c.path in survivors], now) == survivors


@given(SINGLE_POLICIES, SINGLE_POLICIES, runs(), NOW)
def test_combined_policies_keep_the_union(one, other, run, now):
    assert kept(one | other, run, now) == kept(one, run, now) | kept(other, run, now)
    assert kept(one | other, run, now) == kept(other | one, run, now)


@given(COUNTS, COUNTS, runs(), NOW)
def test_larger_limits_keep_supersets(count, more, run, now):
    assert kept(KeepLast(count), run, now) <= kept(KeepLast(count + more), run, now)
    assert kept(KeepBest(count, "loss"), run, now) <= kept(KeepBest(count + more, "loss"), run, now)
    assert kept(KeepYoungerThan(count), run, now) <= kept(KeepYoungerThan(count + more), run, now)


@given(runs(), st.floats(0.01, 20), NOW)
def test_checkpoints_kept_every_n_hours_are_that_far_apart_and_leave_no_gap(run, hours, now):
    decisions = decide(KeepEveryHours(hours), run, now)
    times = [d.checkpoint.time for d in decisions if f"every {hours:g} hours" in d.reasons]
    for earlier, later in itertools.pairwise(times):
        assert later - earlier >= hours * 3600
    for decision in decisions:
        assert any(0 <= decision.checkpoint.time - time < hours * 3600 for time in times)


@given(runs(), COUNTS, NOW)
def test_the_first_checkpoint_at_or_after_each_multiple_is_kept(run, count, now):
    steps = sorted(checkpoint.step for checkpoint in run)
    wanted = {next((step for step in steps if step >= multiple), None) for multiple in range(0, 51, count)}
    decisions = decide(KeepEverySteps(count), run, now)
    assert {d.checkpoint.step for d in decisions if f"every {count} steps" in d.reasons} == wanted - {None}


def test_checkpoints_stay_kept_when_the_steps_go_back():
    run = [SavedCheckpoint(f"m-{s}", s, float(i)) for i, s in enumerate([5, 17, 27, 12, 20, 22])]
    assert kept(KeepEverySteps(10), run, 10.0) == {"m-5", "m-17", "m-27", "m-12", "m-20", "m-22"}  # m-22 is the newest


@given(runs(), COUNTS, NOW)
def test_nan_and_missing_metrics_are_never_ranked_best(run, count, now):
    for decision in decide(KeepBest(count, "loss", "max"), run, now):
        if any(reason.startswith("best") for reason in decision.reasons):
            assert not math.isnan(decision.checkpoint.metrics["loss"])


def test_reasons():
    run = [SavedCheckpoint(f"m-{s}", s, 3600.0 * s, {"loss": abs(s - 2)}) for s in range(5)]
    run[1] = dataclasses.replace(run[1], pinned=True)
    policy = KeepLast(1) | KeepBest(1, "loss") | KeepEverySteps(4) | KeepSteps([3]) | KeepYoungerThan(5401)
    assert [(d.checkpoint.step, d.reasons) for d in decide(policy, run, now=4.5 * 3600)] == [
        (0, ("every 4 steps",)),
        (1, ("pinned",)),
        (2, ("best 1 by loss (min)",)),
        (3, ("named step", "younger than 5401 s")),
        (4, ("newest", "last 1", "every 4 steps", "younger than 5401 s")),
    ]


def test_policies_compare_by_value():
    assert KeepLast(3) | KeepEverySteps(2) == AnyOf((KeepLast(3), KeepEverySteps(2)))
    assert (KeepLast(3) | KeepAll()) | KeepLast(3) == KeepLast(3) | KeepAll()
    assert hash(KeepSteps([1, 2])) == hash(KeepSteps((2, 1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepLast(0),
        lambda: KeepLast(-1),
        lambda: KeepLast(2.0),
        lambda: KeepLast(True),
        lambda: KeepEverySteps(0),
        lambda: KeepEveryHours(0),
        lambda: KeepEveryHours(float("nan")),
        lambda: KeepYoungerThan("1"),
        lambda: KeepBest(0, "loss"),
        lambda: KeepBest(1, "loss", "lowest"),
    ],
)
def test_invalid_policies_are_rejected(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_a_lowered_limit_takes_effect_at_the_next_save():
    tracked = [(f"m-{i}", float(i)) for i in range(8)]
    eviction = saver_eviction(tracked, ("m-8", 8.0), mark=1e9, max_to_keep=2, every_n_hours=10000.0)
    assert eviction.tracked == [("m-7", 7.0), ("m-8", 8.0)]
    assert len(eviction.deleted) == 7


def test_saving_a_name_again_makes_it_the_newest():
    eviction = saver_eviction([("a", 1.0), ("b", 2.0)], ("a", 3.0), 1e9, 2, 10000.0)
    assert eviction.tracked == [("b", 2.0), ("a", 3.0)]
    assert eviction.deleted == []


RULES = st.one_of(
    st.builds(ManagerRule, st.none() | COUNTS, st.none() | st.floats(0.01, 20), st.none() | POLICIES),
    st.builds(lambda policy: ManagerRule(policy=policy), POLICIES),
)
MARKS = st.floats(-1, 1e5)


def in_order(run):
    return sorted(run, key=lambda checkpoint: (checkpoint.time, checkpoint.step))


def survivors(result):
    kept = [d.checkpoint for d in result.decisions if d.keep and d.checkpoint.path not in result.preserved]
    return kept, [d.checkpoint for d in result.decisions if d.checkpoint.path in result.preserved]


@given(RULES, runs(), runs(), MARKS, NOW)
def test_a_manager_keeps_the_newest_and_pinned_checkpoints(rule, run, others, mark, now):
    others = [dataclasses.replace(c, path=f"other-{c.step}") for c in others]
    decisions = manager_decisions(rule, in_order(run), others, mark, now).decisions
    assert [d.checkpoint for d in decisions] == in_order(run)
    if decisions:
        assert "newest" in decisions[-1].reasons
        assert all("newest" not in d.reasons for d in decisions[:-1])
    assert all(d.keep for d in decisions if d.checkpoint.pinned)


@given(RULES, runs(), MARKS, NOW)
def test_the_decisions_of_a_manager_are_idempotent(rule, run, mark, now):
    result = manager_decisions(rule, in_order(run), [], mark, now)
    kept, preserved = survivors(result)
    again = manager_decisions(rule, kept, preserved, result.mark, now)
    assert all(decision.keep for decision in again.decisions)


@given(st.none() | COUNTS, st.none() | st.floats(0.01, 20), POLICIES, runs(), MARKS, NOW)
def test_an_additional_policy_keeps_a_superset(count, hours, also, run, mark, now):
    def kept(rule):
        result = manager_decisions(rule, in_order(run), [], mark, now)
        return {decision.checkpoint.path for decision in result.decisions if decision.keep}

    assert kept(ManagerRule(count, hours, also)) >= kept(ManagerRule(count, hours))


@given(RULES, runs(), MARKS, NOW)
def test_the_newest_is_kept_if_the_clock_was_set_back(rule, run, mark, now):
    backwards = [dataclasses.replace(c, time=1e5 - i) for i, c in enumerate(in_order(run))]
    decisions = manager_decisions(rule, backwards, [], mark, now).decisions
    assert not decisions or decisions[-1].keep


def test_a_checkpoint_that_is_no_longer_the_best_is_deleted():
    saves = [SavedCheckpoint(f"c-{i}", i, 3600.0 * i, {"loss": loss}) for i, loss in enumerate([0.1, 0.5, 0.4, 0.3])]
    rule = ManagerRule(max_to_keep=1, every_n_hours=None, also=KeepBest(1, "loss"))
    kept = [d.checkpoint.path for d in manager_decisions(rule, saves, [], -1.0, 0.0).decisions if d.keep]
    assert kept == ["c-0", "c-3"]
    beaten = [*saves[:1], SavedCheckpoint("c-4", 4, 20000.0, {"loss": 0.05})]
    decisions = manager_decisions(rule, beaten, [], -1.0, 0.0).decisions
    assert [d.checkpoint.path for d in decisions if d.keep] == ["c-4"]
