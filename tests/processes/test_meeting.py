"""Meetings: messages, deadlines, and errors that all hear of."""

import threading
import time

import pytest
from processes.in_threads import MemoryStore, Ranks

import pytreesaver as pts
from pytreesaver._io.processes import coordinator
from pytreesaver._io.processes.meeting import Meeting, check_timeout, new_meeting, telling


@pytest.fixture
def ranks(monkeypatch):
    ranks = Ranks(3, monkeypatch)
    yield ranks
    ranks.close()


def run(ranks, *calls, timeout=5.0, subject="x"):
    """Call a function of the meeting in each rank. Return the results or errors."""

    def call(function):
        meeting = new_meeting("test", subject, timeout)
        with telling(meeting):
            return function(meeting)

    return ranks.run([lambda function=function: call(function) for function in calls])


def test_process_0_decides(ranks):
    decide = lambda meeting: meeting.first("what", lambda: [meeting.rank, 7], list[int], "decide")  # noqa: E731
    assert run(ranks, decide, decide, decide) == [[0, 7]] * 3


def test_all_send_to_process_0(ranks):
    send = lambda meeting: meeting.gather("part", str(meeting.rank).encode(), "send")  # noqa: E731
    assert run(ranks, send, send, send) == [[b"0", b"1", b"2"], [], []]


def test_the_calls_are_told_apart_by_their_number_and_subject(ranks):
    for number in range(3):
        for subject in ("a", "b"):
            value = f"{subject}{number}"
            decide = lambda meeting, value=value: meeting.first("what", lambda: value, str, "decide")  # noqa: E731
            assert run(ranks, decide, decide, decide, subject=subject) == [value] * 3


def missing_of(error):
    assert isinstance(error, pts.ProcessTimeoutError), error
    assert isinstance(error, TimeoutError)
    return error.missing


def test_the_missing_processes_are_named(ranks):
    send = lambda meeting: meeting.gather("part", b"", "send their parts")  # noqa: E731
    stay_away = lambda meeting: None  # noqa: E731
    started = time.monotonic()
    results = run(ranks, send, send, stay_away, timeout=0.5)
    assert missing_of(results[0]) == [2]
    assert "test: process 2 of 3 did not send their parts within 0.45 s" in str(results[0])
    assert time.monotonic() - started < 2


def test_a_wait_for_process_0_ends_too_and_says_whose_parts_are_missing(ranks):
    def wait(meeting):
        meeting.gather("part", b"", "")
        return meeting.hear("end", "complete the checkpoint")

    results = run(ranks, lambda meeting: time.sleep(1), wait, lambda meeting: None, timeout=0.5)
    assert missing_of(results[1]) == [0]
    assert "did not complete the checkpoint within 0.5 s, which lacks the parts of process 2" in str(results[1])


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_error_is_raised_in_all_processes(ranks, rank):
    def fail(meeting):
        raise pts.CheckpointIOError("the disk is full", 28)

    def wait(meeting):
        if meeting.is_first:
            return meeting.gather("part", b"", "send")
        return meeting.hear("end", "end")

    calls = [wait] * 3
    calls[rank] = fail
    started = time.monotonic()
    results = run(ranks, *calls)
    assert time.monotonic() - started < 3
    for other, error in enumerate(results):
        assert isinstance(error, pts.CheckpointIOError)
        assert error.errno == 28
        assert str(error) == ("the disk is full" if other == rank else f"process {rank}: the disk is full")


def test_an_error_of_another_kind_is_a_checkpoint_error_elsewhere(ranks):
    def fail(meeting):
        raise ValueError("no such format")

    results = run(ranks, fail, lambda meeting: meeting.hear("end", "end"), lambda meeting: None)
    assert isinstance(results[0], ValueError)
    assert str(results[1]) == "process 0: ValueError: no such format"
    assert type(results[1]) is pts.CheckpointError


def test_calls_that_differ_are_noticed(ranks):
    def call(what, options):
        def run():
            meeting = new_meeting(what, "subject", 5.0, options=options)
            with telling(meeting):
                return meeting.first("decided", lambda: 7, int, "decide")

        return run

    results = ranks.run([call("pin(3)", None), call("pin(3)", None), call("pin(18)", None)])
    assert results[:2] == [7, 7] or isinstance(results[1], pts.CheckpointError)
    assert str(results[2]).startswith("pin(18): process 0 makes another call at this point, or with other arguments")
    assert "its last call: pin(3)" in str(results[2])
    results = ranks.run([call("save", 1), call("save", 2), call("save", 1)])
    assert "with other arguments" in str(results[1])


def test_messages_do_not_pile_up(ranks, monkeypatch):
    from pytreesaver._io.processes import meeting as module

    monkeypatch.setattr(module, "_ended", [])

    def decide(meeting):
        meeting.first("what", lambda: 1, int, "decide")
        meeting.gather("part", b"x" * 1000, "send")
        meeting.forget()

    for _ in range(20):
        run(ranks, decide, decide, decide, timeout=0.01)
        time.sleep(0.03)
    assert len(ranks.store.values) < 15


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("inf"), ValueError),
        (float("nan"), ValueError),
        ("10", TypeError),
        (True, TypeError),
    ],
)
def test_wrong_time_limits_are_refused(timeout, kind):
    with pytest.raises(kind, match="timeout: expected"):
        check_timeout(timeout)
    for call in (
        lambda: pts.save({}, "model", timeout=timeout),
        lambda: pts.save_async({}, "model", timeout=timeout),
        lambda: pts.restore("model", timeout=timeout),
        lambda: pts.Saver(timeout=timeout),
        lambda: pts.CheckpointManager("run", timeout=timeout),
    ):
        with pytest.raises(kind, match="timeout: expected"):
            call()


def test_wrong_processes_are_refused():
    for call in (
        lambda: pts.save({}, "model", processes="mine"),
        lambda: pts.restore("model", processes=[0]),
        lambda: pts.Saver(processes="0"),
        lambda: pts.CheckpointManager("run", processes=None),
    ):
        with pytest.raises(ValueError, match='processes: expected "all" or "this"'):
            call()


def test_jax_has_the_client_that_messages_go_through():
    """If JAX moves or changes it, this fails first."""
    from jax._src import distributed
    from jax._src.lib import _jax

    state = distributed.global_state
    assert (state.client, state.num_processes, state.process_id) == (None, 1, 0)
    for name in ("key_value_set_bytes", "blocking_key_value_get_bytes", "key_value_dir_get_bytes", "key_value_delete"):
        assert callable(getattr(_jax.DistributedRuntimeClient, name)), name
    assert coordinator.current_processes() is None


class LostClient:
    def key_value_set_bytes(self, *arguments, **options):
        raise RuntimeError("UNAVAILABLE: failed to connect to all addresses\nmore")

    blocking_key_value_get_bytes = key_value_dir_get_bytes = key_value_delete = key_value_set_bytes


def test_a_coordinator_that_is_gone_is_said_so():
    lost = coordinator.JaxCoordinator(LostClient())
    meeting = Meeting(coordinator.Processes(1, 2, lost), "save to model", "model", 5.0)
    with pytest.raises(
        pts.CheckpointError, match=r"the coordinator of jax\.distributed, which runs in process 0"
    ) as caught:
        meeting.hear("end", "end")
    assert isinstance(caught.value, ConnectionError)
    assert "\n" not in str(caught.value)
    meeting.fail(caught.value)  # nobody can be told
    meeting.forget()


def test_a_message_that_has_arrived_already_is_no_error():
    class RepeatingClient:
        def key_value_set_bytes(self, key, value, *, allow_overwrite):
            raise RuntimeError("ALREADY_EXISTS: key")  # the answer to a request that was sent twice

    coordinator.JaxCoordinator(RepeatingClient()).put("key", b"value")
    with pytest.raises(coordinator.CoordinatorLostError):
        coordinator.JaxCoordinator(LostClient()).put("key", b"value")


def test_a_store_in_memory_waits(monkeypatch):
    ranks = Ranks(2, monkeypatch)
    threading.Timer(0.1, ranks.coordinators[1].put, ["key", b"value"]).start()
    assert ranks.coordinators[0].get("key", 5) == b"value"
    assert isinstance(ranks.store, MemoryStore)
    ranks.close()
