"""Save policies, and the schedule of a loop that uses them."""

import itertools
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._checkpoint.saving import background
from pytreesaver._run.policies.saving import SaveInterval, SavePoint
from pytreesaver._run.policies.schedule import LastSave, SaveSchedule

POLICIES = st.one_of(
    st.builds(SaveInterval, st.integers(1, 5), st.none() | st.floats(1, 50)),
    st.builds(pts.SaveEverySteps, st.integers(1, 5)),
    st.builds(pts.SaveEverySeconds, st.floats(1, 50)),
    st.builds(pts.SaveSteps, st.frozensets(st.integers(0, 50))),
    st.builds(pts.SaveWhen, st.just(lambda step: step % 7 == 3)),
)
POINTS = st.builds(
    SavePoint,
    st.integers(10, 50),
    st.floats(0, 1000),
    st.none() | st.integers(0, 9),
    st.none() | st.floats(0, 1000),
    st.none() | st.integers(0, 9),
)


@given(POLICIES, POLICIES, POINTS)
def test_combined_policies_save_when_one_of_them_does(one, other, point):
    assert (one | other).is_due(point) == (one.is_due(point) or other.is_due(point))


def steps_saved(policy, steps, seconds_per_step=1.0):
    """Return the steps of a simulated loop that are saved."""
    schedule = SaveSchedule(policy, lambda: LastSave(None, 0.0, 0))
    found = []
    for step in steps:
        now = 1e9 + step * seconds_per_step
        assert schedule.is_due(step, now) == schedule.is_due(step, now)
        if schedule.is_due(step, now):
            schedule.saved = LastSave(step, now, 0)
            found.append(step)
    return found


@given(st.integers(1, 20), st.lists(st.integers(0, 200), unique=True).map(sorted))
def test_every_multiple_is_saved_at_the_first_step_that_reaches_it(count, steps):
    found = steps_saved(pts.SaveEverySteps(count), steps)
    for earlier, later in itertools.pairwise([None, *steps]):
        passed = later % count == 0 if earlier is None else later // count > earlier // count
        assert (later in found) == passed


@given(st.integers(1, 20), st.integers(1, 20))
def test_seconds_pass_between_saves(seconds, seconds_per_step):
    found = steps_saved(pts.SaveEverySeconds(seconds), range(100), seconds_per_step)
    expected = math.ceil(seconds / seconds_per_step)
    assert {later - earlier for earlier, later in itertools.pairwise(found)} == {expected}


@pytest.mark.parametrize("use_should_save", [False, True])
def test_a_manager_saves_by_a_policy(use_should_save):
    policy = pts.SaveEverySteps(100) | pts.SaveSteps([5, 7]) | pts.SaveWhen(lambda step: step == 42)
    with pts.CheckpointManager("run", save_policy=policy, max_to_keep=None) as manager:
        for step in range(1, 251):
            if not use_should_save or manager.should_save(step):
                manager.save(step, {"step": step})
    assert manager.all_steps() == [5, 7, 42, 100, 200]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"save_policy": lambda step: True}, TypeError, r"pass SaveWhen\(function\)"),
        ({"save_policy": 100}, TypeError, r"save_policy: expected a policy such as SaveEverySteps\(100\)"),
        ({"save_policy": pts.SaveEverySteps(5), "save_interval_steps": 5}, ValueError, "cannot be combined"),
        ({"save_policy": pts.SaveEverySteps(5), "save_interval_secs": 5}, ValueError, "cannot be combined"),
        ({"when_busy": "never"}, ValueError, 'when_busy: expected "wait" or "skip", found \'never\''),
    ],
)
def test_invalid_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        pts.CheckpointManager("run", **arguments)


def test_invalid_policies_are_rejected():
    for make in (
        lambda: pts.SaveEverySteps(0),
        lambda: pts.SaveEverySeconds(-1),
        lambda: pts.SaveEverySeconds(True),
        lambda: pts.SaveWhen(5),
        lambda: pts.SaveEverySteps(5) | 7,
    ):
        with pytest.raises((ValueError, TypeError)):
            make()


def test_a_busy_manager_skips_saves_until_the_pending_one_has_finished(monkeypatch):
    release = threading.Event()
    real = background._run

    def held_back(*arguments):
        release.wait(60)
        real(*arguments)

    monkeypatch.setattr(background, "_run", held_back)
    manager = pts.CheckpointManager("run", when_busy="skip", save_policy=pts.SaveEverySteps(10))
    assert manager.pending is None
    done = []
    assert manager.save(10, {"w": np.ones(3)}) == Path("run/ckpt-10")
    manager.pending.add_done_callback(lambda future: done.append(future.result()))
    assert not manager.should_save(20)
    assert manager.save(20, {"w": np.ones(3)}) is None
    release.set()
    assert manager.pending.result() == Path("run/ckpt-10")
    assert manager.save(21, {"w": np.ones(3)}) == Path("run/ckpt-21")
    manager.close()
    assert done == [Path("run/ckpt-10")]
    assert manager.all_steps() == [10, 21]


@pytest.mark.parametrize("block", [False, True])
def test_the_timings_of_each_save_are_in_the_history_and_in_the_log(block, caplog):
    with caplog.at_level("INFO", "pytreesaver"), pts.CheckpointManager("run", block=block) as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.ones(1000)})
    events = pts.get_checkpoint_history("run")
    assert [record.timings for record in caplog.records] == [event.timings for event in events]
    for event in events:
        timings = event.timings
        size = sum(file.stat().st_size for file in Path("run", event.name).iterdir())
        assert timings.nbytes == size > 8000
        assert 0 <= timings.waited_secs <= timings.blocked_secs
        assert timings.wrote_secs > 0
        assert not block or timings.wrote_secs <= timings.blocked_secs


def test_the_timings_of_a_saver_are_in_its_history():
    pts.Saver().save({"w": np.ones(1000)}, "run/model", 1)
    (event,) = pts.get_checkpoint_history("run")
    assert event.timings.nbytes > 8000
    assert event == pts.CheckpointEvent("saved", "model-1", event.time, 1)


@pytest.mark.parametrize("policy", [pts.SaveSteps, pts.KeepSteps])
@pytest.mark.parametrize("steps", ["100", ["100"], [-1], [1.5], [True], 5], ids=repr)
def test_named_steps_are_integers(policy, steps):
    with pytest.raises((TypeError, ValueError), match=rf"{policy.__name__}.steps: expected"):
        policy(steps)


@pytest.mark.parametrize("policy", [pts.SaveSteps, pts.KeepSteps])
def test_named_steps_may_be_arrays(policy):
    assert policy(np.array([100, 200])).steps == policy([100, np.int64(200)]).steps == {100, 200}


def test_counts_may_be_numpy_integers_and_a_policy_without_a_decision_is_named():
    assert pts.SaveEverySteps(np.int64(5)).is_due(SavePoint(5, 0.0))
    assert pts.KeepLast(np.int64(2)).count == 2
    with pts.CheckpointManager("run", keep_every_n_steps=np.int64(5), block=True) as manager:
        manager.save(1, {"w": 1})
    assert pts.list_checkpoints("run")[0].keep

    class Mine(pts.SavePolicy):
        pass

    with pytest.raises(NotImplementedError, match="Mine: expected a save policy with a method is_due"):
        pts.CheckpointManager("other", save_policy=Mine()).save(1, {"w": 1})
